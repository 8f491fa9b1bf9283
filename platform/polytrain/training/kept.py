"""`train.freeze`: what a run keeps of the checkpoint that it starts from, tasks and all, and what it trains beside it.

A checkpoint of ours serves tasks. A run that freezes it leaves them as they are: those that its recipe names are judged
in the test and not trained, the others are carried along unread, and every checkpoint of the run serves them all.
Published weights serve none: then all that is kept are the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from polytrain.modalities import MODALITIES
from polytrain.model.architecture import Architecture
from polytrain.recipe import Model, RecipeError
from polytrain.trained import Trained, TrainedTask
from polytrain.training.checkpoint import CheckpointError

NUMBERS = ("depth", "width", "heads", "mlp_width", "adaptor_layers")
"""What a recipe says of a model anyway; `norm_eps` and `gelu` it may leave to the checkpoint."""


@dataclass(frozen=True)
class Kept:
    """What stays as it is. Without an architecture, weights that serve no task."""

    place: str
    architecture: Architecture | None = None
    tasks: Mapping[str, TrainedTask] = field(default_factory=dict)

    def carried(self, named: Collection[str]) -> tuple[TrainedTask, ...]:
        """The tasks that a recipe does not name."""
        return tuple(task for name, task in self.tasks.items() if name not in named)

    def union(self, settings: Model, architecture: Architecture) -> Architecture:
        """A recipe's architecture and the modalities and heads that stay. Raises RecipeError, a line a disagreement."""
        ours = self.architecture
        if ours is None:
            return architecture
        if faults := self._disagreements(settings, architecture, ours):
            raise RecipeError("\n".join(faults))
        modalities = {**architecture.modalities, **ours.modalities}
        return replace(
            architecture,
            norm_eps=ours.norm_eps,
            gelu=ours.gelu,
            modalities={name: modalities[name] for name in MODALITIES if name in modalities},
            tasks={name: ours.tasks[name] for name in self.tasks}
            | {name: head for name, head in architecture.tasks.items() if name not in self.tasks},
        )

    def _disagreements(self, settings: Model, architecture: Architecture, ours: Architecture) -> list[str]:
        keys = NUMBERS + tuple(key for key in ("norm_eps", "gelu") if getattr(settings, key) is not None)
        pairs = {f"model.{key}": (getattr(architecture, key), getattr(ours, key)) for key in keys}
        for name, geometry in architecture.modalities.items():
            if name in ours.modalities:
                of_checkpoint = asdict(ours.modalities[name])
                pairs |= {
                    f"modalities.{name}.{key}": (value, of_checkpoint[key]) for key, value in asdict(geometry).items()
                }
        return [
            f"{key}: {_shown(asked)} was asked for, but {self.place} has {_shown(has)}, which train.freeze keeps"
            for key, (asked, has) in pairs.items()
            if asked != has
        ]


def kept_by(settings: Model) -> Kept:
    """What lies at `model.init`. Raises RecipeError where it is no whole checkpoint and no weights."""
    from polytrain.model.pretrained import WeightsError  # torch, for those alone who start from weights
    from polytrain.training.initial import changed, local_copy

    try:
        path = local_copy(settings.init)
        folder = path.parent if path.name == "model.safetensors" else path
        if not (folder / "state.json").exists():
            return Kept(settings.init)
        trained = _opened(folder, changed(folder))
    except (WeightsError, CheckpointError) as error:
        raise RecipeError("\n".join(f"model.init: {line}" for line in str(error).splitlines())) from None
    return Kept(settings.init, trained.architecture, trained.tasks)


@functools.lru_cache(maxsize=4)  # a sweep opens hundreds of recipes on one checkpoint
def _opened(folder: Path, changed: tuple[int, ...]) -> Trained:
    return Trained.open(folder)


def kept_before(state: Mapping[str, Any], place: str) -> Kept:
    """What an interrupted run kept, from the state of its checkpoint: what it started from may be gone."""
    architecture = Architecture.from_plain(state["architecture"])
    tasks = {
        name: TrainedTask(name, head.modality, tuple(state["classes"][name]), told["multi_label"], told["loss"])
        for name, head in architecture.tasks.items()
        if name not in state["trained"] and (told := state["tasks"][name])
    }
    return Kept(place, architecture, tasks)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else f"{value}"
