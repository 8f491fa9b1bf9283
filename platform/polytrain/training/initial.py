"""The weights that a run starts from (`model.init`): judged before anything starts, put in place by every worker.

What lies in a store is fetched once a machine and shared by its processes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa

from polytrain.data import storage
from polytrain.data.node_folder import NodeFolder
from polytrain.model.architecture import Architecture
from polytrain.model.polyvit import PolyViT, on_meta
from polytrain.model.pretrained import Report, Source, WeightsError, fit, open_source
from polytrain.model.pretrained.files import SUFFIXES
from polytrain.recipe import Model, RecipeError

Classes = Mapping[str, Sequence[str]]
"""Class names by task."""


def judge(
    settings: Model, architecture: Architecture, classes: Classes, *, frozen: bool = False
) -> tuple[Architecture, Report]:
    """The architecture with LayerNorm's epsilon and the GELU that the weights bring (unless the recipe says), and what
    they will fill. Takes no memory for weights. Raises RecipeError where they do not fit, or where, `frozen`, they
    leave something fresh that will never be trained."""
    try:
        path = local_copy(settings.init)
        source = _shapes(path, changed(path))
        architecture = replace(
            architecture,
            norm_eps=source.norm_eps if settings.norm_eps is None else settings.norm_eps,
            gelu=settings.gelu or source.gelu,
        )
        report = _fit(on_meta(architecture), source, settings, classes)
        if frozen:
            _refuse_fresh(report)
        return architecture, report
    except WeightsError as error:
        raise RecipeError("\n".join(f"model.init: {line}" for line in str(error).splitlines())) from None


def put_in_place(settings: Model, model: PolyViT, classes: Classes) -> Report:
    """Fill a model. Raises WeightsError."""
    return _fit(model, open_source(local_copy(settings.init)), settings, classes)


def _refuse_fresh(report: Report) -> None:
    """Frozen, what is random stays random. Raises WeightsError."""
    fresh = [entry.place for entry in report.fresh if not entry.place.startswith("heads.")]
    if fresh:
        more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
        raise WeightsError(
            f"{report.place} leaves {fresh[0]}{more} fresh, which train.freeze would leave random: heads alone are "
            f"trained"
        )


def _fit(model: PolyViT, source: Source, settings: Model, classes: Classes) -> Report:
    allow = tuple(settings.init_allow)
    return fit(model, source, place=settings.init, tubelet=settings.init_tubelet, allow=allow, classes=classes)


def digest(place: str) -> str:
    """Tells the weights at a path or URI from others that lie there later. Raises WeightsError."""
    path = local_copy(place)
    return _digest(path, changed(path))


@functools.lru_cache(maxsize=4)
def _digest(path: Path, changed: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    for file in _weights_in(path):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _weights_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [path / name for name in sorted(_wanted([file.name for file in path.iterdir() if file.is_file()]))]


@functools.lru_cache(maxsize=4)  # a sweep judges hundreds of recipes by one file
def _shapes(path: Path, changed: tuple[int, ...]) -> Source:
    return open_source(path, shapes_only=True)


def changed(path: Path) -> tuple[int, ...]:
    """What differs once a file or folder does."""
    try:
        files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        return tuple(number for file in files for number in (file.stat().st_mtime_ns, file.stat().st_size))
    except OSError:
        return ()


# --- from a store -------------------------------------------------------------------------------------------------


def local_copy(place: str) -> Path:
    """A path on this machine for a path or URI of a file or folder of weights. Raises WeightsError."""
    local = storage.local_path(place)
    if local is not None:
        return Path(local)
    try:
        return _fetched(place)
    except FileNotFoundError:
        raise WeightsError(f"there is nothing at {place}") from None
    except (OSError, pa.ArrowException) as error:  # a StorageError names the place itself
        raise WeightsError(str(error) if place in str(error) else f"{place}: {error}") from None


@functools.cache
def _folder(place: str) -> NodeFolder:
    """Held until this process ends: workers of this machine find what the driver fetched."""
    return NodeFolder(f"init-{hashlib.sha256(place.encode()).hexdigest()[:16]}")


def _fetched(place: str) -> Path:
    folder = _folder(place)
    name = posixpath.basename(urlsplit(place).path.rstrip("/")) or "weights"
    with folder.locked(0):
        found = folder.path / "found" / name
        if not found.exists():
            partial = folder.path / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            _fetch(place, partial, name)
            partial.rename(folder.path / "found")
    return found


def _fetch(place: str, into: Path, name: str) -> None:
    kind = storage.kind(place)
    if kind is pa.fs.FileType.NotFound:
        raise FileNotFoundError(place)
    if kind is pa.fs.FileType.Directory:
        for file in _wanted([path for path, _ in storage.files(place) if "/" not in path]):
            _download(storage.join(place, file), into / name / file)
        return
    _download(place, into / name)
    beside = storage.join(storage.parent(place), "config.json")
    if storage.kind(beside) is pa.fs.FileType.File:
        _download(beside, into / "config.json")


def _wanted(files: list[str]) -> list[str]:
    """What describes weights, and the weights, once: published folders have them in several formats."""
    weights = [file for file in files if file.endswith(SUFFIXES) and file != "optimizer.pt"]
    safe = [file for file in weights if file.endswith(".safetensors")]
    return [file for file in files if file.endswith((".json", ".yaml"))] + (safe or weights)


def _download(place: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    with storage.open_file(place) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)
    partial.rename(to)
