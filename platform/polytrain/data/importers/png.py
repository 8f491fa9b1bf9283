"""Pixels that have no file of their own become one."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray) -> bytes:
    """A PNG of [H, W, 3] uint8. Level 1: noise-like patches shrink no further at level 6, in four times the time."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
