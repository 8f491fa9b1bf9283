"""Sound clips: uncompressed WAV is read straight from the file, everything else through FFmpeg.

Both ways deliver samples at the file's own rate, mixed to mono by the mean of the channels. A clip is cut there with
a margin on either side, the cut is resampled with FFmpeg, and the margins are dropped. The cut starts on a sample
where the two rates coincide, so a clip equals that part of the whole file resampled.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Protocol

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from polytrain.data.media_file import Deadline, DecodeError, only_stream, open_container, rewind
from polytrain.data.views import View
from polytrain.modalities import Audio

MARGIN_S = 0.05
"""Sound resampled on either side of the clip: longer than the resampler's filter (32 samples of the lower rate)."""

PREROLL_S = 0.5
"""Sound decoded and thrown away after a seek: MP3 and Opus decoders need what came before (at most 0.3 s)."""


class _Recording(Protocol):
    """Mono sound at the rate it was recorded with."""

    rate: int
    total: int
    """Samples: what the header says until a read meets the end of the file, then what is there."""

    def read(self, first: int, count: int) -> np.ndarray:
        """float32 samples [first, first + count), fewer only at the end of the file, which corrects `total`."""


def decode_audio(
    geometry: Audio,
    source: str | bytes,
    views: Sequence[View],
    shown: np.ndarray,
    start_s: float,
    end_s: float | None,
    deadline: Deadline,
) -> None:
    """Fills `shown`, [V, samples] float32 in [-1, 1], mono, at `geometry.sample_rate`."""
    with open_recording(source, deadline) as recording:
        promised = recording.total
        while True:
            deadline.check()
            total = recording.total
            first = int(start_s * recording.rate)
            after = total if end_s is None else min(int(end_s * recording.rate), total)
            if first >= after:
                raise DecodeError(f"its clip starts at {start_s:g} s, the sound ends before" if first else "no samples")
            length = (after - first) * geometry.sample_rate // recording.rate
            starts = [view.start(max(length - geometry.samples, 0) + 1) for view in views]
            _fill(shown, recording, geometry, first, after, starts)
            if recording.total == total:
                break
            # The header promised more than there is (an estimate for MP3, or the tail is missing): place clips anew.
        clip_samples = geometry.samples * recording.rate / geometry.sample_rate
        if total < min(clip_samples, promised - 0.2 * recording.rate):
            raise DecodeError(
                f"truncated: {total / recording.rate:.2g} s of {promised / recording.rate:.2g} s are there"
            )
        _into_full_scale(shown)


def _fill(clips: np.ndarray, recording: _Recording, geometry: Audio, first: int, after: int, starts: list[int]) -> None:
    """[V, samples]: the clips that begin at these output samples. Clips that overlap are read as one."""
    order = sorted(range(len(starts)), key=starts.__getitem__)
    while order:
        begin = end = starts[order[0]]
        together = []
        while order and starts[order[0]] <= end:
            together.append(order.pop(0))
            end = starts[together[-1]] + geometry.samples
        sound = _cut(recording, geometry, first, after, begin, end - begin)
        for view in together:
            at = starts[view] - begin
            clips[view] = sound[at : at + geometry.samples]


def _cut(recording: _Recording, geometry: Audio, first: int, after: int, start: int, samples: int) -> np.ndarray:
    """`samples` of output from `start` output samples behind sample `first` of the recording; zeros from `after` on."""
    rate, wanted = recording.rate, geometry.sample_rate
    cut = np.zeros(samples, np.float32)
    if rate == wanted:
        sound = recording.read(first + start, min(samples, after - first - start))
    else:
        # Every `period` samples of the recording a sample of the output falls on one of the recording.
        period, per_period = rate // math.gcd(rate, wanted), wanted // math.gcd(rate, wanted)
        periods = max(start - int(MARGIN_S * wanted), 0) // per_period
        begin, skip = first + periods * period, start - periods * per_period
        count = -(-(skip + samples) * rate // wanted) + int(MARGIN_S * rate)
        sound = _resample(recording.read(begin, min(count, after - begin)), rate, wanted)
        sound = sound[skip : skip + samples]
    cut[: len(sound)] = sound
    return cut


def _into_full_scale(clips: np.ndarray) -> None:
    if clips.min() >= -1 and clips.max() <= 1:  # false for NaN, too
        return
    if not np.isfinite(clips).all():
        raise DecodeError("samples that are not finite numbers")
    clips.clip(-1, 1, out=clips)  # resampling and lossy codecs overshoot a little


def _resample(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if not len(sound):
        return sound
    frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = AudioResampler(format="fltp", layout="mono", rate=wanted)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in frames])


@contextmanager
def open_recording(source: str | bytes, deadline: Deadline) -> Iterator[_Recording]:
    file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    with file:
        recording = _wave(file)
        if recording:
            yield recording
            return
    with open_container(source, deadline) as container:
        yield _Compressed(container, only_stream(container, "audio"), deadline)


_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# (format tag, bits) -> how samples lie in the file, what silence is, what the loudest is.
_WAVE_SAMPLES = {
    (_PCM, 8): ("u1", 128, 2**7),
    (_PCM, 16): ("<i2", 0, 2**15),
    (_PCM, 24): ("u1", 0, 2**31),  # three bytes, widened to the upper ones of four
    (_PCM, 32): ("<i4", 0, 2**31),
    (_FLOAT, 32): ("<f4", 0, 1),
    (_FLOAT, 64): ("<f8", 0, 1),
}


class _Wave:
    """Uncompressed samples of a RIFF WAVE file; only those asked for are read."""

    def __init__(self, file: BinaryIO, rate: int, channels: int, sample: tuple[int, int], size: int) -> None:
        """`file` stands at the first of `size` bytes of samples, `sample` is a key of _WAVE_SAMPLES."""
        self.file, self.rate, self.channels, self.offset = file, rate, channels, file.tell()
        self.dtype, self.silence, self.loudest = _WAVE_SAMPLES[sample]
        self.sample_bytes = sample[1] // 8
        self.frame_bytes = channels * self.sample_bytes
        there = file.seek(0, io.SEEK_END) - self.offset
        # Written to a pipe, the header could not know the size.
        self.total = (there if size in (0, 0xFFFFFFFF) else size) // self.frame_bytes
        self.there = there // self.frame_bytes

    def read(self, first: int, count: int) -> np.ndarray:
        self.file.seek(self.offset + first * self.frame_bytes)
        data = self.file.read(max(min(count, self.there - first), 0) * self.frame_bytes)
        if first + count > self.there:
            self.total = self.there
        samples = np.frombuffer(data, self.dtype)
        if self.sample_bytes == 3:
            wide = np.zeros((len(samples) // 3, 4), np.uint8)
            wide[:, 1:] = samples.reshape(-1, 3)
            samples = wide.view("<i4")[:, 0]
        return _mono(samples.reshape(-1, self.channels).T, self.silence, self.loudest)


def _wave(file: BinaryIO) -> _Wave | None:
    """The samples of a WAV file that can be read straight, else None: another format, or a compressed WAV."""
    riff, _, kind = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if (riff, kind) != (b"RIFF", b"WAVE"):
        return None
    layout = b""
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        if name == b"data":
            return _wave_samples(file, layout, size)
        following = file.tell() + size + size % 2
        if name == b"fmt ":
            layout = file.read(min(size, 40))
        file.seek(following)
    raise DecodeError("truncated WAV: no samples")


def _wave_samples(file: BinaryIO, layout: bytes, size: int) -> _Wave | None:
    if len(layout) < 16:
        raise DecodeError("damaged WAV: no format before the samples")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", layout[:16])
    if tag == _EXTENSIBLE and len(layout) >= 26:
        tag = struct.unpack("<H", layout[24:26])[0]
    if (tag, bits) not in _WAVE_SAMPLES or frame_bytes != channels * bits // 8 or not rate or not channels:
        return None
    return _Wave(file, rate, channels, (tag, bits), size)


def _mono(channels: np.ndarray, silence: int, loudest: int) -> np.ndarray:
    """[channels, samples] of any type -> [samples] float32, full scale at 1, the mean of the channels."""
    sound = channels.astype(np.float32, copy=False)
    if silence:
        sound -= silence
    sound = sound[0] if len(sound) == 1 else np.add.reduce(sound) / np.float32(len(sound))
    if loudest != 1:
        sound *= 1 / loudest
    return sound


# FFmpeg's sample formats -> type, silence, loudest.
_SAMPLE_FORMATS = {
    "u8": (np.uint8, 128, 2**7),
    "s16": (np.int16, 0, 2**15),
    "s32": (np.int32, 0, 2**31),
    "flt": (np.float32, 0, 1),
    "dbl": (np.float64, 0, 1),
}


class _Compressed:
    """Sound that FFmpeg decodes.

    A seek reads little, but for MP3, which has no index: FFmpeg reads, without decoding, all that lies before the clip
    (0.1 s at the end of two hours). Its option `fastseek` would not, and missed by up to 0.4 s.
    """

    def __init__(self, container: InputContainer, stream: AudioStream, deadline: Deadline) -> None:
        self.container, self.stream, self.deadline = container, stream, deadline
        self.rate = stream.codec_context.sample_rate
        if not self.rate:
            raise DecodeError("no sample rate")
        self.origin = stream.start_time or 0
        self.total = self._total()

    def _total(self) -> int:
        if self.stream.duration:
            return int(self.stream.duration * self.stream.time_base * self.rate)
        if self.container.duration:
            return int(self.container.duration * self.rate / av.time_base)
        return self._count()

    def _count(self) -> int:
        """Samples by the durations of all packets, none of which is decoded."""
        rewind(self.container, self.stream)
        ticks = 0
        for packet in self.container.demux(self.stream):
            self.deadline.check()
            ticks += packet.duration or 0
        return int(ticks * self.stream.time_base * self.rate)

    def read(self, first: int, count: int) -> np.ndarray:
        target = first - int(PREROLL_S * self.rate)
        sound = self._read(first, count, target) if target > 0 else None
        return self._read(first, count, 0) if sound is None else sound

    def _read(self, first: int, count: int, target: int) -> np.ndarray | None:
        """Decodes from sample `target` on; None if the seek there went past `first`."""
        parts, kind, begin, at = [], None, 0, None
        for at, frame in self._frames(target):
            if not parts:
                begin, kind = at, _kind(frame)
            at += frame.samples
            if at > first:
                if _kind(frame) != kind:
                    raise DecodeError("its channels or sample format change on the way")
                parts.append(_sound_of(frame))
            if at >= first + count:
                break
        else:
            if at is None:
                if target == 0:
                    raise DecodeError("no sound could be decoded")
                at = min(self._count(), self.total - 1)  # sought past the end
            self.total = at
        if not parts:
            return np.empty(0, np.float32)
        return None if begin > first else np.concatenate(parts)[first - begin : first + count - begin]

    def _frames(self, target: int) -> Iterator[tuple[int, av.AudioFrame]]:
        """(number of its first sample, frame), from about sample `target` on."""
        tick = self.stream.time_base
        if target:
            self.container.seek(self.origin + int(target / (self.rate * tick)), stream=self.stream)
        else:
            rewind(self.container, self.stream)
        at = None
        for packet in self.container.demux(self.stream):
            self.deadline.check()
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if target and (at is None or at < target + PREROLL_S * self.rate):
                    continue  # behind a seek the first packets may refer to what was not read
                raise
            for frame in frames:
                if frame.sample_rate != self.rate:
                    raise DecodeError(f"its sample rate changes from {self.rate} to {frame.sample_rate} Hz on the way")
                if at is None:
                    at = target if frame.pts is None else round((frame.pts - self.origin) * tick * self.rate)
                    # Opus begins before zero when it is read a second time; nothing begins after it.
                    at = at if target else min(at, 0)
                yield at, frame
                at += frame.samples


def _kind(frame: av.AudioFrame) -> tuple[str, str]:
    return frame.layout.name, frame.format.name


def _sound_of(frame: av.AudioFrame) -> np.ndarray:
    """[samples] float32: mixed while it is fresh from the decoder. Kept until all are there, frames cost as much again
    as decoding."""
    dtype, silence, loudest = _SAMPLE_FORMATS[frame.format.packed.name]
    channels = frame.layout.nb_channels
    if frame.format.is_packed:
        samples = np.frombuffer(frame.planes[0], dtype, channels * frame.samples).reshape(-1, channels).T
    else:
        samples = np.array([np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes])
    return _mono(samples, silence, loudest)
