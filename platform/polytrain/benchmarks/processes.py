"""What a run costs all its processes: found in /proc by a mark in the environment that children inherit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MARK = "POLYTRAIN_BENCH_MARK"


def marked_cpu_seconds(mark: str) -> float:
    """CPU seconds so far of the processes alive that carry the mark, with those of their children that have ended."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                # Behind the name, which may hold spaces: state, parent, ...; 11 to 14 are user, system, children's.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def process_start(pid: int | str = "self") -> float:
    """When a process was started, in seconds since the epoch."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    with open("/proc/stat") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")


class RunFailedError(RuntimeError):
    """A measured run ended badly; the text is the end of what it printed."""


def run_marked(module: str, arguments: Sequence[str], mark: str, log: Path) -> None:
    """`python -m module arguments` in a process that carries the mark. Raises RunFailedError."""
    with log.open("w") as out:
        command = [sys.executable, "-m", module, *arguments]
        environment = os.environ | {MARK: mark}
        code = subprocess.run(command, env=environment, stdout=out, stderr=out, check=False).returncode
    if code:
        end = log.read_text().strip().splitlines()[-20:]
        raise RunFailedError("\n".join([f"{' '.join(command[1:])} ended with {code}:", *end]))
