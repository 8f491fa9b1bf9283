"""Video clips through FFmpeg: seek before the clip, decode one stream on one thread, keep every stride-th frame.

Frames are counted in presentation order. Their timestamps come from reading the file's packets without decoding
them (under 1 ms for ten seconds), so that a clip holds the same frames whether decoded from the start or after a seek.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from polytrain.data.media_file import (
    Deadline,
    DecodeError,
    check_pixels,
    clip_start,
    only_stream,
    open_container,
    rewind,
)
from polytrain.modalities import Video

SCAN_BYTES = 64 << 20
"""Above this size packets are not all read; frame times then come from the header's frame rate."""


@dataclass(frozen=True)
class _Timeline:
    """When the frames of a stream are shown, in ticks of `tick` seconds, ascending."""

    stamps: Sequence[int]
    tick: Fraction
    keys: Sequence[int] = ()
    """Stamps of frames that decode without earlier ones; empty where not known."""
    slack: int = 0
    """How far a frame's own timestamp may be from the stamp computed for it."""
    counted: bool = False
    """Packets carry no true presentation times: stamps are frame numbers, and decoding starts at the first frame."""


class _LandedLateError(Exception):
    """A seek went past the first frame wanted."""


def decode_video(
    geometry: Video,
    source: str | bytes,
    position: float | None,
    start_s: float,
    end_s: float | None,
    deadline: Deadline,
) -> np.ndarray:
    """[T, H, W, 3] uint8: `geometry.frames` frames, `geometry.stride` apart, upright by the rotation metadata."""
    with open_container(source, deadline) as container:
        stream = only_stream(container, "video")
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        timeline = _timeline(container, stream, deadline)
        wanted = _wanted(geometry, timeline, position, start_s, end_s)
        try:
            return _decode_clip(geometry, container, stream, timeline, wanted, deadline, seek=True)
        except _LandedLateError:
            return _decode_clip(geometry, container, stream, timeline, wanted, deadline, seek=False)


def _timeline(container: InputContainer, stream: VideoStream, deadline: Deadline) -> _Timeline:
    header = _timeline_of_header(stream) if container.size > SCAN_BYTES else None
    return header or _timeline_of_packets(container, stream, deadline)


def _timeline_of_header(stream: VideoStream) -> _Timeline | None:
    """Evenly spaced frames as the header says; None if it says too little."""
    rate, tick = stream.average_rate, stream.time_base
    if not rate or not tick or stream.start_time is None:
        return None
    frames = stream.frames or int((stream.duration or 0) * tick * rate)
    step = 1 / (rate * tick)
    if frames < 1 or step < 2:
        return None
    return _Timeline([stream.start_time + round(i * step) for i in range(frames)], tick, slack=int(step) // 2)


def _timeline_of_packets(container: InputContainer, stream: VideoStream, deadline: Deadline) -> _Timeline:
    stamps, keys, packets = [], [], 0
    try:
        for packet in container.demux(stream):
            deadline.check()
            if not packet.size or packet.is_discard or packet.is_corrupt:
                continue
            packets += 1
            if packet.pts is not None:
                stamps.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    except av.FFmpegError:
        if not packets:
            raise
        # The tail is missing or damaged: what was read before it may still hold a clip.
    if not packets:
        raise DecodeError("no video frames")
    # AVI knows no presentation times: with B-frames FFmpeg makes them up, in the order of decoding.
    made_up = stream.codec_context.has_b_frames and stamps == sorted(stamps)
    if made_up or len(set(stamps)) < packets:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return _Timeline(range(packets), 1 / Fraction(rate), counted=True)
    return _Timeline(sorted(stamps), stream.time_base, sorted(keys))


def _wanted(
    geometry: Video, timeline: _Timeline, position: float | None, start_s: float, end_s: float | None
) -> list[int]:
    """Stamps of the clip's frames, ascending, the last one repeated where the video is too short."""
    stamps, tick = timeline.stamps, timeline.tick
    first = bisect_left(stamps, stamps[0] + round(start_s / tick))
    after = len(stamps) if end_s is None else bisect_left(stamps, stamps[0] + round(end_s / tick))
    if first >= len(stamps):
        raise DecodeError(f"its clip starts at {start_s:g} s, the video ends before")
    after = max(after, first + 1)  # a clip between two frames shows one
    start = first + clip_start(position, max(after - first - geometry.span, 0) + 1)
    return [stamps[min(start + i * geometry.stride, after - 1)] for i in range(geometry.frames)]


def _decode_clip(
    geometry: Video,
    container: InputContainer,
    stream: VideoStream,
    timeline: _Timeline,
    wanted: list[int],
    deadline: Deadline,
    *,
    seek: bool,
) -> np.ndarray:
    """The frames on screen at the wanted stamps."""
    clip = np.empty(geometry.decoded_shape, np.uint8)
    to_rgb = _ToRGB(geometry.size)
    slot, shown = 0, None
    for stamp, frame in _frames(container, stream, timeline, wanted, deadline, seek=seek):
        while slot < len(wanted) and wanted[slot] < stamp - timeline.slack:
            if shown is None and seek:
                raise _LandedLateError
            clip[slot] = to_rgb(shown or frame)
            slot += 1
        while slot < len(wanted) and wanted[slot] <= stamp + timeline.slack:
            clip[slot] = to_rgb(frame)
            slot += 1
        if slot == len(wanted):
            return clip
        shown = frame
    if shown is None:
        if seek:
            raise _LandedLateError
        raise DecodeError("no video frame could be decoded")
    clip[slot:] = to_rgb(shown)
    return clip


def _frames(
    container: InputContainer,
    stream: VideoStream,
    timeline: _Timeline,
    wanted: list[int],
    deadline: Deadline,
    *,
    seek: bool,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(stamp, frame) in presentation order, from the last key frame before the clip or from the first frame."""
    key = None
    if seek and not timeline.counted:
        key = timeline.keys[max(bisect_right(timeline.keys, wanted[0]) - 1, 0)] if timeline.keys else wanted[0]
    if key is None or key <= timeline.stamps[0]:
        rewind(container, stream)
    else:
        container.seek(key, stream=stream)
    needed = set(wanted)
    number = 0
    for packet in container.demux(stream):
        deadline.check()
        if timeline.keys:
            # A frame that no other refers to need not be decoded unless it is wanted; nothing else changes by it.
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
        for frame in packet.decode():
            if timeline.counted:
                yield number, frame
            elif frame.pts is not None:
                yield frame.pts, frame
            number += 1


class _ToRGB:
    """Scales frames to [H, W, 3] uint8 with one scaler for the whole clip."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.reformatter = VideoReformatter()
        self.frame: av.VideoFrame | None = None
        self.array: np.ndarray | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if frame is not self.frame:
            self.frame, self.array = frame, self._convert(frame)
        return self.array

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.is_corrupt:
            raise DecodeError("damaged video frame")
        check_pixels(frame.width, frame.height)
        quarter_turns = round(frame.rotation / 90)  # counterclockwise
        height, width = self.size if quarter_turns % 2 == 0 else self.size[::-1]
        # Averaging over the source area is as antialiased as a bilinear filter and cheaper.
        rgb = self.reformatter.reformat(
            frame, width, height, format="rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return np.rot90(rgb.to_ndarray(), quarter_turns)
