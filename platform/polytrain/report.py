"""What a run prints: the plan before it starts, the live line while it goes, the table when it ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from polytrain.experiment import Experiment
from polytrain.model.architecture import forward_flops
from polytrain.schedule import Schedule
from polytrain.text_table import table

LOG_INTERVAL_S = 10.0


def plan_text(experiment: Experiment) -> str:
    """Everything --dry-run tells: steps, warm-up and passes a task, parameters by part, FLOPs a step, what is read."""
    from polytrain.model.polyvit import on_meta, parameters_by_part

    recipe, schedule, architecture = experiment.recipe, experiment.schedule, experiment.architecture
    counts = schedule.counts()
    rows = []
    for number, (task, planned) in enumerate(zip(experiment.tasks, experiment.plan.tasks, strict=True)):
        settings = recipe.tasks[task.name]
        flops = 3 * forward_flops(architecture, task.name) * planned.batch_size
        rows.append(
            [
                task.name, task.modality, len(task.classes), f"{planned.sizes['train']:,}",
                f"{planned.sizes['val']:,}", f"{planned.sizes['test']:,}", planned.batch_size, f"{counts[number]:,}",
                settings.warmup_steps, f"{counts[number] * planned.batch_size / planned.sizes['train']:.1f}",
                f"{min(schedule.rates) if schedule.kind == 'accumulated' else settings.lr:g}", task.loss,
                f"{flops / 1e9:,.1f}",
            ]
        )  # fmt: skip
    header = ["task", "modality", "classes", "train", "val", "test", "batch", "steps", "warm-up", "passes", "lr",
              "loss", "GFLOP a step"]  # fmt: skip
    parts = parameters_by_part(on_meta(architecture))
    geometry = [
        f"  {name}: input {' x '.join(map(str, g.input_shape))}, patches {' x '.join(map(str, g.grid))}, "
        f"{g.positions} tokens"
        for name, g in architecture.modalities.items()
    ]
    reads = [f"  {task.name}: {task.manifest}" for task in experiment.tasks]
    return "\n".join(
        [
            f"{recipe.run_name}: {schedule.steps:,} steps, schedule {schedule.kind}, "
            f"{schedule.warmup_steps:,} of warm-up{_per_step(schedule)}",
            "",
            table(header, rows),
            "",
            "parameters",
            table(["part", "parameters"], [[name, f"{count:,}"] for name, count in parts.items()]),
            *(["", freeze_text(experiment)] if recipe.train.freeze else []),
            "",
            "inputs",
            *geometry,
            "",
            "read",
            *reads,
            "",
            f"written: {recipe.output}/{recipe.run_name}",
        ]
    )


def freeze_text(experiment: Experiment) -> str:
    """What a run with `train.freeze` trains and what it keeps, one line."""
    heads = f"the head{'s' * (len(experiment.trained) > 1)} of {', '.join(experiment.trained)}"
    judged = [task.name for task in experiment.tasks if task.kept]
    carried = [task.name for task in experiment.carried]
    kept = [f"{', '.join(names)} ({how})" for names, how in ((judged, "tested"), (carried, "not read")) if names]
    also = f"; heads that stay as they are: {', '.join(kept)}" if kept else ""
    return f"Frozen but for {heads}{also}"


def _per_step(schedule: Schedule) -> str:
    return f", {schedule.draws_per_step} minibatches a step" if schedule.draws_per_step > 1 else ""


def results_text(experiment: Experiment, result: Mapping[str, Any]) -> str:
    """The table of a finished run: validation and test metrics of every task, in percent."""
    rows = []
    for task, planned in zip(experiment.tasks, experiment.plan.tasks, strict=True):
        val, test = (result.get(phase, {}).get(task.name, {}) for phase in ("val", "test"))
        rows.append(
            [
                task.name, task.modality, len(task.classes), task.metric, _percent(val, task.metric),
                _percent(test, task.metric), _percent(test, "top5"), planned.sizes["test"],
                result.get("bad", {}).get(task.name, 0) or "-",
            ]
        )  # fmt: skip
    return table(["task", "modality", "classes", "metric", "val", "test", "test top5", "test n", "bad media"], rows)


def _percent(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.1f}" if name in values else "-"


def duration(seconds: float) -> str:
    """90 -> "1:30", 4000 -> "1:06:40"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class LiveLine:
    """One line that is rewritten on a terminal, or a plain line every ten seconds in a log."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._shown = 0
        self._last, self._text = -math.inf, ""

    def show(self, progress: Mapping[str, Any]) -> None:
        text = self.format(progress)
        now = time.monotonic()
        if self._terminal:
            width = _terminal_width()
            text = text[: width - 1]
            self._out.write("\r" + text.ljust(self._shown))
            self._out.flush()
            self._shown = len(text)
        elif now - self._last >= LOG_INTERVAL_S and text != self._text:
            print(text, file=self._out, flush=True)
            self._last, self._text = now, text

    def say(self, text: str) -> None:
        """A line of its own; the live line goes on below it."""
        if self._terminal and self._shown:
            self._out.write("\r" + " " * self._shown + "\r")
            self._shown = 0
        print(text, file=self._out, flush=True)

    @staticmethod
    def format(progress: Mapping[str, Any]) -> str:
        step, steps = progress["step"], progress["steps"]
        rate = progress["steps_here"] / max(progress["seconds"], 1e-9)
        left = (steps - step) / rate if rate else math.inf
        losses = " ".join(f"{task} {loss:.2f}" for task, loss in progress["losses"].items())
        phase = {"train": "", "val": ", validating", "test": ", testing", "finishing": ", finishing"}[progress["phase"]]
        return (
            f"step {step}/{steps}{phase}, {duration(left)} left, {progress['examples_per_s']:.0f} examples/s, "
            f"{100 * progress['data_wait_fraction']:.0f}% waiting for data | {losses}"
        )


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size((160, 24)).columns
