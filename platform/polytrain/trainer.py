"""Ray Train's trainer as runs use it, with nothing started that nobody has a use for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
from ray.data._internal.stats import get_or_create_stats_actor
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from polytrain.cluster import is_own
from polytrain.data.stream import Streams


def make_trainer(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    streams: Streams,
    scaling: ScalingConfig,
    run: RunConfig,
) -> DataParallelTrainer:
    """A trainer whose workers run `loop(config | {"streams": streams})`; `Place.in_worker_group` asks those for shards.

    Two actors on which Ray Train and Ray Data would wait one after the other are started here, before `fit`.
    """
    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()
    settings = {
        "train_loop_per_worker": loop,
        "train_loop_config": config | {"streams": streams},
        "scaling_config": scaling,
        "run_config": run,
    }
    if scaling.num_workers == 1:
        return _LoneTrainer(**settings)
    from ray.train.torch import TorchTrainer

    from polytrain.training.process_group import OneAddress

    datasets = dict.fromkeys(streams.names, _nothing)
    return TorchTrainer(**settings, torch_config=OneAddress(), datasets=datasets, dataset_config=streams)


class _LoneTrainer(DataParallelTrainer):
    """For a worker alone: without a process group neither driver nor controller imports torch, and without two actors
    that have nothing to do here a run starts seconds sooner on two cores."""

    def _create_default_callbacks(self) -> list[Any]:
        # It builds its streams itself. And where Ray ends with the run, so does a placement group.
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback) if is_own() else (DatasetsCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unneeded)]


def _nothing() -> None:
    """A stream's stand-in: `Streams.configure` builds the real one when a worker asks for it."""
