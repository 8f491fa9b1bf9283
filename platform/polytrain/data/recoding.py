"""One media file becomes a smaller one that is faster to decode: what `--short-side` and `--sample-rate` store.

    image   the whole picture, upright, RGB, its shorter side `short_side` pixels (never enlarged); a JPEG stays a JPEG
            (quality 90, 4:2:0), a WebP a WebP (quality 90), everything else becomes a PNG, which loses nothing. A
            JPEG, PNG or WebP that is small enough already is kept byte for byte
    video   H.264 in MP4, upright, its frames' times kept, without sound: x264 tuned for fast decoding (no CABAC, no
            deblocking), a key frame every `KEY_FRAMES` frames, so that a clip anywhere starts close by
    sound   WAV of 16 bits, mono (the mean of the channels), at `sample_rate` Hz; also of a video's sound track

Where an example is a clip of its file, a video or a sound holds the clip alone. Runs in workers: no torch, no Ray.
"""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import simplejpeg
from av.audio.resampler import AudioResampler
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image as Pillow

from polytrain.data.decode import FILE_ERRORS, DecodeError, decode, failure_reason
from polytrain.data.decode_audio import open_recording
from polytrain.data.media_file import (
    Deadline,
    check_pixels,
    check_present,
    only_stream,
    open_container,
    time_limit,
)
from polytrain.modalities import Image

QUALITY = 90
"""Of JPEG and WebP: 45 dB from the resized picture, about a third of the bytes of quality 98."""

KEY_FRAMES = 12
CRF = 23
TIME_LIMIT_S = 3600.0
SOUND_BLOCK_S = 60

_EXIF_ORIENTATION, _QUARTER_TURNED = 0x0112, (5, 6, 7, 8)
_IMAGE_SUFFIXES = {".jpg": ("JPEG", ".jpg"), ".jpeg": ("JPEG", ".jpg"), ".webp": ("WEBP", ".webp")}


@dataclass(frozen=True)
class Recoding:
    """What is stored: `short_side` in pixels for images and videos, `sample_rate` in Hz for sounds; None: as it is."""

    short_side: int | None = None
    sample_rate: int | None = None

    def __bool__(self) -> bool:
        return bool(self.short_side or self.sample_rate)

    def suffix(self, modality: str, path: str, source: str | bytes) -> str:
        """Of the file stored for the one at `path`; bytes say themselves what they are where the path does not."""
        if modality == "image":
            return _image_format(path, source)[1]
        return {"video": ".mp4", "audio": ".wav"}[modality]

    def recoded(
        self, modality: str, path: str, source: str | bytes, start_s: float | None, end_s: float | None
    ) -> bytes:
        """The file stored for `source` (a local path, or the bytes of the file at `path`).

        Raises DecodeError, whose text is the reason.
        """
        try:
            with time_limit(TIME_LIMIT_S) as deadline:
                check_present(source)
                if modality == "image":
                    return _image(path, source, self.short_side)
                if modality == "video":
                    return _video(source, self.short_side, start_s or 0.0, end_s, deadline)
                return _sound(source, self.sample_rate, start_s or 0.0, end_s, deadline)
        except DecodeError:
            raise
        except FILE_ERRORS as error:
            raise DecodeError(failure_reason(error)) from error


# ------------------------------------------------------------------------------------------------------- images


def _image_format(path: str, source: str | bytes) -> tuple[str, str]:
    """(Pillow's name, suffix) of the format that is stored."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _IMAGE_SUFFIXES and isinstance(source, bytes) and source.startswith(b"\xff\xd8\xff"):
        suffix = ".jpg"
    return _IMAGE_SUFFIXES.get(suffix, ("PNG", ".png"))


def _image(path: str, source: str | bytes, short_side: int) -> bytes:
    data = source if isinstance(source, bytes) else _read(source)
    kind = _image_format(path, source)[0]
    with Pillow.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")) as picture:
        check_pixels(*picture.size)
        width, height = picture.size
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1)
        same = picture.format == kind
    if turned in _QUARTER_TURNED:
        width, height = height, width
    scale = min(1.0, short_side / min(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = decode(Image(size=size, patch=(1, 1)), data, time_limit_s=TIME_LIMIT_S)[0]
    if scale == 1 and same:
        return data  # decoded all the same: a damaged picture is found now, not in training
    if kind == "JPEG":
        return simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, kind, **({"quality": QUALITY} if kind == "WEBP" else {}))
    return out.getvalue()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


# ------------------------------------------------------------------------------------------------------- videos


def _video(source: str | bytes, short_side: int, start_s: float, end_s: float | None, deadline: Deadline) -> bytes:
    out = io.BytesIO()
    with open_container(source, deadline) as container:
        stream = only_stream(container, "video")
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = _frames(container, stream, start_s, end_s, rate, deadline)
        first = next(frames, None)
        if first is None:
            raise DecodeError(f"its clip starts at {start_s:g} s, the video ends before" if start_s else "no frames")
        with av.open(out, "w", format="mp4") as target:
            video = target.add_stream("libx264", rate=rate)
            video.time_base = video.codec_context.time_base = first[1]
            video.width, video.height = _video_size(first[2], short_side)
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = 1  # one worker a core
            video.options = {
                "preset": "veryfast",
                "tune": "fastdecode",
                "crf": str(CRF),
                "g": str(KEY_FRAMES),
                "keyint_min": "1",
            }
            reformatter, last = VideoReformatter(), -1
            origin = first[0]
            for stamp, tick, frame in _chained(first, frames):
                at = round((stamp - origin) * tick / video.codec_context.time_base)
                if at <= last:
                    continue  # two frames at one time: MP4 has no room for that
                small = reformatter.reformat(
                    _upright(frame), video.width, video.height, "yuv420p", interpolation=Interpolation.AREA
                )
                small.pts, small.time_base, last = at, video.codec_context.time_base, at
                small.pict_type = 0  # or x264 would take over the source's key frames
                target.mux(video.encode(small))
            target.mux(video.encode(None))
    return out.getvalue()


_Timed = tuple[int, Fraction, av.VideoFrame]


def _chained(first: _Timed, rest: Iterator[_Timed]) -> Iterator[_Timed]:
    yield first
    yield from rest


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    start_s: float,
    end_s: float | None,
    rate: Fraction,
    deadline: Deadline,
) -> Iterator[_Timed]:
    """(stamp, seconds of one tick, frame) of the frames within the clip, in order of presentation."""
    tick, origin = stream.time_base, stream.start_time or 0
    if start_s > 0:
        container.seek(origin + int(start_s / tick), stream=stream)
    number = 0
    try:
        for packet in container.demux(stream):
            deadline.check()
            for frame in packet.decode():
                stamp = round(number / (rate * tick)) + origin if frame.pts is None else frame.pts
                number += 1
                at = float((stamp - origin) * tick)
                if end_s is not None and at >= end_s:
                    return
                if at >= start_s - 1e-6:
                    yield stamp, tick, frame
    except av.InvalidDataError:
        if not number:
            raise
        # The tail is damaged: what was decoded before it is kept, as decoding a clip would do.


def _video_size(frame: av.VideoFrame, short_side: int) -> tuple[int, int]:
    """(width, height), upright, even as 4:2:0 needs it, never enlarged."""
    width, height = frame.width, frame.height
    if round(frame.rotation / 90) % 2:
        width, height = height, width
    scale = min(1.0, short_side / min(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    turns = round(frame.rotation / 90) % 4
    if not turns:
        return frame
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)  # counterclockwise, as FFmpeg means it
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


# ------------------------------------------------------------------------------------------------------- sounds


def _sound(source: str | bytes, rate: int, start_s: float, end_s: float | None, deadline: Deadline) -> bytes:
    out = io.BytesIO()
    with open_recording(source, deadline) as recording, wave.open(out, "wb") as target:
        target.setparams((1, 2, rate, 0, "NONE", ""))
        first = int(start_s * recording.rate)
        after = recording.total if end_s is None else min(int(end_s * recording.rate), recording.total)
        resampler = AudioResampler(format="s16", layout="mono", rate=rate)
        written, at, block = 0, first, SOUND_BLOCK_S * recording.rate
        while at < after:
            deadline.check()
            sound = recording.read(at, min(block, after - at))
            if not len(sound):
                break
            at += len(sound)
            written += _write(target, _resampled(resampler, sound, recording.rate))
            after = min(after, recording.total)
        written += _write(target, resampler.resample(None))
    if not written:
        raise DecodeError(f"its clip starts at {start_s:g} s, the sound ends before" if start_s else "no samples")
    return out.getvalue()


def _resampled(resampler: AudioResampler, sound: np.ndarray, rate: int) -> list[av.AudioFrame]:
    if not np.isfinite(sound).all():
        raise DecodeError("samples that are not finite numbers")
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    return resampler.resample(frame)


def _write(target: wave.Wave_write, frames: list[av.AudioFrame]) -> int:
    for frame in frames:
        target.writeframes(frame.to_ndarray().tobytes())
    return sum(frame.samples for frame in frames)
