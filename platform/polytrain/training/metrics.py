"""Top-k accuracy, mean average precision and the confusion matrix, each in torchmetrics' definition.

torchmetrics is imported by the functions that need it: the import costs seconds and a training worker must not wait.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Percent of examples whose label is among the k highest of `logits` [N, C]; `labels` [N] int.

    With k >= C every label is among them: 100. Where a logit equals that of the label the lower class goes first, so
    that a model that says the same for every class is right by chance, not always. NaN without examples. A label whose
    own logit is NaN counts as wrong.
    """
    if not len(labels):
        return float("nan")
    classes = logits.shape[1]
    if k >= classes:
        return 100.0
    of_label = logits.gather(1, labels.long()[:, None])
    earlier = torch.arange(classes, device=logits.device) < labels[:, None]
    ahead = (logits > of_label) | ((logits == of_label) & earlier)
    right = (ahead.sum(1) < k) & ~of_label[:, 0].isnan()
    return 100.0 * right.double().mean().item()


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Percent; the mean over classes of the average precision, as scikit-learn's `average_precision_score` (macro).

    `scores` [N, C], the higher the likelier (logits will do); `targets` [N, C] of zeros and ones. A class without a
    positive has no average precision and is left out of the mean; NaN when no class has one.
    """
    from torchmetrics.functional.classification import binary_average_precision

    targets = targets.long()
    # Ranks instead of scores: torchmetrics puts anything outside [0, 1] through a sigmoid, whose rounding would make
    # ties of large logits. Equal scores share a rank, so real ties stay ties.
    precisions = [
        binary_average_precision(_ranks(scores[:, index]), targets[:, index], validate_args=False)
        for index in range(targets.shape[1])
        if targets[:, index].any()
    ]
    return 100.0 * torch.stack(precisions).double().mean().item() if precisions else float("nan")


def _ranks(scores: Tensor) -> Tensor:
    """The place of each score among the distinct ones, scaled to [0, 1]; float64."""
    distinct, place = torch.unique(scores, sorted=True, return_inverse=True)
    return place.double() / max(len(distinct) - 1, 1)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts [C, C] int64: row the true class, column the predicted one (the highest of `logits` [N, C])."""
    classes = logits.shape[1]
    pairs = labels.long() * classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def evaluate_predictions(logits: Tensor, targets: Tensor, multi_label: bool) -> dict[str, float]:
    """The metrics of a task, in percent: {"mAP"} of a multi-label task (`targets` [N, C]), else {"top1", "top5"}
    (`targets` [N]). top5 is 100 for a task of up to five classes."""
    if multi_label:
        return {"mAP": mean_average_precision(logits, targets)}
    return {"top1": top_k(logits, targets, 1), "top5": top_k(logits, targets, 5)}
