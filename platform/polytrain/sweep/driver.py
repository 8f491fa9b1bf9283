"""`python jobs/sweep.py RECIPE`: which trials are missing, run them under Ray Tune, say who won. The driver's side."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytrain import asked_to_stop
from polytrain.cluster import Fit, connect
from polytrain.data import storage
from polytrain.launch import FAILED, STOPPED, cpus_for, flat, git_commit, make_sample_suite
from polytrain.launch import FINISHED as OK
from polytrain.recipe import Recipe, RecipeError
from polytrain.report import table
from polytrain.run_folder import RunFolder
from polytrain.secrecy import last_line, without_secrets
from polytrain.sweep import past
from polytrain.sweep.artifacts import leave_behind
from polytrain.sweep.board import Board, Display
from polytrain.sweep.outcome import (
    CRASHED,
    INTERRUPTED,
    Ended,
    Row,
    outcome_text,
    time_text,
    winners,
)
from polytrain.sweep.points import Point, Space, open_space
from polytrain.tracking import AwayError, Finder, FoundRun, Tracker, chosen_uri, local_uri, move

if TYPE_CHECKING:
    from polytrain.sweep.trial import Setting

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nothing is ever restored from Tune's files
    "RAY_AIR_NEW_OUTPUT": "0",
}
RETRIES = 1
AWAY_S = 60.0
"""How long a sweep waits at its end for a tracking store that is away."""


def dry_run(recipe: Recipe) -> int:
    """Print the points and start nothing."""
    make_sample_suite(recipe)
    space = open_space(recipe)
    rows = [
        [of_task.task, of_task.trials, recipe.tasks[of_task.task].steps, _searched(of_task)] for of_task in space.tasks
    ]
    print(table(["task", "trials", "steps each", "values"], rows))
    return OK


def _searched(of_task: Any) -> str:
    if of_task.ranges:
        return ", ".join(f"{key} {limits.low:g} to {limits.high:g}" for key, limits in of_task.ranges.items())
    return ", ".join(f"{key} {list(values)}" for key, values in of_task.grid.items())


def sweep(recipe: Recipe, *, parent_run_id: str | None = None) -> int:
    """Run the trials that are missing, and leave table, pictures and winners behind. Returns the exit code.

    With a parent it is the part of that probe which goes through the model at every step, and nobody's `hparams`.
    Raises RecipeError when something is wrong with recipe, grid or manifests, BusyError when another process runs it.
    """
    began = time.monotonic()
    if storage.is_remote(recipe.output):
        raise RecipeError(
            f"output: {recipe.output} is a URI, and a sweep's trials meet in a folder that all nodes see; name one"
        )
    make_sample_suite(recipe)
    space = open_space(recipe)
    run = RunFolder(Path(recipe.output) / f"{recipe.name}-sweep-{space.digest}")
    lock = run.lock()
    try:
        told = run.result()
        run.clear_for_start()
        (run.path / "recipe.yaml").write_text(recipe.yaml())
        return _Sweep(space, run, began, told, parent_run_id).run_it()
    finally:
        os.close(lock)


class _Sweep:
    """One sweep from what is known to what is told."""

    def __init__(
        self, space: Space, run: RunFolder, began: float, told: dict[str, Any], parent_run_id: str | None
    ) -> None:
        self.space, self.recipe, self.run, self.began = space, space.recipe, run, began
        self.parent_run_id = parent_run_id
        self.told = told  # how this sweep ended before, if it did
        self.display: Display
        self.stopping = threading.Event()
        self.notices: list[str] = []
        self.cores = "a core"

    def run_it(self) -> int:
        total = sum(of_task.trials for of_task in self.space.tasks)
        print(f"{self.run.path.name}: {len(self.space.tasks)} tasks, {total} trials", flush=True)
        self.tracker = self._open_record()
        if self.tracker.notice:
            print(self.tracker.notice)
        self._look_back()
        left = total - len(self.board.rows)
        if self.board.rows:
            print(f"{len(self.board.rows)} of them are done already and do not run again", flush=True)
        if left:
            self._run_missing(left)
        rows = self._delivered([row for row in self.board.rows if row.ended.status != INTERRUPTED])
        for notice in self.notices:
            print(notice)
        if self.stopping.is_set():
            self.tracker.close("KILLED")
            print(f"Stopped with {len(rows)} of {total} trials done; the same command runs what is missing.")
            return STOPPED
        return self._tell(rows, total)

    # --- what is known ---

    def _open_record(self) -> Tracker:
        recipe = self.recipe
        local = local_uri(Path(recipe.output))
        try:
            return Tracker.open(
                self.run.path,
                uri=chosen_uri(recipe.tracking.uri, recipe.output),
                fallback_uri=local,
                experiment=recipe.tracking.experiment or recipe.name,
                run_name=self.run.path.name,
                artifact_root=str(Path(recipe.output) / "mlartifacts"),
                tags={
                    past.KIND: "probe" if self.parent_run_id else "sweep",
                    "polytrain.recipe": recipe.name,
                    "polytrain.recipe_digest": recipe.digest,
                    "polytrain.sweep_digest": self.space.digest,
                    "polytrain.tasks": " ".join(recipe.tasks),
                    "polytrain.git_commit": git_commit(),
                },
                params=flat(recipe.plain()),
                parent_run_id=self.parent_run_id,
            )
        except RuntimeError as error:
            raise RecipeError(f"tracking: {error}") from None

    def _look_back(self) -> None:
        """Which trials ended before: looked up in MLflow, then in the trials' folders."""
        names = [of_task.task for of_task in self.space.tasks]
        found: dict[str, FoundRun] = {}
        try:
            found = past.in_mlflow(Finder(self.tracker.uri), names)
        except AwayError as error:
            print(f"MLflow does not answer ({error}); trials done before are looked for in {self.recipe.output} only.")
        self.earlier: dict[str, list[Point]] = {}
        points = list(self.space.grid())
        for of_task in self.space.tasks:
            if of_task.ranges:
                mine = {key: run for key, run in found.items() if run.tags["polytrain.task"] == of_task.task}
                self.earlier[of_task.task] = list(past.observed(self.space, of_task, mine))[: of_task.trials]
                points += self.earlier[of_task.task]
        searched = {of_task.task: of_task.trials for of_task in self.space.tasks if of_task.ranges}
        self.board = Board(names, points, searched)
        self.display = Display(self.board)
        self.found = found
        self.known: dict[str, Ended] = {}
        for point in points:
            if point.fingerprint in found:
                ended = past.ended_run(point, found[point.fingerprint])
                if ended.status == CRASHED:
                    continue
            else:
                ended = past.on_disk(point)
                if ended is None:
                    continue
                self._adopt(point, ended)
            self.known[point.fingerprint] = ended
            self.board.end(Row(point, ended, known=True))

    def _adopt(self, point: Point, ended: Ended) -> None:
        """A trial that ended, whose end never reached MLflow: its driver was killed, or MLflow was away."""
        from polytrain.sweep.trial import record_end

        with contextlib.suppress(FileNotFoundError):
            record_end(Tracker.resume(point.folder), ended)

    # --- running what is missing ---

    def _run_missing(self, left: int) -> None:
        for key, value in SETTINGS.items():
            os.environ.setdefault(key, value)
        connect(cpus_for(self.recipe))
        setting, concurrent, resources = self._budget()
        self.setting = setting
        thread = Fit(self._tuner(setting, concurrent, resources, left).fit)
        self.first, self.started = len(self.board.rows), time.monotonic()
        # Beside it this thread shows how far it is and hears signals.
        with self._stops():
            thread.start()
            while thread.is_alive():
                if self.stopping.is_set():
                    for point in self.board.running:  # also those that started after the signal
                        RunFolder(point.folder).request_stop()
                self.display.show()
                self._say_how_far()
                thread.join(0.5)
        self.display.clear()
        shutil.rmtree(self.run.path / "tune", ignore_errors=True)
        if thread.error:
            self.notices.append(f"Ray Tune ended with an error: {last_line(thread.error)}")

    def _say_how_far(self) -> None:
        """To whoever watches from elsewhere."""
        done, seconds = len(self.board.rows), time.monotonic() - self.started
        steps = {"step": done, "steps": self.board.total, "steps_here": done - self.first, "seconds": seconds}
        self.run.write_progress({"phase": "trials", **steps})
        self.tracker.progress({"phase": "trials", **steps})

    def _budget(self) -> tuple[Setting, int, dict[str, float]]:
        """How many trials run at a time, and what each gets: training, decoding, memory, a share of a GPU."""
        import ray

        from polytrain.data.reading import Flow
        from polytrain.sweep.trial import Setting

        recipe, asked = self.recipe, self.recipe.sweep
        have = ray.cluster_resources()
        cpus, gpus = have.get("CPU", 1.0), have.get("GPU", 0.0)
        on_gpu = gpus > 0 if recipe.train.use_gpu == "auto" else recipe.train.use_gpu
        if on_gpu and not gpus:
            raise RecipeError("train.use_gpu: trials want GPUs, Ray has none; train.use_gpu=auto or false would do")
        share = (asked.gpus_per_trial or 1.0) if on_gpu else 0.0
        most = int(gpus) * int(1 / share + 1e-9) if on_gpu else max(1, int(cpus))
        concurrent = min(asked.concurrent or most, most if on_gpu else sys.maxsize)
        of_trial = cpus / concurrent
        training = min(1.0, of_trial / 2)
        decoding = recipe.data.decode_cpus / concurrent if recipe.data.decode_cpus else of_trial - training
        threads = max(1, int(of_trial))
        self.cores = "a share of a GPU" if on_gpu and share < 1 else "a GPU" if on_gpu else _cores(threads)
        setting = Setting(
            recipe=recipe,
            parent_run_id=self.tracker.run_id,
            uri=self.tracker.uri,
            threads=threads,
            flow=Flow(math.floor(1000 * decoding) / 1000, recipe.data.memory_budget // concurrent),
            gpus=share,
        )
        # A hundredth less than the half: rounding must not leave a trial without its place.
        return setting, concurrent, {"CPU": int(training * 100) / 100} | ({"GPU": share} if share else {})

    def _tuner(self, setting: Setting, concurrent: int, resources: dict[str, float], left: int) -> Any:
        from ray import tune

        from polytrain.sweep.search import Ends, Studies, Study
        from polytrain.sweep.trial import trainable

        for name in ("ray.tune", "ray.train", "ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a trial's error is told once, in the table's words
        studies = [
            Study(self.space, of_task, self.known, self.earlier.get(of_task.task, [])) for of_task in self.space.tasks
        ]
        return tune.Tuner(
            tune.with_resources(trainable(setting), resources),
            tune_config=tune.TuneConfig(
                search_alg=Studies(studies, self.board, self.stopping),
                num_samples=left,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=str(self.run.path / "tune"),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the loop writes its own
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[Ends(self.board, self._ended, self._crashed)],
            ),
        )

    def _ended(self, point: Point) -> Ended:
        run = RunFolder(point.folder)
        return Ended.of_result(run.result(), point, run.record()["run_id"])

    def _crashed(self, point: Point, error: Any) -> Ended:
        """Record a trial that crashed twice: its process can't."""
        from polytrain.experiment import open_experiment
        from polytrain.sweep.trial import open_record, record_end

        message = last_line(error) if error is not None else "its process died"
        try:
            tracker = open_record(point, *open_experiment(point.recipe), self.setting)
            RunFolder(point.folder).write_result({"status": "failed", "message": message})
        except (OSError, ValueError, RuntimeError) as further:  # the sweep goes on; its table has both
            message = f"{message}; nor could it be recorded: {without_secrets(str(further))}"
            return Ended(CRASHED, None, "", message=message)
        ended = Ended(CRASHED, None, tracker.run_id, message=message)
        record_end(tracker, ended)
        return ended

    @contextlib.contextmanager
    def _stops(self) -> Iterator[None]:
        """Ctrl-C and `ray job stop` let running trials end with a checkpoint; a second Ctrl-C ends at once."""

        def handler(number: int, _: Any) -> None:
            if self.stopping.is_set():
                os._exit(STOPPED)
            self.stopping.set()
            self.display.say("Stopping the running trials with checkpoints; once more to stop at once.")

        with asked_to_stop.heard(handler):
            yield

    # --- telling ---

    def _delivered(self, rows: list[Row]) -> list[Row]:
        """The rows, once MLflow has what it did not take from trials while it was away."""
        lacking = [row for row in rows if self._lacks(row)]
        if not lacking:
            return rows
        # Something of the sweep's own that it must take shows whether it is back.
        self.tracker.tags({"polytrain.trials": len(rows)})
        if not self.tracker.flush(timeout_s=AWAY_S):
            self.notices.append(
                f"MLflow does not answer; the same command will send what it lacks of {len(lacking)} trials"
            )
            return rows
        return [self._sent(row) if row in lacking else row for row in rows]

    def _lacks(self, row: Row) -> bool:
        record = RunFolder(row.point.folder).record()
        if not record or record["run_id"] != row.ended.run_id:
            return False  # MLflow's, from another folder
        return record["uri"] != self.tracker.uri or not past.delivered(row.point.folder)

    def _sent(self, row: Row) -> Row:
        folder, name = row.point.folder, f"{row.point.task} {row.point.label}"
        record = RunFolder(folder).record()
        if record["uri"] != self.tracker.uri:  # begun while the store was away: it comes to its parent now
            moved = move(folder, self.tracker.uri, self.tracker.run_id)
            if moved is None:
                self.notices.append(f"{name} is recorded in {record['uri']}")
                return row
            row = replace(row, ended=replace(row.ended, run_id=moved))
        if not Tracker.resume(folder).detach(timeout_s=AWAY_S):
            self.notices.append(f"{name}: MLflow is away; {folder} keeps what it lacks")
        return row

    def _tell(self, rows: list[Row], total: int) -> int:
        won = winners(rows)
        best = self.run.path / "best_hparams.yaml"
        ends = {"trials": {row.point.fingerprint: row.ended.run_id for row in rows}}
        if ends["trials"] != self.told.get("trials") or not best.exists():
            leave_behind(self.space, rows, self.tracker, self.run.path)
        self.run.write_result({"status": "finished"} | ends)
        lacking = [of_task.task for of_task in self.space.tasks if of_task.task not in won]
        complete = len(rows) >= total and not lacking
        notice = self.tracker.close("FINISHED" if complete else "FAILED")
        print()
        print(outcome_text(rows))
        print()
        for task, row in won.items():
            print(f"{task}: {row.point.label} wins with {row.ended.score:.1f} {row.point.metric}")
        for row in rows:
            if row.ended.message:
                print(f"{row.point.task} {row.point.label} {row.ended.status}: {row.ended.message}")
        print(time_text(rows, time.monotonic() - self.began, self.cores))
        print(f"\n{best}\nMLflow run {self.tracker.run_id} in {self.tracker.uri}")
        if not self.parent_run_id:
            print("To co-train with the winners: python jobs/cotrain.py RECIPE hparams=latest")
        if notice:
            print(notice)
        for task in lacking:
            print(f"{task}: no trial finished", file=sys.stderr)
        return OK if complete else FAILED


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"
