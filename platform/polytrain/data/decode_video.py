"""Video clips through FFmpeg: seek before the clip, decode one stream on one thread, keep every stride-th frame.

Frames are counted in presentation order. Their timestamps come from reading the file's packets without decoding
them (under 1 ms for ten seconds), so that a clip holds the same frames whether decoded from the start or after a seek.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from polytrain.data.media_file import (
    Deadline,
    DecodeError,
    check_pixels,
    only_stream,
    open_container,
    rewind,
)
from polytrain.data.video_boxes import BoxCutter
from polytrain.data.views import View
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

    def key_before(self, stamp: int) -> int | None:
        """The last key frame up to a stamp, or the first of all; None where they are not known."""
        return self.keys[max(bisect_right(self.keys, stamp) - 1, 0)] if self.keys else None


class _LandedLateError(Exception):
    """A seek went past the first frame wanted."""


def decode_video(
    geometry: Video,
    source: str | bytes,
    views: Sequence[View],
    shown: np.ndarray,
    start_s: float,
    end_s: float | None,
    deadline: Deadline,
) -> None:
    """Fills `shown`, [V, T, H, W, 3] uint8: `geometry.frames` frames, `geometry.stride` apart, upright by the rotation
    metadata.
    """
    with open_container(source, deadline) as container:
        stream = only_stream(container, "video")
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        timeline = _timeline(container, stream, deadline)
        clips = _clips(geometry, timeline, views, start_s, end_s)
        cut = BoxCutter(geometry.size, [view.box for view in views])

        def show(wanted: _Wanted, frame: av.VideoFrame) -> None:
            shown[wanted.view, wanted.slot] = cut(frame, views[wanted.view].box)

        for stretch in _stretches(timeline, clips):
            try:
                _decode_stretch(container, stream, timeline, stretch, show, deadline, seek=True)
            except _LandedLateError:
                _decode_stretch(container, stream, timeline, stretch, show, deadline, seek=False)


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


class _Wanted(NamedTuple):
    """A frame of a clip: the one on screen at a stamp."""

    stamp: int
    view: int
    slot: int  # 0-based number within the clip


def _clips(
    geometry: Video, timeline: _Timeline, views: Sequence[View], start_s: float, end_s: float | None
) -> list[list[_Wanted]]:
    """Each view's frames, ascending, the last one repeated where the video is too short."""
    stamps, tick = timeline.stamps, timeline.tick
    first = bisect_left(stamps, stamps[0] + round(start_s / tick))
    after = len(stamps) if end_s is None else bisect_left(stamps, stamps[0] + round(end_s / tick))
    if first >= len(stamps):
        raise DecodeError(f"its clip starts at {start_s:g} s, the video ends before")
    after = max(after, first + 1)  # a clip between two frames shows one
    clips = []
    for number, view in enumerate(views):
        start = first + view.start(max(after - first - geometry.span, 0) + 1)
        numbers = [min(start + slot * geometry.stride, after - 1) for slot in range(geometry.frames)]
        clips.append([_Wanted(stamps[frame], number, slot) for slot, frame in enumerate(numbers)])
    return clips


def _stretches(timeline: _Timeline, clips: list[list[_Wanted]]) -> Iterator[list[_Wanted]]:
    """What is decoded in one go, ascending: a seek is worth it only where a key frame lies between two clips."""
    stretch: list[_Wanted] = []
    for clip in sorted(clips):
        if stretch and clip[0].stamp > stretch[-1].stamp and not timeline.counted:
            key = timeline.key_before(clip[0].stamp)
            if key is None or key > stretch[-1].stamp:
                yield stretch
                stretch = []
        stretch = sorted(stretch + clip)
    yield stretch


def _decode_stretch(
    container: InputContainer,
    stream: VideoStream,
    timeline: _Timeline,
    wanted: list[_Wanted],
    show: Callable[[_Wanted, av.VideoFrame], None],
    deadline: Deadline,
    *,
    seek: bool,
) -> None:
    """Shows the frames on screen at the wanted stamps."""
    done, shown = 0, None
    for stamp, frame in _frames(container, stream, timeline, wanted, deadline, seek=seek):
        while done < len(wanted) and wanted[done].stamp < stamp - timeline.slack:
            if shown is None and seek:
                raise _LandedLateError
            show(wanted[done], shown or frame)
            done += 1
        while done < len(wanted) and wanted[done].stamp <= stamp + timeline.slack:
            show(wanted[done], frame)
            done += 1
        if done == len(wanted):
            return
        shown = frame
    if shown is None:
        if seek:
            raise _LandedLateError
        raise DecodeError("no video frame could be decoded")
    for rest in wanted[done:]:
        show(rest, shown)


def _frames(
    container: InputContainer,
    stream: VideoStream,
    timeline: _Timeline,
    wanted: list[_Wanted],
    deadline: Deadline,
    *,
    seek: bool,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(stamp, frame) in presentation order, from the last key frame before the first wanted or from the beginning."""
    key = None
    if seek and not timeline.counted:
        key = timeline.key_before(wanted[0].stamp) if timeline.keys else wanted[0].stamp
    if key is None or key <= timeline.stamps[0]:
        rewind(container, stream)
    else:
        container.seek(key, stream=stream)
    needed = {frame.stamp for frame in wanted}
    number, broken = 0, None
    for packet in container.demux(stream):
        deadline.check()
        if timeline.keys:
            # A frame that no other refers to need not be decoded unless it is wanted; nothing else changes by it.
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
        if broken and packet.size:
            raise broken
        try:
            frames = packet.decode()
        except av.InvalidDataError as error:
            broken = error  # harmless if nothing follows: the file ends within its last packet
            continue
        for frame in frames:
            if timeline.counted:
                yield number, frame
            elif frame.pts is not None:
                yield frame.pts, frame
            number += 1
