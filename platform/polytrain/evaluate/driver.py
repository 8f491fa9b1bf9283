"""`python jobs/evaluate.py CHECKPOINT`: read, infer through Ray Data, judge, record, tell. The driver's side."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polytrain.data import storage
from polytrain.evaluate.outcome import (
    Outcome,
    judge,
    results_text,
    throughput_text,
    too_bad,
    weakest_text,
    write_tables,
)
from polytrain.evaluate.parts import Part, Question
from polytrain.inference import LostError, Scan, Scanned, run_scans
from polytrain.launch import FAILED, FINISHED, flat, git_commit
from polytrain.progress import Progress
from polytrain.report import LiveLine
from polytrain.run_folder import RunFolder, open_run
from polytrain.tracking import Tracker, artifact_root, chosen_uri, local_uri
from polytrain.training.evaluation import Predictions, gather
from polytrain.training.step import make_targets

FOLDERS = ("predictions", "per_class", "calibration", "confusion", "mistakes")
"""What an evaluation leaves, beside its tables."""

BAD_NAMED = 20
"""Media that can't be decoded that the terminal names; quarantine.parquet has all."""


def evaluate(question: Question, *, fresh: bool = False) -> int:
    """Judge, or show what was found before. Returns the exit code. Raises BusyError when another process does."""
    run = open_run(question.place)
    with run.held(LiveLine().say):
        result = run.result()
        if result.get("status") == "finished" and not fresh:
            print(f"{question.trained.place} was judged before; --fresh judges it anew.\n")
            _tell([Outcome(**one) for one in result["outcomes"]], result["throughput"], run)
            return FINISHED
        if fresh or result:  # one that was stopped goes on in the MLflow run that it began
            run.forget()
        return _Evaluation(question, run).run_it()


@dataclass(eq=False)
class _Gathered:
    """What has come of one part, in any order."""

    ids: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    bad: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, part: Part, scanned: Scanned) -> None:
        self.ids.append(scanned.ids)
        self.logits.append(scanned.outputs[part.task.name])
        self.labels += part.classes_of(scanned.labels)
        self.bad += scanned.bad

    def predictions(self, part: Part) -> Predictions:
        """In the split's order."""
        import torch

        classes = len(part.task.classes)
        ids = np.concatenate([np.empty(0, np.int64), *self.ids])
        logits = torch.from_numpy(np.concatenate([np.empty((0, classes), np.float32), *self.logits]))
        return gather([(ids, logits, make_targets(self.labels, classes, "cpu"))], classes)


class Clock:
    """How quickly examples come. What comes first has waited for Ray and the model, and is left out of the rate."""

    def __init__(self) -> None:
        self.began = self.first = self.last = time.monotonic()
        self.examples = self.views = self.examples_first = self.views_first = 0

    def note(self, examples: int, views: int) -> None:
        """So many examples of so many views each have come."""
        self.last = time.monotonic()
        if not self.views:
            self.first, self.examples_first, self.views_first = self.last, examples, examples * views
        self.examples += examples
        self.views += examples * views

    def throughput(self) -> dict[str, float]:
        seconds, examples, views = self.last - self.first, self.examples, self.views
        if examples > self.examples_first:
            examples, views = examples - self.examples_first, views - self.views_first
        else:  # all came at once
            seconds = self.last - self.began
        return {
            "examples": self.examples,
            "views": self.views,
            "seconds": self.last - self.began,
            "start_up_s": self.first - self.began,
            "examples_per_s": examples / max(seconds, 1e-9),
            "views_per_s": views / max(seconds, 1e-9),
        }


class _Evaluation:
    """One evaluation from the question to what is told."""

    def __init__(self, question: Question, run: RunFolder) -> None:
        self.question, self.run = question, run
        self.trained, self.recipe = question.trained, question.recipe

    def run_it(self) -> int:
        examples = sum(len(part.examples) for part in self.question.parts)
        tasks = {part.task.name for part in self.question.parts}
        print(f"{self.question.name}: {len(tasks)} tasks, {examples:,} examples of {self.trained.place}", flush=True)
        (self.run.path / "recipe.yaml").write_text(self.recipe.yaml())
        tracker = self._open_record()
        if tracker.notice:
            print(tracker.notice)
        code, status = FAILED, "FAILED"
        try:
            code = self._judge_all(tracker)
            status = "FINISHED" if code == FINISHED else "FAILED"
        except LostError as error:
            print(f"{self.question.name} failed: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if notice := tracker.close(status):
                print(notice)
        return code

    def _judge_all(self, tracker: Tracker) -> int:
        gathered, throughput = self._scan()
        outcomes = []
        with Progress("drawing", len(self.question.parts), "splits") as progress:
            for part in self.question.parts:
                of_part = gathered[part.key]
                outcomes.append(judge(part, of_part.predictions(part), of_part.bad, self.run.path))
                progress.add()
        self._record(tracker, outcomes, throughput)
        fault = too_bad(outcomes, self.recipe.data.max_bad_fraction)
        found = {"outcomes": [asdict(one) for one in outcomes], "throughput": throughput}
        self.run.write_result({"status": "failed" if fault else "finished"} | found)
        print()
        self._quarantine(gathered, tracker)
        _tell(outcomes, throughput, self.run)
        if fault:
            print(fault, file=sys.stderr)
        return FAILED if fault else FINISHED

    def _scan(self) -> tuple[dict[str, _Gathered], dict[str, float]]:
        """The model's answers to all parts, and how quickly they came."""
        parts = {part.key: part for part in self.question.parts}
        limit = self.recipe.data.decode_time_limit_s
        scans = [
            Scan(part.key, part.task.modality, part.geometry, part.examples, part.views, (part.task.name,), limit)
            for part in parts.values()
        ]
        model = self.trained.portable(precision=self.recipe.train.precision)
        gathered: dict[str, _Gathered] = defaultdict(_Gathered)
        total = sum(len(part.examples) for part in parts.values())
        clock = Clock()
        with (
            contextlib.closing(run_scans(model, scans)) as coming,
            Progress("judging", total, "examples") as progress,
        ):
            for scanned in coming:
                part = parts[scanned.key]
                gathered[part.key].add(part, scanned)
                clock.note(len(scanned.ids), len(part.views))
                progress.add(len(scanned.ids) + len(scanned.bad))
        return gathered, clock.throughput()

    # --- the record ---

    def _open_record(self) -> Tracker:
        recipe, question = self.recipe, self.question
        uri = chosen_uri(recipe.tracking.uri, recipe.output)
        of_training = self._training_run()
        tracker = Tracker.open(
            self.run.path,
            uri=uri,
            fallback_uri=local_uri(recipe.output),
            experiment=recipe.tracking.experiment or recipe.name,
            run_name=question.name,
            artifact_root=artifact_root(recipe.output),
            tags={
                "polytrain.kind": "evaluate",
                "polytrain.checkpoint": self.trained.place,
                "polytrain.checkpoint_step": str(self.trained.state["step"]),
                "polytrain.evaluation_digest": question.digest,
                "polytrain.git_commit": git_commit(),
            }
            | ({"polytrain.evaluated_run": of_training["run_id"]} if of_training else {}),
            params=flat(recipe.plain())
            | {
                "evaluate.checkpoint": self.trained.place,
                "evaluate.splits": ", ".join(dict.fromkeys(part.split for part in question.parts)),
                "evaluate.tasks": ", ".join(dict.fromkeys(part.task.name for part in question.parts)),
            },
            parent_run_id=of_training.get("run_id") if of_training.get("uri") == uri else None,
            handover=self.run.handover,
        )
        for part in question.parts:
            profile = {"classes": len(part.task.classes), "modality": part.task.modality, **part.manifest.sizes}
            tracker.dataset(
                name=part.task.name,
                uri=part.manifest.uri,
                digest=part.manifest.digest,
                context=part.split,
                profile=profile,
            )
        tracker.artifact(self.run.path / "recipe.yaml")
        return tracker

    def _training_run(self) -> dict[str, Any]:
        """The record of the run that trained the checkpoint, as far as it is known: run_id, uri."""
        place = self.trained.place
        for _ in range(2):  # RUN/final, RUN/checkpoints/step_*
            place = storage.parent(place)
            if record := open_run(place).record():
                return record
        return {}

    def _record(self, tracker: Tracker, outcomes: Sequence[Outcome], throughput: dict[str, float]) -> None:
        """Metrics at the training step that they are of, beside the training run's own curves."""
        values = {f"{one.split}/{one.task}/{name}": v for one in outcomes for name, v in one.metrics.items()}
        rates = {f"throughput/{name}": throughput[name] for name in ("examples_per_s", "views_per_s", "start_up_s")}
        tracker.metrics(values | rates, step=self.trained.state["step"])
        for file in write_tables(outcomes, self.run.path):
            tracker.artifact(file)
        for name in FOLDERS:
            for file in sorted((self.run.path / name).glob("*")):
                tracker.artifact(file, name)

    def _quarantine(self, gathered: dict[str, _Gathered], tracker: Tracker) -> None:
        """List media that can't be decoded, where there are any."""
        rows = [
            {"task": part.task.name, "split": part.split, "example": example, "path": path, "reason": reason}
            for part in self.question.parts
            for example, path, reason in sorted(gathered[part.key].bad)
        ]
        if rows:
            file = self.run.path / "quarantine.parquet"
            pq.write_table(pa.Table.from_pylist(rows), file)
            tracker.artifact(file)
            print("\n".join(f"can't be decoded: {row['path']}: {row['reason']}" for row in rows[:BAD_NAMED]))
            if len(rows) > BAD_NAMED:
                print(f"and {len(rows) - BAD_NAMED:,} more: {self.run.at(file.name)}")


def _tell(outcomes: Sequence[Outcome], throughput: dict[str, float], run: RunFolder) -> None:
    print(results_text(outcomes))
    if weak := weakest_text(outcomes):
        print(f"\n{weak}")
    print(f"\n{throughput_text(throughput)}")
    print(f"{', '.join(FOLDERS)} and tables lie in {run.place}")
    record = run.record()
    parent = record["run"]["tags"].get("mlflow.parentRunId")
    beneath = f", beneath the training run {parent}" if parent else ""
    print(f"MLflow run {record['run_id']}{beneath} in {record['uri']}")
