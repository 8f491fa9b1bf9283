import io
import time

import pytest

from polytrain import progress
from polytrain.progress import Progress, ticking


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_says_how_many_how_fast_and_how_long_still():
    bar = Progress("re-encoding", 50_000, "files", io.StringIO())
    bar.done = 1_000
    assert bar.text(10.0) == "re-encoding: 1,000/50,000 files, 100 files/s, 8:10 left"


def test_what_an_earlier_run_finished_does_not_count_as_speed():
    bar = Progress("re-encoding", 3_000, "files", io.StringIO())
    bar.add(1_000, earlier=True)
    bar.add(50)
    assert bar.text(10.0) == "re-encoding: 1,050/3,000 files, 5.0 files/s, 6:30 left"


def test_an_unknown_total_has_no_end():
    bar = Progress("reading", None, "rows", io.StringIO())
    bar.done = 7
    assert bar.text(1.0) == "reading: 7 rows, 7.0 rows/s"


def test_a_terminals_line_is_rewritten_and_gone_in_the_end(monkeypatch):
    monkeypatch.setattr(progress, "TERMINAL_EVERY_S", 0.0)
    out = Terminal()
    with Progress("reading", 10, "files", out) as bar:
        bar.add()
        bar.add()
    assert "\rreading: 2/10 files" in out.getvalue()
    assert "\n" not in out.getvalue()
    assert out.getvalue().endswith(" \r")


@pytest.mark.parametrize(("every", "lines"), [(0.0, 2), (10.0, 0)])
def test_a_log_gets_plain_lines_now_and_then(monkeypatch, every, lines):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", every)
    out = io.StringIO()
    with Progress("reading", 10, "files", out) as bar:
        bar.add()
        bar.add()
    assert len(out.getvalue().splitlines()) == lines
    assert "\r" not in out.getvalue()


def test_what_has_nothing_to_count_yet_says_how_long_it_has_taken():
    assert Progress("looking for files", None, "files", io.StringIO()).text(75.0) == (
        "looking for files: 0 files, 1:15 so far"
    )


def test_when_all_is_done_no_time_is_left():
    bar = Progress("writing", 10, "rows", io.StringIO())
    bar.done = 10
    assert bar.text(1.0) == "writing: 10/10 rows, 10 rows/s"


def test_a_call_that_returns_late_is_seen_to_go_on(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.02)
    monkeypatch.setattr(progress, "LOOKS_EVERY_S", 0.01)
    out = io.StringIO()
    with Progress("listing", None, "files", out) as bar, ticking(bar):
        end = time.monotonic() + 30
        while out.getvalue().count("listing: 0 files") < 3 and time.monotonic() < end:
            time.sleep(0.01)  # a call that counts nothing
    assert out.getvalue().count("listing: 0 files") >= 3


def test_a_tick_that_is_not_due_costs_next_to_nothing():
    """Two million annotations are ticked one by one."""
    bar = Progress("reading", None, "rows", io.StringIO())
    started = time.process_time()
    for done in range(100_000):
        bar.to(done)
    assert time.process_time() - started < 2.0


def test_a_logs_first_line_comes_after_five_seconds_the_others_after_ten(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out, lines = io.StringIO(), []
    bar = Progress("reading", 10, "files", out)
    for clock[0] in (104.9, 105.0, 114.9, 115.0):
        bar.tick()
        lines.append(out.getvalue().count("\n"))
    assert lines == [0, 1, 1, 2]
