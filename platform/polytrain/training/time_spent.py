"""Where a run's time goes: at any moment a worker does exactly one thing, so that the shares sum to the whole.

On a CPU a worker does what its thread does. A GPU works behind its thread's back: what it was busy with is read from
events on its own timeline, and of the training steps only what it stood idle for counts as waiting for data.
torch is imported where it is at work: the driver, which prints the shares, has none.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KINDS = {
    "waiting_for_data": "waiting for data",
    "computing": "computing",
    "communicating": "communicating",
    "checkpointing": "checkpointing",
    "validating": "validating and testing",
    "other": "figures and all else",
}
"""What a loop does, and how it is said. Data that validation waits for counts as validation."""

STEPS = ("waiting_for_data", "computing", "communicating")
"""What a training step consists of."""


class TimeSpent:
    """One worker's account. `spent = TimeSpent(device)`, then `with spent.on("computing"): ...`; blocks may be nested,
    and the time of an inner one is not the outer one's."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget everything so far."""
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind, self._since = "other", time.perf_counter()
        # (kind, begin, end) on the GPU's timeline; what thread and GPU did of the steps since the last settling.
        self._events: deque[tuple[str, Any, Any]] = deque()
        self._settled = dict(self._seconds)
        self._elsewhere: dict[str, float] = {}

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Within the block this is what is done."""
        before, begin = self._kind, self._mark(kind)
        self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)
            if begin is not None:
                self._events.append((kind, begin, self._mark(kind)))

    def _switch(self, kind: str) -> None:
        now = time.perf_counter()
        self._seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    def _mark(self, kind: str) -> Any:
        if not self._gpu or kind not in ("computing", "communicating"):
            return None
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """On a GPU: learn what it was busy with, once it has got there. On a CPU nothing is left to learn."""
        if not self._gpu:
            return
        self._switch(self._kind)
        busy = dict.fromkeys(STEPS, 0.0)
        while self._events and self._events[0][2].query():
            kind, begin, end = self._events.popleft()
            busy[kind] += begin.elapsed_time(end) / 1000
        thread = {kind: self._seconds[kind] - self._settled[kind] for kind in STEPS}
        self._seconds |= {kind: self._settled[kind] + seconds for kind, seconds in steps_on_gpu(thread, busy).items()}
        self._settled = dict(self._seconds)

    def seconds(self) -> dict[str, float]:
        """By kind: this worker's own, but for what `gather` knows of the others."""
        self.settle()
        self._switch(self._kind)
        return {kind: seconds + self._elsewhere.get(kind, 0.0) for kind, seconds in self._seconds.items()}

    def gather(self) -> None:
        """Make this the mean over all workers, up to now; all of them call it."""
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        mine = self.seconds()
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, mine)
        for kind in KINDS:
            mean = sum(of_rank[kind] for of_rank in of_ranks) / len(of_ranks)
            self._elsewhere[kind] = self._elsewhere.get(kind, 0.0) + mean - mine[kind]


def steps_on_gpu(thread: Mapping[str, float], busy: Mapping[str, float]) -> dict[str, float]:
    """Seconds of training steps by kind, from what a thread spent on them and what its GPU was busy with meanwhile.

    The sum stays the thread's. The thread may wait for data while the GPU still computes what it was given before:
    only an idle GPU waits. What is idle for another reason, the thread's own work between kernels, counts as computing.
    """
    total = sum(thread[kind] for kind in STEPS)
    communicating = min(busy["communicating"], total)
    idle = max(0.0, total - communicating - busy["computing"])
    data = min(thread["waiting_for_data"], idle)
    return {"waiting_for_data": data, "communicating": communicating, "computing": total - communicating - data}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Percent by kind; they sum to 100."""
    total = sum(seconds.values())
    return {kind: 100 * of_kind / total if total else 0.0 for kind, of_kind in seconds.items()}


def shares_text(seconds: Mapping[str, float]) -> str:
    """ "3 % waiting for data, 80 % computing, ...": whole numbers that sum to 100; the rest only where it is not 0."""
    exact = shares(seconds)
    whole = {kind: int(share) for kind, share in exact.items()}
    missing = round(sum(exact.values())) - sum(whole.values())
    for kind in sorted(exact, key=lambda kind: whole[kind] - exact[kind])[:missing]:
        whole[kind] += 1
    return ", ".join(f"{whole[kind]} % {said}" for kind, said in KINDS.items() if kind != "other" or whole.get(kind))
