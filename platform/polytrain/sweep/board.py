"""What a sweep shows while it runs: one table, task by grid point, redrawn on a terminal; a plain line in a log."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from polytrain.report import LOG_INTERVAL_S, duration, table
from polytrain.run_folder import RunFolder
from polytrain.sweep.outcome import DIVERGED, FINISHED, Row
from polytrain.sweep.points import Point


class Board:
    """Where every trial stands. Ray Tune's thread writes, the driver's reads."""

    def __init__(self, tasks: Sequence[str], waiting: Sequence[Point], searched: dict[str, int]) -> None:
        self._lock = threading.Lock()
        self._tasks, self._searched = list(tasks), searched
        self._points = {point.fingerprint: point for point in waiting}
        self._running: dict[str, float] = {}
        self._again: set[str] = set()
        self._rows: dict[str, Row] = {}
        self._began = time.monotonic()

    # --- Tune's side ---

    def start(self, point: Point) -> None:
        with self._lock:
            self._points[point.fingerprint] = point
            self._running[point.fingerprint] = time.monotonic()

    def again(self, fingerprint: str) -> None:
        """It crashed and gets its second chance."""
        with self._lock:
            self._again.add(fingerprint)

    def end(self, row: Row) -> None:
        with self._lock:
            self._points[row.point.fingerprint] = row.point
            self._running.pop(row.point.fingerprint, None)
            self._rows[row.point.fingerprint] = row

    def point(self, fingerprint: str) -> Point:
        return self._points[fingerprint]

    # --- the driver's side ---

    @property
    def rows(self) -> list[Row]:
        """Trials that ended, in the order of tasks and points."""
        with self._lock:
            rows = [self._rows[key] for key in self._points if key in self._rows]
        return sorted(rows, key=lambda row: self._tasks.index(row.point.task))

    @property
    def running(self) -> list[Point]:
        with self._lock:
            return [self._points[key] for key in self._running]

    @property
    def total(self) -> int:
        gridded = sum(point.task not in self._searched for point in list(self._points.values()))
        return max(len(self._points), gridded + sum(self._searched.values()))

    def cell(self, point: Point) -> str:
        """waiting, running with its step and its best so far, or how it ended."""
        row = self._rows.get(point.fingerprint)
        if row is not None:
            return row.ended.shown
        if point.fingerprint not in self._running:
            return "waiting"
        progress = RunFolder(point.folder).progress()
        again = "again " if point.fingerprint in self._again else ""
        if not progress:
            return f"{again}starting"
        best = f" {progress['best']:.1f}" if progress.get("best") is not None else ""
        return f"{again}{progress['step']}/{progress['steps']}{best}"

    def text(self) -> str:
        """The table: a line a task. Points that several tasks share stand in columns."""
        with self._lock:
            points = list(self._points.values())
        labels = list(dict.fromkeys(point.label for point in points if point.task not in self._searched))
        rows = []
        for task in self._tasks:
            mine = {point.label: point for point in points if point.task == task}
            if task in self._searched:
                rows.append([task, *([""] * len(labels)), self._search_text(task, list(mine.values()))])
            else:
                rows.append([task, *(self.cell(mine[label]) if label in mine else "" for label in labels)])
        header = ["task", *labels, *(["search"] if self._searched else [])]
        return table(header, [row + [""] * (len(header) - len(row)) for row in rows])

    def _search_text(self, task: str, points: list[Point]) -> str:
        ended = [self._rows[point.fingerprint] for point in points if point.fingerprint in self._rows]
        best = max((row for row in ended if row.ended.score is not None), key=lambda row: row.ended.score, default=None)
        now = [f"{point.label} {self.cell(point)}" for point in points if point.fingerprint in self._running]
        words = [f"{len(ended)}/{self._searched[task]} done"]
        words += [f"best {best.ended.shown} at {best.point.label}"] if best else []
        return ", ".join(words + now)

    def line(self) -> str:
        """One line for a log."""
        rows, running = self.rows, self.running
        failed = sum(row.ended.status not in (FINISHED, DIVERGED) for row in rows)
        diverged = sum(row.ended.status == DIVERGED for row in rows)
        counts = [f"{len(rows)} of {self.total} trials done", f"{len(running)} running"]
        counts += [f"{number} {what}" for number, what in ((diverged, "diverged"), (failed, "failed")) if number]
        now = "; ".join(f"{point.task} {point.label} {self.cell(point)}" for point in running)
        return f"{', '.join(counts)}, {duration(time.monotonic() - self._began)}" + (f" | {now}" if now else "")


class Display:
    """Draws a board: in place on a terminal, a line every ten seconds in a log."""

    def __init__(self, board: Board, out: TextIO | None = None) -> None:
        self._board, self._out = board, out or sys.stdout
        self._terminal = self._out.isatty()
        self._drawn, self._last = 0, -math.inf

    def show(self) -> None:
        if self._terminal:
            self._draw(f"{self._board.text()}\n{self._board.line()}")
        elif time.monotonic() - self._last >= LOG_INTERVAL_S:
            self._last = time.monotonic()
            print(self._board.line(), file=self._out, flush=True)

    def say(self, text: str) -> None:
        """A line of its own; the table goes on below it."""
        self.clear()
        print(text, file=self._out, flush=True)

    def clear(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}F\x1b[J")
            self._out.flush()
            self._drawn = 0

    def _draw(self, text: str) -> None:
        import shutil

        size = shutil.get_terminal_size((160, 24))
        lines = [line[: size.columns - 1] for line in text.splitlines()][-(size.lines - 1) :]
        up = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._out.write(up + "".join(f"{line}\n" for line in lines))
        self._out.flush()
        self._drawn = len(lines)
