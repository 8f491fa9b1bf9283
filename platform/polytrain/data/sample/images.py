"""Drawings of the sample suite: every class is a local pattern whose place, phase, scale and colours are random.

No pixel has a meaning of its own, so models that are linear in the pixels fail; patches tell at once.
"""

from __future__ import annotations

import numpy as np

SIZE = 64
"""Height and width of every picture and video, in pixels."""

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours in [0, 255] that a person tells apart, the lighter one first as often as not."""
    dark, light = rng.uniform(0, 110, 3), rng.uniform(145, 255, 3)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def paint(rng: np.random.Generator, coverage: np.ndarray, grain: float = 6.0) -> np.ndarray:
    """[H, W, 3] uint8 from coverage [H, W] in [0, 1]: one colour shows through another, with the grain of a camera."""
    back, front = two_colours(rng)
    picture = back + coverage[..., None] * (front - back)
    return np.clip(picture + rng.normal(0, grain, picture.shape), 0, 255).astype(np.uint8)


def _edge(value: np.ndarray, softness: float) -> np.ndarray:
    """A smooth step at 0: without it a resized picture would flicker at its edges."""
    return np.clip(value / softness + 0.5, 0, 1)


def _stripes(rng: np.random.Generator, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees + rng.uniform(-7, 7))
    along = _X * np.sin(angle) + _Y * np.cos(angle)
    return _edge(np.sin(2 * np.pi * along / rng.uniform(7, 13) + rng.uniform(0, 2 * np.pi)), 0.8)


def _cells(rng: np.random.Generator, low: float, high: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Coordinates of a randomly shifted square lattice, in cells, and the cell's side in pixels."""
    side = rng.uniform(low, high)
    return _X / side + rng.random(), _Y / side + rng.random(), side


def _checkers(rng: np.random.Generator) -> np.ndarray:
    x, y, _ = _cells(rng, 10, 16)
    return _edge(np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y), 0.3)


def _dots(rng: np.random.Generator) -> np.ndarray:
    x, y, _ = _cells(rng, 8, 13)
    return _edge(rng.uniform(0.27, 0.36) - np.hypot(x % 1 - 0.5, y % 1 - 0.5), 0.12)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    x, y, _ = _cells(rng, 8, 12)
    x = x / 2 + 0.5 * (np.floor(y) % 2)
    gap = np.minimum(0.5 - np.abs(y % 1 - 0.5), 2 * (0.5 - np.abs(x % 1 - 0.5)))
    return _edge(gap - 0.1, 0.1)


def _waves(rng: np.random.Generator) -> np.ndarray:
    bend = rng.uniform(3, 4.5) * np.sin(2 * np.pi * (_X / rng.uniform(14, 20) + rng.random()))
    return _edge(np.sin(2 * np.pi * (_Y + bend) / rng.uniform(10, 14) + rng.uniform(0, 2 * np.pi)), 0.8)


def _ripples(rng: np.random.Generator) -> np.ndarray:
    x, y = rng.uniform(16, 48, 2)
    return _edge(np.sin(2 * np.pi * np.hypot(_X - x, _Y - y) / rng.uniform(7, 12) + rng.uniform(0, 2 * np.pi)), 0.8)


_TEXTURES = {
    "level": lambda rng: _stripes(rng, 0),
    "upright": lambda rng: _stripes(rng, 90),
    "rising": lambda rng: _stripes(rng, 45),
    "falling": lambda rng: _stripes(rng, -45),
    "checkers": _checkers,
    "dots": _dots,
    "bricks": _bricks,
    "waves": _waves,
}
TEXTURES = tuple(_TEXTURES)


def texture(rng: np.random.Generator, label: int) -> np.ndarray:
    """Stripes of four directions, checkers, dots, bricks or waves over the whole picture."""
    return paint(rng, _TEXTURES[TEXTURES[label]](rng))


# Signed distances to an outline of radius about 1, positive inside.
_SHAPES = {
    "disc": lambda x, y: 0.95 - np.hypot(x, y),
    "square": lambda x, y: 0.85 - np.maximum(np.abs(x), np.abs(y)),
    "triangle": lambda x, y: np.minimum(0.62 - y, (y + 1.0 - 1.75 * np.abs(x)) * 0.5),
    "cross": lambda x, y: np.maximum(
        np.minimum(0.28 - np.abs(x), 1 - np.abs(y)), np.minimum(0.28 - np.abs(y), 1 - np.abs(x))
    ),
    "ring": lambda x, y: 0.22 - np.abs(np.hypot(x, y) - 0.78),
}
SHAPES = tuple(_SHAPES)


def shape(rng: np.random.Generator, label: int) -> np.ndarray:
    """A handful of discs, squares, triangles, crosses or rings of one kind, scattered."""
    outline = _SHAPES[SHAPES[label]]
    coverage = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(rng.integers(5, 9)):
        x, y = rng.uniform(6, SIZE - 6, 2)
        radius = rng.uniform(6.5, 9)
        # Overlapping shapes would make a new one: what is there already keeps a margin.
        apart = np.hypot(_X - x, _Y - y) < radius * 1.35
        if not (coverage[apart] > 0).any():
            coverage = np.maximum(coverage, _edge(outline((_X - x) / radius, (_Y - y) / radius), 0.2))
    return paint(rng, coverage, grain=0.0)


def _plaid(rng: np.random.Generator) -> np.ndarray:
    return (_stripes(rng, 0) + _stripes(rng, 90)) / 2


def _zigzag(rng: np.random.Generator) -> np.ndarray:
    tooth = rng.uniform(12, 17)
    bend = np.abs((_X / tooth + rng.random()) % 1 - 0.5) * tooth
    return _edge(np.sin(2 * np.pi * (_Y + bend) / rng.uniform(8, 12) + rng.uniform(0, 2 * np.pi)), 0.8)


_FABRICS = {
    "plaid": _plaid,
    "polka": _dots,
    "zigzag": _zigzag,
    "ribbed": lambda rng: _stripes(rng, 90 * rng.integers(2)),
}
FABRICS = tuple(_FABRICS)


def fabric(rng: np.random.Generator, label: int) -> np.ndarray:
    """Cloth: plaid, polka dots, zigzag, or ribs that run either way."""
    return paint(rng, _FABRICS[FABRICS[label]](rng), grain=12.0)
