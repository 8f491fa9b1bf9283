"""Which modalities a file can be read as: its content says so, for bytes that come without a name."""

from __future__ import annotations

import contextlib
import io

from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from polytrain.data.decode import FILE_ERRORS, failure_reason
from polytrain.data.decode_image import FORMATS
from polytrain.data.media_file import DecodeError, check_present, only_stream, open_container, time_limit
from polytrain.modalities import Audio, Image, Video


def modalities_of(content: bytes | str, *, time_limit_s: float = 30.0) -> tuple[str, ...]:
    """Names of modalities, the likeliest first, of a file's bytes or a local file. A film with sound is a video, then a
    sound; a GIF is an image, then a video; a cover picture in a sound file is nothing. Raises DecodeError for what
    can't be read as any."""
    try:
        with time_limit(time_limit_s) as deadline:
            check_present(content)
            source = io.BytesIO(content) if isinstance(content, bytes) else content
            with contextlib.suppress(UnidentifiedImageError), Pillow.open(source, formats=FORMATS) as file:
                return (Image.name, Video.name) if file.format == "GIF" else (Image.name,)
            found = []
            with open_container(content, deadline) as container:
                for name in (Video.name, Audio.name):
                    with contextlib.suppress(DecodeError):
                        only_stream(container, name)
                        found.append(name)
    except FILE_ERRORS as error:
        raise DecodeError(failure_reason(error)) from error
    if not found:
        raise DecodeError("neither a picture nor a video nor a sound")
    return tuple(found)
