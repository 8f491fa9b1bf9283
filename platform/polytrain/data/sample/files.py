"""Writes one picture, video or sound as the kind of file that its suffix names."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg
from PIL import Image

# Suffix: (codec, pixel format or sample format, options). One thread each: the suite is made by one process a core.
_VIDEO_CODECS = {
    ".mp4": ("libx264", "yuv420p", {"preset": "veryfast", "crf": "23", "threads": "1"}),
    ".avi": ("mpeg4", "yuv420p", {"qmin": "3", "qmax": "6", "threads": "1"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "crf": "24", "threads": "1"}),
}
_AUDIO_CODECS = {
    ".flac": ("flac", "s16", {"compression_level": "2"}),
    ".mp3": ("libmp3lame", "s16p", {"compression_level": "9"}),
}


def write_image(path: Path, picture: np.ndarray) -> None:
    """[H, W, 3] uint8 as JPEG (quality 85) or PNG."""
    if path.suffix == ".jpg":
        path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=85, colorspace="RGB"))
    else:
        Image.fromarray(picture).save(path, compress_level=1)


def write_video(path: Path, frames: np.ndarray, rate: int) -> None:
    """[T, H, W, 3] uint8 as H.264 in MP4, MPEG-4 in AVI or VP9 in WebM; a key frame a second."""
    codec, pixels, options = _VIDEO_CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.gop_size = rate
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def write_sound(path: Path, sound: np.ndarray, sample_rate: int) -> None:
    """[samples] in [-1, 1], mono, as 16-bit WAV, FLAC or MP3 (48 kbit/s)."""
    samples = np.round(sound * 32767).astype("<i2")
    if path.suffix == ".wav":
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))
            file.writeframes(samples.tobytes())
        return
    codec, layout, options = _AUDIO_CODECS[path.suffix]
    # FFmpeg would leave 8 KB of room for tags in a FLAC file, as much as the sound itself.
    with av.open(str(path), "w", options={"metadata_header_padding": "0"}) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono", format=layout, options=options)
        if path.suffix == ".mp3":
            stream.bit_rate = 48000
        stream.codec_context.open()  # only an open encoder knows its frame size; larger frames cost four times as much
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
        resampler = av.AudioResampler(format=layout, layout="mono", rate=sample_rate, frame_size=stream.frame_size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
