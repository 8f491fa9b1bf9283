"""Text on sheets: fonts for any script, cut to a width, wrapped to lines.

Letters come from DejaVu (Latin, Greek, Cyrillic, Arabic, Hebrew, Georgian and more), which matplotlib brings along; for
others (Chinese, Japanese, Korean, the Indic scripts) the machine's own fonts are searched. A character that no font
has is written as its code point, so that two names never look the same.
"""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import ImageDraw, ImageFont

LATIN_END = 0x250
"""DejaVu has all that lies below: nothing needs to be looked up."""
ELLIPSIS = "…"


def draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    *,
    fill: str = "#222222",
    bold: bool = False,
    anchor: str = "la",
    width: float | None = None,
) -> float:
    """Writes one line, at most `width` pixels of it; returns its width. `anchor` as Pillow's: l, m, r and a, m, s."""
    text = fitted(text, size, width, bold=bold) if width is not None else legible(text)
    runs = list(_runs(text, bold))
    lengths = [_font(path, size).getlength(run) for path, run in runs]
    x, y = place
    x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * sum(lengths)
    for (path, run), length in zip(runs, lengths, strict=True):
        draw.text((round(x), round(y)), run, fill=fill, font=_font(path, size), anchor="l" + anchor[1])
        x += length
    return sum(lengths)


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Pixels of one line."""
    return sum(_font(path, size).getlength(run) for path, run in _runs(legible(text), bold))


def fitted(text: str, size: int, width: float, *, bold: bool = False) -> str:
    """The text, or as much of its beginning as fits `width` pixels together with an ellipsis."""
    text = legible(text)
    if text_width(text, size, bold=bold) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + ELLIPSIS, size, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + ELLIPSIS


def wrapped(text: str, size: int, width: float, lines: int) -> list[str]:
    """The text in at most so many lines of `width` pixels, broken at spaces where there are any."""
    rest, done = legible(text), []
    while rest and len(done) < lines - 1 and text_width(rest, size) > width:
        line = fitted(rest, size, width)[: -len(ELLIPSIS)]
        cut = line.rfind(" ") if not rest[len(line) :].startswith(" ") else len(line)
        line = line[:cut] if cut > 0 else line or rest[0]
        done.append(line)
        rest = rest[len(line) :].lstrip()
    return [*done, fitted(rest, size, width)] if rest else done


def legible(text: str) -> str:
    r"""The text in one line, with the code point (\u732b) in place of every character that no font here has."""
    text = "".join(character for character in " ".join(text.split()) if unicodedata.category(character) != "Cf")
    return "".join(character if _font_of(character) else _code_point(character) for character in text)


def _code_point(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode()


def _runs(text: str, bold: bool) -> Iterator[tuple[str, str]]:
    """(font, stretch of text that it has), in order."""
    run, current = "", None
    for character in text:
        path = _deja_vu(bold) if _font_of(character) == _deja_vu(False) else _font_of(character) or _deja_vu(bold)
        if run and path != current:
            yield current, run
            run = ""
        run, current = run + character, path
    if run:
        yield current, run


@functools.cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.cache
def _deja_vu(bold: bool) -> str:
    # Where it lies is asked without importing matplotlib, which takes half a second that a training worker hasn't got.
    folder = Path(importlib.util.find_spec("matplotlib").submodule_search_locations[0], "mpl-data/fonts/ttf")
    return str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@functools.cache
def _font_of(character: str) -> str | None:
    """The file of the first font that has a character; None if there is none."""
    if ord(character) < LATIN_END:
        return _deja_vu(False) if character.isprintable() else None
    if ord(character) in _characters(_deja_vu(False)):
        return _deja_vu(False)
    return next((path for path in _system_fonts() if ord(character) in _characters(path)), None)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a bitmap font, or a broken one
        return frozenset()


@functools.cache
def _system_fonts() -> Sequence[str]:
    """All of the machine's fonts, plain ones of wide coverage first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple:
        name = Path(path).name.lower()
        wide = ("cjk", "unicode", "fallback", "wqy", "unifont", "gothic", "pingfang", "msyh")
        plain = not any(word in name for word in ("bold", "italic", "oblique", "mono", "serif", "light", "black"))
        return (not any(word in name for word in wide), not plain, name)

    return tuple(sorted(findSystemFonts(), key=rank))
