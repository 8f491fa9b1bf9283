"""How a collection's examples are spread over its classes: bars for each split, and a line that sums them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow

from polytrain.figures import PALETTE
from polytrain.lettering import draw_text, text_width
from polytrain.sheets import GAP, GREY, MARGIN, PALE, PLAIN, RED, SMALL, WIDTH, canvas

CLASSES_LISTED = 40
"""Up to so many classes each have a bar; of more only the largest and the smallest."""
EXTREMES = 12


@dataclass(frozen=True)
class ClassCounts:
    """Examples of each class in each split, [classes] integers; `without`: examples of a split that have no class."""

    classes: Sequence[str]
    splits: dict[str, np.ndarray]
    without: dict[str, int]

    def summary(self) -> str:
        """How the classes are spread, in a line."""
        first = next(iter(self.splits))
        counts = np.sort(self.splits[first])
        if len(counts) == 1:
            return f"1 class, {counts[0]:,} examples in {first}"
        parts = [
            _classes(len(counts)),
            f"examples in {first}: largest class {counts[-1]:,}, median {np.median(counts):,.0f}, "
            f"smallest {counts[0]:,}",
        ]
        empty = {split: np.count_nonzero(of == 0) for split, of in self.splits.items()}
        parts += [f"{_classes(count)} without any in {split}" for split, count in empty.items() if count]
        parts += [f"without a class in {split}: {count:,}" for split, count in self.without.items() if count]
        return "; ".join(parts)

    def rows(self) -> list[int | None]:
        """Which classes get a bar, largest first; None where those between are left out."""
        first = next(iter(self.splits.values()))
        order = np.argsort(-first, kind="stable").tolist()
        if len(order) <= CLASSES_LISTED:
            return order
        return [*order[:EXTREMES], None, *order[-EXTREMES:]]

    def drawn(self) -> Pillow.Image:
        rows = self.rows()
        height = 18
        picture, draw = canvas(62 + GAP + height * len(rows) + 8)
        draw.line((MARGIN, 4, WIDTH - MARGIN, 4), fill=PALE)
        draw_text(draw, (MARGIN, 14), self.summary(), PLAIN, fill=GREY, width=WIDTH - 2 * MARGIN)
        longest = max(text_width(self.classes[row], SMALL) for row in rows if row is not None)
        names = min(360, max(80, math.ceil(longest))) + 44
        panel = min(420, (WIDTH - 2 * MARGIN - names) // len(self.splits))
        for place, (split, counts) in enumerate(self.splits.items()):
            left = MARGIN + names + place * panel
            draw_text(draw, (left, 40), f"{split}", SMALL, bold=True)
            most = max(1, counts.max())
            room = panel - GAP - text_width(f"{most:,}", SMALL) - 8
            for line, row in enumerate(rows):
                if row is None:
                    continue
                top = 62 + line * height
                length = max(1 if counts[row] else 0, round(room * int(counts[row]) / int(most)))
                if length:
                    draw.rectangle((left, top + 2, left + length - 1, top + height - 4), fill=PALETTE[place])
                colour = GREY if counts[row] else RED
                draw_text(draw, (left + length + 5, top + 7), f"{counts[row]:,}", SMALL - 1, fill=colour, anchor="lm")
        for line, row in enumerate(rows):
            middle = 62 + line * height + 7
            if row is None:
                between = f"… {len(self.classes) - 2 * EXTREMES:,} classes between these"
                draw_text(draw, (MARGIN + 34, middle), between, SMALL, fill=GREY, anchor="lm")
                continue
            draw_text(draw, (MARGIN + 26, middle), str(row), SMALL - 2, fill=GREY, anchor="rm")
            draw_text(draw, (MARGIN + 34, middle), self.classes[row], SMALL, anchor="lm", width=names - 44)
        return picture


def _classes(count: int) -> str:
    return f"{count:,} class" + ("es" if count != 1 else "")
