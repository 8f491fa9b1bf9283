"""A small file of a modality, made here: what a registered model shows as an example of its input."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
from PIL import Image as Pillow

from polytrain.modalities import Audio, Geometry, Image, Video


def example_file(geometry: Geometry) -> bytes:
    """A PNG of a ramp, a clip of a ramp that moves, or a WAV of a tone: as small as the geometry allows."""
    return _MAKERS[type(geometry)](geometry)


def _ramp(size: tuple[int, int], shift: int = 0) -> np.ndarray:
    rows, columns = np.indices(size)
    return np.stack([(rows + shift) % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def _image(geometry: Image) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(_ramp(geometry.size)).save(file, "PNG")
    return file.getvalue()


def _video(geometry: Video) -> bytes:
    file = io.BytesIO()
    # FFmpeg's encoders want even sides.
    size = tuple(side + side % 2 for side in geometry.size)
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(geometry.span):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_ramp(size, 2 * number), "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _audio(geometry: Audio) -> bytes:
    file = io.BytesIO()
    seconds = np.arange(geometry.samples) / geometry.sample_rate
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(geometry.sample_rate)
        sound.writeframes((8192 * np.sin(2 * np.pi * 440 * seconds)).astype("<i2").tobytes())
    return file.getvalue()


_MAKERS = {Image: _image, Video: _video, Audio: _audio}
