"""Weights as they lie in files: names and tensors of any kind that people publish. Nothing is ever unpickled.

A file is known by its content, not by its suffix. With `shapes_only`, tensors have shapes and no memory (torch's meta
device): what is to fit can be judged on a machine that could not hold it.
"""

from __future__ import annotations

import ast
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "V2": torch.bfloat16,
    "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip
"""NumPy's names of number types. It has none for bfloat16: JAX's arrays of it are stored as two raw bytes, V2."""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".npz", ".bin", ".pth", ".pt")
NESTED = ("state_dict", "model", "module", "model_state_dict", "net")
"""Keys under which a file of torch's may keep the weights, beside what else its training left there."""

KNOWN = "known are .npz, safetensors, and torch's own format (.bin, .pth, .pt) holding tensors alone"


class WeightsError(ValueError):
    """What is wrong with a file of weights, or why it does not fit: a message for the user."""


def read(path: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder as Hugging Face and timm publish them, by their names there.

    Raises WeightsError: no such file, truncated, of an unknown kind, or one that would have to be unpickled.
    """
    if not path.is_dir():
        return _read_file(path, shapes_only)
    for index in INDEXES:
        if (path / index).exists():
            return _read_shards(path / index, shapes_only)
    for name in SINGLE:
        if (path / name).exists():
            return _read_file(path / name, shapes_only)
    found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
    if len(found) == 1:
        return _read_file(found[0], shapes_only)
    hint = f"; did you mean {path / 'final'}?" if (path / "final" / "state.json").exists() else ""
    several = f" but {len(found)} files that may: " + ", ".join(file.name for file in found) if found else ""
    raise WeightsError(f"{path}: a folder without {' or '.join(SINGLE)}{several}{hint}")


def config_beside(path: Path) -> dict[str, Any]:
    """The config.json that Hugging Face and timm put into a folder of weights; {} where there is none. What Hugging
    Face says of the pictures' normalisation in a file of its own is added."""
    folder = path if path.is_dir() else path.parent
    said = _json(folder / "preprocessor_config.json")
    pictures = {key: said[key] for key in ("image_mean", "image_std") if key in said}
    config = _json(folder / "config.json")
    return config | pictures if config else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError) as error:
        raise WeightsError(f"{file} can't be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _read_shards(index: Path, shapes_only: bool) -> dict[str, Tensor]:
    try:
        shards = json.loads(index.read_text())["weight_map"]
        files = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{index}: no index of shards, or a damaged one") from None
    if outside := [name for name in files if Path(name).name != name]:
        raise WeightsError(f"{index}: names a file outside its folder, {outside[0]}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= _read_file(index.parent / name, shapes_only)
    if missing := sorted(set(shards) - set(tensors)):
        raise WeightsError(f"{index}: {missing[0]} is in none of its {len(files)} files")
    return tensors


def _read_file(path: Path, shapes_only: bool) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise WeightsError(f"there is nothing at {path}") from None
    except OSError as error:
        raise WeightsError(f"{path} can't be read: {error}") from None
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"{path} is truncated: the end of its zip archive is missing")
        with zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith((".npy", "/")) for name in archive.namelist())
        return (_read_npz if arrays else _read_torch)(path, shapes_only)
    if start[8:] == b"{":
        return _read_safetensors(path, shapes_only)
    if start.startswith(b"\x80"):
        return _read_torch(path, shapes_only)
    raise WeightsError(f"{path} {'is empty' if not start else 'holds no weights of a known kind'}; {KNOWN}")


# --- .npz ---------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, shapes_only: bool) -> dict[str, Tensor]:
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    name = member.filename.removesuffix(".npy")
                    with archive.open(member) as file:
                        tensors[name] = _read_npy(file, f"{path}, {name}", shapes_only)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise WeightsError(f"{path} is truncated or damaged: {error}") from None
    return tensors


def _read_npy(file: IO[bytes], where: str, shapes_only: bool) -> Tensor:
    """An array as numpy.lib.format stores it. Read here, because the model needs torch alone, because bfloat16 is not
    known to NumPy, and because an array of Python objects can only be refused."""
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise WeightsError(f"{where}: no array of NumPy's")
    width = 2 if magic[6] == 1 else 4
    try:
        header = ast.literal_eval(file.read(int.from_bytes(file.read(width), "little")).decode("latin1"))
        descr, fortran, shape = header["descr"], bool(header["fortran_order"]), tuple(map(int, header["shape"]))
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise WeightsError(f"{where}: its header is damaged") from None
    if "O" in str(descr):
        raise WeightsError(f"{where}: holds Python objects, which would have to be unpickled; arrays alone are read")
    if not isinstance(descr, str) or descr[0] == ">" or descr[1:] not in DTYPES:
        raise WeightsError(f"{where}: its numbers are of type {descr}; known are {', '.join(DTYPES)}, little-endian")
    dtype = DTYPES[descr[1:]]
    if shapes_only:
        return torch.empty(shape, dtype=dtype, device="meta")
    data = bytearray(file.read())
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"{where}: {len(data)} bytes for the shape {list(shape)}; it is truncated or damaged")
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.view(shape[::-1]).permute(*reversed(range(len(shape)))) if fortran else flat.view(shape)


# --- safetensors, torch -------------------------------------------------------------------------------------------


def _read_safetensors(path: Path, shapes_only: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            if shapes_only:
                return {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in file.keys()}  # noqa: SIM118
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is truncated or damaged, or no safetensors file: {error}") from None


def _read_torch(path: Path, shapes_only: bool) -> dict[str, Tensor]:
    # Mapped, a zip's tensors are read when they are looked at, and only then. By that suffix, torch would take the file
    # for what it is not.
    mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats
            content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise WeightsError(
                f"{path}: to read it, {named[1]} would have to be run, and nothing is run that a file of "
                f"weights asks for; the same as safetensors, or saved as a dict of tensors alone, would be right"
            ) from None
        raise WeightsError(f"{path} is damaged, or holds more than tensors, and is not unpickled; {KNOWN}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        why = (str(error) or "it ends early").splitlines()[0]
        raise WeightsError(f"{path} is truncated or damaged: {why}") from None
    tensors = _dict_of_tensors(content)
    if tensors is None:
        keys = f" (its keys: {', '.join(map(str, list(content)[:8]))})" if isinstance(content, Mapping) else ""
        raise WeightsError(f"{path}: holds no dict of tensors{keys}")
    return {name: tensor.to("meta") if shapes_only else tensor for name, tensor in tensors.items()}


def _dict_of_tensors(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for key in NESTED:
        if isinstance(content.get(key), Mapping) and (found := _dict_of_tensors(content[key])):
            return found
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}
    return tensors or None
