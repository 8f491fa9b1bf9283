"""The co-training loop, as it runs on every worker of a Ray Train worker group.

Read `Worker` top to bottom: set up, find the start, then for each step take the minibatch that the plan names,
forward, backward, sum over workers, update; validate and checkpoint when it is time; test at the end. Rank 0 also
keeps the record: metrics to the tracker, `progress.json` for whoever watches, checkpoints, results.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from polytrain.data import augment
from polytrain.data.device import DeviceInputs
from polytrain.data.reading import StreamSource
from polytrain.data.stream import Share
from polytrain.experiment import Experiment, Task
from polytrain.model.polyvit import PolyViT, parameters_by_part
from polytrain.model.pretrained import WeightsError
from polytrain.plan import Minibatch, dealt
from polytrain.run_folder import RunFolder
from polytrain.secrecy import without_secrets
from polytrain.tracking import Tracker, history_of
from polytrain.training import checkpoint, run_checkpoints
from polytrain.training.description import description
from polytrain.training.evaluation import Predictions, mean_of_views, predict_split
from polytrain.training.hardware import device_at
from polytrain.training.initial import put_in_place
from polytrain.training.input_sheets import MOST, InputSheets
from polytrain.training.optimizer import clear_gradients, make_optimizer, update
from polytrain.training.precision import wants_bf16
from polytrain.training.progress import Progress
from polytrain.training.results import write_confusions, write_curves, write_predictions
from polytrain.training.start import Start
from polytrain.training.step import add_gradients, make_targets, mix_mirrored, smoothed, sum_over_workers, task_loss
from polytrain.training.time_spent import TimeSpent, shares

PROGRESS_INTERVAL_S = 1.0

# What came through shared memory; nobody here does.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class TrainingFault(Exception):
    """The run can't go on and would fail again: the message is for the user. All ranks raise it at the same step."""


class DivergedError(TrainingFault):
    """A loss or a gradient is no longer finite."""


def cotrain(experiment: Experiment, source: StreamSource, run: RunFolder, begun: Start, *, trial: bool = False) -> None:
    """Train, validate and test one run from wherever it stands.

    Ends normally when the run has finished, was asked to stop, or met a fault that a restart would meet again: which of
    them stands in the run folder's result.json. Anything else raises, and Ray Train restarts the worker group.
    A sweep's `trial` is compared by its numbers: it draws no figures and leaves its last weights, nothing else.
    """
    worker = Worker(experiment, source, run, begun, trial=trial)
    try:
        worker.start()
        with contextlib.closing(worker):
            outcome = worker.run_steps()
    except TrainingFault as fault:
        if worker.rank == 0:
            failed = {"status": "failed", "step": worker.progress.step, "message": str(fault)}
            took = worker.took() if worker.began else {}
            run.write_result(failed | took | {"diverged": isinstance(fault, DivergedError)})
            worker.tracker.detach()
        return
    except Exception:
        with contextlib.suppress(Exception):  # a GPU that broke can't say what it did
            if worker.began:
                worker.tell(force=True, took=worker.took())
        raise
    if worker.rank == 0:
        run.settle()
        run.write_result(outcome)
        worker.tracker.detach()


class Worker:
    """One worker's model, optimizer, streams and record."""

    def __init__(
        self, experiment: Experiment, source: StreamSource, run: RunFolder, begun: Start, *, trial: bool = False
    ) -> None:
        self.trial = trial
        self.rank, self.workers = begun.place.rank, begun.place.workers
        self.experiment, self.source, self.run, self.begun = experiment, source, run, begun
        self.streams = begun.streams
        self.recipe, self.plan = experiment.recipe, experiment.plan
        self.progress = Progress()

        # --- device ---
        self.device = device_at(begun.place)
        gpu = self.device.type == "cuda"
        # A CPU worker's cores each take a part of the share, as workers do, instead of sharing every operation: torch's
        # own threads wait for each other hundreds of times a step, which decoders beside them make slow (and OpenMP,
        # outside the main thread of a process, slower still): BENCHMARKS.md has figures.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self.recipe.train.threads or max(1, cores // begun.place.local_workers)
        self.parts = 1 if gpu else threads
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.parts, "part", initializer=torch.set_num_threads, initargs=(1,))
        if gpu:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        self.spent = TimeSpent(self.device)
        self.began = 0.0  # until there are steps
        self.bf16 = wants_bf16(self.recipe.train.precision, self.device)
        # Losses are looked at after every step where that costs nothing; a GPU would have to be waited for.
        self.look_every = self.recipe.train.log_every if gpu else 1
        self.eval_steps = set(self.plan.eval_steps.tolist())

        # --- model and optimizer: the same on every rank, from the seed alone ---
        torch.manual_seed(self.recipe.seed)
        self.model = PolyViT(self.experiment.architecture).to(self.device)
        if self.recipe.train.freeze:
            self.model.freeze_but(self.experiment.trained)
        self.inputs = DeviceInputs(self.experiment.architecture.modalities).to(self.device)
        o = self.recipe.optimizer
        self.optimizer = make_optimizer(
            self.model, name=o.name, momentum=o.momentum, betas=o.betas, weight_decay=o.weight_decay
        )

    # --- where a run starts ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Put the weights in place and open the record."""
        step = self.begun.step
        if self.begun.checkpoint is not None:
            checkpoint.load(self.begun.checkpoint, self.model, self.optimizer)
            run_checkpoints.release(self.begun.checkpoint)
            self.progress = Progress(**self.begun.state["progress"])
        if self.rank == 0:
            self.tracker = Tracker.resume(self.run.path, step=step, handover=self.run.handover)
            self.tracker.metrics({"model/params_total": parameters_by_part(self.model)["total"]}, step=0)
        if self.begun.checkpoint is None and self.recipe.model.init:
            self.start_from_weights()
        self.sheets = None
        if self.rank == 0 and not self.trial:
            self.sheets = InputSheets(
                self.run.path / "inputs",
                drawn=lambda file: self.tracker.artifact(file, "inputs"),
                failed=lambda text: self.tracker.tags({"notice.inputs": text}),
            )
        self.first = step
        # Both once more behind the first step, which waits for streams to start.
        self.began = time.perf_counter()
        self.spent.restart()
        self.pending: deque[tuple[int, list[Minibatch], Tensor, Tensor]] = deque()
        self.recent: dict[str, float] = {}  # the last loss of each task, for whoever watches
        self.examples, self.window = 0, (time.perf_counter(), 0, 0.0)
        self.rates = {"examples_per_s": 0.0, "data_wait_fraction": 0.0}
        self.told = 0.0
        self.attempt = self.run.start().get("attempt", 1) if self.rank == 0 else 1
        self.phase = "train"
        self.tell(force=True)

    def start_from_weights(self) -> None:
        """Fill the model from `model.init`; all workers go on, or none."""
        fault: str | None = None
        try:
            put_in_place(self.recipe.model, self.model, self.experiment.classes)
        except WeightsError as error:
            fault = without_secrets(str(error))
        faults = [fault]
        if self.workers > 1:
            faults = [None] * self.workers
            dist.all_gather_object(faults, fault)
        if told := next(filter(None, faults), None):
            raise TrainingFault(f"model.init: {told}")

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run_steps(self) -> dict[str, Any]:
        """All steps that are left, then the test. Returns what result.json is to hold."""
        train, schedule = self.recipe.train, self.plan.schedule
        # A run that ended between its last step and its test has nothing left but the test.
        for step in range(self.progress.step, schedule.steps):
            self.train_step(step)
            done = self.progress.step = step + 1
            if done == self.first + 1:
                self.began, self.window = time.perf_counter(), (time.perf_counter(), self.examples, self.waited())
                self.spent.restart()
            validate = done in self.eval_steps
            stop = False
            if done % self.look_every == 0 or validate or done % train.checkpoint_every == 0:
                stop = self.look()
            self.tell()
            if validate:
                self.validate(done)
            if stop or done % train.checkpoint_every == 0 or done == schedule.steps:
                self.save(done)
            if stop:
                return {"status": "stopped", "step": done, **self.took()}
        return self.test()

    def train_step(self, step: int) -> None:
        """One update: one minibatch, or one of every task when gradients are accumulated."""
        schedule = self.plan.schedule
        clear_gradients(self.optimizer)
        minibatches, losses, short = [], [], 0
        for draw in range(schedule.draws_per_step):
            minibatch = self.plan.train(step, draw)
            with self.spent.on("waiting_for_data"):
                share = self.streams[self.modality(minibatch)].take(minibatch)
            short += len(share.ids) < len(self.plan.share(minibatch, self.rank, self.workers))
            self.progress.note_bad(self.plan.tasks[minibatch.tag.task].name, "train", share.bad)
            self.show_inputs(minibatch, share)
            with self.spent.on("computing"):
                losses.append(self.backward(minibatch, share))
            minibatches.append(minibatch)
            self.examples += len(minibatch)
        used = self.used(minibatches)
        stop = self.rank == 0 and self.run.stop_requested()
        flags = torch.tensor([float(stop), float(short)], device=self.device)
        numbers = torch.cat([torch.stack(losses), flags])
        if self.workers > 1:
            with self.spent.on("communicating"):
                numbers = sum_over_workers(used, numbers)
        with self.spent.on("computing"):
            norm = update(self.optimizer, used, schedule.learning_rate(step), self.recipe.optimizer.clip_norm)
        self.pending.append((step, minibatches, numbers, norm))

    def backward(self, minibatch: Minibatch, share: Share) -> Tensor:
        """Add a share's gradient. Returns its part of the minibatch's loss, a float32 scalar."""
        task = self.experiment.tasks[minibatch.tag.task]
        used = self.model.used_by(task.name)
        weight = self.plan.mixup_lambda(minibatch)
        targets = smoothed(make_targets(share.labels, len(task.classes), self.device), task.label_smoothing)
        keep = None
        if task.drop_path:
            draws = self.plan.depth_draws(minibatch, self.recipe.model.depth)
            mine = draws[:, :, self.plan.share(minibatch, self.rank, self.workers)[: len(share.ids)]]
            keep = self.model.keep_masks(torch.from_numpy(mine).to(self.device), task.drop_path)

        def part(indices: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...]]:
            x = self.model_inputs(minibatch, share, indices)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.model(task.name, x, None if keep is None else keep[:, :, indices])
            loss = task_loss(logits, mix_mirrored(targets[indices], weight), task.loss, len(minibatch))
            return loss.detach(), torch.autograd.grad(loss, used)

        total = torch.zeros((), device=self.device)
        for loss, gradients in self.in_parts(share, part):
            total += loss
            add_gradients(used, gradients)
        return total

    def model_inputs(self, minibatch: Minibatch, share: Share, indices: np.ndarray) -> Tensor:
        """What the model is given of a training share's examples, which mirror in themselves under mixup."""
        task = self.experiment.tasks[minibatch.tag.task]
        mine = self.plan.share(minibatch, self.rank, self.workers)[indices]
        draws = task.augmentation.draws(self.experiment.architecture.modalities[task.modality], minibatch.seeds[mine])
        x = augment.apply(self.to_device(task.modality, share, indices), draws)
        return mix_mirrored(x, self.plan.mixup_lambda(minibatch))

    def show_inputs(self, minibatch: Minibatch, share: Share) -> None:
        """A sheet of the first minibatch of each task."""
        task = self.experiment.tasks[minibatch.tag.task]
        if self.sheets is None or not len(share.ids) or not self.sheets.wants(task.name):
            return
        geometry, weight = self.experiment.architecture.modalities[task.modality], self.plan.mixup_lambda(minibatch)
        indices = dealt(len(share.ids), 0, -(-len(share.ids) // MOST[type(geometry)]), paired=True)
        mixed = f", mixed with weight {weight:.2f}" if weight < 1 else ""
        self.sheets.draw(
            task.name,
            geometry,
            task.classes,
            lambda: (self.model_inputs(minibatch, share, indices), [share.labels[index] for index in indices]),
            about=f"{len(indices)} of the {len(minibatch)} examples of step {minibatch.tag.step + 1}; "
            f"augment: {self.recipe.tasks[task.name].augment}{mixed}",
            weight=weight,
        )

    def in_parts(self, share: Share, work: Callable[[np.ndarray], Any]) -> list[Any]:
        """What `work` makes of each part of a share, given as indices that mirror in themselves: one part a thread."""
        examples = len(share)
        parts = min(self.parts, (examples + 1) // 2)
        indices = [dealt(examples, part, parts, paired=True) for part in range(parts)]
        if parts == 1:
            return [work(indices[0])]
        _ = share.media  # its chunks are joined here, or each thread would join them
        return list(self.pool.map(work, indices))

    def to_device(self, modality: str, share: Share, indices: np.ndarray) -> Tensor:
        """Some of a share's media as their tokenizer takes them, [b, 3, *input_shape] float32 on the device."""
        # All of them go as they came, with no copy here that would be copied again.
        chunks = share.chunks if np.array_equal(indices, np.arange(len(share))) else [share.media[indices]]
        tensors = [torch.from_numpy(chunk) for chunk in chunks]
        if self.device.type == "cuda":
            tensors = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
        return self.inputs[modality](tensors[0] if len(tensors) == 1 else torch.cat(tensors))

    def modality(self, minibatch: Minibatch) -> str:
        return self.experiment.tasks[minibatch.tag.task].modality

    def used(self, minibatches: list[Minibatch]) -> list[torch.nn.Parameter]:
        """Parameters with a gradient in this step, each once, in the same order on every rank."""
        parameters: dict[torch.nn.Parameter, None] = {}
        for minibatch in minibatches:
            parameters.update(dict.fromkeys(self.model.used_by(self.experiment.tasks[minibatch.tag.task].name)))
        return list(parameters)

    # --- looking at what was done -----------------------------------------------------------------------------------

    def look(self) -> bool:
        """Read the losses since the last look: log them, refuse what is not finite, and say whether to stop."""
        stop = False
        while self.pending:
            step, minibatches, numbers, norm = self.pending.popleft()
            with self.spent.on("computing"):  # a GPU may have to be waited for
                *losses, stopping, short = numbers.tolist()
            stop |= stopping > 0
            for minibatch, loss in zip(minibatches, losses, strict=True):
                task = self.plan.tasks[minibatch.tag.task].name
                if not math.isfinite(loss):
                    raise DivergedError(self._not_finite(f"the loss became {loss}", step, minibatch))
                self.recent[task] = loss
                if self.rank == 0:
                    rate = self.plan.schedule.learning_rate(step)
                    self.tracker.metrics({f"train/{task}/loss": loss, f"train/{task}/lr": rate}, step=step + 1)
            if not math.isfinite(float(norm)):
                raise DivergedError(self._not_finite(f"the gradient's norm became {float(norm)}", step, minibatches[0]))
            if short:
                self._judge_bad(always=True)
                raise TrainingFault(
                    f"step {step + 1}: examples can't be decoded, nor any of those that come after them"
                )
        self.spent.settle()
        done = self.progress.step
        if done % self.recipe.train.log_every == 0:
            self._judge_bad()
            now, examples, waited = self.window
            elapsed, waits = time.perf_counter() - now, self.waited()
            self.rates = {
                "examples_per_s": (self.examples - examples) / max(elapsed, 1e-9),
                "data_wait_fraction": min(1.0, (waits - waited) / max(elapsed, 1e-9)),
            }
            if self.rank == 0:
                self.tracker.metrics({f"throughput/{name}": value for name, value in self.rates.items()}, step=done)
            self.window = (time.perf_counter(), self.examples, waits)
        return stop

    def waited(self) -> float:
        return sum(stream.waited_s for stream in self.streams.values())

    def _not_finite(self, what: str, step: int, minibatch: Minibatch) -> str:
        tag = minibatch.tag
        examples = self.source.media[tag.task].splits["train"]
        shown = ", ".join(examples.name(int(example)) for example in minibatch.ids[:8])
        more = f" and {len(minibatch) - 8} more" if len(minibatch) > 8 else ""
        return (
            f"step {step + 1}, task {self.plan.tasks[tag.task].name}: {what} at learning rate "
            f"{self.plan.schedule.learning_rate(step):.3g}. A smaller learning rate or a longer warm-up may help. "
            f"Examples {minibatch.ids[:8].tolist()}{more}: {shown}"
        )

    def _judge_bad(self, *, always: bool = False) -> None:
        """Bring the workers' lists of bad media together, and stop when a task has too many."""
        if self.workers > 1:
            of_ranks: list[Any] = [None] * self.workers
            dist.all_gather_object(of_ranks, self.progress.bad)
            for bad in of_ranks:
                self.progress.note_bad_of(bad)
        fault = self.progress.too_bad(self.plan, self.recipe.data.max_bad_fraction, always=always)
        if fault:
            if self.rank == 0:
                self.progress.write_quarantine(self.run.path / "quarantine.parquet")
            raise TrainingFault(fault)

    def tell(self, *, force: bool = False, **more: Any) -> None:
        """Let whoever watches know how far the run is, and its driver `more`."""
        now = time.perf_counter()
        if self.rank != 0 or (not force and now - self.told < PROGRESS_INTERVAL_S):
            return
        self.told = now
        progress = {
            "phase": self.phase,
            "step": self.progress.step,
            "steps": self.plan.schedule.steps,
            "best": self.progress.best.get("score"),
            "seconds": now - self.began,
            "steps_here": max(0, self.progress.step - self.first - 1),
            "attempt": self.attempt,
            "since": self.first,
            **self.rates,
        }
        self.run.write_progress(progress | {"losses": self.recent} | more)
        self.tracker.progress(progress, force=force)

    # --- validation, test, checkpoints --------------------------------------------------------------------------------

    def evaluate(self, phase: str, done: int) -> dict[str, Predictions]:
        """Predictions of every task that has this split; empty on ranks other than 0."""
        self.phase = phase
        predictions = {}
        for number, task in enumerate(self.experiment.tasks):
            parts = self.plan.eval_parts(number, phase)
            if not parts:
                continue

            def take(minibatch: Minibatch, task: Task = task) -> Share:
                self.tell()
                share = self.streams[task.modality].take(minibatch)
                self.progress.note_bad(task.name, phase, share.bad)
                return share

            minibatches: Iterator[Minibatch] = (
                self.plan.evaluation(phase, done, number, part) for part in range(parts)
            )
            of_task = predict_split(minibatches, take, partial(self.predict, task), len(task.classes))
            if of_task is not None:
                predictions[task.name] = of_task
        self.phase = "train"
        return predictions

    def predict(self, task: Task, share: Share) -> tuple[Tensor, Tensor]:
        """Logits, the mean over an example's views, and targets of a share, [b, classes] float32 each."""
        logits = torch.empty(len(share), len(task.classes), device=self.device)

        def part(indices: np.ndarray) -> None:
            x = self.to_device(task.modality, share, indices)
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits[indices] = self.model(task.name, x).float()

        self.in_parts(share, part)
        targets = make_targets(share.labels, len(task.classes), self.device)
        return mean_of_views(logits, len(share.ids)), targets

    def score(self, phase: str, done: int) -> tuple[dict[str, dict[str, float]], dict[str, Predictions]]:
        """Metrics by task, logged."""
        with self.spent.on("validating"):
            return self._score(phase, done)

    def _score(self, phase: str, done: int) -> tuple[dict[str, dict[str, float]], dict[str, Predictions]]:
        predictions = self.evaluate(phase, done)
        values = {
            task.name: predictions[task.name].metrics(loss=task.loss, multi_label=task.multi_label)
            for task in self.experiment.tasks
            if task.name in predictions
        }
        if self.rank == 0:
            flat = {
                f"{phase}/{task}/{name}": value for task, of_task in values.items() for name, value in of_task.items()
            }
            self.tracker.metrics(flat, step=done)
        return values, predictions

    def validate(self, done: int) -> None:
        values, _ = self.score("val", done)
        self._judge_bad()
        self.window = (time.perf_counter(), self.examples, self.waited())  # validation is no part of the throughput
        if self.rank != 0:
            return
        self.progress.validation = values
        scores = [values[task.name][task.metric] for task in self.experiment.tasks if values.get(task.name)]
        if not scores:
            return
        mean = sum(scores) / len(scores)
        self.tracker.metrics({"val/mean": mean}, step=done)
        if mean > self.progress.best.get("score", -math.inf):
            self.progress.best = {"score": mean, "step": done}
            if not self.trial:
                self._save_to(self.run.path / "best", with_optimizer=False)

    def save(self, done: int) -> None:
        """A checkpoint after `done` steps and the validation that belongs to them."""
        self._judge_bad()
        self.spent.gather()
        if self.rank != 0:
            return
        with self.spent.on("checkpointing"):
            self.tracker.flush(timeout_s=0.5)  # what was measured before a checkpoint is known once it counts
        self._save_to(checkpoint.step_folder(self.run.checkpoints, done), with_optimizer=True)
        run_checkpoints.keep_newest(self.run, self.recipe.train.keep_checkpoints)

    def _save_to(self, folder: Path, *, with_optimizer: bool, **more: Any) -> None:
        with self.spent.on("checkpointing"):
            self._write_checkpoint(folder, with_optimizer, more)

    def _write_checkpoint(self, folder: Path, with_optimizer: bool, more: dict[str, Any]) -> None:
        progress = asdict(self.progress) | self.took()
        checkpoint.save(
            folder,
            model=self.model,
            optimizer=self.optimizer if with_optimizer else None,
            recipe_yaml=self.recipe.yaml(),
            state={
                "format": 1,
                "step": self.progress.step,
                "plan_digest": self.plan.digest,
                "manifests": self.experiment.state_digests(),
                **description(self.experiment.architecture.modalities, self.recipe),
                "architecture": self.experiment.architecture.plain(),
                "classes": {name: list(classes) for name, classes in self.experiment.classes.items()},
                "tasks": self.experiment.described_tasks(),
                "trained": self.experiment.trained,
                "world_size": self.workers,
                "progress": progress,
                **more,
            },
        )
        run_checkpoints.written(self.run, folder)

    def test(self) -> dict[str, Any]:
        """Judge the last state on the test splits, and leave everything behind that a finished run has."""
        done = self.plan.schedule.steps
        values, predictions = self.score("test", done)
        self._judge_bad()
        self.spent.gather()
        if self.rank != 0:
            return {}
        self.phase = "finishing"
        self.tell(force=True)
        final = self.run.path / "final"
        results = {"val": self.progress.validation, "test": values}
        self._save_to(final, with_optimizer=not self.trial, results=results)
        if not self.trial:
            for file in write_predictions(self.run.path / "predictions", self.experiment, self.source, predictions):
                self.tracker.artifact(file, "predictions")
            self.tracker.artifact(write_curves(self.run.path / "figures" / "curves.png", history_of(self.run.path)))
            for file in write_confusions(self.run.path / "figures" / "confusion", self.experiment, predictions):
                self.tracker.artifact(file, "confusion")
            self.tracker.artifact(final, "checkpoint")
        if self.progress.any_bad:
            self.tracker.artifact(self.progress.write_quarantine(self.run.path / "quarantine.parquet"))
        took = self.took()
        self.tracker.metrics({f"time/{kind}": share for kind, share in shares(took["spent"]).items()}, step=done)
        return {
            "status": "finished",
            "step": done,
            "val": self.progress.validation,
            "test": values,
            "best": self.progress.best,
            **took,
            "bad": {task: sum(map(len, splits.values())) for task, splits in self.progress.bad.items()},
        }

    def took(self) -> dict[str, Any]:
        """Seconds in the loop over all attempts, and what they were spent on."""
        before = self.progress.spent
        return {
            "seconds": self.progress.seconds + time.perf_counter() - self.began,
            "spent": {kind: seconds + before.get(kind, 0.0) for kind, seconds in self.spent.seconds().items()},
        }

    def close(self) -> None:
        if self.sheets is not None:
            self.sheets.close()
        self.pool.shutdown(wait=False)
        for stream in self.streams.values():
            stream.close()
