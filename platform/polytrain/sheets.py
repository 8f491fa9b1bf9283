"""Contact sheets: many examples on one picture, for a person to judge. Pictures, film strips, log-mel spectrograms.

Drawn with Pillow, pixel by pixel: small media stay as sharp as they are. Neither torch nor matplotlib is needed, so a
training worker draws a sheet in a tenth of a second.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from polytrain.lettering import draw_text, legible, wrapped
from polytrain.modalities import Audio, Geometry, Image, Video

if TYPE_CHECKING:
    from polytrain.class_counts import ClassCounts

WIDTH = 1360
MARGIN = 24
GAP = 14
INK, GREY, PALE, RED = "#222222", "#6B6B6B", "#EDEDED", "#B3261E"
SMALL, PLAIN, LARGE = 12, 14, 24
CAPTION = 36
"""Pixels below an example: its classes, and a line about it."""

# Matplotlib's magma, at even distances: silence is black, and it reads the same without colours.
MAGMA = np.array(
    [(0, 0, 3), (15, 11, 44), (43, 17, 94), (80, 18, 123), (113, 31, 129), (146, 43, 128), (182, 54, 121),
     (215, 69, 107), (240, 96, 93), (251, 136, 97), (254, 175, 120), (253, 214, 152), (251, 252, 191)]
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """An example as it is drawn: [H, W, 3] or [T, H, W, 3] uint8, [frames, mel bins] log-mel energies, or a reason."""

    title: str
    note: str = ""
    media: np.ndarray | None = None
    reason: str = ""
    """Why there is nothing to see, where there is not."""


@dataclass(frozen=True)
class Heading:
    """What stands above the examples; `warning` in red."""

    title: str
    lines: tuple[str, ...] = ()
    warning: str = ""


def contact_sheet(
    geometry: Geometry,
    heading: Heading,
    examples: Sequence[Shown],
    counts: ClassCounts | None = None,
) -> Pillow.Image:
    """One sheet: a heading, the examples as their modality is drawn, and the classes of each split."""
    tiles = TILES[type(geometry)](geometry, examples)
    parts = [_heading(heading), tiles.legend(), tiles.drawn(), counts.drawn() if counts else None]
    return _stacked([part for part in parts if part is not None])


def save(sheet: Pillow.Image, path: str | Path) -> None:
    """Writes a PNG file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    sheet.save(temporary, format="PNG", compress_level=6)
    temporary.replace(path)


def canvas(height: float) -> tuple[Pillow.Image, ImageDraw.ImageDraw]:
    """White, as wide as a sheet, and what draws on it."""
    picture = Pillow.new("RGB", (WIDTH, max(1, math.ceil(height))), "white")
    return picture, ImageDraw.Draw(picture)


def _stacked(parts: Sequence[Pillow.Image]) -> Pillow.Image:
    sheet, _ = canvas(sum(part.height for part in parts) + MARGIN)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _heading(heading: Heading) -> Pillow.Image:
    lines = [line for text in heading.lines for line in wrapped(text, PLAIN, WIDTH - 2 * MARGIN, 3)]
    warnings = wrapped(heading.warning, PLAIN, WIDTH - 2 * MARGIN, 3)
    picture, draw = canvas(MARGIN + LARGE + 16 + 20 * len(lines + warnings) + 6)
    draw_text(draw, (MARGIN, MARGIN), heading.title, LARGE, bold=True, width=WIDTH - 2 * MARGIN)
    top = MARGIN + LARGE + 12
    for line in [*lines, *warnings]:
        draw_text(draw, (MARGIN, top), line, PLAIN, fill=RED if line in warnings else GREY)
        top += 20
    return picture


# ---------------------------------------------------------------------------------------------------------- tiles


class Tiles(ABC):
    """Examples in rows of equal width, each with its caption. A modality says how one is drawn."""

    most_columns: int
    widest: int
    """Pixels: few examples are not blown up beyond it."""
    left = bottom = 0
    """Pixels for axes: left of a row, below each example."""

    def __init__(self, geometry: Geometry, examples: Sequence[Shown]) -> None:
        self.geometry, self.examples = geometry, examples
        self.columns = max(1, min(self.most_columns, len(examples)))
        self.width = min(self.widest, (WIDTH - 2 * MARGIN - self.left - (self.columns - 1) * GAP) // self.columns)

    def legend(self) -> Pillow.Image | None:
        """What a reader needs to know before the first example."""
        return None

    @abstractmethod
    def picture(self, media: np.ndarray) -> Pillow.Image:
        """One example, at most `self.width` pixels wide."""

    def axes(self, draw: ImageDraw.ImageDraw, left: int, top: int, picture: Pillow.Image, first: bool) -> None:  # noqa: B027
        """Scales around an example that was drawn at `left`, `top`; `first`: the row's first."""

    def drawn(self) -> Pillow.Image:
        rows = []
        for start in range(0, len(self.examples), self.columns):
            row = self.examples[start : start + self.columns]
            pictures = [None if shown.media is None else self.picture(shown.media) for shown in row]
            height = max((picture.height for picture in pictures if picture), default=self.width // 2)
            rows.append(self._row(row, pictures, max(height, 72)))
        return _stacked(rows) if rows else canvas(1)[0]

    def _row(self, row: Sequence[Shown], pictures: Sequence[Pillow.Image | None], height: int) -> Pillow.Image:
        strip, draw = canvas(height + self.bottom + CAPTION + GAP)
        for column, (shown, picture) in enumerate(zip(row, pictures, strict=True)):
            left = MARGIN + self.left + column * (self.width + GAP)
            if picture is None:
                _refusal(draw, left, self.width, height, shown.reason)
            else:
                top = height - picture.height
                strip.paste(picture, (left, top))
                self.axes(draw, left, top, picture, column == 0)
            below = height + self.bottom + 4
            draw_text(draw, (left, below), shown.title, PLAIN - 1, bold=True, width=self.width)
            draw_text(draw, (left, below + 17), shown.note, SMALL - 1, fill=GREY, width=self.width)
        return strip


def _refusal(draw: ImageDraw.ImageDraw, left: int, width: int, height: int, reason: str) -> None:
    draw.rectangle((left, 0, left + width - 1, height - 1), fill="#FBE9E7", outline=RED)
    draw_text(draw, (left + 10, 8), "can't be decoded", SMALL, bold=True, fill=RED, width=width - 20)
    for number, line in enumerate(wrapped(reason, SMALL, width - 20, max(1, (height - 34) // 16))):
        draw_text(draw, (left + 10, 28 + 16 * number), line, SMALL, fill=RED)


def _fit(pixels: np.ndarray, width: int, height: int) -> Pillow.Image:
    """[H, W, 3] uint8 within width x height; what is enlarged shows its pixels as squares."""
    picture = Pillow.fromarray(np.ascontiguousarray(pixels))
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if scale > 1:
        whole = math.ceil(scale)
        large = picture.resize((picture.width * whole, picture.height * whole), Pillow.Resampling.NEAREST)
        return large.resize(size, Pillow.Resampling.BOX)
    return picture.resize(size, Pillow.Resampling.BOX if scale < 0.5 else Pillow.Resampling.BILINEAR)


class Pictures(Tiles):
    most_columns, widest = 6, 420

    def picture(self, media: np.ndarray) -> Pillow.Image:
        return _fit(media, self.width, self.width)


class FilmStrips(Tiles):
    """Up to six frames of a clip from left to right, evenly over it."""

    most_columns, widest = 2, 900
    frames = 6
    tallest = 150

    def picture(self, media: np.ndarray) -> Pillow.Image:
        chosen = media[film_frames(len(media), self.frames)]
        frames = [_fit(frame, (self.width - 2 * (self.frames - 1)) // self.frames, self.tallest) for frame in chosen]
        width, height = frames[0].size
        strip = Pillow.new("RGB", (len(frames) * (width + 2) - 2, height), "white")
        for number, frame in enumerate(frames):
            strip.paste(frame, (number * (width + 2), 0))
        return strip


def film_frames(frames: int, most: int = FilmStrips.frames) -> np.ndarray:
    """Which frames of a clip a strip shows: the first, the last, and those evenly between."""
    return np.unique(np.linspace(0, frames - 1, min(frames, most)).round().astype(int))


class Spectrograms(Tiles):
    """Log-mel energies, time to the right, low notes at the bottom, one colour scale for the whole sheet."""

    most_columns, widest = 4, 640
    left, bottom = 44, 16

    def __init__(self, geometry: Audio, examples: Sequence[Shown]) -> None:
        super().__init__(geometry, examples)
        self.height = min(256, max(112, self.width // 2))
        energies = [shown.media.ravel() for shown in examples if shown.media is not None and shown.media.size]
        values = np.concatenate(energies) if energies else np.zeros(1)
        values = values[np.isfinite(values)]
        # The quietest few percent (digital silence, above all) would take half of the scale from everything else.
        self.low, self.high = np.percentile(values, [5, 99.9]) if values.size else (0.0, 1.0)
        self.high = max(self.high, self.low + 1e-3)
        half = 1000 * geometry.sample_rate / 2000
        self.hertz = [f for f in (125, 500, 1000, 2000, 4000, 8000, 16000) if f <= half]

    def legend(self) -> Pillow.Image:
        picture, draw = canvas(30)
        bar = np.linspace(self.low, self.high, 160)[None].repeat(10, 0)
        left = MARGIN + self.left
        picture.paste(Pillow.fromarray(self._coloured(bar)), (left, 4))
        text = f"log-mel energy from {self.low:.1f} or less to {self.high:.1f}; time in seconds, pitch in Hz"
        draw_text(draw, (left + 170, 2), text, SMALL, fill=GREY)
        return picture

    def _coloured(self, energies: np.ndarray) -> np.ndarray:
        share = np.nan_to_num((energies - self.low) / (self.high - self.low)).clip(0, 1)
        palette = np.stack([np.interp(np.linspace(0, 12, 256), range(13), MAGMA[:, c]) for c in range(3)], 1)
        return palette.round().astype(np.uint8)[(share * 255).astype(np.uint8)]

    def picture(self, media: np.ndarray) -> Pillow.Image:
        picture = Pillow.fromarray(self._coloured(media.T[::-1]))
        shrinks = picture.width > self.width or picture.height > self.height
        filter_ = Pillow.Resampling.BOX if shrinks else Pillow.Resampling.NEAREST
        return picture.resize((self.width, self.height), filter_)

    def axes(self, draw: ImageDraw.ImageDraw, left: int, top: int, picture: Pillow.Image, first: bool) -> None:
        bottom = top + picture.height
        seconds = self.geometry.seconds
        step = _round_step(seconds / max(2, picture.width // 70))
        places = [round(number * step, 6) for number in range(int(seconds / step + 1e-6) + 1)]
        for time in places:
            x = left + min(round(time / seconds * picture.width), picture.width - 1)
            draw.line((x, bottom, x, bottom + 3), fill=GREY)
            label = f"{time:g}" + (" s" if time == places[-1] else "")
            anchor = "la" if time == 0 else ("ra" if x > left + picture.width - 14 else "ma")
            draw_text(draw, (x, bottom + 3), label, SMALL - 2, fill=GREY, anchor=anchor)
        above = math.inf
        for hertz in self.hertz if first else ():
            y = bottom - round(self._height_of(hertz) * picture.height)
            draw.line((left - 4, y, left - 1, y), fill=GREY)
            if above - y >= 12 and y > top - 2:
                label = f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)
                draw_text(draw, (left - 6, max(y, top + 5)), label, SMALL - 2, fill=GREY, anchor="rm")
                above = y

    def _height_of(self, hertz: float) -> float:
        """Where a frequency lies, as share of the mel bins (HTK's mel scale, and the band of data.spectrogram)."""

        def mel(f: float) -> float:
            return 2595 * math.log10(1 + f / 700)

        lowest, highest = min(20.0, self.geometry.sample_rate / 8), self.geometry.sample_rate / 2
        return (mel(hertz) - mel(lowest)) / (mel(highest) - mel(lowest))


def _round_step(least: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-9)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


TILES: dict[type[Geometry], type[Tiles]] = {Image: Pictures, Video: FilmStrips, Audio: Spectrograms}


# -------------------------------------------------------------------------------------------------------- captions


def class_names(classes: Sequence[str], labels: Sequence[int]) -> str:
    """What stands below an example. A name that can't be written here has its number before it."""
    names = [name if legible(name) == name else f"#{label} {name}" for label in labels for name in [classes[label]]]
    return " · ".join(names) or "(none of the classes)"


def mixed_with_mirrored(examples: Sequence[Shown], weight: float) -> list[Shown]:
    """The captions of a minibatch under mixup: each example's own part, and below it that of its mirrored partner."""
    if weight == 1.0:
        return list(examples)
    return [
        replace(mine, title=f"{weight:.2f} {mine.title}", note=f"+ {1 - weight:.2f} {other.title}")
        for mine, other in zip(examples, reversed(examples), strict=True)
    ]
