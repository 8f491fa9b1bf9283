"""What a served model needs installed, at the versions of requirements.lock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).parents[3] / "requirements.lock"
"""Comes with the repository; jobs run from a checkout."""

SERVING = (
    "av",
    "mlflow",
    "numpy",
    "omegaconf",
    "pillow",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "simplejpeg",
    "torch",
    "torchaudio",
)
"""What is imported to open a checkpoint, decode a file and predict, and MLflow, which serves it."""


@dataclass(frozen=True)
class Requirements:
    """Lines as pip takes them."""

    pins: list[str]
    """`SERVING`."""
    constraints: list[str]
    """What these need in turn."""


def serving_requirements(lock: Path = LOCK) -> Requirements:
    """What the lock has for this Python and platform. Without a lock: the versions that are installed, alone."""
    if not lock.exists():
        return Requirements([f"{name}=={metadata.version(name)}" for name in SERVING], [])
    versions, parents = _read(lock)
    needed = set(SERVING)
    while more := {name for name, wanted_by in parents.items() if wanted_by & needed} - needed:
        needed |= more
    pins = {name: f"{name}=={versions[name]}" for name in sorted(needed) if name in versions}
    return Requirements([pins[name] for name in SERVING], [pin for name, pin in pins.items() if name not in SERVING])


def _read(lock: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """The version of each package for this Python and platform, and by package those that want it."""
    versions: dict[str, str] = {}
    parents: dict[str, set[str]] = defaultdict(set)
    name = ""
    for line in lock.read_text().splitlines():
        if not line.startswith((" ", "#")):
            requirement = Requirement(line)
            name = requirement.name
            if requirement.marker is None or requirement.marker.evaluate():
                versions[name] = str(requirement.specifier).removeprefix("==")
        elif wanted_by := line.strip("# ").removeprefix("via").strip():  # as uv writes it: "# via torch"
            parents[name].add(wanted_by)
    return versions, parents
