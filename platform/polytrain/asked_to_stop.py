"""Ctrl-C and `ray job stop`, which sends SIGTERM: one handler for both."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def heard(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within the block `handler(signal number, frame)` answers; then what answered before. The main thread's alone."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
