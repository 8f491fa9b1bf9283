"""Views: which clip of a file is shown, and which box of its picture.

A decoder takes a tuple of views and opens the file once for all of them. In training a view is drawn
(data/augmentation.py); at test time views are spread evenly over the file (`views_at_test`). Boxes are given for the
upright frame, in source pixels, with fractions: the decoder resizes a box to the modality's size, so that only what
the model will see is scaled and travels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from polytrain.modalities import Audio, Geometry, Image

VIEW_PART = 224 / 256
"""Side of a crop, of the largest that fits: ViViT crops 224 x 224 from frames whose shorter side is 256."""

Region = tuple[float, float, float, float]
"""(top, left, height, width) in pixels."""


class Box(Protocol):
    """Which part of a frame is shown."""

    def box(self, height: int, width: int, size: tuple[int, int]) -> Region:
        """The part of an upright frame [height, width] that becomes [*size]; inside the frame, never empty."""


@dataclass(frozen=True)
class View:
    """What is shown of a file."""

    position: float | None = None
    """In [0, 1): of n possible clip starts it takes floor(position * n). None: the centre. Images have no clips."""
    box: Box | None = None
    """None: the whole frame, resized to the modality's size whatever its proportions. Sounds have none."""

    def __post_init__(self) -> None:
        if self.position is not None and not 0 <= self.position < 1:
            raise ValueError(f"position {self.position} must be at least 0 and less than 1, or None")

    def start(self, possible: int) -> int:
        """Which of the possible clip starts it takes."""
        return (possible - 1) // 2 if self.position is None else int(self.position * possible)

    def region(self, height: int, width: int, size: tuple[int, int]) -> Region:
        return (0, 0, height, width) if self.box is None else self.box.box(height, width, size)


WHOLE = (View(),)
"""One view: the central clip, the whole frame."""


@dataclass(frozen=True)
class ShortSideBox:
    """The largest box of the target's proportions, times `part`, somewhere along the frame's longer side.

    `along` 0, 0.5 and 1 are the left, central and right crop, of a portrait the top, central and bottom one; across it
    the crop is central. With part 224/256 these are ViViT's three test crops (section 4.1; Scenic's
    `three_spatial_crop` behind resizing the shorter side to 256).
    """

    along: float = 0.5
    part: float = 1.0

    def box(self, height: int, width: int, size: tuple[int, int]) -> Region:
        tall, wide = _largest(height, width, size)
        tall, wide = tall * self.part, wide * self.part
        # "Longer" as seen by the target: for a square one, the frame's longer side.
        landscape = width * size[0] >= height * size[1]
        y, x = (0.5, self.along) if landscape else (self.along, 0.5)
        return (height - tall) * y, (width - wide) * x, tall, wide


@dataclass(frozen=True)
class JitterBox:
    """ViViT's training crop: resized to a shorter side of 256, scaled by two factors, then cropped to 224 at random.

    `scale_y` and `scale_x` are the factors of height and width, each from U(0.9, 1.33); `y` and `x` in [0, 1] place the
    crop. Seen from the source, that crop is a box of part / factor of the largest one's height and width.
    """

    scale_y: float
    scale_x: float
    y: float
    x: float
    part: float = VIEW_PART

    def box(self, height: int, width: int, size: tuple[int, int]) -> Region:
        tall, wide = _largest(height, width, size)
        tall, wide = min(tall * self.part / self.scale_y, height), min(wide * self.part / self.scale_x, width)
        return (height - tall) * self.y, (width - wide) * self.x, tall, wide


@dataclass(frozen=True)
class InceptionBox:
    """A box of random area and proportions, as torchvision's RandomResizedCrop takes it.

    `areas` and `ratios` are uniform draws in [0, 1), one a try: the part of the area within `scale`, and the
    logarithm of width / height within `ratio`. The first try that fits is placed by the draws `y` and `x`; if none
    does, the central box of the nearest allowed proportions is taken. Sides and places are whole pixels, as there.
    """

    areas: tuple[float, ...]
    ratios: tuple[float, ...]
    y: float
    x: float
    scale: tuple[float, float] = (0.05, 1.0)
    """Of PolyViT's released configuration (big_vision's and Scenic's "Inception crop"); torchvision's is (0.08, 1)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, height: int, width: int, size: tuple[int, int]) -> Region:
        least, most = map(math.log, self.ratio)
        for area, ratio in zip(self.areas, self.ratios, strict=True):
            pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            proportions = math.exp(least + ratio * (most - least))
            wide, tall = round(math.sqrt(pixels * proportions)), round(math.sqrt(pixels / proportions))
            if 0 < wide <= width and 0 < tall <= height:
                return int(self.y * (height - tall + 1)), int(self.x * (width - wide + 1)), tall, wide
        narrowest, widest = self.ratio
        wide, tall = width, height
        if width < narrowest * height:
            tall = max(1, round(width / narrowest))
        elif width > widest * height:
            wide = max(1, round(height * widest))
        return (height - tall) // 2, (width - wide) // 2, tall, wide


def _largest(height: int, width: int, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of the largest box with the proportions of `size` in a frame."""
    scale = min(height / size[0], width / size[1])
    return scale * size[0], scale * size[1]


def views_at_test(modality: Geometry | type[Geometry], views: tuple[int, int]) -> tuple[View, ...]:
    """(time, space) views of a file, space varying fastest: time x space of them.

    Clips are spaced evenly from the first possible to the last (ViViT: starts at linspace(0, T - frames * stride, 4),
    which misses the last `stride` - 1 starts; MBT: linspace over the sound); one clip is the central one. Crops are
    spread along the longer side; one is the whole frame resized, as in validation. Raises ValueError for more than
    one clip of an image or more than one crop of a sound.
    """
    time, space = views
    if time < 1 or space < 1:
        raise ValueError(f"views [{time}, {space}]: at least one clip and one crop")
    if modality.name == Image.name and time > 1:
        raise ValueError(f"views [{time}, {space}]: an image has no clips; [1, {space}] would be right")
    if modality.name == Audio.name and space > 1:
        raise ValueError(f"views [{time}, {space}]: a sound has no crops; [{time}, 1] would be right")
    # The last start belongs to the largest position below one.
    positions = [None] if time == 1 else [min(i / (time - 1), math.nextafter(1, 0)) for i in range(time)]
    boxes = [None] if space == 1 else [ShortSideBox(i / (space - 1), VIEW_PART) for i in range(space)]
    return tuple(View(position, box) for position in positions for box in boxes)


# --- pictures that lie turned in their files ------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """How a stored picture becomes upright: flipped along its rows and columns, then its axes swapped."""

    flip_y: bool = False
    flip_x: bool = False
    swap: bool = False

    def shape(self, height: float, width: float) -> tuple[float, float]:
        """(height, width) of the upright picture, or of the stored one that becomes it: it works both ways."""
        return (width, height) if self.swap else (height, width)

    def stored(self, region: Region, height: int, width: int) -> Region:
        """Where a region of the upright picture lies in the stored one, [height, width]."""
        top, left, tall, wide = region
        if self.swap:
            top, left, tall, wide = left, top, wide, tall
        if self.flip_y:
            top = height - top - tall
        if self.flip_x:
            left = width - left - wide
        return top, left, tall, wide

    def upright(self, array):
        """An array [H, W, ...] as stored -> upright, a view of it."""
        array = self._flipped(array)
        return array.swapaxes(0, 1) if self.swap else array

    def lying(self, array):
        """An upright array [H, W, ...] -> as it is stored, a view of it: what is written there stands upright."""
        return self._flipped(array.swapaxes(0, 1) if self.swap else array)

    def _flipped(self, array):
        return array[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


EXIF_TURNS = {
    1: Turn(),
    2: Turn(flip_x=True),
    3: Turn(flip_y=True, flip_x=True),
    4: Turn(flip_y=True),
    5: Turn(swap=True),
    6: Turn(flip_y=True, swap=True),
    7: Turn(flip_y=True, flip_x=True, swap=True),
    8: Turn(flip_x=True, swap=True),
}
"""By EXIF orientation."""

QUARTER_TURNS = (EXIF_TURNS[1], EXIF_TURNS[8], EXIF_TURNS[3], EXIF_TURNS[6])
"""By the number of quarter turns counterclockwise."""
