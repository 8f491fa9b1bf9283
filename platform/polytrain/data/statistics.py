"""Mean and deviation of what a modality's preprocessing makes of a collection: how its inputs are to be standardised.

PolyViT and MBT do not say how their log-mel spectrograms are scaled; AST publishes mean and deviation of AudioSet,
which are the defaults of a recipe. A collection that sounds otherwise has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from polytrain.data.decode import DecodeError, decode
from polytrain.data.device import INPUTS
from polytrain.data.examples import Examples
from polytrain.data.views import View
from polytrain.modalities import Audio, Geometry

BATCH = 32
"""Examples decoded and summed up together."""

Progress = Callable[[int, int], None]
"""Told how many examples are done, and of how many."""


@dataclass
class Moments:
    """Mean and deviation of each channel of what was added, in double precision (Chan, Golub & LeVeque, 1979)."""

    count: int = 0  # values a channel
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # of distances to the mean

    def add(self, x: Tensor) -> None:
        """Values [b, channels, ...]."""
        values = x.transpose(0, 1).flatten(1).double()
        count, mean = values.shape[1], values.mean(1)
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + (values - mean[:, None]).square().sum(1) + apart**2 * (self.count * count / total)
        self.count = total

    @property
    def deviation(self) -> Tensor:
        return (self.squares / max(self.count, 1)).sqrt()


@dataclass
class Statistics:
    """Of each channel; of sounds the one channel holds log-mel energies, of pixels all lie in [-1, 1]."""

    mean: list[float]
    deviation: list[float]
    examples: int
    bad: list[tuple[str, str]]  # name of the example, reason


def input_statistics(
    geometry: Geometry,
    collections: Sequence[Examples],
    *,
    most: int,
    seed: int = 0,
    threads: int = 1,
    time_limit_s: float = 30.0,
    progress: Progress | None = None,
) -> Statistics:
    """Mean and deviation over collections, each weighing as much as it has examples (at most `most`, drawn).

    Of a file longer than a clip one clip is taken, somewhere, as in training. Silence behind a file that is shorter
    counts: the model sees it, too. Raises ValueError if not one example can be decoded.
    """
    if isinstance(geometry, Audio):
        geometry = replace(geometry, mean=0.0, deviation=0.5)  # so that standardising changes nothing
    rng = np.random.default_rng(seed)
    wanted = []
    for examples in collections:
        rows = np.sort(rng.permutation(len(examples))[:most])
        wanted += [(examples, int(row), float(position)) for row, position in zip(rows, rng.random(len(rows)))]
    inputs, moments = INPUTS[type(geometry)](geometry), Moments()
    bad: list[tuple[str, str]] = []
    done = 0
    for batch in _decoded(geometry, wanted, threads, time_limit_s):
        good = [array for array in batch if not isinstance(array, tuple)]
        bad += [array for array in batch if isinstance(array, tuple)]
        if good:
            x = inputs(torch.from_numpy(np.concatenate(good)))
            # Channels that are one and the same in memory, as a spectrogram's, count once.
            moments.add(x if x.stride(1) else x[:, :1])
        done += len(batch)
        if progress:
            progress(done, len(wanted))
    if not moments.count:
        raise ValueError(f"none of {len(wanted)} examples can be decoded; the first: {bad[0][0]}: {bad[0][1]}")
    return Statistics(moments.mean.tolist(), moments.deviation.tolist(), len(wanted) - len(bad), bad)


def _decoded(
    geometry: Geometry, wanted: Sequence[tuple[Examples, int, float]], threads: int, time_limit_s: float
) -> Iterator[list[np.ndarray | tuple[str, str]]]:
    """Batches of [1, *decoded_shape] arrays, or name and reason where there is none; the next is decoded meanwhile."""

    def one(examples: Examples, row: int, position: float) -> np.ndarray | tuple[str, str]:
        start_s, end_s = examples.clip(row)
        view = (View(position),)
        try:
            content = examples.content(row)
            return decode(geometry, content, view, start_s=start_s, end_s=end_s, time_limit_s=time_limit_s)
        except (DecodeError, OSError) as error:
            return examples.name(row), str(error)

    with ThreadPoolExecutor(threads) as pool:
        ahead: list[list[Future]] = []
        for start in range(0, len(wanted), BATCH):
            ahead.append([pool.submit(one, *item) for item in wanted[start : start + BATCH]])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.pop(0)]
        for futures in ahead:
            yield [future.result() for future in futures]
