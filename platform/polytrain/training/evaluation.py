"""Validation and test: every example of a split exactly once, metrics over all workers together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from polytrain.training.metrics import evaluate_predictions
from polytrain.training.step import task_loss


@dataclass(eq=False)
class Predictions:
    """What a model said of one task's split, in the split's order."""

    ids: np.ndarray  # [N] int64
    logits: Tensor  # [N, classes] float32, on the CPU
    targets: Tensor  # [N, classes] float32 zeros and ones

    def metrics(self, *, loss: str, multi_label: bool) -> dict[str, float]:
        """top1 and top5, or mAP, in percent; the mean loss; how many examples were judged. Empty without examples."""
        if not len(self.ids):
            return {}
        targets = self.targets if multi_label else self.targets.argmax(1)
        values = evaluate_predictions(self.logits, targets, multi_label)
        values["loss"] = float(task_loss(self.logits, self.targets, loss, len(self.ids)))
        values["examples"] = len(self.ids)
        return values

    def table(self, names: Sequence[str], classes: Sequence[str], *, loss: str, multi_label: bool) -> pa.Table:
        """One row an example: `example` (its row in the split), `path` and `logits`, the mean over its views, and

        - with one label each: `label`, `predicted` (class numbers) and `probability`, that of the predicted class,
        - with several: `labels` and `predicted`, the classes with a probability of 0.5 or more.

        `names` are the paths of the examples in `ids`' order. Class names stand in the schema's metadata.
        """
        probabilities = self.logits.softmax(1) if loss == "softmax" else self.logits.sigmoid()
        columns: dict[str, Any] = {"example": self.ids, "path": pa.array(names, pa.string())}
        if multi_label:
            columns["labels"] = _chosen(self.targets > 0)
            columns["predicted"] = _chosen(probabilities >= 0.5)
        else:
            predicted = self.logits.argmax(1, keepdim=True)
            columns["label"] = self.targets.argmax(1).int().numpy()
            columns["predicted"] = predicted[:, 0].int().numpy()
            columns["probability"] = probabilities.gather(1, predicted)[:, 0].numpy()
        flat = pa.array(self.logits.reshape(-1).numpy())
        columns["logits"] = pa.FixedSizeListArray.from_arrays(flat, self.logits.shape[1])
        return pa.table(columns).replace_schema_metadata({"polytrain.classes": json.dumps(list(classes))})


def _chosen(mask: Tensor) -> pa.Array:
    """[N, classes] of bools -> the numbers of the classes of each row."""
    return pa.array([row.nonzero()[:, 0].tolist() for row in mask], pa.list_(pa.int32()))


def mean_of_views(logits: Tensor, examples: int) -> Tensor:
    """[examples * views, classes], an example's views one behind the other -> [examples, classes]."""
    return logits.unflatten(0, (examples, -1)).mean(1) if examples else logits


def gather(parts: Iterable[tuple[np.ndarray, Tensor, Tensor]], classes: int) -> Predictions | None:
    """Bring all workers' (ids, logits, targets) to rank 0, in the order of ids; None on the other ranks.

    An example that came twice would mean that the shares overlap: ValueError.
    """
    parts = list(parts)
    mine = (
        np.concatenate([part[0] for part in parts] or [np.empty(0, np.int64)]),
        torch.cat([part[1].float().cpu() for part in parts] or [torch.empty(0, classes)]),
        torch.cat([part[2].float().cpu() for part in parts] or [torch.empty(0, classes)]),
    )
    everyone = [mine]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everyone = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(mine, everyone)
        if everyone is None:
            return None
    ids = np.concatenate([part[0] for part in everyone])
    order = np.argsort(ids, kind="stable")
    if len(np.unique(ids)) != len(ids):
        raise ValueError("an example was evaluated twice: the workers' shares overlap")
    logits, targets = (torch.cat([part[column] for part in everyone])[order] for column in (1, 2))
    return Predictions(ids[order], logits, targets)


def predict_split(
    minibatches: Iterable, take: Callable, forward: Callable[[object], tuple[Tensor, Tensor]], classes: int
) -> Predictions | None:
    """Run a model over the minibatches of one task's split. `take` brings a minibatch's share, `forward` turns a share
    into (logits, targets); rank 0 gets the predictions of all workers."""
    parts = []
    with torch.inference_mode():
        for minibatch in minibatches:
            share = take(minibatch)
            if len(share.ids):
                parts.append((share.ids, *forward(share)))
    return gather(parts, classes)
