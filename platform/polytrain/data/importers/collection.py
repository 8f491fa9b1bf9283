"""A collection of labelled media as it was found: what every way of preparing data hands on to be split and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


class IngestError(ValueError):
    """What is wrong with a collection, where, and what would be right."""


@dataclass(frozen=True, slots=True)  # slots: AudioSet has two million of them
class Example:
    """One media file, or a clip of one, the names of its classes and its split.

    `path` is absolute. Where `data` is given there is no file of the example's own, and `path` only names it:
    `ROOT/data_batch_1.bin#17` is image 17 of that file. `start_s` and `end_s` are the clip within the file, seconds.
    """

    path: str
    classes: tuple[str, ...]
    split: str
    start_s: float | None = None
    end_s: float | None = None
    data: bytes | Callable[[], bytes] | None = None
    """The encoded media file, or a picklable function that makes it: 50,000 images need not be in memory at once."""

    def inline(self) -> bytes | None:
        """The bytes that the manifest is to hold, None where it points to the file at `path`."""
        return self.data() if callable(self.data) else self.data


@dataclass(frozen=True)
class Collection:
    """What was found, before it is split and written; `notes` are lines for the person who asked."""

    modality: str
    examples: Sequence[Example]
    multi_label: bool = False
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    """The dataset's own list, index by index; then a class may lack training examples. None: the names, sorted."""
    missing: Sequence[str] = ()
    """Files that the annotations name and that are not on disk, in the annotations' order: absolute paths without a
    suffix where any of the modality's would have done."""
