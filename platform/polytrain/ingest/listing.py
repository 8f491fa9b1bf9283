"""What lies below a root, local or in a store."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs

from polytrain.data import storage
from polytrain.data.importers.collection import IngestError
from polytrain.progress import Progress, ticking


def check_root(root: str, holds: str) -> str:
    """The root's absolute path, or its URI; `holds` says what should be in it. IngestError where it can't be."""
    local = storage.local_path(root)
    try:
        kind = storage.kind(root)
    except OSError as error:
        raise IngestError(f"{root}: cannot be read: {error.strerror or error}") from None
    if kind is not pa.fs.FileType.Directory:
        what = "there is no such folder" if kind is pa.fs.FileType.NotFound else "is a file"
        raise IngestError(f"{root}: {what}; --root names the one that holds {holds}")
    return root if local is None else os.path.abspath(local)


def files_below(root: str) -> list[str]:
    """Paths of all files, relative to the root, sorted; links to folders are followed, hidden folders are not.

    IngestError names what cannot be read.
    """
    with Progress("looking for files", None, "files") as progress, ticking(progress):
        if storage.is_remote(root):
            paths = (path for path, _ in storage.files(root))
            return [path for path in paths if not any(part.startswith(".") for part in path.split("/")[:-1])]
        start, found = len(root.rstrip("/")) + 1, []
        for path in _local_files(root):
            found.append(path[start:])
            progress.done += 1
        return found


def _local_files(root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _loops(folder, name))
        yield from (os.path.join(folder, name) for name in sorted(names))


def _refuse(error: OSError) -> None:
    raise IngestError(f"{error.filename}: cannot be read: {error.strerror}")


def _loops(folder: str, name: str) -> bool:
    """Whether a link leads back to a folder that it lies in."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and (os.path.realpath(folder) + "/").startswith(os.path.realpath(path) + "/")
