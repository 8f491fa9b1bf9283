"""Boxes of video frames: cut out, scaled with swscale, turned upright. [H, W, 3] uint8 RGB each.

A box is rounded outwards to even pixels (colour is stored for blocks of 2 x 2), cut without copying, scaled, and what
was too much falls away: it lies within half a target pixel of where it was asked for. Boxes of one size, such as the
crops of a test view, are scaled together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import av
import av.filter
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from polytrain.data.media_file import DecodeError, check_pixels
from polytrain.data.views import QUARTER_TURNS, Box, Region, Turn, View

FAR_APART = 4
"""Boxes are scaled together up to so many times the pixels that they need by themselves."""


@dataclass(frozen=True)
class _Crop:
    """Even-numbered pixels of a stored frame."""

    width: int
    height: int
    x: int
    y: int


@dataclass(eq=False)
class _Group:
    """Boxes of one size, scaled together."""

    crop: _Crop | None  # None: the whole frame
    scaled: tuple[int, int]  # height and width of the scaled crop
    places: dict[Box | None, tuple[int, int]]  # where each box begins in it: (y, x)
    cropper: _Cropper | None = None
    # A scaler each: given another size, it would start anew.
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    def scale(self, frame: av.VideoFrame) -> np.ndarray:
        if self.crop:
            self.cropper = self.cropper or _Cropper(frame, self.crop)
            frame = self.cropper(frame)
        height, width = self.scaled
        # Averaging over the source area is as antialiased as a bilinear filter and cheaper.
        return self.reformatter.reformat(
            frame, width, height, format="rgb24", interpolation=Interpolation.AREA, threads=1
        ).to_ndarray()


class BoxCutter:
    """Shows boxes of frames that follow each other; whatever can be made once for all of them is."""

    def __init__(self, size: tuple[int, int], boxes: Iterable[Box | None]) -> None:
        self.size, self.boxes = size, tuple(dict.fromkeys(boxes))
        self.turn = QUARTER_TURNS[0]
        self.layout: tuple | None = None  # what the groups were made for
        self.groups: list[_Group] = []
        self.frame: av.VideoFrame | None = None
        self.shown: dict[Box | None, np.ndarray] = {}

    def __call__(self, frame: av.VideoFrame, box: Box | None) -> np.ndarray:
        """[*size, 3] uint8: what a box shows of a frame."""
        if frame is not self.frame:
            if frame.is_corrupt:
                raise DecodeError("damaged video frame")
            self._lay_out(frame)
            self.frame, self.shown = frame, {}
        if box not in self.shown:
            self._show(next(group for group in self.groups if box in group.places))
        return self.shown[box]

    def _lay_out(self, frame: av.VideoFrame) -> None:
        layout = frame.width, frame.height, frame.format.name, frame.rotation
        if layout != self.layout:
            check_pixels(frame.width, frame.height)
            self.layout = layout
            self.turn = QUARTER_TURNS[round(frame.rotation / 90) % 4]  # counterclockwise
            self.groups = _groups(self.boxes, self.size, self.turn, frame.height, frame.width)

    def _show(self, group: _Group) -> None:
        rgb = group.scale(self.frame)
        height, width = self.turn.shape(*self.size)
        for box, (y, x) in group.places.items():
            self.shown[box] = self.turn.upright(rgb[y : y + height, x : x + width])


def _groups(boxes: Iterable[Box | None], size: tuple[int, int], turn: Turn, height: int, width: int) -> list[_Group]:
    """Stored frames of [height, width] -> the groups that together hold all boxes."""
    of_size: dict[tuple[float, float], dict[Box | None, Region]] = defaultdict(dict)
    for box in boxes:
        upright = View(box=box).region(*turn.shape(height, width), size)
        region = turn.stored(upright, height, width)
        of_size[round(region[2], 6), round(region[3], 6)][box] = region
    target = turn.shape(*size)
    groups = []
    for regions in of_size.values():
        together = _group(regions, target, height, width)
        # Far apart, as in a panorama, what lies between them would cost more than it saves.
        apart = math.prod(together.scaled) > FAR_APART * len(regions) * math.prod(target)
        groups += (
            [_group({box: region}, target, height, width) for box, region in regions.items()] if apart else [together]
        )
    return groups


def _group(regions: dict[Box | None, Region], target: tuple[int, int], height: int, width: int) -> _Group:
    tops, lefts, talls, wides = zip(*regions.values(), strict=True)
    top, bottom = _even(min(tops), max(tops) + talls[0], height)
    left, right = _even(min(lefts), max(lefts) + wides[0], width)
    scale_y, scale_x = target[0] / talls[0], target[1] / wides[0]
    scaled = max(target[0], round((bottom - top) * scale_y)), max(target[1], round((right - left) * scale_x))
    places = {
        box: (
            min(round((region[0] - top) * scale_y), scaled[0] - target[0]),
            min(round((region[1] - left) * scale_x), scaled[1] - target[1]),
        )
        for box, region in regions.items()
    }
    whole = (bottom - top, right - left) == (height, width)
    return _Group(None if whole else _Crop(right - left, bottom - top, left, top), scaled, places)


def _even(begin: float, end: float, most: int) -> tuple[int, int]:
    """The smallest range of pixels around begin..end that starts at an even one and ends at one or at the edge."""
    first = math.floor(begin + 1e-6) // 2 * 2
    last = -(-math.ceil(end - 1e-6) // 2) * 2
    return max(first, 0), min(last, most)


class _Cropper:
    """FFmpeg's crop filter for frames of one kind: it moves pointers, no pixels."""

    def __init__(self, like: av.VideoFrame, crop: _Crop) -> None:
        self.graph = graph = av.filter.Graph()
        self.source = graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=like.time_base
        )
        cut = graph.add("crop", f"{crop.width}:{crop.height}:{crop.x}:{crop.y}")
        self.sink = graph.add("buffersink")
        self.source.link_to(cut)
        cut.link_to(self.sink)
        graph.configure()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        self.source.push(frame)
        return self.sink.pull()
