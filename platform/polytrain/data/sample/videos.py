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
PACES = ("still", "slow", "fast", "swaying")


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
    return _moved(carpet, down * np.arange(FRAMES), right * np.arange(FRAMES))


def _moved(carpet: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] uint8: the carpet at each of these places, [T] pixels down and to the right."""
    return np.stack([np.roll(carpet, place, (0, 1)) for place in zip(down, right, strict=True)])


def direction(rng: np.random.Generator, label: int) -> np.ndarray:
    """[T, H, W, 3] uint8: the carpet drifts left, right, up or down."""
    down, right = _STEPS[DIRECTIONS[label]]
    speed = int(rng.integers(2, 5))
    return _drift(_carpet(rng), down * speed, right * speed)


def pace(rng: np.random.Generator, label: int) -> np.ndarray:
    """[T, H, W, 3] uint8: the carpet rests, drifts slowly or fast in any of eight directions, or sways to and fro."""
    name = PACES[label]
    down, right = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b][rng.integers(8)]
    carpet = _carpet(rng)
    if name == "swaying":
        # There in two or three frames and back in as many, at a speed between slow and fast.
        half = int(rng.integers(2, 4))
        phase = (np.arange(FRAMES) + int(rng.integers(2 * half))) % (2 * half)
        away = 3 * np.minimum(phase, 2 * half - phase)
        return _moved(carpet, down * away, right * away)
    # Faster than 5 the blobs would move by half their distance a frame and seem to turn round, as wheels do on film.
    speed = {"still": 0, "slow": 2, "fast": int(rng.integers(4, 6))}[name]
    return _drift(carpet, down * speed, right * speed)
