"""Which files a model is asked about, sorted by modality: paths, folders, manifests, here or in a store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow.fs

from polytrain.data import manifest, storage
from polytrain.data.examples import examples_of
from polytrain.data.importers.collection import IngestError
from polytrain.data.media_file import DecodeError
from polytrain.data.media_kind import modalities_of
from polytrain.ingest.listing import files_below
from polytrain.predict import InputError
from polytrain.scan import Seen
from polytrain.trained import Trained

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    "video": (".mp4", ".m4v", ".webm", ".avi", ".mkv", ".mov", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv"),
    "audio": (".wav", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".caf", ".au"),
}
"""By which a folder's files are sorted, upper case as well; how they are read, is decided by their content."""
_MODALITY = {suffix: modality for modality, suffixes in SUFFIXES.items() for suffix in suffixes}

WHAT = "picture, video or sound"


class Files:
    """Files as a scan's examples: their content, no labels."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._from = os.getcwd()  # decode workers run elsewhere

    def __len__(self) -> int:
        return len(self.names)

    def name(self, example: int) -> str:
        """As the user named it, or its folder."""
        return _text(self.names[example])

    def content(self, example: int) -> bytes | str:
        """The path of a local file, or a remote one's bytes. Raises OSError where they can't be had."""
        local = storage.local_path(self.names[example])
        return storage.fetch(self.names[example]) if local is None else os.path.join(self._from, local)

    def clip(self, example: int) -> tuple[None, None]:
        return None, None

    def labels(self, examples: Sequence[int]) -> list[list[int]]:
        return [[] for _ in examples]


@dataclass(frozen=True)
class Group:
    """Files of one modality and the tasks that are asked of them."""

    modality: str
    tasks: tuple[str, ...]
    examples: Seen
    positions: list[int]
    """Of each in what was asked, which the answer follows."""


@dataclass
class Asked:
    """All files, in the order they were named in."""

    groups: list[Group] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)  # path, reason: known before anything was decoded
    left_out: Counter[str] = field(default_factory=Counter)  # what a folder holds besides

    @property
    def files(self) -> int:
        return sum(len(group.positions) for group in self.groups)

    def note(self) -> str:
        """What was left out, in words; "" if nothing was."""
        return ", ".join(f"{count:,} {what}" for what, count in self.left_out.most_common())


def asked(trained: Trained, paths: Sequence[str], task: str | None = None) -> Asked:
    """What is to be predicted for paths of files, folders and manifests (.parquet), here or in a store.

    Without `task`, all tasks of a file's modality: its suffix tells, and the content of a named file with another one.
    With it, a folder's files of its modality, and named files whatever they are. Raises CheckpointError for a task that
    the model has not, ManifestError, StorageError, and InputError where nothing is left to predict.
    """
    wanted = None if task is None else trained.task(task)
    found = Asked()
    by_modality: dict[str, Group] = {}
    position = 0
    known: set[str] = set()

    def group(modality: str, examples: Seen) -> Group:
        names = (task,) if task is not None else tuple(one.name for one in trained.tasks_of(modality))
        return Group(modality, names, examples, [])

    for path in paths:
        for name, modality in _listed(path, wanted and wanted.modality, trained, found):
            if name in known:
                continue
            known.add(name)
            if not trained.tasks_of(modality) or (wanted and modality != wanted.modality):
                found.left_out[f"of {modality}, {_not_for(task)}"] += 1
                continue
            into = by_modality.setdefault(modality, group(modality, Files()))
            into.examples.names.append(name)
            into.positions.append(position)
            position += 1
        if _is_manifest(path):
            read = manifest.read(path)
            if not trained.tasks_of(read.modality) or (wanted and read.modality != wanted.modality):
                found.left_out[f"of {read.modality}, {_not_for(task)}"] += len(read.table)
                continue
            for examples in examples_of(read).values():
                into = group(read.modality, examples)
                into.positions.extend(range(position, position + len(examples)))
                position += len(examples)
                found.groups.append(into)
    found.groups = [*by_modality.values(), *(one for one in found.groups if len(one.examples))]
    if not found.files and not found.bad:
        has = ", ".join(f"{name} ({one.modality})" for name, one in trained.tasks.items())
        besides = f"; files left out: {found.note()}. The model's tasks: {has}" if found.left_out else ""
        raise InputError(f"{', '.join(paths[:3])}: no {WHAT} to predict there{besides}")
    return found


def _not_for(task: str | None) -> str:
    return "which no task of the model is for" if task is None else f"which {task} is not for"


def _is_manifest(path: str) -> bool:
    return path.partition("?")[0].endswith(".parquet")


def _listed(path: str, wanted: str | None, trained: Trained, found: Asked) -> Iterator[tuple[str, str]]:
    """(name, modality) of each file that a path stands for; what is none is noted in `found`."""
    if _is_manifest(path):
        return
    local = storage.local_path(path)
    path = path if local is None else os.path.expanduser(local)
    kind = storage.kind(path)
    if kind is pyarrow.fs.FileType.NotFound:
        found.bad.append((_text(path), "no such file"))
    elif kind is not pyarrow.fs.FileType.Directory:
        modality = wanted or _MODALITY.get(_suffix(path))
        try:
            yield path, modality or _by_content(path, trained)
        except DecodeError as error:
            found.bad.append((_text(path), str(error)))
    else:
        try:
            below = files_below(path)
        except IngestError as error:
            raise InputError(str(error)) from None
        for name in below:
            modality = _MODALITY.get(_suffix(name))
            if os.path.basename(name).startswith("."):
                found.left_out["hidden"] += 1
            elif modality is None:
                found.left_out[f"of suffix {_suffix(name)}" if _suffix(name) else "without suffix"] += 1
            else:
                yield storage.join(path, *name.split("/")), modality


def _text(path: str) -> str:
    """A path for tables and terminals: its bytes that are no UTF-8 are replaced."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _suffix(path: str) -> str:
    return os.path.splitext(path.partition("?")[0] if storage.is_remote(path) else path)[1].lower()


def _by_content(path: str, trained: Trained) -> str:
    """The modality of a file whose name does not say, one that the model knows if there is a choice. Raises DecodeError
    where it has none."""
    try:
        possible = modalities_of(storage.fetch(path) if storage.is_remote(path) else path)
    except OSError as error:
        raise DecodeError(storage.told(error)) from None
    return next((modality for modality in possible if trained.tasks_of(modality)), possible[0])
