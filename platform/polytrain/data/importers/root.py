"""The folder or bucket that a dataset lies in."""

from __future__ import annotations

import os
from collections import Counter

import pyarrow as pa
import pyarrow.fs

from polytrain.data import storage
from polytrain.data.importers.collection import IngestError
from polytrain.progress import Progress

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov")
_SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus")
SUFFIXES = {"image": _IMAGES, "video": _VIDEOS, "audio": _SOUNDS + _VIDEOS}
"""Of files that an importer takes for a modality; a video file's sound track is audio. Upper case does as well."""


class Root:
    """The folder that a dataset lies in; `layout` is what should be there, in words for the person who reads errors.

    `path` is a local folder or a URI of any store that `storage` knows. Folders are listed once: one `stat`
    a file takes minutes on two million files, and hours on a network's disk or a store of objects.
    """

    def __init__(self, path: str | os.PathLike, layout: str, progress: Progress | None = None) -> None:
        path = os.fspath(path)
        self.layout = layout
        self._progress = progress
        self._counts: Counter[str] = Counter()
        self._stems: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
        folder = storage.local_path(path)
        self.is_local = folder is not None
        self.path = path if folder is None else os.path.abspath(folder)
        kind = self._kind("")
        if kind is not pa.fs.FileType.Directory:
            what = "there is no such folder" if kind is pa.fs.FileType.NotFound else "is a file"
            raise IngestError(f"{self.path}: {what}; --root names the folder that has {layout}")
        self.folders()

    def progress(self, done: int) -> None:
        """So many annotations are looked up."""
        if self._progress is not None:
            self._progress.to(done)

    def count(self, what: str) -> None:
        """One more of what is done before the annotations are looked up, such as "folders listed"."""
        self._counts[what] += 1
        if self._progress is not None:
            self._progress.note = "".join(f", {count:,} {what}" for what, count in self._counts.items() if count > 1)
            self._progress.tick()

    def join(self, path: str) -> str:
        """The absolute path, or the URI, of a path relative to the root."""
        if not path:
            return self.path
        return f"{self.path}/{path}" if self.is_local else storage.join(self.path, path)

    def first(self, *candidates: str) -> str | None:
        """The first of these files or folders that exists, an absolute path or URI."""
        return next((self.join(path) for path in candidates if self._kind(path) is not pa.fs.FileType.NotFound), None)

    def need(self, *candidates: str) -> str:
        """The same; IngestError names all of them where none exists."""
        path = self.first(*candidates)
        if path is None:
            raise IngestError(f"{self.path}: has no {' or '.join(candidates)}; the official layout has {self.layout}")
        return path

    def folders(self, below: str = "") -> list[str]:
        """Names of the folders in `below`, sorted, hidden ones left out; none where `below` does not exist."""
        return sorted(name for name, is_folder in self._scan(below) if is_folder and not name.startswith("."))

    def names(self, below: str = "") -> list[str]:
        """Names of all files in `below`, sorted."""
        return sorted(name for name, is_folder in self._scan(below) if not is_folder)

    def stems(self, folder: str, modality: str) -> dict[str, tuple[str, str]]:
        """File name without suffix -> (folder, suffix), of a modality's files directly in a folder."""
        key = (folder, modality)
        if key not in self._stems:
            known, places, stems = SUFFIXES[modality], {}, {}
            for name, _ in self._scan(folder):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in known or stem.startswith("._"):  # ._x: macOS's shadow of x
                    continue
                place = places.setdefault(suffix, (folder, suffix))  # shared: millions of files, few suffixes
                other = stems.setdefault(stem, place)
                if known.index(suffix.lower()) < known.index(other[1].lower()):
                    stems[stem] = place
            self._stems[key] = stems
        return self._stems[key]

    def find(self, path: str, modality: str) -> str | None:
        """The absolute path of the file `path`, which is relative to the root and has no suffix."""
        folder, _, stem = path.rpartition("/")
        place = self.stems(folder, modality).get(stem)
        return None if place is None else self.join(path + place[1])

    def files(self, folder: str, modality: str) -> list[str]:
        """Paths, relative to the root and without suffix, of a modality's files directly in a folder, sorted."""
        return sorted(f"{folder}/{stem}" if folder else stem for stem in self.stems(folder, modality))

    def _kind(self, path: str) -> pa.fs.FileType:
        try:
            return storage.kind(self.join(path))
        except OSError as error:
            raise IngestError(f"{self.join(path)}: cannot be read: {error.strerror or error}") from None

    def _scan(self, below: str) -> list[tuple[str, bool]]:
        """(name, is it a folder) of everything in a folder; nothing where there is none."""
        self.count("folders listed")
        try:
            if self.is_local:
                with os.scandir(self.join(below)) as entries:
                    return [(entry.name, entry.is_dir()) for entry in entries]
            store, path = storage.filesystem(self.join(below))
            found = store.get_file_info(pa.fs.FileSelector(path, allow_not_found=True))
            return [(info.base_name, info.type is pa.fs.FileType.Directory) for info in found]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise IngestError(f"{self.join(below)}: cannot be read: {error.strerror or error}") from None
