"""Which task each step takes, and at what learning rate: known before the first step (PolyViT, section 4.2).

A schedule is a pure function of the tasks' single-task budgets, the kind and a seed. Five kinds:

| kind         | order                                        | draws of task j        | steps      |
| ------------ | -------------------------------------------- | ---------------------- | ---------- |
| task_by_task | all steps of one task, then the next, in a   | U_j                    | sum of U_j |
|              | random (seeded) order of tasks               |                        |            |
| alternating  | round-robin in the recipe's order            | U/T                    | sum of U_j |
| uniform      | random permutation of U/T copies of each     | U/T                    | sum of U_j |
| weighted     | random permutation of U_j copies of each     | U_j                    | sum of U_j |
| accumulated  | every step one minibatch of each task        | every step             | U/T        |

Where T does not divide U, alternating and uniform give the first U mod T tasks of the recipe one draw more, so that
exactly U steps are taken; accumulated takes floor(U/T) steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("task_by_task", "alternating", "uniform", "weighted", "accumulated")


@dataclass(frozen=True)
class Budget:
    """A task's single-task hyperparameters that co-training reuses: U_j, warm-up steps and learning rate."""

    steps: int
    warmup_steps: int
    lr: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """The draws of a run. `draws[i]` is the task id of the i-th minibatch; a step takes `draws_per_step` of them."""

    kind: str
    draws: np.ndarray  # [steps * draws_per_step] int16
    draws_per_step: int  # 1, or T for accumulated
    warmup_steps: int
    rates: tuple[float, ...]  # a task's learning rate at the peak, by task id

    @property
    def steps(self) -> int:
        """Parameter updates of the run."""
        return len(self.draws) // self.draws_per_step

    def tasks(self, step: int) -> np.ndarray:
        """Task ids of a 0-based step: one, or all of them for accumulated."""
        return self.draws[step * self.draws_per_step : (step + 1) * self.draws_per_step]

    def counts(self) -> np.ndarray:
        """Minibatches of each task over the run, [T]."""
        return np.bincount(self.draws, minlength=len(self.rates))

    def factor(self, step: int) -> float:
        """Linear warm-up times cosine to zero, one shape over the whole co-training run, at a 0-based step.

        With s = step + 1, W warm-up and U all steps: min(1, s/W) * (1 + cos(pi * max(0, s - W) / (U - W))) / 2,
        so that the factor is 1 at s = W and 0 at s = U.
        """
        s, warmup, total = step + 1, self.warmup_steps, self.steps
        rise = min(1.0, s / warmup) if warmup else 1.0
        return float(rise * 0.5 * (1.0 + np.cos(np.pi * max(0, s - warmup) / max(1, total - warmup))))

    def learning_rate(self, step: int) -> float:
        """The factor times the rate of the step's task; accumulated: times the smallest rate of all tasks."""
        return self.factor(step) * min(self.rates[task] for task in self.tasks(step))


def make_schedule(kind: str, budgets: Sequence[Budget], seed: int) -> Schedule:
    """The schedule of a run. Raises ValueError for an unknown kind, no task, or budgets below one step."""
    if kind not in KINDS:
        raise ValueError(f"schedule {kind!r} is unknown; known are {', '.join(KINDS)}")
    if not budgets:
        raise ValueError("a schedule needs at least one task")
    for task, budget in enumerate(budgets):
        if budget.steps < 1 or budget.warmup_steps < 0:
            raise ValueError(
                f"task {task}: {budget.steps} steps with {budget.warmup_steps} of warm-up; at least 1 and 0"
            )
    tasks = np.arange(len(budgets), dtype=np.int16)
    steps = np.array([budget.steps for budget in budgets])
    total, warmup = int(steps.sum()), sum(budget.warmup_steps for budget in budgets)
    rng = np.random.Generator(np.random.Philox(key=seed))
    draws_per_step = 1
    if kind == "task_by_task":
        order = rng.permutation(tasks)
        draws = np.repeat(order, steps[order])
    elif kind == "alternating":
        draws = np.resize(tasks, total)
    elif kind == "uniform":
        draws = rng.permutation(np.resize(tasks, total))
    elif kind == "weighted":
        draws = rng.permutation(np.repeat(tasks, steps))
    else:
        # The run has 1/T of the steps, so the warm-up keeps its share of it: for the paper's nine tasks the summed
        # warm-up (48,630) would be longer than the accumulated run (46,435 steps).
        draws_per_step = len(tasks)
        if total < draws_per_step:
            raise ValueError(f"accumulated takes U/T steps: {total} in all are fewer than the {len(tasks)} tasks")
        draws = np.tile(tasks, total // draws_per_step)
        warmup = round(warmup / draws_per_step)
    return Schedule(kind, draws, draws_per_step, warmup, tuple(budget.lr for budget in budgets))
