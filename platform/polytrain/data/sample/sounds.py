"""Sounds of the sample suite: about a second of mono at 16 kHz, with random pitch, onset and loudness.

A class is a movement of pitch, a timbre or an envelope, never a fixed frequency or moment, so a linear model on the
log-mel spectrogram has little to hold on to.
"""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16000


def _silence(rng: np.random.Generator) -> np.ndarray:
    """[samples] float64: 0.9 to 1.05 s of a quiet room."""
    samples = int(rng.uniform(0.9, 1.05) * SAMPLE_RATE)
    return rng.normal(0, 10 ** rng.uniform(-4.4, -3.5), samples)


def _add(sound: np.ndarray, event: np.ndarray, onset_s: float, gain: float) -> None:
    start = int(onset_s * SAMPLE_RATE)
    event = event[: len(sound) - start]
    sound[start : start + len(event)] += gain * event


def _fade(samples: int, seconds: float = 0.02) -> np.ndarray:
    ramp = np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (seconds * SAMPLE_RATE)
    return np.minimum(ramp, 1)


def _tone(rng: np.random.Generator, pitch_hz: np.ndarray) -> np.ndarray:
    """A whistle that follows the pitch [samples], with a little second harmonic."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE + rng.uniform(0, 2 * np.pi)
    return (np.sin(phase) + rng.uniform(0, 0.3) * np.sin(2 * phase)) * _fade(len(phase))


def _call(rng: np.random.Generator, kind: str) -> np.ndarray:
    """One call of 0.3 to 0.5 s, most of it between 400 and 5,000 Hz: rising, falling, steady, warble or pulses."""
    seconds = rng.uniform(0.3, 0.5)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    middle = 400 * 2 ** rng.uniform(0.4, 3.0)
    octaves = rng.uniform(0.8, 1.3)
    bend = np.zeros_like(t)
    if kind in ("rising", "falling"):
        bend = octaves * (t / seconds - 0.5) * (1 if kind == "rising" else -1)
    elif kind == "warble":
        bend = 0.25 * np.sin(2 * np.pi * (t * rng.uniform(6, 9) + rng.random()))
    tone = _tone(rng, middle * 2**bend)
    if kind == "pulses":
        beat = (t * rng.uniform(8, 12) + rng.random()) % 1
        tone = tone * np.clip((0.5 - np.abs(beat - 0.5)) * 12 - 2.4, 0, 1)
    return tone


CALLS = ("rising", "falling", "steady", "warble", "pulses")


def call(rng: np.random.Generator, label: int) -> np.ndarray:
    """[samples] float64 in [-1, 1]: one bird-like call."""
    sound, event = _silence(rng), _call(rng, CALLS[label])
    _add(sound, event, rng.uniform(0, 0.88 - len(event) / SAMPLE_RATE), 10 ** rng.uniform(-1.2, -0.4))
    return np.clip(sound, -1, 1)


SCALES = ("climb", "descend", "repeat", "zigzag")


def scale(rng: np.random.Generator, label: int) -> np.ndarray:
    """[samples] float64 in [-1, 1]: four to six quick plucked notes that climb, descend, repeat or go to and fro."""
    sound = _silence(rng)
    notes, length = int(rng.integers(4, 7)), rng.uniform(0.07, 0.09)
    step = rng.uniform(0.2, 0.28)  # octaves
    order = np.arange(notes)
    climbs = {"climb": order, "descend": -order, "repeat": 0 * order, "zigzag": 2 * (order % 2)}[SCALES[label]]
    octaves = rng.uniform(0.5, 2.9) + step * (climbs - climbs.mean())
    onset = rng.uniform(0, 0.88 - notes * length)
    gain = 10 ** rng.uniform(-1.2, -0.5)
    t = np.arange(int(length * SAMPLE_RATE)) / SAMPLE_RATE
    for index in range(notes):
        event = _tone(rng, np.full_like(t, 400 * 2 ** octaves[index])) * np.exp(-t / 0.08)
        _add(sound, event, onset + index * length, gain)
    return np.clip(sound, -1, 1)


YARD = ("whoop", "swoop", "whistle", "siren", "beeps")


def yard(rng: np.random.Generator, labels: tuple[int, ...]) -> np.ndarray:
    """[samples] float64 in [-1, 1]: a call for every label (in the order of CALLS), over one another."""
    sound = _silence(rng)
    for label in labels:
        event = _call(rng, CALLS[label])
        _add(sound, event, rng.uniform(0, 0.88 - len(event) / SAMPLE_RATE), 10 ** rng.uniform(-1.2, -0.6))
    return np.clip(sound, -1, 1)


def yard_labels(rng: np.random.Generator) -> tuple[int, ...]:
    """Which of the sounds can be heard: each with probability 0.2, sometimes none."""
    return tuple(int(label) for label in np.flatnonzero(rng.random(len(YARD)) < 0.2))
