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
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from polytrain import __version__, figures
from polytrain.data.device import DeviceInputs
from polytrain.data.reading import StreamSource
from polytrain.data.stream import Share
from polytrain.experiment import Experiment, Task
from polytrain.model.polyvit import PolyViT, parameters_by_part
from polytrain.plan import Minibatch, dealt
from polytrain.run_folder import RunFolder
from polytrain.tracking import Tracker, history_of
from polytrain.training import checkpoint
from polytrain.training.evaluation import Predictions, predict_split
from polytrain.training.metrics import confusion_matrix
from polytrain.training.optimizer import clear_gradients, make_optimizer, update
from polytrain.training.start import Start
from polytrain.training.step import add_gradients, make_targets, mix_mirrored, sum_over_workers, task_loss

PROGRESS_INTERVAL_S = 1.0
FRACTION_AFTER = 100
"""Examples a task must have tried before its fraction of bad ones is judged."""


class TrainingFault(Exception):
    """The run can't go on and would fail again: the message is for the user. All ranks raise it at the same step."""


@dataclass
class Progress:
    """What a run has behind it; travels in checkpoints."""

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # score and step of the best validation
    validation: dict[str, dict[str, float]] = field(default_factory=dict)  # the last one, by task
    bad: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)  # task, split, id: [path, reason]
    seconds: float = 0.0  # spent in the loop, over all attempts

    def note_bad(self, task: str, split: str, found: list[tuple[int, str, str]]) -> None:
        known = self.bad.setdefault(task, {}).setdefault(split, {})
        for example, path, reason in found:
            known.setdefault(str(example), [path, reason])


def cotrain(experiment: Experiment, source: StreamSource, run: RunFolder, begun: Start) -> None:
    """Train, validate and test one run from wherever it stands.

    Ends normally when the run has finished, was asked to stop, or met a fault that a restart would meet again: which of
    them stands in the run folder's result.json. Anything else raises, and Ray Train restarts the worker group.
    """
    worker = Worker(experiment, source, run, begun)
    try:
        worker.start()
        with contextlib.closing(worker):
            outcome = worker.run_steps()
    except TrainingFault as fault:
        if worker.rank == 0:
            run.write_result({"status": "failed", "step": worker.progress.step, "message": str(fault)})
            worker.tracker.detach()
        return
    if worker.rank == 0:
        run.write_result(outcome)
        worker.tracker.detach()


class Worker:
    """One worker's model, optimizer, streams and record."""

    def __init__(self, experiment: Experiment, source: StreamSource, run: RunFolder, begun: Start) -> None:
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.experiment, self.source, self.run, self.begun = experiment, source, run, begun
        self.streams = begun.streams
        self.recipe, self.plan = experiment.recipe, experiment.plan
        self.progress = Progress()

        # --- device ---
        self.device = ray.train.torch.get_device()
        gpu = self.device.type == "cuda"
        # A CPU worker's cores each take a part of the share, as workers do, instead of sharing every operation: torch's
        # own threads wait for each other hundreds of times a step, which decoders beside them make slow (and OpenMP,
        # outside the main thread of a process, slower still): BENCHMARKS.md has figures.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self.recipe.train.threads or max(1, cores // context.get_local_world_size())
        self.parts = 1 if gpu else threads
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.parts, "part", initializer=torch.set_num_threads, initargs=(1,))
        if gpu:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        self.bf16 = wants_bf16(self.recipe.train.precision, self.device)
        # Losses are looked at after every step where that costs nothing; a GPU would have to be waited for.
        self.look_every = self.recipe.train.log_every if gpu else 1
        self.eval_steps = set(self.plan.eval_steps.tolist())

        # --- model and optimizer: the same on every rank, from the seed alone ---
        torch.manual_seed(self.recipe.seed)
        self.model = PolyViT(self.experiment.architecture).to(self.device)
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
            self.progress = Progress(**self.begun.state["progress"])
        elif self.recipe.model.init:
            checkpoint.load(Path(self.recipe.model.init), self.model, None)
        if self.rank == 0:
            self.tracker = Tracker.resume(self.run.path, step=step)
            self.tracker.metrics({"model/params_total": parameters_by_part(self.model)["total"]}, step=0)
        self.first = step
        self.began = time.perf_counter()  # and once more behind the first step, which waits for streams to start
        self.pending: deque[tuple[int, list[Minibatch], Tensor, Tensor]] = deque()
        self.recent: dict[str, float] = {}  # the last loss of each task, for whoever watches
        self.examples, self.window = 0, (time.perf_counter(), 0, 0.0)
        self.rates = {"examples_per_s": 0.0, "data_wait_fraction": 0.0}
        self.told = 0.0
        self.phase = "train"
        self.tell(force=True)

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
                return {"status": "stopped", "step": done}
        return self.test()

    def train_step(self, step: int) -> None:
        """One update: one minibatch, or one of every task when gradients are accumulated."""
        schedule = self.plan.schedule
        clear_gradients(self.optimizer)
        minibatches, losses, short = [], [], 0
        for draw in range(schedule.draws_per_step):
            minibatch = self.plan.train(step, draw)
            share = self.streams[self.modality(minibatch)].take(minibatch)
            short += len(share.ids) < len(self.plan.share(minibatch, self.rank, self.workers))
            self.progress.note_bad(self.plan.tasks[minibatch.tag.task].name, "train", share.bad)
            losses.append(self.backward(minibatch, share))
            minibatches.append(minibatch)
            self.examples += len(minibatch)
        used = self.used(minibatches)
        stop = self.rank == 0 and self.run.stop_requested()
        flags = torch.tensor([float(stop), float(short)], device=self.device)
        numbers = sum_over_workers(used, torch.cat([torch.stack(losses), flags]))
        norm = update(self.optimizer, used, schedule.learning_rate(step), self.recipe.optimizer.clip_norm)
        self.pending.append((step, minibatches, numbers, norm))

    def backward(self, minibatch: Minibatch, share: Share) -> Tensor:
        """Add a share's gradient. Returns its part of the minibatch's loss, a float32 scalar."""
        task = self.experiment.tasks[minibatch.tag.task]
        used = self.model.used_by(task.name)
        weight = self.plan.mixup_lambda(minibatch)
        targets = make_targets(share.labels, len(task.classes), self.device)
        keep = None
        if task.drop_path:
            draws = self.plan.depth_draws(minibatch, self.recipe.model.depth)
            mine = draws[:, :, self.plan.share(minibatch, self.rank, self.workers)[: len(share.ids)]]
            keep = self.model.keep_masks(torch.from_numpy(mine).to(self.device), task.drop_path)

        def part(indices: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...]]:
            x = mix_mirrored(self.to_device(task.modality, share.media[indices]), weight)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.model(task.name, x, None if keep is None else keep[:, :, indices])
            loss = task_loss(logits, mix_mirrored(targets[indices], weight), task.loss, len(minibatch))
            return loss.detach(), torch.autograd.grad(loss, used)

        total = torch.zeros((), device=self.device)
        for loss, gradients in self.in_parts(len(share.ids), part):
            total += loss
            add_gradients(used, gradients)
        return total

    def in_parts(self, examples: int, work: Callable[[np.ndarray], Any]) -> list[Any]:
        """What `work` makes of each part of a share, given as indices that mirror in themselves: one part a thread."""
        parts = min(self.parts, (examples + 1) // 2)
        indices = [dealt(examples, part, parts, paired=True) for part in range(parts)]
        return [work(indices[0])] if parts == 1 else list(self.pool.map(work, indices))

    def to_device(self, modality: str, media: np.ndarray) -> Tensor:
        """Decoded media as their tokenizer takes them, [b, 3, *input_shape] float32 on the device."""
        tensor = torch.from_numpy(media)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return self.inputs[modality](tensor)

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
            *losses, stopping, short = numbers.tolist()
            stop |= stopping > 0
            for minibatch, loss in zip(minibatches, losses, strict=True):
                task = self.plan.tasks[minibatch.tag.task].name
                if not math.isfinite(loss):
                    raise TrainingFault(self._not_finite(f"the loss became {loss}", step, minibatch))
                self.recent[task] = loss
                if self.rank == 0:
                    rate = self.plan.schedule.learning_rate(step)
                    self.tracker.metrics({f"train/{task}/loss": loss, f"train/{task}/lr": rate}, step=step + 1)
            if not math.isfinite(float(norm)):
                raise TrainingFault(self._not_finite(f"the gradient's norm became {float(norm)}", step, minibatches[0]))
            if short:
                self._judge_bad(always=True)
                raise TrainingFault(
                    f"step {step + 1}: examples can't be decoded, nor any of those that come after them"
                )
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
        paths = self.source.media[tag.task].splits["train"]["path"]
        shown = ", ".join(str(paths[int(example)]) for example in minibatch.ids[:8])
        more = f" and {len(minibatch) - 8} more" if len(minibatch) > 8 else ""
        return (
            f"step {step + 1}, task {self.plan.tasks[tag.task].name}: {what} at learning rate "
            f"{self.plan.schedule.learning_rate(step):.3g}. A smaller learning rate or a longer warm-up may help. "
            f"Examples {minibatch.ids[:8].tolist()}{more}: {shown}"
        )

    def _judge_bad(self, *, always: bool = False) -> None:
        """Bring the workers' lists of bad media together, and stop when a task has too many."""
        if self.workers > 1:
            lists: list[Any] = [None] * self.workers
            dist.all_gather_object(lists, self.progress.bad)
            for of_rank in lists:
                for task, splits in of_rank.items():
                    for split, found in splits.items():
                        self.progress.note_bad(task, split, [(int(k), *v) for k, v in found.items()])
        limit = self.recipe.data.max_bad_fraction
        counts = Counter(self.plan.schedule.draws[: self.progress.step * self.plan.schedule.draws_per_step].tolist())
        for number, task in enumerate(self.plan.tasks):
            bad = self.progress.bad.get(task.name, {}).get("train", {})
            if not bad:
                continue
            tried = min(task.sizes["train"], counts[number] * task.batch_size + len(bad))
            if (tried >= min(FRACTION_AFTER, task.sizes["train"]) and len(bad) / tried > limit) or always:
                self._write_quarantine()
                listed = "\n".join(f"  {path}: {reason}" for path, reason in list(bad.values())[:20])
                raise TrainingFault(
                    f"task {task.name}: {len(bad)} of {tried} training examples can't be decoded, over "
                    f"data.max_bad_fraction {limit:g}. {self.run.path / 'quarantine.parquet'} lists all:\n{listed}"
                )

    def tell(self, *, force: bool = False) -> None:
        """Let whoever watches know how far the run is."""
        now = time.perf_counter()
        if self.rank != 0 or (not force and now - self.told < PROGRESS_INTERVAL_S):
            return
        self.told = now
        self.run.write_progress(
            {
                "phase": self.phase,
                "step": self.progress.step,
                "steps": self.plan.schedule.steps,
                "losses": self.recent,
                "seconds": now - self.began,
                "steps_here": max(0, self.progress.step - self.first - 1),
                **self.rates,
            }
        )

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
        """Logits and targets of a share, [b, classes] float32 each."""
        logits = torch.empty(len(share.ids), len(task.classes), device=self.device)

        def part(indices: np.ndarray) -> None:
            x = self.to_device(task.modality, share.media[indices])
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits[indices] = self.model(task.name, x).float()

        self.in_parts(len(share.ids), part)
        return logits, make_targets(share.labels, len(task.classes), self.device)

    def score(self, phase: str, done: int) -> tuple[dict[str, dict[str, float]], dict[str, Predictions]]:
        """Metrics by task, logged."""
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
            self._save_to(self.run.path / "best", with_optimizer=False)

    def save(self, done: int) -> None:
        """A checkpoint after `done` steps and the validation that belongs to them."""
        self._judge_bad()
        if self.rank != 0:
            return
        self.tracker.flush(timeout_s=0.5)  # what was measured before a checkpoint is known once it counts
        self._save_to(checkpoint.step_folder(self.run.checkpoints, done), with_optimizer=True)
        checkpoint.keep_newest(self.run.checkpoints, self.recipe.train.keep_checkpoints)

    def _save_to(self, folder: Path, *, with_optimizer: bool, **more: Any) -> None:
        progress = asdict(self.progress) | {"seconds": self.progress.seconds + time.perf_counter() - self.began}
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
                "classes": {task.name: list(task.classes) for task in self.experiment.tasks},
                "world_size": self.workers,
                "versions": {"polytrain": __version__, "torch": torch.__version__, "ray": ray.__version__},
                "progress": progress,
                **more,
            },
        )

    def test(self) -> dict[str, Any]:
        """Judge the last state on the test splits, and leave everything behind that a finished run has."""
        done = self.plan.schedule.steps
        values, predictions = self.score("test", done)
        self._judge_bad()
        if self.rank != 0:
            return {}
        self.phase = "finishing"
        self.tell(force=True)
        self._write_figures(predictions)
        final = self.run.path / "final"
        self._save_to(final, with_optimizer=True, results={"val": self.progress.validation, "test": values})
        self.tracker.artifact(final, "checkpoint")
        if any(found for splits in self.progress.bad.values() for found in splits.values()):
            self.tracker.artifact(self._write_quarantine())
        return {
            "status": "finished",
            "step": done,
            "val": self.progress.validation,
            "test": values,
            "best": self.progress.best,
            "seconds": self.progress.seconds + time.perf_counter() - self.began,
            "bad": {task: sum(map(len, splits.values())) for task, splits in self.progress.bad.items()},
        }

    def _write_quarantine(self) -> Path:
        """Every bad file with task, split and reason, as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [
            {"task": task, "split": split, "example": int(example), "path": path, "reason": reason}
            for task, splits in self.progress.bad.items()
            for split, found in splits.items()
            for example, (path, reason) in found.items()
        ]
        file = self.run.path / "quarantine.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file

    def _write_figures(self, predictions: dict[str, Predictions]) -> None:
        folder = self.run.path / "figures"
        history: dict[str, list[list[float]]] = defaultdict(list)
        for key, value, step in history_of(self.run.path):
            history[key].append([step, value])
        tables = {key: tuple(np.array(rows).T) for key, rows in history.items()}
        figures.curves(tables, folder / "curves.png")
        self.tracker.artifact(folder / "curves.png")
        for task in self.experiment.tasks:
            if task.multi_label or task.name not in predictions:
                continue
            of_task = predictions[task.name]
            matrix = confusion_matrix(of_task.logits, of_task.targets.argmax(1))
            file = folder / "confusion" / f"{task.name}.png"
            figures.confusion(matrix.numpy(), list(task.classes), file)
            self.tracker.artifact(file, "confusion")

    def close(self) -> None:
        self.pool.shutdown(wait=False)
        for stream in self.streams.values():
            stream.close()


def wants_bf16(precision: str, device: torch.device) -> bool:
    """bf16 where asked for, and by itself on GPUs that have it and on CPUs with instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
