"""Decoding in one process: what decoding alone costs (the floor), ours, and torchvision's, in CPU seconds an example.

The process's CPU clock is read, so whatever else runs on the machine counts little, and threads that a library starts
are paid for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from polytrain.benchmarks.media import VIDEO_RATE
from polytrain.benchmarks.rivals import cpu_seconds
from polytrain.modalities import Audio, Geometry, Image, Video

GEOMETRIES: dict[str, Geometry] = {
    "image": Image((224, 224), (16, 16)),
    "video": Video(32, 2, (224, 224), (4, 16, 16)),
    "audio": Audio(16000, 10.0, 128, (8, 16)),
}

CLIP_START_S = 5.0
"""Clips begin on a key frame, which costs least to decode: the hardest case for what comes on top of decoding."""

CLIP_S = GEOMETRIES["video"].span / VIDEO_RATE


def for_each(decode_one: Callable[[Path], object], paths: list[Path]) -> Callable[[], int]:
    """A rival that takes every file once."""

    def run() -> int:
        for path in paths:
            decode_one(path)
        return len(paths)

    return run


def ours(geometry: Geometry) -> Callable[[Path], np.ndarray]:
    """What a decode worker calls for a file."""
    from polytrain.data.decode import decode

    clip = {"start_s": CLIP_START_S, "end_s": CLIP_START_S + CLIP_S} if isinstance(geometry, Video) else {}
    return lambda path: decode(geometry, str(path), **clip)


# --- images ---------------------------------------------------------------------------------------------------------


def measure_image(jpegs: list[Path], repetitions: int) -> dict[str, float]:
    """Keys without the modality; equal quality: both resize with a triangle filter widened by the scale (antialias)."""
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    decode_one, rival = ours(GEOMETRIES["image"]), torchvision_image
    rivals = {"floor": decode_jpeg_only, "ours": decode_one, "torchvision": rival}
    seconds = cpu_seconds({name: for_each(one, jpegs) for name, one in rivals.items()}, repetitions)
    likeness = np.mean([psnr(decode_one(path), rival(path)) for path in jpegs[:16]])
    return {f"{name}_cpu_ms": 1000 * value for name, value in seconds.items()} | {
        "vs_torchvision": seconds["torchvision"] / seconds["ours"],
        "cpu_vs_floor": seconds["ours"] / seconds["floor"],
        "psnr_to_torchvision_db": float(likeness),
    }


def decode_jpeg_only(path: Path) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(path.read_bytes(), "RGB")


def torchvision_image(path: Path) -> np.ndarray:
    """[224, 224, 3] uint8, as its documentation has it: file, `decode_jpeg`, `v2.functional.resize(antialias)`."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    size = list(GEOMETRIES["image"].size)
    picture = decode_jpeg(read_file(str(path)), ImageReadMode.RGB)
    return resize(picture, size, InterpolationMode.BILINEAR, antialias=True).permute(1, 2, 0).contiguous().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise of two uint8 arrays in dB; 50 and more can't be told apart by eye."""
    error = np.square(np.asarray(a, np.float64).reshape(-1) - np.asarray(b, np.float64).reshape(-1)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


# --- video ----------------------------------------------------------------------------------------------------------


def measure_video(videos: list[Path], repetitions: int) -> dict[str, float]:
    rivals = {"floor": decode_clip_only, "ours": ours(GEOMETRIES["video"])}
    seconds = cpu_seconds({name: for_each(one, videos) for name, one in rivals.items()}, repetitions)
    return {f"{name}_cpu_ms": 1000 * value for name, value in seconds.items()} | {
        "cpu_vs_floor": seconds["ours"] / seconds["floor"]
    }


def decode_clip_only(path: Path) -> int:
    """The frames of the clip, first to last, decoded and thrown away."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        container.seek(round(CLIP_START_S / stream.time_base), stream=stream)
        end = CLIP_START_S + CLIP_S - 1 / VIDEO_RATE
        for frames, frame in enumerate(container.decode(stream), start=1):
            if frame.time >= end - 1e-6:
                return frames
    raise AssertionError(f"{path} is shorter than a clip")


# --- audio ----------------------------------------------------------------------------------------------------------


def measure_audio(sounds: dict[str, list[Path]], repetitions: int) -> dict[str, float]:
    """`sounds` holds files by kind: wav, aac, mp3."""
    decode_one = ours(GEOMETRIES["audio"])
    # A WAV takes a fraction of a millisecond: several rounds make a repetition longer than the clock's noise.
    rivals: dict[str, Callable[[], int]] = {
        f"ours {kind}": for_each(decode_one, paths * (4 if kind == "wav" else 1)) for kind, paths in sounds.items()
    }
    rivals |= {
        f"floor {kind}": for_each(read_wav_only if kind == "wav" else decode_sound_only, paths)
        for kind, paths in sounds.items()
    }
    seconds = cpu_seconds(rivals, repetitions)
    figures = {}
    for kind in sounds:
        ms, floor = 1000 * seconds[f"ours {kind}"], 1000 * seconds[f"floor {kind}"]
        figures |= {f"{kind}10s_ms": ms, f"{kind}10s_floor_ms": floor, f"{kind}_cpu_vs_floor": ms / floor}
    return figures


def read_wav_only(path: Path) -> np.ndarray:
    import wave

    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)


def decode_sound_only(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=0))
