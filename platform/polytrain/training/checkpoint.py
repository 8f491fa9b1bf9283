"""Checkpoints: a folder that is whole or does not count.

    model.safetensors   weights
    optimizer.pt        optimizer state (torch, loaded with weights_only=True: nothing is ever unpickled)
    recipe.yaml         the resolved recipe
    state.json          step, plan digest, versions, what the loop must know, and the SHA-256 of the files above

A checkpoint is written beside its place, synced and renamed; `state.json` vouches for the rest, so a torn copy or a
flipped bit is noticed on reading. torch is imported where tensors are: choosing a checkpoint must not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FILES = ("model.safetensors", "optimizer.pt", "recipe.yaml")


class CheckpointError(ValueError):
    """What is wrong with a checkpoint folder."""


@dataclass(frozen=True)
class Found:
    """A whole checkpoint, and the faults of the newer ones that are not."""

    path: Path | None
    state: dict[str, Any]
    faults: tuple[str, ...]


def save(
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    recipe_yaml: str,
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder, whole or not at all; one that stands there already is replaced."""
    import safetensors.torch
    import torch

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    if optimizer is not None:
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    (partial / "recipe.yaml").write_text(recipe_yaml)
    digests = {name: _digest(partial / name) for name in FILES if (partial / name).exists()}
    (partial / "state.json").write_text(json.dumps({**state, "sha256": digests}, indent=1))
    for file in partial.iterdir():
        _sync(file)
    if folder.exists():
        # A rename can't replace a folder that isn't empty: move the old one aside first.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(folder)
    _sync(folder.parent)


def verify(folder: Path, files: Sequence[str] = FILES) -> dict[str, Any]:
    """The state of a checkpoint whose `files` are as they were written. Raises CheckpointError otherwise."""
    try:
        state = json.loads((folder / "state.json").read_text())
        digests = dict(state["sha256"])
        step = state["step"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no state.json: it is no checkpoint, or was not written to the end"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / 'state.json'} is damaged") from None
    if not isinstance(step, int):
        raise CheckpointError(f"{folder / 'state.json'} names no step")
    for name, digest in digests.items():
        if name not in files:
            continue
        file = folder / name
        if not file.exists():
            raise CheckpointError(f"{file} is missing")
        if _digest(file) != digest:
            raise CheckpointError(f"{file} is damaged: its content is not what was written")
    return state


def newest_whole(folder: Path) -> Found:
    """The newest checkpoint `step_*` of a folder that verifies. Damaged newer ones are named in `faults`."""
    faults = []
    for path in sorted(folder.glob("step_*"), key=lambda path: path.name, reverse=True):
        try:
            return Found(path, verify(path), tuple(faults))
        except CheckpointError as fault:
            faults.append(str(fault))
    return Found(None, {}, tuple(faults))


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Put a checkpoint's weights and optimizer state in place. Raises CheckpointError when they do not fit."""
    import safetensors.torch
    import torch

    try:
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        if optimizer is not None:
            device = next(model.parameters()).device
            optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location=device, weights_only=True))
    except (RuntimeError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder} does not fit this model: {str(error).splitlines()[0]}") from error


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest checkpoints `step_*`, and what an interrupted save left behind."""
    for path in sorted(folder.glob("step_*"))[:-count]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:09d}"


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
