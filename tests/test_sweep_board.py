"""What a sweep shows while it runs."""

import io

from polytrain.recipe import check
from polytrain.run_folder import RunFolder
from polytrain.sweep.board import Board, Display
from polytrain.sweep.outcome import DIVERGED, FINISHED, Ended, Row
from polytrain.sweep.points import open_space


class Terminal(io.StringIO):
    def isatty(self):
        return True


def board_of(tiny, **keys):
    space = open_space(check(tiny | {"grid": {"lr": [0.1, 1.0]}} | keys))
    points = {(p.task, p.values["lr"]): p for p in space.grid()}
    return Board([t.task for t in space.tasks], list(points.values()), {}), points


def running(board, point, **progress):
    board.start(point)
    point.folder.mkdir(parents=True)
    RunFolder(point.folder).write_progress({"step": 3, "steps": 8, "phase": "train", **progress})


def test_the_table_has_a_line_a_task_and_a_column_a_point(tiny):
    board, points = board_of(tiny)
    running(board, points["colours", 0.1], best=41.25)
    board.start(points["colours", 1.0])
    board.end(Row(points["moves", 0.1], Ended(FINISHED, 66.666, "r")))
    board.end(Row(points["moves", 1.0], Ended(DIVERGED, None, "r")))
    lines = [line.split("  ") for line in board.text().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["task", "lr=0.1", "lr=1"]
    assert cells[2:] == [
        ["colours", "3/8 41.2", "starting"],
        ["moves", "66.7", "diverged"],
        ["tones", "waiting", "waiting"],
    ]


def test_a_log_gets_one_plain_line(tiny):
    board, points = board_of(tiny)
    running(board, points["colours", 0.1])
    board.end(Row(points["moves", 1.0], Ended(DIVERGED, None, "r")))
    out = io.StringIO()
    display = Display(board, out)
    display.show()
    display.show()
    assert out.getvalue() == "1 of 6 trials done, 1 running, 1 diverged, 0:00 | colours lr=0.1 3/8\n"


def test_a_terminal_is_redrawn_in_place(tiny):
    board, _ = board_of(tiny)
    out = Terminal()
    display = Display(board, out)
    display.show()
    lines = out.getvalue().count("\n")
    display.show()
    assert out.getvalue().count(f"\x1b[{lines}F\x1b[J") == 1


def test_a_trial_that_crashed_once_is_running_again(tiny):
    board, points = board_of(tiny)
    board.start(points["colours", 0.1])
    board.again(points["colours", 0.1].fingerprint)
    assert board.cell(points["colours", 0.1]) == "again starting"
