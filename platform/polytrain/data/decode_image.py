"""Images: JPEG through libjpeg-turbo, everything else through Pillow; a view's box is resized with antialiasing.

The filter is the bilinear one of Pillow and of torchvision's antialiased resize: a pixel is the triangle-weighted mean
of the area it stands for. JPEG goes through FFmpeg's scaler where that agrees with Pillow's (`_resize`).
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Sequence

import av
import numpy as np
import simplejpeg
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from polytrain.data.media_file import Deadline, DecodeError, check_pixels
from polytrain.data.views import EXIF_TURNS, Turn, View
from polytrain.modalities import Image

# Pillow warns below our own limit, which is checked for every file.
warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning)

# Those that only decode: Pillow would run Ghostscript for an EPS file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION_TAG = 0x0112

# What Pillow raises for broken content.
_DAMAGES = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)

LEAST_SIDE = 16
"""From and to fewer pixels FFmpeg's filter is coarser than Pillow's (28 dB from 3 x 3)."""

_PillowBox = tuple[float, float, float, float]  # left, upper, right, lower


def decode_image(
    geometry: Image,
    source: str | bytes,
    views: Sequence[View],
    shown: np.ndarray,
    start_s: float,
    end_s: float | None,
    deadline: Deadline,
) -> None:
    """Fills `shown`, [V, H, W, 3] uint8: the first picture of the file, upright by its EXIF orientation, on white if
    transparent.
    """
    data = source if isinstance(source, bytes) else _read(source)
    read = _read_jpeg if data.startswith(b"\xff\xd8\xff") else _read_with_pillow
    picture, turn, boxes = read(data, geometry.size, views)
    for view, box in zip(shown, boxes, strict=True):
        deadline.check()
        # Turning the small picture is cheaper than turning the large one.
        _resize(picture, box, turn.lying(view))


def _resize(picture: Pillow.Image | np.ndarray, box: _PillowBox, small: np.ndarray) -> None:
    """Fills `small`, [height, width, 3] uint8, with a part of a picture, shrunk or enlarged."""
    height, width, _ = small.shape
    if isinstance(picture, np.ndarray):
        left, upper, right, lower = map(int, box)
        on_pixels = (left, upper, right, lower) == tuple(box)
        if on_pixels and min(right - left, lower - upper, height, width) >= LEAST_SIDE:
            _scale_with_ffmpeg(picture[upper:lower, left:right], small)
            return
        picture = Pillow.frombuffer("RGBX", picture.shape[1::-1], picture, "raw", "RGBX", 0, 1)
    small[:] = picture.resize((width, height), Pillow.Resampling.BILINEAR, box).convert("RGB")


class _Own(threading.local):
    """A thread's own FFmpeg contexts: each keeps its tables while pictures of one size come."""

    def __init__(self) -> None:
        self.splitter, self.scaler = VideoReformatter(), VideoReformatter()


_own = _Own()


def _scale_with_ffmpeg(pixels: np.ndarray, small: np.ndarray) -> None:
    """[h, w, 4] uint8, RGB and nothing -> `small`, [height, width, 3], three times as fast as Pillow.

    It equals Pillow's bilinear filter to 55 dB on photographs at 224 x 224 and 49 dB at 32 x 32, levels apart by 6 at
    most (white noise: 52 dB, 13); enlarged, to 50 dB and a level. Red, green and blue are scaled as pictures in grey:
    FFmpeg does those with vector instructions, and RGB in twice the time.
    """
    height, width, _ = small.shape
    packed = av.VideoFrame.from_numpy_buffer(pixels, "rgba")
    # threads=1: the default starts one thread a core for each picture.
    green, blue, red = _own.splitter.reformat(packed, format="gbrp", threads=1).planes
    for channel, plane in enumerate((red, green, blue)):
        grey = av.VideoFrame.from_numpy_buffer(_pixels_of(plane), "gray")
        scaled = _own.scaler.reformat(grey, width, height, interpolation=Interpolation.BILINEAR, threads=1)
        small[..., channel] = _pixels_of(scaled.planes[0])


def _pixels_of(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """[height, width] uint8, without what pads its lines; shares its memory."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # in one go, without a buffer in between
        return file.readall()


_Read = tuple[Pillow.Image | np.ndarray, Turn, list[_PillowBox]]
"""A picture as it is stored (an array is [H, W, 4] uint8: RGB and nothing), how it becomes upright, and the part of it
that each view shows."""


def _read_jpeg(data: bytes, size: tuple[int, int], views: Sequence[View]) -> _Read:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        check_pixels(width, height)
        if colorspace in ("CMYK", "YCCK"):
            return _read_with_pillow(data, size, views)
        turn = _turn(Pillow.open(io.BytesIO(data), formats=("JPEG",))) if _may_have_exif(data) else EXIF_TURNS[1]
        boxes = _boxes(views, turn, height, width, size)
        # Where twice the wanted size is left, libjpeg may halve the picture while decoding, as Pillow's thumbnails do:
        # up to 1.6 times as fast, 48 dB from the slow way for 1280x960. (Odd factors such as 3/8 cost 12 dB more.)
        smallest = min(min(right - left, lower - upper) for left, upper, right, lower in boxes)
        halved = next((factor for factor in (4, 2) if smallest >= 2 * factor * max(size)), 1)
        # Four bytes a pixel: Pillow and FFmpeg take them as they are.
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=-(-height // halved), min_width=-(-width // halved))
    except ValueError:
        # libjpeg-turbo's binding also refuses harmless oddities (stray bytes between markers): Pillow's word counts.
        return _read_with_pillow(data, size, views)
    # Halving rounds up: the last column may stand for less than the others.
    boxes = [tuple(edge / halved for edge in box) for box in boxes]
    return pixels, turn, boxes


def _may_have_exif(data: bytes) -> bool:
    """Walks a JPEG's segments up to its pixels; where it loses its way, Pillow shall look."""
    at = 2
    while data[at : at + 2] != b"\xff\xda":  # pixels follow
        if data[at : at + 1] != b"\xff" or data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _read_with_pillow(data: bytes, size: tuple[int, int], views: Sequence[View]) -> _Read:
    with _opened(data) as file:
        check_pixels(*file.size)
        try:
            file.load()
        except _DAMAGES as error:
            raise DecodeError(f"truncated or damaged {file.format}") from error
        turn = _turn(file)
        return _as_rgb(file), turn, _boxes(views, turn, file.height, file.width, size)


def _opened(data: bytes) -> Pillow.Image:
    try:
        return Pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise
    except _DAMAGES as error:
        raise DecodeError("truncated or damaged image") from error


def _boxes(views: Sequence[View], turn: Turn, height: int, width: int, size: tuple[int, int]) -> list[_PillowBox]:
    """What each view shows of a stored picture of [height, width]."""
    boxes = []
    for view in views:
        region = view.region(*turn.shape(height, width), size)
        top, left, tall, wide = turn.stored(region, height, width)
        # Pillow refuses a box that rounding pushed over the edge.
        boxes.append((max(left, 0), max(top, 0), min(left + wide, width), min(top + tall, height)))
    return boxes


def _as_rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode.startswith("I"):
        # Grey of 16 bits; Pillow's own conversion would clip at 255.
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise DecodeError("grey values of more than 16 bits")
        return Pillow.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise DecodeError("floating-point picture, whose range is not known")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Pillow.new("RGBA", rgba.size, "white")
        return Pillow.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _turn(picture: Pillow.Image) -> Turn:
    try:
        return EXIF_TURNS.get(int(picture.getexif().get(_ORIENTATION_TAG, 1)), EXIF_TURNS[1])
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return EXIF_TURNS[1]  # the picture is worth more than its damaged EXIF
