"""What the model really sees: a sheet of each task's first minibatch, after augmentation and standardisation.

A flip where there should be none, labels in another order, sounds standardised with another collection's numbers: none
of them stops a run, and all of them are seen at a glance. Drawn beside training by rank 0, once a task: a sheet that
lies in the run's folder is not drawn again when the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from polytrain import sheets
from polytrain.modalities import Audio, Geometry, Image, Video
from polytrain.secrecy import without_secrets
from polytrain.sheets import Heading, Shown

MOST: dict[type[Geometry], int] = {Image: 12, Video: 8, Audio: 12}
"""Examples on a sheet."""


def _pixels(geometry: Geometry, x: Tensor) -> Tensor:
    """[b, 3, (T,) H, W] in [-1, 1] -> [b, (T,) H, W, 3] uint8; what lies outside is cut off."""
    return x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)


def _frames(geometry: Video, x: Tensor) -> Tensor:
    return _pixels(geometry, x[:, :, torch.from_numpy(sheets.film_frames(x.shape[2])).to(x.device)])


def _energies(geometry: Audio, x: Tensor) -> Tensor:
    """[b, 3, frames, mel bins] standardised -> [b, frames, mel bins] log-mel energies."""
    return x[:, 0] * (2 * geometry.deviation) + geometry.mean


DRAWABLE: dict[type[Geometry], Callable[[Geometry, Tensor], Tensor]] = {
    Image: _pixels,
    Video: _frames,
    Audio: _energies,
}


class InputSheets:
    """Draws each task's sheet when its first minibatch comes, to FOLDER/<task>.png.

    `drawn(path)` is told of every sheet, `failed(text)` of what went wrong: drawing never stops training. Both are
    called from the drawing thread.
    """

    def __init__(self, folder: Path, drawn: Callable[[Path], None], failed: Callable[[str], None]) -> None:
        self.folder, self._drawn, self._failed = folder, drawn, failed
        self._seen: set[str] = set()
        self._thread = ThreadPoolExecutor(1, "sheets")

    def wants(self, task: str) -> bool:
        """Whether this task's sheet is still to be drawn."""
        if task not in self._seen and self._path(task).exists():
            self._seen.add(task)
        return task not in self._seen

    def draw(
        self,
        task: str,
        geometry: Geometry,
        classes: Sequence[str],
        inputs: Callable[[], tuple[Tensor, Sequence[Sequence[int]]]],
        *,
        about: str,
        weight: float = 1.0,
    ) -> None:
        """Begin a sheet of what `inputs` returns: x [b, 3, *input_shape] as the model takes it, and b lists of labels.

        `weight` below 1: every x is mixed with that of the mirrored example, so are the captions. `about` is a line
        for the reader. Here x is copied, reduced to what can be seen; the rest happens in the background.
        """
        self._seen.add(task)
        try:
            with torch.inference_mode():
                x, labels = inputs()
                x = x.detach().float()
                numbers = [float(value) for value in (x.mean(), x.std(correction=0), x.min(), x.max())]
                media = DRAWABLE[type(geometry)](geometry, x).cpu().numpy()
            names = [sheets.class_names(classes, of_example) for of_example in labels]
            shown = [Shown(name, media=array) for name, array in zip(names, media, strict=True)]
            mean, deviation, low, high = (round(number, 2) + 0.0 for number in numbers)  # no -0.00
            heading = Heading(
                f"{task}: what the model sees",
                (about, f"As numbers: mean {mean:.2f}, deviation {deviation:.2f}, from {low:.2f} to {high:.2f}"),
            )
        except Exception as error:
            self._tell(task, error)
            return
        self._thread.submit(self._finish, task, geometry, heading, sheets.mixed_with_mirrored(shown, weight))

    def _finish(self, task: str, geometry: Geometry, heading: Heading, shown: Sequence[Shown]) -> None:
        try:
            sheets.save(sheets.contact_sheet(geometry, heading, shown), self._path(task))
            self._drawn(self._path(task))
        except Exception as error:
            self._tell(task, error)

    def _tell(self, task: str, error: Exception) -> None:
        why = without_secrets(f"{type(error).__name__}: {error}")
        self._failed(f"the sheet of what the model sees of {task} could not be drawn: {why}")

    def _path(self, task: str) -> Path:
        return self.folder / f"{task}.png"

    def close(self) -> None:
        """Wait for the sheets that are being drawn."""
        self._thread.shutdown(wait=True)
