"""The mistakes a model was surest of, as a contact sheet: wrong labels and classes that look alike show here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from polytrain import preview, sheets
from polytrain.data.manifest import Manifest
from polytrain.modalities import Audio, Geometry, Image, Video
from polytrain.sheets import Heading

MOST: dict[type[Geometry], int] = {Image: 24, Video: 12, Audio: 16}
"""Mistakes on a sheet."""


@dataclass(frozen=True)
class Mistake:
    """An example that the model is wrong about, and how sure it is of that."""

    example: int  # its row in the split
    class_: int  # the class said, or the one missed
    said: bool  # False: the class is there, and the model denies it
    probability: float  # of that class
    sureness: float  # probability of what the model says: that it is there, or that it is not


def mistakes(ids: np.ndarray, probabilities: Tensor, targets: Tensor, *, multi_label: bool) -> list[Mistake]:
    """All wrong examples, the surest first; ids [N], the others [N, classes].

    One label an example: wrong is another class than its own. Several: a class is said from a probability of 0.5 on,
    and an example counts with the class it is most wrong about.
    """
    if not len(ids):
        return []
    truth = targets > 0
    if multi_label:
        wrong = (probabilities >= 0.5) != truth
        sureness = probabilities.where(~truth, 1 - probabilities).where(wrong, -1.0)
        worst, class_ = sureness.max(1)
    else:
        highest, class_ = probabilities.max(1)
        worst = highest.where(~truth.gather(1, class_[:, None])[:, 0], -1.0)
    found = [
        Mistake(int(example), number, not bool(truth[row, number]), float(probabilities[row, number]), sure)
        for row, (example, number, sure) in enumerate(zip(ids, class_.tolist(), worst.tolist(), strict=True))
        if sure >= 0
    ]
    return sorted(found, key=lambda mistake: (-mistake.sureness, mistake.example))


def caption(mistake: Mistake, classes: Sequence[str]) -> str:
    """What the model says: "dog 97 %", or, of a class it denies, "no dog (2 %)"."""
    name = sheets.class_names(classes, [mistake.class_])
    percent = f"{100 * mistake.probability:.{0 if 1 <= 100 * mistake.probability <= 99 else 1}f} %"
    return f"{name} {percent}" if mistake.said else f"no {name} ({percent})"


def mistakes_sheet(
    manifest: Manifest,
    split: str,
    geometry: Geometry,
    found: Sequence[Mistake],
    *,
    title: str,
    classes: Sequence[str],
    examples: int,
    file: Path,
) -> Path:
    """Draw the first of `found`, of `examples` that were judged, as the model's geometry decodes them.

    `classes` are the model's names, by which `found` counts; the manifest's may stand in another order.
    """
    shown = list(found[: MOST[type(geometry)]])
    _, drawn = preview.shown_examples(manifest, split, [mistake.example for mistake in shown], geometry)
    captioned = [
        replace(one, title=caption(mistake, classes), note=f"is {one.title} · {one.note}")
        for mistake, one in zip(shown, drawn, strict=True)
    ]
    denied = '; "no" is said of a class that is there' if manifest.multi_label else ""
    which = f"the {len(shown)} surest" if len(shown) < len(found) else "all of them"
    heading = Heading(
        f"{title}: the surest mistakes",
        (
            f"{len(found):,} of {examples:,} examples are wrong; shown are {which}, the surest first.",
            f"Bold: what the model says, and how likely it finds it{denied}. Below: what it is, and the file.",
        ),
    )
    sheets.save(sheets.contact_sheet(geometry, heading, captioned), file)
    return file
