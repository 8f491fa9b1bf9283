"""Heads trained on features: the plan, schedule, loss and update of the co-training loop, without its trunk.

With a frozen trunk and no random augmentation, mixup or stochastic depth, the loop's head sees at every step the same
numbers, and ends the same, to rounding.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from polytrain.data.examples import Examples
from polytrain.data.reading import REPLACEMENTS
from polytrain.experiment import Experiment
from polytrain.model.architecture import Architecture
from polytrain.model.polyvit import PolyViT
from polytrain.plan import Plan
from polytrain.probe.features import Features
from polytrain.training.evaluation import Predictions
from polytrain.training.optimizer import clear_gradients, make_optimizer, update
from polytrain.training.progress import Progress
from polytrain.training.step import make_targets, smoothed, task_loss

BLOCK = 8192
"""Examples whose logits are computed at a time."""

SHARED_FROM = 20_000_000
"""Multiply-adds of a minibatch's logits from which torch's threads share them: below, they wait for each other longer
than they work, and for whatever else the machine does."""


class ProbeFault(Exception):
    """A head that can't be trained; the message is for the user."""


class DivergedError(ProbeFault):
    """A loss or a gradient is no longer finite."""


# --- which examples ---------------------------------------------------------------------------------------------------


def wanted(plan: Plan, features: Features) -> np.ndarray:
    """Ids of the training examples that a single-task run takes and whose features are not known yet, ascending.

    Also those that stand in for what can't be decoded: ask again once the first are known.
    """
    taken = len(plan.schedule.draws) * plan.tasks[0].batch_size
    if taken >= features.size:
        ids = np.arange(features.size)  # every example comes, and can stand in for any other
        return features.missing(ids)
    positions = np.arange(taken)
    ids = plan.example_ids(0, positions)
    missing = [features.missing(ids)]
    if features.bad:
        for position in positions[np.isin(ids, list(features.bad))].tolist():
            candidates = plan.replacements(0, position, REPLACEMENTS)
            first = next((c for c in candidates.tolist() if c not in features.bad), None)
            if first is not None:
                missing.append(features.missing(np.array([first])))
    return np.unique(np.concatenate(missing))


def check_bad(plan: Plan, features: Features, limit: float) -> None:
    """Raises ProbeFault where more of a task's training examples can't be decoded than `data.max_bad_fraction`."""
    progress = Progress(step=plan.schedule.steps)
    progress.note_bad(plan.tasks[0].name, "train", [(example, *about) for example, about in features.bad.items()])
    if fault := progress.too_bad(plan, limit):
        raise ProbeFault(fault)


@dataclass(frozen=True, eq=False)
class Split:
    """A split's examples as a head sees them."""

    features: Features
    labels: dict[int, list[int]]

    @classmethod
    def of(cls, examples: Examples, features: Features) -> Split:
        known = features.known.tolist()
        return cls(features, dict(zip(known, examples.labels(known), strict=True)))

    def x(self, ids: np.ndarray) -> Tensor:
        """[b, d] float32."""
        return torch.from_numpy(self.features.values[self.features.rows(ids)])

    def targets(self, ids: np.ndarray, classes: int) -> Tensor:
        """[b, classes] float32 zeros and ones."""
        return make_targets([self.labels[example] for example in ids.tolist()], classes, "cpu")


def minibatch_ids(plan: Plan, step: int, bad: Sequence[int] | dict[int, object]) -> np.ndarray:
    """The examples of a step of a single-task run, by the plan's rule for what can't be decoded (`reading.read_chunk`).

    Raises ProbeFault where none of those that come after it can be decoded either.
    """
    minibatch = plan.train(step)
    ids = minibatch.ids.copy()
    if not bad:
        return ids
    for index in np.flatnonzero(np.isin(ids, list(bad))):
        candidates = plan.replacements(0, int(minibatch.positions[index]), REPLACEMENTS)
        stand_in = next((c for c in candidates.tolist() if c not in bad), None)
        if stand_in is None:
            raise ProbeFault(f"step {step + 1}: examples can't be decoded, nor any of those that come after them")
        ids[index] = stand_in
    return ids


# --- training ---------------------------------------------------------------------------------------------------------


def new_head(architecture: Architecture, task: str, seed: int) -> nn.Linear:
    """The head of a task as the co-training loop would draw it, which makes the whole model from the seed."""
    torch.manual_seed(seed)
    return PolyViT(architecture).heads[task]


@dataclass(eq=False)
class Fitted:
    """A head that was trained."""

    weight: Tensor  # [classes, d]
    bias: Tensor
    validation: dict[str, float] = field(default_factory=dict)
    """The last one, as the loop's."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Training loss (`loss`) and validation metric (`val`) by step."""
    seconds: float = 0.0


def train_head(
    head: nn.Linear,
    experiment: Experiment,
    train: Split,
    val: Split,
    *,
    recorded: Callable[[dict[str, float], int], None] = lambda values, step: None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Fitted:
    """Train the head of a single-task experiment in place. `recorded` is told losses, rates and validations by
    MLflow's names. Raises DivergedError, ProbeFault."""
    (task,) = experiment.tasks
    plan, recipe, classes = experiment.plan, experiment.recipe, len(task.classes)
    o = recipe.optimizer
    head = head.requires_grad_(True)
    optimizer = make_optimizer(head, name=o.name, momentum=o.momentum, betas=o.betas, weight_decay=o.weight_decay)
    used = list(head.parameters())
    evaluations = set(plan.eval_steps.tolist())
    validation: dict[str, float] = {}
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "val": []}
    began = time.perf_counter()
    with _threads(plan.tasks[0].batch_size * head.weight.numel()):
        for step in range(plan.schedule.steps):
            ids = minibatch_ids(plan, step, train.features.bad)
            targets = smoothed(train.targets(ids, classes), task.label_smoothing)
            clear_gradients(optimizer)
            loss = task_loss(head(train.x(ids)), targets, task.loss, len(ids))
            loss.backward()
            rate = plan.schedule.learning_rate(step)
            norm = update(optimizer, used, rate, o.clip_norm)
            now, done = float(loss.detach()), step + 1
            for what, value in (("loss", now), ("gradient's norm", float(norm))):
                if not math.isfinite(value):
                    raise DivergedError(f"step {done}: the {what} became {value} at learning rate {rate:.3g}")
            if done % recipe.train.log_every == 0 or done in (1, plan.schedule.steps):
                recorded({f"train/{task.name}/loss": now, f"train/{task.name}/lr": rate}, done)
                curves["loss"].append((done, now))
            if done in evaluations and len(val.features):
                said = predict(head, val, classes)
                validation = said.metrics(loss=task.loss, multi_label=task.multi_label)
                recorded({f"val/{task.name}/{name}": value for name, value in validation.items()}, done)
                curves["val"].append((done, validation[task.metric]))
            progress(1)
    weight, bias = (parameter.detach().clone() for parameter in (head.weight, head.bias))
    return Fitted(weight, bias, validation, curves, time.perf_counter() - began)


@contextlib.contextmanager
def _threads(multiply_adds: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if multiply_adds < SHARED_FROM else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predict(head: nn.Module, split: Split, classes: int) -> Predictions:
    """What a head says of all examples of a split that could be decoded."""
    ids = split.features.known
    blocks = [ids[first : first + BLOCK] for first in range(0, len(ids), BLOCK)]
    with torch.inference_mode():
        logits = torch.cat([head(split.x(block)) for block in blocks] or [torch.empty(0, classes)])
    return Predictions(ids, logits, split.targets(ids, classes))


def as_head(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A head of these weights."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.requires_grad_(False)
