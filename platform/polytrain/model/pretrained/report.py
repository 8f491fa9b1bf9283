"""What a model took from a source of weights, place by place, to be printed and kept with the run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase

KINDS = ("copied", "resized", "inflated", "skipped", "fresh")
SAID = {"fresh": "left fresh"}


@dataclass(frozen=True)
class Entry:
    """One tensor: its place in the model, the names it had in the source, and what was done or why nothing was."""

    place: str
    """"" for what was skipped."""
    names: tuple[str, ...] = ()
    """() for what was left fresh."""
    note: str = ""

    def __str__(self) -> str:
        note = f"  ({self.note})" if self.note else ""
        return " <- ".join(filter(None, [self.place, " + ".join(self.names)])) + note


@dataclass(frozen=True)
class Report:
    """Every place of the model and every tensor of the source stands here once (a shared one: once a place)."""

    place: str
    kind: str
    norm_eps: float
    gelu: str
    copied: tuple[Entry, ...]
    resized: tuple[Entry, ...]
    """Positions on another grid; kernels with other axes or channels than in the source, but for `inflated`."""
    inflated: tuple[Entry, ...]
    """Tubelet kernels from patch kernels."""
    skipped: tuple[Entry, ...]
    fresh: tuple[Entry, ...]
    remarks: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        return {kind: len(getattr(self, kind)) for kind in KINDS}

    def short(self) -> str:
        """A few lines: how many of each, and what is not plainly copied."""
        gelu = {"none": "exact", "tanh": "by tanh"}[self.gelu]
        lines = [f"Weights from {self.place} ({self.kind}): LayerNorm eps {self.norm_eps:g}, GELU {gelu}"]
        lines.append("  " + ", ".join(f"{count} {SAID.get(kind, kind)}" for kind, count in self.counts().items()))
        lines += [f"  {kind}: {e.place} ({e.note})" for kind in ("resized", "inflated") for e in getattr(self, kind)]
        for kind in ("skipped", "fresh"):
            by_note: dict[str, list[str]] = defaultdict(list)
            for entry in getattr(self, kind):
                by_note[entry.note].append(entry.place or entry.names[0])
            lines += [f"  {SAID.get(kind, kind)}: {_told(names)}: {note}" for note, names in by_note.items()]
        lines += [f"  {remark}" for remark in self.remarks]
        return "\n".join(lines)

    def full(self) -> str:
        """Every tensor, a line each."""
        lines = [self.short().splitlines()[0], *self.remarks]
        for kind in KINDS:
            entries = getattr(self, kind)
            lines += ["", f"{SAID.get(kind, kind)}: {len(entries)}"]
            lines += [f"  {entry}" for entry in entries]
        return "\n".join(lines) + "\n"


def allowed(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern of `model.init_allow` names this tensor or place; a name itself is a pattern, too."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _told(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
