"""From a media file to one example's array: `decode(geometry, source)`.

Runs in decode workers, one a core, so it stays light: nothing here imports torch or ray. How each modality is read is
in decode_image.py, decode_video.py and decode_audio.py.
"""

from __future__ import annotations

import struct
import zlib

import av
import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from polytrain.data.decode_audio import decode_audio
from polytrain.data.decode_image import decode_image
from polytrain.data.decode_video import decode_video
from polytrain.data.media_file import MAX_PIXELS, DecodeError, check_present, time_limit
from polytrain.modalities import Audio, Geometry, Image, Video

__all__ = ["DecodeError", "decode"]

_DECODERS = {Image: decode_image, Video: decode_video, Audio: decode_audio}

# What the libraries raise for files they can't read. TypeError, KeyError and the like stay what they are: our mistakes.
_FILE_ERRORS = (
    OSError,
    ValueError,
    MemoryError,
    EOFError,
    OverflowError,
    SyntaxError,  # Pillow, for broken PNG chunks
    struct.error,
    zlib.error,
    av.FFmpegError,
    PillowImage.DecompressionBombError,
)

# The first that matches is the reason given.
_REASONS = (
    (FileNotFoundError, "no such file"),
    (PermissionError, "no permission to read it"),
    (MemoryError, "not enough memory to decode it"),
    (UnidentifiedImageError, "not an image that is read here (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM)"),
    (PillowImage.DecompressionBombError, f"more pixels than the limit of {MAX_PIXELS:,}"),
    (av.DecoderNotFoundError, "no decoder for its codec in this FFmpeg"),
    (av.InvalidDataError, "damaged, or not media at all: FFmpeg finds invalid data"),
    (av.PatchWelcomeError, "uses a feature that this FFmpeg does not know"),
)


def decode(
    geometry: Geometry,
    source: str | bytes,
    *,
    position: float | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    time_limit_s: float = 30.0,
) -> np.ndarray:
    """One example, as `geometry.decoded_shape`: uint8 RGB picture or frames, or float32 mono sound in [-1, 1].

    `source` is a local path or the file's bytes. `start_s` and `end_s` (seconds from the beginning) confine video and
    sound to a part of the file. Within it `position` in [0, 1) places the clip: of n possible starts it takes
    floor(position * n); None takes the centre. Images ignore all three. A video shorter than its clip repeats its
    last frame, a sound is followed by zeros.

    Raises DecodeError, whose text is the reason, for whatever is wrong with the file or when `time_limit_s` seconds
    are over (media_file.time_limit says what that can't interrupt), and ValueError for a position outside [0, 1).
    """
    if position is not None and not 0 <= position < 1:
        raise ValueError(f"position {position} must be at least 0 and less than 1, or None")
    decoder = _DECODERS[type(geometry)]
    try:
        with time_limit(time_limit_s) as deadline:
            check_present(source)
            if end_s is not None and end_s <= max(start_s or 0, 0):
                raise DecodeError(f"its clip ends at {end_s:g} s, not after its start at {start_s or 0:g} s")
            return decoder(geometry, source, position, start_s or 0.0, end_s, deadline)
    except _FILE_ERRORS as error:
        raise DecodeError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, av.FFmpegError):
        return f"FFmpeg: {error.strerror}"
    text = str(error) or type(error).__name__
    return "truncated image" if "truncated" in text.lower() else text.splitlines()[0]
