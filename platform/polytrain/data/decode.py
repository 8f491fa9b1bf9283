"""From a media file to the views of one example: `decode(geometry, source, views)`.

Runs in decode workers, one a core, so it stays light: nothing here imports torch or ray. How each modality is read is
in decode_image.py, decode_video.py and decode_audio.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import av
import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from polytrain.data.decode_audio import decode_audio
from polytrain.data.decode_image import decode_image
from polytrain.data.decode_video import decode_video
from polytrain.data.media_file import MAX_PIXELS, DecodeError, check_present, time_limit
from polytrain.data.views import WHOLE, View
from polytrain.modalities import Audio, Geometry, Image, Video

__all__ = ["DecodeError", "decode"]

_DECODERS = {Image: decode_image, Video: decode_video, Audio: decode_audio}

# What the libraries raise for files they can't read. TypeError, KeyError and the like stay what they are: our mistakes.
FILE_ERRORS = (
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
    views: Sequence[View] = WHOLE,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    time_limit_s: float = 30.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The views of one example, [V, *geometry.decoded_shape]: uint8 RGB pictures or frames, or float32 mono sound in
    [-1, 1].

    `source` is a local path or the file's bytes; it is opened once for all views, a compressed sound once before that
    to see that it is no WAV. `start_s` and `end_s` (seconds from the beginning) confine video and sound to a part of
    the file, within which a view's position places the clip. Images ignore all three, sounds have no boxes. A video
    shorter than its clip repeats its last frame, a sound is followed by zeros. With `out` the views are written there,
    and it is returned.

    Raises DecodeError, whose text is the reason, for whatever is wrong with the file or when `time_limit_s` seconds
    are over (media_file.time_limit says what that can't interrupt), and ValueError for a box on a sound.
    """
    if isinstance(geometry, Audio) and any(view.box for view in views):
        raise ValueError("a sound has no box to show")
    decoder = _DECODERS[type(geometry)]
    shown = out
    if shown is None:
        shown = np.empty((len(views), *geometry.decoded_shape), geometry.decoded_dtype)
    try:
        with time_limit(time_limit_s) as deadline:
            check_present(source)
            if end_s is not None and end_s <= max(start_s or 0, 0):
                raise DecodeError(f"its clip ends at {end_s:g} s, not after its start at {start_s or 0:g} s")
            decoder(geometry, source, views, shown, start_s or 0.0, end_s, deadline)
            return shown
    except FILE_ERRORS as error:
        raise DecodeError(failure_reason(error)) from error


def failure_reason(error: BaseException) -> str:
    """One of `FILE_ERRORS` in few words."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, av.FFmpegError):
        return f"FFmpeg: {error.strerror}"
    text = str(error) or type(error).__name__
    return "truncated image" if "truncated" in text.lower() else text.splitlines()[0]
