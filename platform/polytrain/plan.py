"""From step numbers to examples: which ids, which seeds, whose share. Pure, and any step is found at once.

Nothing here depends on what happened before a step, on the number of workers or on the machine, which is why a run
resumes at any step exactly and why workers agree without talking. Memory is a few bytes a step, none an example.

Words: a task's *walk* is the endless sequence of its training examples, pass after pass; a *position* is a place in
the walk. Minibatch n of a task takes the positions n*B..n*B+B-1, so minibatches may straddle passes and nothing is
dropped. Within a pass the walk is a seeded permutation computed example by example (a Feistel network). A packed
collection is walked window by window instead (`WindowedPass`): then memory is a few bytes a row group.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from polytrain.schedule import Schedule

ROUNDS = 8
"""Feistel rounds: with four or more a network of good mixing functions looks random; eight are still cheap."""


# --- seeded numbers -----------------------------------------------------------------------------------------------


def mix(x: np.ndarray | int) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit integers that looks random (Steele, Lea & Flood, 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=1024)
def key_of(*parts: int | str) -> int:
    """A 64-bit key of anything that names a use of randomness, the same on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little")


def uniform(seeds: np.ndarray, purpose: str) -> np.ndarray:
    """One float64 in [0, 1) a seed; draws for different purposes are independent."""
    return (mix(seeds ^ np.uint64(key_of("uniform", purpose))) >> np.uint64(11)) * 2.0**-53


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends each index: int64 of the same shape, no table in memory.

    A Feistel network over pairs (l, r) with l < a, r < b and a*b just above `size` (addition modulo a and b in place
    of XOR, so the domain need not be a power of four); what lands outside is sent through again (cycle walking).
    """
    if size <= 1:
        return np.zeros_like(index, dtype=np.int64)
    a = int(np.ceil(np.sqrt(size)))
    b = -(-size // a)
    keys = mix(np.uint64(key) ^ np.arange(ROUNDS, dtype=np.uint64))
    x = np.array(index, dtype=np.uint64)
    todo = np.ones(x.shape, dtype=bool)
    while todo.any():
        left, right = x[todo] // np.uint64(b), x[todo] % np.uint64(b)
        for number, round_key in enumerate(keys):
            if number % 2:
                left = (left + mix(right ^ round_key)) % np.uint64(a)
            else:
                right = (right + mix(left ^ round_key)) % np.uint64(b)
        x[todo] = left * np.uint64(b) + right
        todo = x >= np.uint64(size)
    return x.astype(np.int64)


# --- a packed collection's walk ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Groups:
    """How a packed training split lies: examples of each row group in the split's order, and how many make a window."""

    sizes: np.ndarray  # [groups] int64, each 1 or more
    window: int

    @cached_property
    def starts(self) -> np.ndarray:
        """The first example of each group, and the end: [groups + 1] int64."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The groups that hold these examples, int64 of the same shape."""
        return np.searchsorted(self.starts, ids, side="right") - 1

    def identity(self) -> dict[str, int | str]:
        return {"window": self.window, "sizes": hashlib.sha256(self.sizes.astype("<i8").tobytes()).hexdigest()}


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a walk that needs these row groups and no others."""

    groups: np.ndarray  # int64
    start: int  # position in the walk
    size: int  # examples


class WindowedPass:
    """One pass over a packed split: its row groups in a seeded order, cut into windows, shuffled inside each window.

    Group sizes may differ; where a window begins is found by binary search in their running sum, 16 bytes a group.
    """

    def __init__(self, groups: Groups, key: int) -> None:
        self._groups, self._key = groups, key
        count = len(groups.sizes)
        self._order = np.argsort(mix(np.arange(count, dtype=np.uint64) ^ mix(key)))  # mix repeats no number: no ties
        self._starts = np.concatenate([[0], np.cumsum(groups.sizes[self._order])])
        # As even as can be: a last window of one group would be no shuffle at all.
        windows = -(-count // groups.window)
        self._bounds = np.arange(windows + 1) * count // windows
        self._window_starts = self._starts[self._bounds]

    def ids(self, places: np.ndarray) -> np.ndarray:
        """The examples at these places of the pass, int64 of the same shape."""
        ids = np.empty_like(places)
        windows = np.searchsorted(self._window_starts, places, side="right") - 1
        for window in np.unique(windows):
            here = windows == window
            begin, end = (int(start) for start in self._window_starts[window : window + 2])
            key = int(mix(np.uint64(self._key) ^ mix(int(window) + 1)))
            shuffled = begin + permuted(places[here] - begin, end - begin, key)
            turn = np.searchsorted(self._starts, shuffled, side="right") - 1
            ids[here] = self._groups.starts[self._order[turn]] + shuffled - self._starts[turn]
        return ids

    def window(self, place: int) -> Window:
        """The window that a place of the pass lies in; its `start` is a place of the pass."""
        number = int(np.searchsorted(self._window_starts, place, side="right")) - 1
        begin, end = (int(start) for start in self._window_starts[number : number + 2])
        return Window(self._order[self._bounds[number] : self._bounds[number + 1]], begin, end - begin)


# --- what a plan is made of ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedTask:
    """What the plan needs to know of a task. `digest` is its manifest's: another manifest is another plan."""

    name: str
    modality: str
    batch_size: int
    sizes: Mapping[str, int]  # examples of train, val, test
    digest: str
    mixup_alpha: float = 0.0
    groups: Groups | None = None  # of a packed training split
    test_views: int = 1  # of an example in the final test; no part of the identity: training is the same

    def identity(self) -> dict[str, Any]:
        """What two plans must agree on in this task, as JSON."""
        told = {
            "name": self.name,
            "modality": self.modality,
            "batch_size": self.batch_size,
            "sizes": dict(self.sizes),
            "digest": self.digest,
            "mixup_alpha": self.mixup_alpha,
        }
        return told | ({"groups": self.groups.identity()} if self.groups else {})


@dataclass(frozen=True)
class Tag:
    """What names a minibatch within a run, and what every row of a stream carries."""

    phase: str  # train | val | test
    step: int  # train: the 0-based step; val and test: steps completed before it
    task: int
    part: int  # train: 0; val and test: which minibatch of the split


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Examples of one task. `ids` are rows of the task's split; `positions` their places in the walk (or the split)."""

    tag: Tag
    ids: np.ndarray  # [B] int64
    positions: np.ndarray  # [B] int64
    seeds: np.ndarray | None  # [B] uint64, the source of everything random about an example; None in evaluation

    def __len__(self) -> int:
        return len(self.ids)


class Plan:
    """Every minibatch of a run: training steps, validation after every `eval_every` of them and the final test."""

    def __init__(self, schedule: Schedule, tasks: Sequence[PlannedTask], *, seed: int, eval_every: int) -> None:
        self.schedule, self.tasks, self.seed = schedule, tuple(tasks), seed
        self.eval_every = eval_every
        self._keys = [key_of(seed, task.name) for task in self.tasks]
        # A task's minibatches are numbered by how often it was drawn before: the one thing that is stored a draw.
        self._turns = np.zeros(len(schedule.draws), dtype=np.int32)
        for task in range(len(self.tasks)):
            drawn = schedule.draws == task
            self._turns[drawn] = np.arange(np.count_nonzero(drawn), dtype=np.int32)
        self._passes: OrderedDict[tuple[int, int], WindowedPass] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_passes": OrderedDict()}

    # --- training ---

    def train(self, step: int, draw: int = 0) -> Minibatch:
        """The `draw`-th minibatch of a 0-based step (one a step; T of them when accumulated)."""
        index = step * self.schedule.draws_per_step + draw
        return self._drawn(index)

    def _drawn(self, index: int) -> Minibatch:
        task = int(self.schedule.draws[index])
        size = self.tasks[task].batch_size
        positions = int(self._turns[index]) * size + np.arange(size, dtype=np.int64)
        with np.errstate(over="ignore"):
            seeds = mix(mix(positions.astype(np.uint64)) ^ np.uint64(self._keys[task]))
        tag = Tag("train", index // self.schedule.draws_per_step, task, 0)
        return Minibatch(tag, self.example_ids(task, positions), positions, seeds)

    def example_ids(self, task: int, positions: np.ndarray) -> np.ndarray:
        """The training examples at these places of a task's walk, [n] int64."""
        size = self.tasks[task].sizes["train"]
        passes, within = positions // size, positions % size
        ids = np.empty_like(positions)
        for number in np.unique(passes):
            here = passes == number
            if self.tasks[task].groups is None:
                ids[here] = permuted(within[here], size, self._pass_key(task, int(number)))
            else:
                ids[here] = self._windowed_pass(task, int(number)).ids(within[here])
        return ids

    def window(self, task: int, position: int) -> Window:
        """The window of a packed task's walk that a position lies in; `start` is a position too."""
        number, place = divmod(position, self.tasks[task].sizes["train"])
        found = self._windowed_pass(task, number).window(place)
        return Window(found.groups, found.start + position - place, found.size)

    def walk_key(self, task: int) -> int:
        """What tells this task's walk, a 64-bit integer: tasks with the same key and examples walk alike."""
        return self._keys[task]

    def _pass_key(self, task: int, number: int) -> int:
        return int(mix(np.uint64(self._keys[task]) ^ mix(number)))

    def _windowed_pass(self, task: int, number: int) -> WindowedPass:
        """A pass of a packed task; the last two of each task are kept, for minibatches may straddle them."""
        found = self._passes.pop((task, number), None)
        if found is None:
            found = WindowedPass(self.tasks[task].groups, self._pass_key(task, number))
        self._passes[task, number] = found
        while len(self._passes) > 2 * len(self.tasks):
            self._passes.popitem(last=False)
        return found

    def replacements(self, task: int, position: int, tries: int) -> np.ndarray:
        """Whom to take instead of an example that can't be decoded: the next ones in pass order, [tries] int64."""
        size = self.tasks[task].sizes["train"]
        start = position // size * size
        return self.example_ids(task, start + (position + 1 + np.arange(min(tries, size - 1))) % size)

    def mixup_lambda(self, minibatch: Minibatch) -> float:
        """The step's one mixing weight, drawn from Beta(alpha, alpha); 1 where the task has no mixup."""
        alpha = self.tasks[minibatch.tag.task].mixup_alpha
        return float(self._rng(minibatch, "mixup").beta(alpha, alpha)) if alpha else 1.0

    def depth_draws(self, minibatch: Minibatch, layers: int) -> np.ndarray:
        """Uniform draws in [0, 1) for stochastic depth, [layers, 2, B] float32, of the whole minibatch."""
        return self._rng(minibatch, "depth").random((layers, 2, len(minibatch)), dtype=np.float32)

    def _rng(self, minibatch: Minibatch, purpose: str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=key_of(int(minibatch.seeds[0]), purpose)))

    # --- evaluation ---

    @cached_property
    def eval_steps(self) -> np.ndarray:
        """After how many completed steps validation runs: every `eval_every`, and at the end."""
        steps = self.schedule.steps
        return np.append(np.arange(self.eval_every, steps, self.eval_every), steps)

    def eval_parts(self, task: int, phase: str) -> int:
        """Minibatches of a split; the last one may be short."""
        return -(-self.tasks[task].sizes[phase] // self._eval_batch(task, phase))

    def _eval_batch(self, task: int, phase: str) -> int:
        """Examples of an evaluation's minibatch: with all their views about as many inputs as in training."""
        planned = self.tasks[task]
        return max(1, planned.batch_size // planned.test_views) if phase == "test" else planned.batch_size

    def evaluation(self, phase: str, step: int, task: int, part: int) -> Minibatch:
        """A minibatch of the val or test split, in file order: every example in exactly one."""
        size = self._eval_batch(task, phase)
        ids = np.arange(part * size, min((part + 1) * size, self.tasks[task].sizes[phase]), dtype=np.int64)
        return Minibatch(Tag(phase, step, task, part), ids, ids, None)

    # --- workers ---

    def share(self, minibatch: Minibatch, rank: int, workers: int) -> np.ndarray:
        """Which of a minibatch's examples a worker takes: indices into it, ascending. Shares are disjoint and complete.

        Sizes differ by one at most. Under mixup the partners i and B-1-i go to the same worker, so there sizes may
        differ by one pair.
        """
        paired = minibatch.seeds is not None and self.tasks[minibatch.tag.task].mixup_alpha > 0
        return dealt(len(minibatch), rank, workers, paired=paired)

    def largest_share(self, task: int, workers: int, phase: str = "train") -> int:
        """Examples of the largest share that any worker gets of any of a phase's minibatches of this task."""
        if phase != "train":
            return -(-self._eval_batch(task, phase) // workers)
        planned = self.tasks[task]
        return max(
            len(dealt(planned.batch_size, rank, workers, paired=planned.mixup_alpha > 0)) for rank in range(workers)
        )

    # --- identity ---

    @cached_property
    def digest(self) -> str:
        """What a checkpoint must agree with to be continued: everything that decides which examples a step takes."""
        identity = {
            "kind": self.schedule.kind,
            "seed": self.seed,
            "draws": hashlib.sha256(self.schedule.draws.tobytes()).hexdigest(),
            "tasks": [task.identity() for task in self.tasks],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def timeline(self, modality: str, first_step: int = 0) -> Timeline:
        """What the stream of one modality carries, from a number of completed steps on."""
        return Timeline(self, modality, first_step)


def dealt(size: int, rank: int, workers: int, *, paired: bool) -> np.ndarray:
    """What a worker is dealt of `size` examples: every `workers`-th, or every `workers`-th pair of i and size-1-i."""
    if not paired:
        return np.arange(rank, size, workers)
    first = np.arange(rank, (size + 1) // 2, workers)
    return np.unique(np.concatenate([first, size - 1 - first]))


class Timeline(Sequence):
    """A modality's minibatches in the order the loop takes them: training, validation in between, test at the end.

    Begins behind `first_step` completed steps and the validation that belongs to them. Item i is found in
    O(log evaluations).
    """

    def __init__(self, plan: Plan, modality: str, first_step: int = 0) -> None:
        self.plan, self.modality, self.first_step = plan, modality, first_step
        schedule = plan.schedule
        self._tasks = [task for task, planned in enumerate(plan.tasks) if planned.modality == modality]
        drawn = np.flatnonzero(np.isin(schedule.draws, self._tasks)).astype(np.int32)
        self._drawn = drawn[np.searchsorted(drawn, first_step * schedule.draws_per_step) :]
        self._evals = plan.eval_steps[plan.eval_steps > first_step]
        self._val, self._test = (
            [(task, part) for task in self._tasks for part in range(plan.eval_parts(task, phase))]
            for phase in ("val", "test")
        )
        before = np.searchsorted(self._drawn, self._evals * schedule.draws_per_step)
        # Where each validation starts: behind its training minibatches and the validations before it.
        self._starts = before + np.arange(len(self._evals)) * len(self._val)

    def __len__(self) -> int:
        return len(self._drawn) + len(self._evals) * len(self._val) + len(self._test)

    def __getitem__(self, index: int) -> Minibatch:
        if not 0 <= index < len(self):
            raise IndexError(f"minibatch {index} of {len(self)} in the {self.modality} stream")
        testing = index - (len(self) - len(self._test))
        if testing >= 0:
            return self.plan.evaluation("test", self.plan.schedule.steps, *self._test[testing])
        started = int(np.searchsorted(self._starts, index, side="right"))
        if started:
            within = index - int(self._starts[started - 1])
            if within < len(self._val):
                return self.plan.evaluation("val", int(self._evals[started - 1]), *self._val[within])
        return self.plan._drawn(int(self._drawn[index - started * len(self._val)]))
