"""What an export is worth beside the model it was made from: how far its answers are off, its size, its speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polytrain.data.decode import DecodeError
from polytrain.data.examples import Examples
from polytrain.data.reading import decode_example
from polytrain.data.views import WHOLE
from polytrain.export.graph import INPUT, quiet
from polytrain.forward import Forward
from polytrain.modalities import Geometry
from polytrain.trained import TrainedTask
from polytrain.training.metrics import evaluate_predictions
from polytrain.training.step import make_targets

PARITY = 1e-4
"""Largest difference of a probability, and of a logit where logits are of magnitude one, that is rounding in fp32."""

TIMED_S, LEAST_TIMES = 0.5, 5
DECODE_S = 30.0

Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""media [b, *decoded_shape] -> (probabilities, logits), each [b, classes] float32."""
Answering = Callable[[int], Answer]
"""What answers on so many threads."""


class ExportError(RuntimeError):
    """An export that does not do what the model does."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Media that exports are judged by, and what the model itself answers."""

    media: np.ndarray  # [n, *decoded_shape]
    probabilities: np.ndarray  # [n, classes]
    logits: np.ndarray  # [n, classes]
    labels: list[list[int]] | None  # None: the media are noise

    def metric(self, task: TrainedTask, logits: np.ndarray) -> float | None:
        """top1 or mAP, percent."""
        if self.labels is None:
            return None
        targets = make_targets(self.labels, len(task.classes), "cpu")
        targets = targets if task.multi_label else targets.argmax(1)
        return evaluate_predictions(torch.from_numpy(logits), targets, task.multi_label)[task.metric]


@dataclass(frozen=True)
class Measured:
    """One file, or the model itself."""

    task: str
    format: str  # model | torch.export | ONNX | ONNX int8
    file: str | None
    megabytes: float | None
    latency_ms: float
    """Median time of one example on one core, from media to probabilities."""
    probability_difference: float
    """The largest difference from the model itself."""
    logit_difference: float
    metric: str
    """top1 or mAP."""
    value: float | None
    """Percent."""


def measure(task: TrainedTask, form: str, answering: Answering, by: Judged, file: Path | None = None) -> Measured:
    """Judge an answerer by all media, and time it with one."""
    answer = answering(torch.get_num_threads())
    # Few at a time: activations of large clips stay small.
    answers = [answer(by.media[first : first + 8]) for first in range(0, len(by.media), 8)]
    probabilities, logits = (np.concatenate([part[which] for part in answers]) for which in (0, 1))
    return Measured(
        task.name,
        form,
        None if file is None else file.name,
        None if file is None else file.stat().st_size / 1e6,
        latency_ms(answering(1), by.media[:1]),
        float(np.abs(probabilities - by.probabilities).max()),
        float(np.abs(logits - by.logits).max()),
        task.metric,
        by.metric(task, logits),
    )


def check_parity(measured: Measured, by: Judged) -> None:
    """Raises ExportError where an fp32 export differs by more than rounding."""
    allowed = PARITY * max(1.0, float(np.abs(by.logits).max()))
    if measured.probability_difference > PARITY or measured.logit_difference > allowed:
        raise ExportError(
            f"{measured.file} does not compute what the model does: probabilities are off by up to "
            f"{measured.probability_difference:.2g}, logits by {measured.logit_difference:.2g}; "
            f"rounding would be {PARITY:g} and {allowed:.2g}"
        )


def latency_ms(answer: Answer, media: np.ndarray) -> float:
    """Milliseconds of one call, the median of half a second's, and of five at least."""
    answer(media)
    times: list[float] = []
    while sum(times) < TIMED_S or len(times) < LEAST_TIMES:
        began = time.perf_counter()
        answer(media)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


# --- what answers -------------------------------------------------------------------------------------------------


def from_module(module: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Answering:
    """The model itself, or a loaded program."""

    def answering(threads: int) -> Answer:
        def answer(media: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    probabilities, logits = module(torch.from_numpy(media))
            finally:
                torch.set_num_threads(before)
            return probabilities.numpy(), logits.numpy()

        return answer

    return answering


def from_program(file: Path) -> Answering:
    """A torch.export file, read again."""
    with quiet():
        return from_module(torch.export.load(file).module())


def from_onnx(file: Path) -> Answering:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    def answering(threads: int) -> Answer:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda media: tuple(session.run(None, {INPUT: media}))

    return answering


# --- what is asked ------------------------------------------------------------------------------------------------


def judged_by(forward: Forward, task: TrainedTask, examples: Examples | None, count: int) -> Judged:
    """Up to `count` examples of a split, spread over it, that can be decoded; noise where there are none."""
    geometry = forward.architecture.modalities[task.modality]
    media, labels = [], []
    for example in np.linspace(0, len(examples) - 1, min(count, len(examples)), dtype=int) if examples else ():
        try:
            media.append(decode_example(geometry, examples, int(example), WHOLE, DECODE_S))
        except DecodeError:
            continue
        labels += examples.labels([int(example)])
    arrays = np.concatenate(media) if media else noise(geometry, 4)
    logits = forward.logits(task.name, arrays)
    return Judged(arrays, task.probabilities(logits.numpy()), logits.numpy(), labels or None)


def noise(geometry: Geometry, count: int) -> np.ndarray:
    """[count, *decoded_shape] as a decoder would deliver it, the same each time."""
    draws = np.random.default_rng(0)
    shape = (count, *geometry.decoded_shape)
    if geometry.decoded_dtype == "uint8":
        return draws.integers(0, 256, shape, np.uint8)
    return draws.normal(0, 0.1, shape).clip(-1, 1).astype(np.float32)
