"""One point in a trial's process: the co-training loop with one task, without a worker group of its own.

Ray Tune keeps the process for the next trial, so that Python, torch, MLflow and Ray are imported once. Ray Train would
start a worker group a trial: some nine seconds more, each time.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray import tune

from polytrain.data import manifest as manifests
from polytrain.data.manifest import Manifest
from polytrain.data.reading import Flow
from polytrain.experiment import Experiment, open_experiment
from polytrain.launch import flat, git_commit, stream_source
from polytrain.recipe import Recipe
from polytrain.run_folder import BusyError, RunFolder
from polytrain.secrecy import faults_without_secrets
from polytrain.sweep.outcome import CRASHED, DIVERGED, FINISHED, INTERRUPTED, Ended
from polytrain.sweep.past import FINGERPRINT, KIND, START_UP_S, STATUS, STEPS_S, on_disk
from polytrain.sweep.points import Point, make_point
from polytrain.tracking import Tracker, local_uri

MLFLOW_STATUS = {FINISHED: "FINISHED", DIVERGED: "FAILED", CRASHED: "FAILED", INTERRUPTED: "KILLED"}

BUSY_S = 1.0
"""Between looks at a trial that another sweep is running."""


@dataclass(frozen=True)
class Setting:
    """What a sweep's trials share."""

    recipe: Recipe
    parent_run_id: str
    uri: str  # the parent's tracking store
    threads: int  # cores of a trial's training
    flow: Flow
    gpus: float  # share of a GPU; 0: on CPUs


def trainable(setting: Setting) -> type[tune.Trainable]:
    """Ray Tune's name for what runs a trial: a class, whose `step` is a whole trial."""

    class Trial(tune.Trainable):
        def step(self) -> dict[str, Any]:
            ended = run_point(setting, self.config["task"], self.config["values"])
            return {"score": -1.0 if ended.score is None else ended.score, "status": ended.status, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True  # the next trial of this process

    return Trial


_read_manifest = lru_cache(maxsize=16)(manifests.read)


@faults_without_secrets()
def run_point(setting: Setting, task: str, values: dict[str, Any]) -> Ended:
    """Run a point from wherever its folder stands to its end, in this process. What raises is a crash."""
    began = time.perf_counter()
    point = make_point(setting.recipe, task, values, _read_manifest)
    run = RunFolder(point.folder)
    lock = _wait_for(run)
    try:
        ended = on_disk(point)
        if ended is not None:
            return ended  # by another sweep, meanwhile
        run.clear_for_start()
        experiment, opened = _experiment(setting, point)
        tracker = open_record(point, experiment, opened, setting)
        _train(setting, run, experiment, opened)
        return _close(point, run, tracker, time.perf_counter() - began)
    finally:
        os.close(lock)
        gc.collect()


def open_record(point: Point, experiment: Experiment, opened: list[Manifest], setting: Setting) -> Tracker:
    """The trial's MLflow run, nested under the sweep's; one that was begun is continued."""
    recipe = experiment.recipe
    run = RunFolder(point.folder)
    run.path.mkdir(parents=True, exist_ok=True)
    told = {"task": point.task, "values": point.values, "fingerprint": point.fingerprint}
    (run.path / "trial.json").write_text(json.dumps(told))
    (run.path / "recipe.yaml").write_text(recipe.yaml())
    tracker = Tracker.open(
        run.path,
        uri=setting.uri,
        fallback_uri=local_uri(Path(recipe.output)),
        experiment=setting.recipe.tracking.experiment or setting.recipe.name,
        run_name=f"{point.task} {point.label}",
        artifact_root=str(Path(recipe.output) / "mlartifacts"),
        tags={
            KIND: "trial",
            "polytrain.task": point.task,
            FINGERPRINT: point.fingerprint,
            "polytrain.values": json.dumps(point.values),
            "polytrain.schedule": recipe.schedule,
            "polytrain.plan_digest": experiment.plan.digest,
            "polytrain.git_commit": _commit(),
        },
        params=flat(recipe.plain()),
        parent_run_id=setting.parent_run_id,
    )
    for of_task, manifest in zip(experiment.tasks, opened, strict=True):
        profile = {"classes": len(of_task.classes), "modality": of_task.modality, **manifest.sizes}
        tracker.dataset(
            name=of_task.name, uri=of_task.manifest, digest=of_task.digest, context="training", profile=profile
        )
    tracker.artifact(run.path / "recipe.yaml")
    return tracker


_commit = lru_cache(maxsize=1)(git_commit)


def _experiment(setting: Setting, point: Point) -> tuple[Experiment, list[Manifest]]:
    train = point.recipe.train
    recipe = point.recipe.model_copy(
        update={"train": train.model_copy(update={"threads": train.threads or setting.threads})}
    )
    return open_experiment(recipe, test=setting.recipe.sweep.test, read_manifest=_read_manifest)


def _train(setting: Setting, run: RunFolder, experiment: Experiment, opened: list[Manifest]) -> None:
    """Start the one stream that the trial needs, then the loop."""
    import ray

    from polytrain.data.stream import Streams
    from polytrain.training.start import Place, start

    source = stream_source(experiment, opened, setting.flow)
    streams = Streams(ray.put(source), str(run.path), experiment.modalities)
    begun = start(source, experiment.modalities, run, Place.alone(streams))
    from polytrain.training import loop

    if setting.gpus:
        import torch

        torch.cuda.set_per_process_memory_fraction(setting.gpus)
        torch.cuda.empty_cache()  # of the trial before: another trial on this GPU may want it
    loop.cotrain(experiment, source, run, begun, trial=True)


def _close(point: Point, run: RunFolder, tracker: Tracker, took_s: float) -> Ended:
    """Record how it ended, in the run folder and in MLflow."""
    result = run.result()
    if "seconds" in result:
        result["start_up_s"] = took_s - result["seconds"]
        run.write_result(result)
    ended = Ended.of_result(result, point, tracker.run_id)
    record_end(tracker, ended)
    if ended.status != INTERRUPTED:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # its last weights are in `final`
    return ended


def record_end(tracker: Tracker, ended: Ended) -> None:
    """Close a trial's MLflow run; what an absent store does not take now, the driver delivers at the end."""
    tracker.tags({STATUS: ended.status} | ({"polytrain.error": ended.message} if ended.message else {}))
    if math.isfinite(ended.seconds):
        tracker.metrics({STEPS_S: ended.seconds, START_UP_S: ended.start_up_s}, step=0)
    tracker.end(MLFLOW_STATUS[ended.status])


def _wait_for(run: RunFolder) -> int:
    """The folder's lock, once a sweep that runs the same trial has ended it."""
    while True:
        try:
            return run.lock()
        except BusyError:
            time.sleep(BUSY_S)
