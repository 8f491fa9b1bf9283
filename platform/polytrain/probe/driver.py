"""`python jobs/probe.py CHECKPOINT RECIPE`: features once, heads on them, the best tested. The driver's side."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor, nn

from polytrain import asked_to_stop
from polytrain.cluster import joined
from polytrain.data.views import WHOLE, View, views_at_test
from polytrain.experiment import Experiment
from polytrain.inference import LostError, Scan, run_scans
from polytrain.launch import FAILED, FINISHED, STOPPED, cpus_for, flat, git_commit
from polytrain.model.architecture import Architecture
from polytrain.probe import heads
from polytrain.probe.features import Features, Identity, Selected, Store
from polytrain.probe.heads import DivergedError, Fitted, ProbeFault, Split
from polytrain.probe.leaving import record, write_model, write_pictures, write_predictions
from polytrain.probe.opening import ProbedTask, Probing, frozen, loop_recipe
from polytrain.probe.outcome import Saving, Tested, best_rows, results_text, saving_of, savings_text
from polytrain.probe.trunk import open_trunk
from polytrain.progress import Progress
from polytrain.report import table
from polytrain.run_folder import RunFolder
from polytrain.secrecy import without_secrets
from polytrain.sweep import driver as sweeping
from polytrain.sweep import past
from polytrain.sweep.outcome import CRASHED, DIVERGED, Ended, Row
from polytrain.sweep.outcome import FINISHED as DONE
from polytrain.sweep.points import Point, open_space
from polytrain.tracking import AwayError, Finder, FoundRun, Tracker, chosen_uri, local_uri
from polytrain.training import progress as bad_media
from polytrain.training.evaluation import Predictions

SPLITS = ("train", "val", "test")


def dry_run(probing: Probing) -> int:
    """Print what would be probed and start nothing."""
    print(_about(probing))
    rows = [
        [
            task.name, task.task.modality, len(task.task.classes),
            *(f"{task.manifest.sizes[split]:,}" for split in SPLITS),
            probing.recipe.tasks[task.name].steps, ", ".join(point.label for point in task.points),
            f"at every step ({task.random})" if task.random else "once",
        ]
        for task in probing.tasks
    ]  # fmt: skip
    print(table(["task", "modality", "classes", *SPLITS, "steps", "heads", "features"], rows))
    print(f"\nwritten: {probing.folder}")
    return FINISHED


def probe(probing: Probing, *, fresh: bool = False) -> int:
    """Probe, or show what was found before. Returns the exit code. Raises BusyError when another process does."""
    run = RunFolder(probing.folder)
    lock = run.lock()
    try:
        result = run.result()
        if result.get("status") == "finished" and not fresh:
            print(f"{probing.probed.place} was probed so before; --fresh probes it anew.\n\n{result['told']}")
            return FINISHED
        if fresh:
            run.forget()
        run.clear_for_start()
        return _Probe(probing, run).run_it()
    finally:
        os.close(lock)


@dataclass(eq=False)
class _Part:
    """A split of a task whose features are wanted."""

    task: ProbedTask
    split: str
    views: tuple[View, ...]
    store: Store
    features: Features
    earlier: int  # found on disk

    @property
    def key(self) -> str:
        return f"{self.split}/{self.task.name}"


class _Probe:
    """One probe from what is known to what is told."""

    def __init__(self, probing: Probing, run: RunFolder) -> None:
        self.probing, self.run, self.recipe = probing, run, probing.recipe
        self.rows: list[Row] = []
        self.fitted: dict[str, Fitted] = {}  # by fingerprint
        self.drawn: dict[tuple[str, str], nn.Linear] = {}
        self.tested: dict[str, Tested] = {}
        self.savings: list[Saving] = []
        self.bad = bad_media.Progress()

    def run_it(self) -> int:
        print(f"{self.run.path.name}: {_about(self.probing)}", flush=True)
        (self.run.path / "recipe.yaml").write_text(self.recipe.yaml())
        self.tracker = self._open_record()
        if self.tracker.notice:
            print(self.tracker.notice)
        status = "FAILED"
        try:
            code = self._probe_all()
            status = "FINISHED" if code == FINISHED else "FAILED"
        except KeyboardInterrupt:
            status = "KILLED"
            print("Stopped; what was computed is kept, and the same command goes on.", flush=True)
            return STOPPED
        except LostError as error:
            print(f"{self.run.path.name} failed: {error}; what was computed is kept", file=sys.stderr)
            return FAILED
        finally:
            if notice := self.tracker.close(status):
                print(notice)
        return code

    def _probe_all(self) -> int:
        once = [task for task in self.probing.tasks if not task.random]
        through = [task for task in self.probing.tasks if task.random]
        self.trunk = open_trunk(self.recipe.model, self.probing.architecture)
        with _stops():
            parts = {part.key: part for task in once for part in self._parts(task)}
            self._compute(parts)
            self._train(once, parts)
        if through:
            self._train_through_the_model(through)
        best = best_rows(self.rows)
        predictions = self._test(parts, best)
        told = self._leave_behind(best, predictions)
        lacking = [task.name for task in self.probing.tasks if task.name not in best]
        self.run.write_result({"status": "failed" if lacking else "finished", "told": told})
        print(f"\n{told}")
        for row in self.rows:
            if row.ended.message:
                print(f"{row.point.task} {row.point.label} {row.ended.status}: {row.ended.message}")
        for task in lacking:
            print(f"{task}: no head was trained to its end", file=sys.stderr)
        return FAILED if lacking else FINISHED

    # --- features -----------------------------------------------------------------------------------------------------

    def _parts(self, task: ProbedTask) -> Iterator[_Part]:
        """The splits of a task, with what earlier probes know of them."""
        modality = task.task.modality
        geometry = self.probing.architecture.modalities[modality]
        trunk = self.trunk.digest(modality)
        for split in SPLITS:
            counts = self.recipe.eval.views_of(modality) if split == "test" else (1, 1)
            views = views_at_test(geometry, counts) if split == "test" else WHOLE
            identity = Identity(trunk, self.recipe.train.precision, task.manifest.digest, split, repr(views))
            store = Store(Path(self.recipe.output) / "features", identity)
            features = store.load(len(task.examples[split]), self.probing.architecture.width)
            yield _Part(task, split, views, store, features, len(features))

    def _compute(self, parts: Mapping[str, _Part]) -> None:
        """All features that are wanted and not known, in one pass over the media; a second one finds stand-ins for
        what can't be decoded."""
        wanted = {key: _wanted(self.probing, part) for key, part in parts.items()}
        total = sum(map(len, wanted.values()))
        known = sum(len(part.features) for part in parts.values())
        if known:
            print(f"{known:,} examples' features are known from earlier probes", flush=True)
        if not total:
            return
        load = self.trunk.portable(self.recipe.train.precision)
        with joined(cpus_for(self.recipe)), _stops(), Progress("features", total, "examples") as progress:
            while sum(map(len, wanted.values())):
                self._scan(load, [(parts[key], ids) for key, ids in wanted.items() if len(ids)], progress)
                wanted = {key: _wanted(self.probing, part) for key, part in parts.items()}

    def _scan(self, load: Any, wanted: Sequence[tuple[_Part, np.ndarray]], progress: Progress) -> None:
        geometries, limit = self.probing.architecture.modalities, self.recipe.data.decode_time_limit_s
        by_key = {part.key: (part, ids) for part, ids in wanted}
        scans = [
            Scan(
                part.key,
                modality := part.task.task.modality,
                geometries[modality],
                Selected(part.task.examples[part.split], ids),
                part.views,
                decode_time_limit_s=limit,
            )
            for part, ids in wanted
        ]
        last = None
        with contextlib.ExitStack() as kept:
            for part, _ in wanted:
                kept.callback(part.store.close)
            for scanned in kept.enter_context(contextlib.closing(run_scans(load, scans))):
                # Rows of several tasks come by turns: what passed since the last one is counted for this one. The first
                # has waited for Ray and the model, which is no part of the rate.
                now = time.monotonic()
                seconds, last = (now - last if last else 0.0), now
                part, asked = by_key[scanned.key]
                ids, values = asked[scanned.ids], scanned.outputs["features"]
                bad = [(int(asked[number]), path, reason) for number, path, reason in scanned.bad]
                part.features.add(ids, values, bad, seconds)
                part.store.add(ids, values, seconds)
                self.bad.note_bad(part.task.name, part.split, bad)
                progress.add(len(ids) + len(bad))

    # --- heads --------------------------------------------------------------------------------------------------------

    def _train(self, tasks: Sequence[ProbedTask], parts: Mapping[str, _Part]) -> None:
        steps = sum(point.recipe.tasks[task.name].steps for task in tasks for point in task.points)
        with Progress("heads", steps, "steps") as progress:
            for task in tasks:
                train, val = (parts[f"{split}/{task.name}"] for split in ("train", "val"))
                architecture = self.probing.loop_architecture(task)
                data = [Split.of(task.examples[part.split], part.features) for part in (train, val)]
                for point in task.points:
                    self.rows.append(self._head(task, point, architecture, *data, progress))
                earlier = train.earlier + val.earlier
                self.savings.append(saving_of(self.probing, task, train.features, val.features, earlier))

    def _head(
        self, task: ProbedTask, point: Point, architecture: Architecture, train: Split, val: Split, progress: Progress
    ) -> Row:
        """Train one head and record it."""
        experiment = self.probing.experiment(point)
        tracker = self._open_trial(task, point, experiment)
        try:
            heads.check_bad(experiment.plan, train.features, self.recipe.data.max_bad_fraction)
            head = self._new_head(architecture, experiment)
            fitted = heads.train_head(head, experiment, train, val, recorded=tracker.metrics, progress=progress.add)
        except ProbeFault as fault:
            status = DIVERGED if isinstance(fault, DivergedError) else CRASHED
            ended = Ended(status, None, tracker.run_id, message=without_secrets(str(fault)))
        except KeyboardInterrupt:
            tracker.end("KILLED")
            raise
        else:
            self.fitted[point.fingerprint] = fitted
            score = fitted.validation.get(point.metric)
            ended = Ended(DONE, score, tracker.run_id, fitted.seconds, 0.0)
            tracker.metrics({past.STEPS_S: fitted.seconds}, step=0)
        tracker.tags({past.STATUS: ended.status} | ({"polytrain.error": ended.message} if ended.message else {}))
        if notice := tracker.close("FINISHED" if ended.status == DONE else "FAILED"):
            print(notice)
        return Row(point, ended)

    def _new_head(self, architecture: Architecture, experiment: Experiment) -> nn.Linear:
        """A point's head before its first step. Making a whole model for its random draws takes seconds."""
        (task,) = experiment.tasks
        settings = experiment.architecture.tasks[task.name]
        key = (task.name, settings.init)
        if key not in self.drawn:
            tasks = {**architecture.tasks, task.name: settings}
            self.drawn[key] = heads.new_head(replace(architecture, tasks=tasks), task.name, self.recipe.seed)
        return copy.deepcopy(self.drawn[key])

    def _train_through_the_model(self, tasks: Sequence[ProbedTask]) -> None:
        """Heads whose features are others at every step: the ordinary loop with `train.freeze`, as a sweep."""
        for task in tasks:
            about = f"{task.name} has {task.random}: its examples' features are others at every step"
            print(f"\n{about}, and the ordinary loop trains its heads, through the frozen model", flush=True)
        recipe = loop_recipe(self.probing, tasks)
        if sweeping.sweep(recipe, parent_run_id=self.tracker.run_id) == STOPPED:
            raise KeyboardInterrupt
        space = open_space(recipe)
        finder = Finder(self.tracker.uri)
        found: dict[str, FoundRun] = {}
        with contextlib.suppress(AwayError):
            found = past.in_mlflow(finder, [task.name for task in tasks])
        for point in space.grid():
            ended = past.on_disk(point)
            if ended is None and point.fingerprint in found:
                ended = past.ended_run(point, found[point.fingerprint])
            self.rows.append(Row(point, ended or Ended(CRASHED, None, "", message="its trial left no result")))
            if file := _final(point):
                self.fitted[point.fingerprint] = Fitted(*_head_in(file, point.task))
        for task, row in best_rows(self.rows).items():
            if any(task == one.name for one in tasks):
                self.tested[task] = _tested_in_loop(row, found)

    # --- the test -----------------------------------------------------------------------------------------------------

    def _test(self, parts: Mapping[str, _Part], best: Mapping[str, Row]) -> dict[str, Predictions]:
        """The best heads on the test splits: predictions by task."""
        predictions = {}
        for task in self.probing.tasks:
            part = parts.get(f"test/{task.name}")
            if part is None or task.name not in best or not len(part.features):
                continue
            fitted, classes = self.fitted[best[task.name].point.fingerprint], len(task.task.classes)
            split = Split.of(task.examples["test"], part.features)
            said = heads.predict(heads.as_head(fitted.weight, fitted.bias), split, classes)
            metrics = said.metrics(loss=task.task.loss, multi_label=task.task.multi_label)
            self.tested[task.name] = Tested(metrics, len(part.features.bad))
            predictions[task.name] = said
        return predictions

    # --- the record ---------------------------------------------------------------------------------------------------

    def _leave_behind(self, best: Mapping[str, Row], predictions: Mapping[str, Predictions]) -> str:
        """Files, pictures, the model and the record; what is to be told."""
        folder, tracker = self.run.path, self.tracker
        write_pictures(self.rows, self.fitted, folder, tracker)
        write_predictions(self.probing, predictions, folder, tracker)
        record(self.probing, best, self.tested, self.savings, tracker)
        model = write_model(self.probing, self.trunk, best, self.fitted, self.tested, folder, tracker)
        if self.bad.any_bad:
            tracker.artifact(self.bad.write_quarantine(folder / "quarantine.parquet"))
        told = [results_text(self.probing, self.rows, self.tested)]
        if self.savings:
            told += ["", savings_text(self.savings)]
        told += ["", f"the best heads on the model, which is as it was, lie in {model}"] if model else [""]
        return "\n".join([*told, f"MLflow run {tracker.run_id} in {tracker.uri}"])

    def _open_record(self) -> Tracker:
        recipe, probed = self.recipe, self.probing.probed
        tracker = self._tracker(
            self.run.path,
            self.run.path.name,
            {
                past.KIND: "probe",
                "polytrain.checkpoint": probed.place,
                "polytrain.weights_digest": probed.weights,
                "polytrain.probe_digest": self.probing.digest,
                "polytrain.tasks": " ".join(recipe.tasks),
                "polytrain.git_commit": git_commit(),
            }
            | ({"polytrain.probed_run": run_id} if (run_id := probed.run_id) else {}),
            flat(recipe.plain()) | {"probe.checkpoint": probed.place},
        )
        for task in self.probing.tasks:
            _note_dataset(tracker, task)
        tracker.artifact(self.run.path / "recipe.yaml")
        return tracker

    def _open_trial(self, task: ProbedTask, point: Point, experiment: Experiment) -> Tracker:
        folder = self.run.path / "trials" / f"{task.name}-{point.fingerprint}"
        folder.mkdir(parents=True, exist_ok=True)
        # The same head as a run of the ordinary loop, where there is such a run.
        recipe = frozen(point.recipe) if task.loop else point.recipe
        (folder / "recipe.yaml").write_text(recipe.yaml())
        tracker = self._tracker(
            folder,
            f"{task.name} {point.label}",
            {
                past.KIND: "trial",
                "polytrain.task": task.name,
                "polytrain.values": json.dumps(point.values),
                "polytrain.schedule": recipe.schedule,
                "polytrain.plan_digest": experiment.plan.digest,
                "polytrain.features": "computed once",
            },
            flat(recipe.plain()),
            parent_run_id=self.tracker.run_id,
        )
        _note_dataset(tracker, task)
        tracker.artifact(folder / "recipe.yaml")
        return tracker

    def _tracker(
        self, folder: Path, name: str, tags: dict[str, str], params: dict[str, Any], parent_run_id: str | None = None
    ) -> Tracker:
        recipe = self.recipe
        return Tracker.open(
            folder,
            uri=self.tracker.uri if parent_run_id else chosen_uri(recipe.tracking.uri, recipe.output),
            fallback_uri=local_uri(Path(recipe.output)),
            experiment=recipe.tracking.experiment or recipe.name,
            run_name=name,
            artifact_root=str(Path(recipe.output) / "mlartifacts"),
            tags=tags,
            params=params,
            parent_run_id=parent_run_id,
        )


def _about(probing: Probing) -> str:
    """What is probed, and how tokenizers were converted."""
    probed, count = probing.probed, sum(len(task.points) for task in probing.tasks)
    lines = [f"{len(probing.tasks)} tasks, {count} heads on {probed.place} ({probed.kind})"]
    lines += [
        f"  {kind}: {entry.place} ({entry.note})"
        for kind in ("resized", "inflated")
        for entry in getattr(probing.report, kind)
    ]
    return "\n".join(lines)


def _wanted(probing: Probing, part: _Part) -> np.ndarray:
    """Ids of a part that any head takes and whose features are not known."""
    if part.split != "train":
        return part.features.missing(np.arange(part.features.size))
    plans = [probing.experiment(point).plan for point in part.task.points]
    return np.unique(np.concatenate([heads.wanted(plan, part.features) for plan in plans]))


def _note_dataset(tracker: Tracker, task: ProbedTask) -> None:
    profile = {"classes": len(task.task.classes), "modality": task.task.modality, **task.manifest.sizes}
    tracker.dataset(
        name=task.name, uri=task.task.manifest, digest=task.task.digest, context="training", profile=profile
    )


def _final(point: Point) -> Path | None:
    """The weights that a trial of the ordinary loop left, None where it ran with another output folder."""
    file = point.folder / "final" / "model.safetensors"
    return file if file.exists() else None


def _head_in(file: Path, task: str) -> tuple[Tensor, Tensor]:
    with safe_open(file, "pt") as weights:
        return weights.get_tensor(f"heads.{task}.weight"), weights.get_tensor(f"heads.{task}.bias")


def _tested_in_loop(row: Row, found: Mapping[str, FoundRun]) -> Tested:
    """What the loop's own test said, from the trial's folder, else from MLflow."""
    task, result = row.point.task, RunFolder(row.point.folder).result()
    if result:
        return Tested(result.get("test", {}).get(task, {}), result.get("bad", {}).get(task, 0))
    prefix, metrics = f"test/{task}/", found[row.point.fingerprint].metrics
    return Tested({key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)})


@contextlib.contextmanager
def _stops() -> Iterator[None]:
    """`ray job stop` ends the block as Ctrl-C does."""

    def handler(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with asked_to_stop.heard(handler):
        yield
