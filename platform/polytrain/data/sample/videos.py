"""Videos of the sample suite: a carpet of blobs that moves. One frame shows the blobs and tells nothing of the class.

The carpet is a torus: what leaves on one side comes in on the other, so neither the mean frame nor an edge gives
the motion away.
"""

from __future__ import annotations

import numpy as np

from polytrain.data.sample.images import SIZE, paint

FRAMES = 20
RATE = 10
"""Frames a second."""

DIRECTIONS = ("left", "right", "up", "down")
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
PACES = ("still", "slow", "fast", "blinking")


def _carpet(rng: np.random.Generator) -> np.ndarray:
    """[H, W, 3] uint8: smooth noise on a torus, cut into blobs of two colours."""
    frequency = np.fft.fftfreq(SIZE) * SIZE
    radius = np.hypot(frequency[:, None], frequency[None, :])
    wanted = rng.uniform(4.0, 6.0)  # blobs across the frame
    band = np.exp(-(((radius - wanted) / 1.5) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIZE, SIZE))) * band).real
    return paint(rng, np.clip(noise / noise.std() * 1.2 + 0.5, 0, 1), grain=2.0)


def _drift(carpet: np.ndarray, down: int, right: int) -> np.ndarray:
    """[T, H, W, 3] uint8: the carpet moving by so many pixels a frame."""
    return np.stack([np.roll(carpet, (down * t, right * t), (0, 1)) for t in range(FRAMES)])


def direction(rng: np.random.Generator, label: int) -> np.ndarray:
    """[T, H, W, 3] uint8: the carpet drifts left, right, up or down."""
    down, right = _STEPS[DIRECTIONS[label]]
    speed = int(rng.integers(2, 5))
    return _drift(_carpet(rng), down * speed, right * speed)


def pace(rng: np.random.Generator, label: int) -> np.ndarray:
    """[T, H, W, 3] uint8: the carpet rests, drifts slowly or fast in any of eight directions, or blinks."""
    name = PACES[label]
    down, right = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b][rng.integers(8)]
    # Faster than 5 the blobs would move by half their distance a frame and seem to turn round, as wheels do on film.
    speed = {"still": 0, "slow": 2, "fast": int(rng.integers(4, 6)), "blinking": 0}[name]
    carpet = _carpet(rng)
    film = _drift(carpet, down * speed, right * speed)
    if name == "blinking":
        period, start = rng.integers(4, 7), rng.integers(8)
        dark = (np.arange(FRAMES) + start) % period >= period / 2
        film[dark] = carpet.mean((0, 1)).astype(np.uint8)
    return film
