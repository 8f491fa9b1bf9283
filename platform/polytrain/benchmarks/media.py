"""Media as people have them, made once: easy ones (flat colours, pure tones) change the order of decoders.

Pictures are noise whose spectrum falls like that of photographs (amplitude 1/f), with hard-edged shapes on it: JPEG of
500 x 375 pixels and about 110 KB. In videos a camera zooms and sways over such a picture while others cross it, with
grain: H.264, 340 x 256, 25 frames/s, 200 kbit/s, a key frame every five seconds. Sounds are chords under noise:
16 kHz mono WAV, and 44.1 kHz stereo AAC and MP3 of 128 kbit/s. Ten seconds each.
"""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from polytrain.progress import Progress

JPEG_BYTES = 110_000
VIDEO_BITS_PER_S = 200_000
VIDEO_RATE, KEY_FRAME_EVERY = 25, 125
SECONDS = 10


def make_files(folder: Path, kind: str, count: int) -> list[Path]:
    """The first `count` files of a kind (a key of KINDS) below `folder`; those that are there are left as they are."""
    write, suffix, _ = KINDS[kind]
    (folder / kind).mkdir(parents=True, exist_ok=True)
    paths = [folder / kind / f"{number:04d}{suffix}" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with Progress(f"making {kind} media", len(missing), "files") as progress:
        for number in missing:
            partial = paths[number].with_name(f".{os.getpid()}{suffix}")
            write(partial, np.random.default_rng([number, sum(kind.encode())]))
            partial.rename(paths[number])
            progress.add()
    return paths


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8 with a photograph's spectrum and some edges."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        phases = rng.uniform(0, 2 * np.pi, frequency.shape)
        noise = np.fft.irfft2(np.exp(1j * phases) / frequency, s=(height, width))
        channels.append(noise / noise.std())
    # The three channels of a photograph say nearly the same.
    grey = channels[0]
    pixels = np.stack([0.85 * grey + 0.3 * channel for channel in channels], axis=-1) * 45 + 120
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        centre, radius = rng.uniform((0, 0), (height, width)), rng.uniform(10, 60)
        pixels[np.hypot(y - centre[0], x - centre[1]) < radius] += rng.uniform(-50, 50, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_jpeg(path: Path, rng: np.random.Generator) -> None:
    """A picture in the quality that comes nearest to JPEG_BYTES."""
    image = Image.fromarray(picture(rng, 375, 500))
    low, high = 40, 98
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if len(_jpeg(image, middle)) < JPEG_BYTES else (low, middle)
    path.write_bytes(_jpeg(image, low))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_h264(path: Path, rng: np.random.Generator) -> None:
    """A hand-held camera that zooms in on a picture while others move across it, with grain."""
    height, width = 256, 340
    scene = Image.fromarray(picture(rng, 2 * height, 2 * width))
    things = [_thing(rng, int(rng.integers(40, 90))) for _ in range(6)]
    starts, speeds = rng.uniform(0, (width, height), (6, 2)), rng.uniform(-6, 6, (6, 2))
    frames = SECONDS * VIDEO_RATE
    with av.open(str(path), "w") as container:
        options = {"preset": "medium", "threads": "1"}
        stream = container.add_stream("libx264", rate=VIDEO_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate, stream.gop_size = VIDEO_BITS_PER_S, KEY_FRAME_EVERY
        for number in range(frames):
            zoom, turn = 1.6 - 0.6 * number / frames, 0.05 * np.sin(number / 17)
            left, upper = 60 + 40 * np.sin(number / 43), 50 + 30 * np.sin(number / 31)
            camera = (zoom * np.cos(turn), -zoom * np.sin(turn), left, zoom * np.sin(turn), zoom * np.cos(turn), upper)
            frame = scene.transform((width, height), Image.Transform.AFFINE, camera, Image.Resampling.BILINEAR)
            for (thing, shape), start, speed in zip(things, starts, speeds, strict=True):
                x, y = (start + number * speed) % (width + 90, height + 90) - 90
                frame.paste(thing, (int(x), int(y)), shape)
            pixels = np.asarray(frame) + rng.integers(-4, 5, (height, width, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), "rgb24")))
        container.mux(stream.encode())


def _thing(rng: np.random.Generator, size: int) -> tuple[Image.Image, Image.Image]:
    """A round picture and its mask."""
    y, x = np.mgrid[:size, :size] - size / 2
    mask = (np.hypot(y, x) < size / 2).astype(np.uint8) * 255
    return Image.fromarray(picture(rng, size, size)), Image.fromarray(mask)


def sound(rng: np.random.Generator, rate: int, channels: int) -> np.ndarray:
    """[channels, samples] int16: a chord that swells, and noise."""
    time = np.arange(SECONDS * rate) / rate
    chord = sum(
        np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) / (1 + n)
        for n, pitch in enumerate(rng.uniform(80, rate / 5, 8))
    )
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time)
    samples = 0.15 * chord * swell + rng.normal(0, 0.05, (channels, len(time)))
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


def write_wav(path: Path, rng: np.random.Generator) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(sound(rng, 16000, 1).tobytes())


def write_compressed(path: Path, rng: np.random.Generator) -> None:
    """44.1 kHz stereo of 128 kbit/s in the codec that the suffix names."""
    codec, layout = {".m4a": ("aac", "fltp"), ".mp3": ("libmp3lame", "s16p")}[path.suffix]
    samples = sound(rng, 44100, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="stereo", format=layout)
        stream.bit_rate = 128_000
        stream.codec_context.open()
        size = stream.codec_context.frame_size
        resampler = av.AudioResampler(format=layout, layout="stereo", rate=44100, frame_size=size)
        frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())


# Kind: writer, suffix, how many different files are enough (the page cache holds them all).
KINDS: dict[str, tuple[Callable[[Path, np.random.Generator], None], str, int]] = {
    "jpeg": (write_jpeg, ".jpg", 128),
    "h264": (write_h264, ".mp4", 16),
    "wav": (write_wav, ".wav", 32),
    "aac": (write_compressed, ".m4a", 32),
    "mp3": (write_compressed, ".mp3", 8),
}
