"""What a checkpoint tells a stranger beside its tasks: preprocessing, licence, versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from polytrain import __version__
from polytrain.modalities import Audio, Geometry, Image, Video
from polytrain.recipe import Recipe

LIBRARIES = (
    "torch",
    "torchvision",
    "torchaudio",
    "ray",
    "numpy",
    "pyarrow",
    "av",
    "pillow",
    "simplejpeg",
    "safetensors",
)
"""Those that decode, preprocess and compute."""


def description(geometries: Mapping[str, Geometry], recipe: Recipe) -> dict[str, Any]:
    """What state.json tells, as plain words, numbers and lists."""
    return {
        "preprocessing": {name: preprocessing(geometry) for name, geometry in geometries.items()},
        "license": recipe.license,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of polytrain, Python and the libraries that matter; what is not installed is left out."""
    found = {"polytrain": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        found["torch"] = str(sys.modules["torch"].__version__)  # tells its build too: 2.14.1+cu130
    return found


def preprocessing(geometry: Geometry) -> dict[str, Any]:
    """How a file becomes what the tokenizer takes, where one view is shown of it."""
    return _PREPROCESSING[type(geometry)](geometry)


_PICTURE = {
    "colour": "RGB, upright as the file says",
    "resize": "the whole frame to height x width whatever its proportions; antialiased bilinear, as Pillow's BILINEAR",
    "scale": "x / 127.5 - 1",
    "range": [-1.0, 1.0],
}


def _image(geometry: Image) -> dict[str, Any]:
    return {**_PICTURE, "decoded": [*geometry.decoded_shape], "input": [3, *geometry.input_shape]}


def _video(geometry: Video) -> dict[str, Any]:
    every = f"every {_ordinal(geometry.stride)} of those" if geometry.stride > 1 else "one after the other,"
    return {
        "clip": f"{geometry.frames} frames, {every} in the middle of the file; a shorter file repeats its last frame",
        **_PICTURE,
        "decoded": [*geometry.decoded_shape],
        "input": [3, *geometry.input_shape],
    }


def _audio(geometry: Audio) -> dict[str, Any]:
    from polytrain.data import spectrogram

    mel = spectrogram.LogMel(geometry).mel
    return {
        "clip": f"{geometry.seconds:g} s from the middle of the file; a shorter file is followed by silence",
        "channels": "mean of the channels",
        "sample_rate": geometry.sample_rate,
        "log_mel": {
            "fft": mel.n_fft,
            "window": "Hamming",
            "window_samples": geometry.window,
            "hop_samples": geometry.hop,
            "centred": True,
            "bins": geometry.mel_bins,
            "mel_scale": mel.mel_scale.mel_scale,
            "from_hz": mel.mel_scale.f_min,
            "to_hz": mel.mel_scale.f_max,
            "power": mel.power,
            "offset": spectrogram.OFFSET,
            "logarithm": "natural",
        },
        "scale": "(x - mean) / (2 * deviation)",
        "mean": geometry.mean,
        "deviation": geometry.deviation,
        "decoded": [*geometry.decoded_shape],
        "input": [3, *geometry.input_shape],
    }


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


_PREPROCESSING = {Image: _image, Video: _video, Audio: _audio}
