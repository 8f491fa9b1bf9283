"""Images: JPEG through libjpeg-turbo, everything else through Pillow, the whole frame resized with antialiasing."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import simplejpeg
from PIL import Image as Pillow

from polytrain.data.media_file import Deadline, DecodeError, check_pixels
from polytrain.modalities import Image

# Pillow warns below our own limit, which is checked for every file.
warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning)

# Those that only decode: Pillow would run Ghostscript for an EPS file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION_TAG = 0x0112

# A picture, its EXIF orientation, and the part of it to be resized (None: all).
_Read = tuple[Pillow.Image, int, tuple[float, float, float, float] | None]

# EXIF orientation -> how an array [H, W, 3] becomes upright.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def decode_image(
    geometry: Image,
    source: str | bytes,
    position: float | None,
    start_s: float,
    end_s: float | None,
    deadline: Deadline,
) -> np.ndarray:
    """[H, W, 3] uint8: the first picture of the file, upright by its EXIF orientation, on white where transparent."""
    data = source if isinstance(source, bytes) else _read(source)
    if data.startswith(b"\xff\xd8\xff"):
        picture, orientation, box = _read_jpeg(data, geometry.size)
    else:
        picture, orientation, box = _read_with_pillow(data)
    deadline.check()
    height, width = geometry.size
    # Turning the small picture is cheaper than turning the large one.
    resized = picture.resize((height, width) if orientation >= 5 else (width, height), Pillow.Resampling.BILINEAR, box)
    array = np.asarray(resized.convert("RGB"))
    return np.ascontiguousarray(_UPRIGHT[orientation](array)) if orientation in _UPRIGHT else array


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read_jpeg(data: bytes, size: tuple[int, int]) -> _Read:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        check_pixels(width, height)
        if colorspace in ("CMYK", "YCCK"):
            return _read_with_pillow(data)
        # Where twice the wanted size is left, libjpeg may halve the picture while decoding, as Pillow's thumbnails do:
        # up to 1.6 times as fast, 48 dB from the slow way for 1280x960. (Odd factors such as 3/8 cost 12 dB more.)
        halved = next((factor for factor in (4, 2) if min(height, width) >= 2 * factor * max(size)), 1)
        # Four bytes a pixel is how Pillow stores RGB: no repacking.
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=-(-height // halved), min_width=-(-width // halved))
    except ValueError:
        # libjpeg-turbo's binding also refuses harmless oddities (stray bytes between markers): Pillow's word counts.
        return _read_with_pillow(data)
    orientation = _orientation(Pillow.open(io.BytesIO(data), formats=("JPEG",))) if b"Exif\0\0" in data[:65536] else 1
    # Halving rounds up: the last column may stand for less than the others.
    box = (0, 0, width / halved, height / halved)
    height, width = pixels.shape[:2]
    return Pillow.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1), orientation, box


def _read_with_pillow(data: bytes) -> _Read:
    with Pillow.open(io.BytesIO(data), formats=_FORMATS) as file:
        check_pixels(*file.size)
        try:
            file.load()
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
            raise DecodeError(f"truncated or damaged {file.format}") from error
        return _as_rgb(file), _orientation(file), None


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


def _orientation(picture: Pillow.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1  # the picture is worth more than its damaged EXIF
