"""How far a command has come: one line that is rewritten on a terminal; in a log a line every ten seconds.

The first line of a log comes after five.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

PLAIN_EVERY_S = 10.0
PLAIN_FIRST_S = 5.0
TERMINAL_EVERY_S = 0.1
LOOKS_EVERY_S = 0.1
"""So often `ticking` looks whether it is time for a line."""


class Progress:
    """`with Progress("re-encoding", total, "files") as progress: progress.add(3)`.

    Says how many of how many, the rate and the time left; `total` is None where nobody knows it beforehand. `done`
    counts that cost nothing here (finished in an earlier run) are left out of the rate. A command that is over before
    the first line is due says nothing.
    """

    def __init__(self, doing: str, total: int | None, unit: str, out: TextIO | None = None) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self.done = self.earlier = 0
        self.note = ""
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._started = self._last = time.monotonic()
        self._shown = 0
        self._told = False
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._shown:
            self._rewrite("")
        return False

    def add(self, count: int = 1, *, earlier: bool = False) -> None:
        """`count` more are done; `earlier`: they were found done."""
        self.to(self.done + count, earlier=earlier)

    def to(self, done: int, *, earlier: bool = False) -> None:
        """`done` are done."""
        if earlier:
            self.earlier += done - self.done
        self.done = done
        self.tick()

    def tick(self) -> None:
        """Shows the state if it is time to; cheap enough for every item, and any thread may."""
        if not self._is_time(time.monotonic()):
            return
        with self._lock:
            self._show(time.monotonic())

    def _is_time(self, now: float) -> bool:
        if self._terminal:
            return now - self._last >= TERMINAL_EVERY_S
        return now - self._last >= (PLAIN_EVERY_S if self._told else min(PLAIN_FIRST_S, PLAIN_EVERY_S))

    def _show(self, now: float) -> None:
        if not self._is_time(now):  # another thread has shown it meanwhile
            return
        self._last = now
        text = self.text(now - self._started)
        if self._terminal:
            self._rewrite(text[: shutil.get_terminal_size((160, 24)).columns - 1])
        else:
            print(text, file=self._out, flush=True)
            self._told = True

    def text(self, seconds: float) -> str:
        """The line after so many seconds."""
        here = self.done - self.earlier
        rate = here / max(seconds, 1e-9)
        speed = f", {rate:,.0f} {self.unit}/s" if rate >= 10 else f", {rate:.1f} {self.unit}/s"
        if rate < 0.05:  # the time that is left says more
            speed = ""
        of = "" if self.total is None else f"/{self.total:,}"
        left = ""
        if not here:
            left = f", {_clock(seconds)} so far"
        elif self.total is not None and self.done < self.total:
            left = f", {_clock((self.total - self.done) / rate)} left"
        return f"{self.doing}: {self.done:,}{of} {self.unit}{speed}{left}{self.note}"

    def _rewrite(self, text: str) -> None:
        self._out.write("\r" + text.ljust(self._shown) + ("" if text else "\r"))
        self._out.flush()
        self._shown = len(text)


@contextlib.contextmanager
def ticking(progress: Progress) -> Iterator[None]:
    """A thread ticks while the block runs: there a single call may take long, such as the listing of a store."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(LOOKS_EVERY_S):
            progress.tick()

    thread = threading.Thread(target=tick, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _clock(seconds: float) -> str:
    """90 -> 1:30, 4000 -> 1:06:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
