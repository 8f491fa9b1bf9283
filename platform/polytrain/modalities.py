"""The three modalities: the geometry of one input, from the media file's side to the token grid.

A geometry answers every question that depends on the modality, so that no other module asks "is this a video?":
what a decoder must deliver (`decoded_shape`), what the tokenizer takes (`input_shape`, `patch_shape`, `grid`) and
how long the sequence is. Nothing but the standard library is imported here: decode workers, the recipe and the
model all read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

CHANNELS = 3
"""Input channels of every patch embedding: spectrograms are repeated to three, so that an image kernel fits them."""


_BYTES = {"uint8": 1, "float32": 4}


class _Grid:
    """What the three geometries share: tokens from an input shape and a patch shape of the same rank."""

    # Unknown keys of a recipe are errors; pydantic reads this from a plain dataclass.
    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    name: ClassVar[str]
    input_shape: tuple[int, ...]
    patch_shape: tuple[int, ...]
    decoded_shape: tuple[int, ...]
    decoded_dtype: ClassVar[str]

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis: (height, width), (time, height, width) or (time, frequency)."""
        return tuple(size // patch for size, patch in zip(self.input_shape, self.patch_shape, strict=True))

    @property
    def patches(self) -> int:
        """Tokens of one input without the class token."""
        return math.prod(self.grid)

    @property
    def positions(self) -> int:
        """Sequence length: the patches and the class token (PolyViT, Table 7)."""
        return self.patches + 1

    @property
    def patch_inputs(self) -> int:
        """Numbers that enter the patch embedding for one token, channels included."""
        return math.prod(self.patch_shape) * CHANNELS

    @property
    def decoded_bytes(self) -> int:
        """Bytes of one view as a decoder delivers it."""
        return math.prod(self.decoded_shape) * _BYTES[self.decoded_dtype]

    def _check_grid(self, axes: tuple[str, ...]) -> None:
        for axis, size, patch in zip(axes, self.input_shape, self.patch_shape, strict=True):
            if size < 1 or patch < 1:
                raise ValueError(f"{axis}: input {size} and patch {patch} must both be at least 1")
            if size % patch:
                below, above = size // patch * patch, -(-size // patch) * patch
                right = f"{below} or {above}" if below else str(above)
                raise ValueError(f"{axis}: input {size} is not a multiple of patch {patch}; {right} would be")


@dataclass(frozen=True)
class Image(_Grid):
    """RGB images: `size` and `patch` are (height, width) in pixels."""

    name: ClassVar[str] = "image"
    size: tuple[int, int]
    patch: tuple[int, int]

    def __post_init__(self) -> None:
        self._check_grid(("height", "width"))

    @property
    def input_shape(self) -> tuple[int, int]:
        return self.size

    @property
    def patch_shape(self) -> tuple[int, int]:
        return self.patch

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """[H, W, 3] uint8."""
        return (*self.size, CHANNELS)

    decoded_dtype: ClassVar[str] = "uint8"


@dataclass(frozen=True)
class Video(_Grid):
    """Clips of `frames` RGB frames taken every `stride`-th frame; `tubelet` is (frames, height, width)."""

    name: ClassVar[str] = "video"
    frames: int
    stride: int
    size: tuple[int, int]
    tubelet: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride: {self.stride} must be at least 1")
        self._check_grid(("frames", "height", "width"))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.frames, *self.size)

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        return self.tubelet

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """[T, H, W, 3] uint8."""
        return (self.frames, *self.size, CHANNELS)

    decoded_dtype: ClassVar[str] = "uint8"

    @property
    def span(self) -> int:
        """Consecutive source frames that one clip covers, first to last."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class Audio(_Grid):
    """Log-mel spectrograms of `seconds` of mono sound; `patch` is (spectrogram frames, mel bins)."""

    name: ClassVar[str] = "audio"
    sample_rate: int
    seconds: float
    mel_bins: int
    patch: tuple[int, int]
    window_ms: float = 25.0
    hop_ms: float = 10.0
    # Published for AudioSet (AST): log-mel energies minus `mean`, divided by twice `deviation`; with 0
    # and 0.5 they stay as they are.
    mean: float = -4.27
    deviation: float = 4.57

    def __post_init__(self) -> None:
        for key in ("sample_rate", "seconds", "mel_bins", "window_ms", "hop_ms", "deviation"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}: {getattr(self, key)} must be greater than 0")
        for key, samples in (("window_ms", self.window), ("hop_ms", self.hop)):
            if samples < 1:
                raise ValueError(f"{key}: {getattr(self, key)} ms is shorter than a sample at {self.sample_rate} Hz")
        if self.hop > self.samples:
            raise ValueError(f"hop_ms: {self.hop_ms} ms is longer than the clip of {self.seconds} s")
        self._check_grid(("time (seconds * 1000 / hop_ms spectrogram frames)", "frequency (mel_bins)"))

    @property
    def window(self) -> int:
        """Samples of one analysis window."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        """Samples between the starts of two analysis windows."""
        return round(self.sample_rate * self.hop_ms / 1000)

    @property
    def samples(self) -> int:
        """Samples of one clip."""
        return round(self.sample_rate * self.seconds)

    @property
    def input_shape(self) -> tuple[int, int]:
        return (self.samples // self.hop, self.mel_bins)

    @property
    def patch_shape(self) -> tuple[int, int]:
        return self.patch

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """[samples] float32, mono, in [-1, 1]."""
        return (self.samples,)

    decoded_dtype: ClassVar[str] = "float32"


Geometry = Image | Video | Audio
MODALITIES: dict[str, type[Image] | type[Video] | type[Audio]] = {kind.name: kind for kind in (Image, Video, Audio)}
