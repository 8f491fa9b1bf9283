"""What is drawn for a training example, from its seed alone: its view when it is decoded, its changes on the device.

Nothing is random here. Every draw is a function of the example's seed, which is a function of its place in the plan, so
the same step shows the same pixels whatever the number of workers. A task names its augmentation (`AUGMENTATIONS`);
decode workers ask it for a view, the loop for `Draws`, and data/augment.py carries those out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from polytrain.data.views import Box, InceptionBox, JitterBox, View
from polytrain.modalities import Geometry, Image, Video
from polytrain.plan import mix, uniform

Draws = dict[str, np.ndarray]
"""What to do with each example of a minibatch, by the name of the change: arrays [b, ...], in the order of the changes.

flip: [b] bool, mirrored left to right
colour: [b, 5] on (0 or 1), brightness (added, of 1), saturation and contrast (factors), hue (turns)
grey: [b] bool
operations: [b, layers, 4] number in OPERATIONS, magnitude, and for Cutout its centre, y and x in [0, 1)
time_masks, frequency_masks: [b, masks, 2] first and end of what is hidden
"""

TRIES = 10
"""Boxes an Inception crop tries before it takes the central one, as in torchvision."""

MAX_MAGNITUDE = 10
"""Where RandAugment's scale ends; larger magnitudes go on along the same line (Scenic's ViViT takes 15 and 20)."""

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "saturation",
    "contrast",
    "brightness",
    "sharpness",
    "cutout",
    "solarize_add",
)
"""RandAugment's for video (Scenic, ViViT): none that turns, shears or shifts the frame."""


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for a task's examples. Here the clip's place and nothing else: the whole frame, unchanged."""

    modalities: ClassVar[tuple[str, ...]] = ("image", "video", "audio")

    def view(self, geometry: Geometry, seed: np.uint64) -> View:
        """What of its file a training example shows."""
        return View(float(uniform(seed, "clip")), self._box(geometry, seed))

    def draws(self, geometry: Geometry, seeds: np.ndarray) -> Draws:
        """What happens on the device to the examples with these seeds, [b] uint64."""
        return {}

    def _box(self, geometry: Geometry, seed: np.uint64) -> Box | None:
        return None


@dataclass(frozen=True)
class CropAndFlip(Augmentation):
    """Images: Inception crop (5 to 100 % of the area, width / height from 3/4 to 4/3) and a flip of every second one.

    PolyViT's paper trains its image tasks without augmentation (appendices A and D: `none`); its released
    configuration crops and flips. Videos get ViViT's crop instead: `Jitter`.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)

    def draws(self, geometry: Geometry, seeds: np.ndarray) -> Draws:
        return {"flip": uniform(seeds, "flip") < 0.5}

    def _box(self, geometry: Geometry, seed: np.uint64) -> Box:
        return _CROPS[type(geometry)](seed)


@dataclass(frozen=True)
class Jitter(CropAndFlip):
    """Videos as ViViT trains on Kinetics and Moments in Time, and PolyViT with it; one draw for all frames of a clip.

    A random 224 crop of 256 after scaling height and width by U(0.9, 1.33) each, a flip of every second clip, the
    colours changed with probability 0.8 (brightness +-32/255, saturation and contrast by U(0.6, 1.4), hue +-0.2), grey
    with 0.1. (ViViT, appendix; DMVR's `color_default_augm`.)
    """

    modalities: ClassVar[tuple[str, ...]] = ("video",)

    def draws(self, geometry: Geometry, seeds: np.ndarray) -> Draws:
        colour = [
            uniform(seeds, "colour") < 0.8,
            _between(seeds, "brightness", -32 / 255, 32 / 255),
            _between(seeds, "saturation", 0.6, 1.4),
            _between(seeds, "contrast", 0.6, 1.4),
            _between(seeds, "hue", -0.2, 0.2),
        ]
        return super().draws(geometry, seeds) | {
            "colour": np.stack(colour, axis=1).astype(np.float32),
            "grey": uniform(seeds, "grey") < 0.1,
        }


@dataclass(frozen=True)
class RandAugment(CropAndFlip):
    """Crop and flip, then `layers` operations, each any of `OPERATIONS` with the same chance, always applied.

    ViViT takes magnitude 15 on Epic Kitchens and 20 on Something-Something v2, and no colour jitter beside it. (Cubuk
    et al., 2020; Scenic's ViViT, whose magnitudes pass the scale's end of 10.) All frames of a clip are one picture.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    layers: int = 2
    magnitude: float = 15.0

    def draws(self, geometry: Geometry, seeds: np.ndarray) -> Draws:
        layers = [
            np.stack(
                [
                    np.floor(_between(seeds, f"operation {layer}", 0, len(OPERATIONS))),
                    np.full(len(seeds), self.magnitude),
                    uniform(seeds, f"cutout y {layer}"),
                    uniform(seeds, f"cutout x {layer}"),
                ],
                axis=1,
            )
            for layer in range(self.layers)
        ]
        return super().draws(geometry, seeds) | {"operations": np.stack(layers, axis=1)}


@dataclass(frozen=True)
class SpecAugment(Augmentation):
    """Sounds: a random part of the clip's length, one mask of up to 192 of 800 frames, one of up to 48 of 128 mel bins.

    Of other geometries the same fractions are hidden. The widths are those of the MBT paper, which follows AST; its
    code also asks for time masks (four of 48 frames) but with a largest ratio of 0, which switches them off in the
    Lingvo it runs on. What is hidden becomes 0, the mean after standardisation. Mixup is the task's `mixup_alpha`.
    (Park et al., 2019, without time warping.)
    """

    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    time: float = 192 / 800
    frequency: float = 48 / 128

    def draws(self, geometry: Geometry, seeds: np.ndarray) -> Draws:
        frames, bins = geometry.input_shape
        return {
            "time_masks": _mask(seeds, "time mask", frames, self.time * frames),
            "frequency_masks": _mask(seeds, "frequency mask", bins, self.frequency * bins),
        }


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "image": CropAndFlip(),
    "video": Jitter(),
    "audio": SpecAugment(),
    "randaugment": RandAugment(),
}
"""By the name that a recipe gives them: tasks.NAME.augment."""


def augmentation(name: str, magnitude: float | None = None) -> Augmentation:
    """An entry of `AUGMENTATIONS`; `magnitude` is RandAugment's, and None its default."""
    entry = AUGMENTATIONS[name]
    return entry if magnitude is None else replace(entry, magnitude=magnitude)


def fitting(modality: str) -> list[str]:
    """The names of the augmentations for a modality."""
    return [name for name, entry in AUGMENTATIONS.items() if modality in entry.modalities]


def _between(seeds: np.ndarray, purpose: str, low: float, high: float) -> np.ndarray:
    return low + uniform(seeds, purpose) * (high - low)


def _mask(seeds: np.ndarray, name: str, size: int, widest: float) -> np.ndarray:
    """[b, 1, 2]: first and end of a mask of up to `widest` out of `size`, drawn as in torchaudio."""
    width = uniform(seeds, f"{name} width") * widest
    first = np.floor(uniform(seeds, f"{name} place") * (size - width))
    return np.stack([first, first + np.floor(width)], axis=1).astype(np.int64)[:, None]


def _inception_box(seed: np.uint64) -> InceptionBox:
    tries = mix(seed ^ np.arange(TRIES, dtype=np.uint64))
    return InceptionBox(
        areas=tuple(uniform(tries, "crop area").tolist()),
        ratios=tuple(uniform(tries, "crop ratio").tolist()),
        y=float(uniform(seed, "crop y")),
        x=float(uniform(seed, "crop x")),
    )


def _jitter_box(seed: np.uint64) -> JitterBox:
    return JitterBox(
        scale_y=float(_between(seed, "scale y", 0.9, 1.33)),
        scale_x=float(_between(seed, "scale x", 0.9, 1.33)),
        y=float(uniform(seed, "crop y")),
        x=float(uniform(seed, "crop x")),
    )


_CROPS = {Image: _inception_box, Video: _jitter_box}
