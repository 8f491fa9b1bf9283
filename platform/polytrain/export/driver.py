"""`python jobs/export.py CHECKPOINT`: make, compare, record, register, tell."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from polytrain.data import manifest as manifests
from polytrain.data.examples import Examples, examples_of
from polytrain.data.manifest import ManifestError
from polytrain.experiment import missing_media
from polytrain.export.command import Wanted
from polytrain.export.graph import TaskGraph, onnx_of, program_of, save_program
from polytrain.export.input_example import example_file
from polytrain.export.judging import (
    ExportError,
    Judged,
    Measured,
    check_parity,
    from_module,
    from_onnx,
    from_program,
    judged_by,
    measure,
)
from polytrain.export.quantise import quantise
from polytrain.export.requirements import serving_requirements
from polytrain.launch import FAILED, FINISHED, git_commit
from polytrain.progress import Progress
from polytrain.run_folder import RunFolder
from polytrain.secrecy import without_secrets
from polytrain.text_table import table
from polytrain.tracking import AwayError, Tracker, chosen_uri, local_uri
from polytrain.tracking.models import Registered, register
from polytrain.trained import USED, TrainedTask
from polytrain.training.description import preprocessing

COMPARED = 8
"""Examples by which a graph is compared with the model where no accuracy is asked for."""


def export(wanted: Wanted) -> int:
    """Returns the exit code. Raises BusyError when another process exports to the same folder."""
    run = RunFolder(wanted.folder)
    with run.held(print):
        run.forget()
        try:
            return _Export(wanted, run).run_it()
        except (ExportError, AwayError) as error:
            print(f"error: {without_secrets(str(error))}", file=sys.stderr)
            return FAILED


class _Export:
    """One export from what is wanted to what is told."""

    def __init__(self, wanted: Wanted, run: RunFolder) -> None:
        self.wanted, self.run = wanted, run
        self.trained, self.recipe = wanted.trained, wanted.recipe
        self.notices: list[str] = []

    def run_it(self) -> int:
        print(f"{self.run.path.name}: {self.trained.place}, {', '.join(self.wanted.formats)}", flush=True)
        tracker = self._open_record()
        status = "FAILED"
        try:
            measured = self._graphs()
            self._record(tracker, measured)
            registered = self._register(tracker) if "mlflow" in self.wanted.formats else None
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.notices += filter(None, [tracker.notice, tracker.close(status)])
        self._tell(measured, registered, tracker)
        return FINISHED

    # --- graphs ---

    def _graphs(self) -> list[Measured]:
        """Every task's graphs, written and judged."""
        forms = [form for form in self.wanted.formats if form != "mlflow"]
        if not forms:
            return []
        forward = self.trained.forward("cpu")
        measured: list[Measured] = []
        with Progress("exporting", len(self.wanted.tasks), "tasks") as progress:
            for task in self.wanted.tasks:
                examples = self._examples(task)
                if self.wanted.int8:
                    by = judged_by(forward, task, examples, self.wanted.examples)
                else:
                    by = replace(judged_by(forward, task, examples, COMPARED), labels=None)
                measured += self._task(task, TaskGraph(forward, task).eval(), by, progress)
                progress.add()
        return measured

    def _task(self, task: TrainedTask, graph: TaskGraph, by: Judged, progress: Progress) -> list[Measured]:
        about = self._about(task)
        two = torch.from_numpy(by.media[[0, -1]])
        program = program_of(graph, two)
        measured = [measure(task, "model", from_module(graph), by)]
        progress.tick()
        if "pt2" in self.wanted.formats:
            file = self.run.path / f"{task.name}.pt2"
            save_program(program, file, about)
            measured.append(measure(task, "torch.export", from_program(file), by, file))
            check_parity(measured[-1], by)
            progress.tick()
        if "onnx" in self.wanted.formats:
            file = self.run.path / f"{task.name}.onnx"
            file.write_bytes(onnx_of(program, about).SerializeToString())
            measured.append(measure(task, "ONNX", from_onnx(file), by, file))
            check_parity(measured[-1], by)
            progress.tick()
        if self.wanted.int8:
            small = self.run.path / f"{task.name}.int8.onnx"
            quantise(file, small)
            measured.append(measure(task, "ONNX int8", from_onnx(small), by, small))
        return measured

    def _about(self, task: TrainedTask) -> dict[str, Any]:
        """What a graph tells of itself."""
        geometry = self.trained.architecture.modalities[task.modality]
        return {
            "task": task.name,
            "modality": task.modality,
            "classes": list(task.classes),
            "several_labels": task.multi_label,
            "preprocessing": {**preprocessing(geometry), "in_graph": "from decoded on"},
            "license": self.trained.state.get("license"),
            "versions": self.trained.state["versions"],
            "weights_sha256": self.trained.state["sha256"]["model.safetensors"],
        }

    def _examples(self, task: TrainedTask) -> Examples | None:
        """Its test split, if it is there."""
        settings = self.recipe.tasks.get(task.name)
        try:
            if settings is None:
                raise ManifestError("the recipe names no examples")
            manifest = manifests.read(settings.manifest)
            if manifest.classes != task.classes or manifest.multi_label != task.multi_label:
                raise ManifestError(f"{manifest.uri} is of other classes")
            if missing := missing_media(manifest):
                raise ManifestError(f"{missing} is not there")
        except ManifestError as error:
            self.notices.append(f"{task.name} was compared on noise, without accuracy: {without_secrets(str(error))}")
            return None
        return examples_of(manifest)["test"]

    # --- the record ---

    def _open_record(self) -> Tracker:
        recipe, trained = self.recipe, self.trained
        uri = chosen_uri(recipe.tracking.uri, recipe.output)
        of_training = self._training_run()
        return Tracker.open(
            self.run.path,
            uri=uri,
            fallback_uri=local_uri(Path(recipe.output)),
            experiment=recipe.tracking.experiment or recipe.name,
            run_name=self.run.path.name,
            artifact_root=str(Path(recipe.output) / "mlartifacts"),
            tags={
                "polytrain.kind": "export",
                "polytrain.checkpoint": trained.place,
                "polytrain.checkpoint_step": str(trained.state["step"]),
                "polytrain.git_commit": git_commit(),
            }
            | ({"polytrain.exported_run": of_training["run_id"]} if of_training else {}),
            params={
                "export.checkpoint": trained.place,
                "export.formats": ", ".join(self.wanted.formats),
                "export.int8": self.wanted.int8,
            },
            parent_run_id=of_training.get("run_id") if of_training.get("uri") == uri else None,
        )

    def _training_run(self) -> dict[str, Any]:
        """The record of the run that trained the checkpoint, as far as it is known: run_id, uri."""
        for folder in self.trained.path.parents[:2]:  # RUN/final, RUN/checkpoints/step_*
            if record := RunFolder(folder).record():
                return record
        return {}

    def _record(self, tracker: Tracker, measured: Sequence[Measured]) -> None:
        values = {}
        for one in measured:
            key = f"export/{one.task}/{one.format.lower().replace(' ', '_').replace('.', '_')}"
            numbers = {
                "latency_ms": one.latency_ms,
                "megabytes": one.megabytes,
                "probability_difference": one.probability_difference,
                one.metric: one.value,
            }
            values |= {f"{key}/{name}": number for name, number in numbers.items() if number is not None}
        tracker.metrics(values, step=self.trained.state["step"])
        if measured:
            file = self.run.path / "export.json"
            told = {
                "checkpoint": self.trained.place,
                "graphs": [asdict(one) for one in measured],
            }
            file.write_text(json.dumps(told, indent=1))
            tracker.artifact(file)

    def _register(self, tracker: Tracker) -> Registered:
        trained, needs = self.trained, serving_requirements()
        tasks = {
            task.name: {"modality": task.modality, "classes": list(task.classes)} for task in trained.tasks.values()
        }
        license = trained.state.get("license")
        return register(
            [trained.path / name for name in (*USED, "state.json")],
            uri=tracker.uri,
            run_id=tracker.run_id,
            name=self.wanted.name,
            alias=self.wanted.alias,
            pins=needs.pins,
            constraints=needs.constraints,
            example=example_file(next(iter(trained.architecture.modalities.values()))),
            about={"tasks": tasks, "license": license, "checkpoint": trained.place},
            tags={"polytrain.checkpoint": trained.place, "polytrain.checkpoint_step": str(trained.state["step"])}
            | ({"license": license} if license else {}),
        )

    # --- telling ---

    def _tell(self, measured: Sequence[Measured], registered: Registered | None, tracker: Tracker) -> None:
        for notice in self.notices:
            print(notice)
        if measured:
            print(f"\n{measured_text(measured)}\n\nGraphs lie in {self.run.path}")
        if registered is not None:
            print(f"\nRegistered as {registered.name}, version {registered.version}, in {tracker.uri}. To serve it:")
            print(f"export MLFLOW_TRACKING_URI={tracker.uri}")
            print(f"mlflow models serve -m {registered.uri} --env-manager uv --port 5001\n")
        print(f"MLflow run {tracker.run_id} in {tracker.uri}")


def measured_text(measured: Sequence[Measured]) -> str:
    """A row a graph, and what eight bits cost."""
    judged = any(one.value is not None for one in measured)
    header = ["task", "form", "MB", "ms", "off by", *(["metric", "test"] if judged else [])]
    rows = [
        [
            one.task if one.format == "model" else "",
            one.format,
            "-" if one.megabytes is None else f"{one.megabytes:.1f}",
            f"{one.latency_ms:.2f}",
            "-" if one.format == "model" else f"{one.probability_difference:.0e}",
            *([one.metric, "-" if one.value is None else f"{one.value:.1f}"] if judged else []),
        ]
        for one in measured
    ]
    lines = [
        table(header, rows),
        "\nms: one example on one core, from decoded media to probabilities. off by: the largest difference of a "
        "probability from the model's.",
    ]
    costs = _costs_of_int8(measured)
    if costs:
        worst, by = min(costs.items(), key=lambda cost: cost[1])
        lines.append(
            f"Eight bits change a task's metric by {sum(costs.values()) / len(costs):+.2f} points on average, "
            f"by {by:+.1f} at worst ({worst})."
        )
    return "\n".join(lines)


def _costs_of_int8(measured: Sequence[Measured]) -> dict[str, float]:
    """By task, its metric in eight bits minus that of the model, points."""
    values = {(one.task, one.format): one.value for one in measured if one.value is not None}
    return {task: value - values[task, "model"] for (task, form), value in values.items() if form == "ONNX int8"}
