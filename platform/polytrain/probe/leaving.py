"""What a probe leaves in its folder and hands to MLflow: tables, pictures, heads, and a checkpoint that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors.torch

from polytrain import figures
from polytrain.model.polyvit import PolyViT
from polytrain.probe.heads import Fitted
from polytrain.probe.opening import Probing, frozen
from polytrain.probe.outcome import Saving, Tested
from polytrain.probe.trunk import Trunk
from polytrain.recipe import Recipe
from polytrain.sweep import plots
from polytrain.sweep.outcome import Row, by_task, write_tables
from polytrain.tracking import Tracker
from polytrain.training import checkpoint
from polytrain.training.description import description
from polytrain.training.evaluation import Predictions
from polytrain.training.metrics import confusion_matrix


def write_pictures(rows: Sequence[Row], fitted: Mapping[str, Fitted], folder: Path, tracker: Tracker) -> None:
    """table.md and table.parquet of all heads, and a picture a task: validation over the grid, curves."""
    for file in write_tables(rows, folder):
        tracker.artifact(file)
    curves = {fingerprint: of_head.curves for fingerprint, of_head in fitted.items()}
    for task, of_task in by_task(rows).items():
        picture = folder / "figures" / f"{task}.png"
        plots.task_plot(of_task, curves, picture)
        tracker.artifact(picture)


def write_predictions(probing: Probing, predictions: Mapping[str, Predictions], folder: Path, tracker: Tracker) -> None:
    """predictions/TASK.parquet, a row a test example, and figures/confusion/TASK.png, as a training run leaves them."""
    for task in probing.tasks:
        if task.name not in predictions:
            continue
        said, classes = predictions[task.name], task.task.classes
        names = [task.examples["test"].name(example) for example in said.ids.tolist()]
        file = folder / "predictions" / f"{task.name}.parquet"
        file.parent.mkdir(exist_ok=True)
        rows = said.table(names, classes, loss=task.task.loss, multi_label=task.task.multi_label)
        pq.write_table(rows, file, compression="zstd")
        tracker.artifact(file, "predictions")
        if not task.task.multi_label:
            picture = folder / "figures" / "confusion" / f"{task.name}.png"
            matrix = confusion_matrix(said.logits, said.targets.argmax(1))
            figures.confusion(matrix.numpy(), list(classes), picture)
            tracker.artifact(picture, "confusion")


def record(
    probing: Probing,
    best: Mapping[str, Row],
    tested: Mapping[str, Tested],
    savings: Sequence[Saving],
    tracker: Tracker,
) -> None:
    """The winners' metrics and what was saved, as metrics of the probe's own run."""
    values: dict[str, float] = {}
    for task, row in best.items():
        if row.ended.score is not None:
            values[f"val/{task}/{row.point.metric}"] = row.ended.score
        if task in tested:
            values |= {f"test/{task}/{name}": value for name, value in tested[task].metrics.items()}
    for one in savings:
        values |= {
            f"probe/{one.task}/examples": one.examples,
            f"probe/{one.task}/examples_in_loop": one.in_loop,
            f"probe/{one.task}/features_s": one.seconds,
            f"probe/{one.task}/loop_s": one.loop_seconds,
        }
    tracker.metrics(values, step=0)
    tracker.tags(
        {f"polytrain.winner.{task}": row.ended.run_id for task, row in best.items()}
        | {f"polytrain.values.{task}": row.point.label for task, row in best.items()}
    )


def write_model(
    probing: Probing,
    trunk: Trunk,
    best: Mapping[str, Row],
    fitted: Mapping[str, Fitted],
    tested: Mapping[str, Tested],
    folder: Path,
    tracker: Tracker,
) -> Path | None:
    """heads.safetensors, and `final`: a checkpoint of the trunk, bit by bit as it was, with the best heads. None where
    no head can be had."""
    at_hand = {task: fitted[row.point.fingerprint] for task, row in best.items() if row.point.fingerprint in fitted}
    if not at_hand:
        return None
    heads = {}
    for task, of_head in at_hand.items():
        heads |= {f"heads.{task}.weight": of_head.weight, f"heads.{task}.bias": of_head.bias}
    safetensors.torch.save_file(heads, folder / "heads.safetensors", {"format": "pt"})
    tracker.artifact(folder / "heads.safetensors")  # the trunk is somebody else's, and may be large

    whole = probing.architecture
    tasks = {task: whole.tasks[task] for task in whole.tasks if task in at_hand}
    used = {head.modality for head in tasks.values()}
    geometries = {name: geometry for name, geometry in whole.modalities.items() if name in used}
    architecture = replace(whole, tasks=tasks, modalities=geometries)
    weights = {**trunk.weights, **heads}
    model = PolyViT(architecture)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    checkpoint.save(
        folder / "final",
        model=model,
        optimizer=None,
        recipe_yaml=(recipe := _recipe_of(probing, best, tasks)).yaml(),
        state=_state(probing, recipe, architecture, best, tested),
    )
    return folder / "final"


def _recipe_of(probing: Probing, best: Mapping[str, Row], tasks: Mapping[str, Any]) -> Recipe:
    """The tasks with their winners' values, as a run of the ordinary loop through the frozen model."""
    won = {task: best[task].point.recipe.tasks[task] for task in tasks}
    return frozen(probing.recipe.model_copy(update={"tasks": won, "grid": None}))


def _state(
    probing: Probing, recipe: Recipe, architecture: Any, best: Mapping[str, Row], tested: Mapping[str, Tested]
) -> dict[str, Any]:
    """What state.json tells, as that of a training run."""
    experiment, names = probing.space.experiment, list(architecture.tasks)
    val = {
        task: {best[task].point.metric: best[task].ended.score} for task in names if best[task].ended.score is not None
    }
    described, classes = experiment.described_tasks(), experiment.classes
    return {
        "format": 1,
        "step": max(recipe.tasks[task].steps for task in names),
        "plan_digest": experiment.plan.digest,
        "manifests": {task: digest for task, digest in experiment.state_digests().items() if task in names},
        **description(architecture.modalities, recipe),
        "architecture": architecture.plain(),
        "classes": {task: list(classes[task]) for task in names},
        "tasks": {task: described[task] for task in names},
        "trained": names,
        "world_size": 1,
        "results": {"val": val, "test": {task: dict(tested[task].metrics) for task in names if task in tested}},
        "probed": {"place": probing.probed.place, "weights": probing.probed.weights},
    }
