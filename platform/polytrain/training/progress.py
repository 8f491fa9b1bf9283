"""What a run has behind it, as it travels in checkpoints; bad media are counted here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polytrain.plan import Plan
from polytrain.secrecy import without_secrets

FRACTION_AFTER = 100
"""Examples a task must have tried before its fraction of bad ones is judged."""


@dataclass
class Progress:
    """Steps done, validations, and every bad file by task, split and example id: [path, reason]."""

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # score and step of the best validation
    validation: dict[str, dict[str, float]] = field(default_factory=dict)  # the last one, by task
    bad: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    seconds: float = 0.0  # spent in the loop, over all attempts
    spent: dict[str, float] = field(default_factory=dict)  # the same by what they were spent on

    def note_bad(self, task: str, split: str, found: list[tuple[int, str, str]]) -> None:
        """Add bad examples (id, path, reason) of a share."""
        known = self.bad.setdefault(task, {}).setdefault(split, {})
        for example, path, reason in found:
            if str(example) not in known:
                known[str(example)] = [path, without_secrets(reason)]

    def note_bad_of(self, other: dict[str, dict[str, dict[str, list[str]]]]) -> None:
        """Add what another worker found."""
        for task, splits in other.items():
            for split, found in splits.items():
                self.note_bad(task, split, [(int(example), *of_file) for example, of_file in found.items()])

    @property
    def any_bad(self) -> bool:
        return any(found for splits in self.bad.values() for found in splits.values())

    def too_bad(self, plan: Plan, limit: float, *, always: bool = False) -> str | None:
        """What to tell of the first task whose share of bad training examples is over `limit`; with `always`, any."""
        counts = Counter(plan.schedule.draws[: self.step * plan.schedule.draws_per_step].tolist())
        for number, task in enumerate(plan.tasks):
            bad = self.bad.get(task.name, {}).get("train", {})
            if not bad:
                continue
            tried = min(task.sizes["train"], counts[number] * task.batch_size + len(bad))
            if (tried >= min(FRACTION_AFTER, task.sizes["train"]) and len(bad) / tried > limit) or always:
                listed = "\n".join(f"  {path}: {reason}" for path, reason in list(bad.values())[:20])
                return (
                    f"task {task.name}: {len(bad)} of {tried} training examples can't be decoded, over "
                    f"data.max_bad_fraction {limit:g}. quarantine.parquet in the run's folder lists all:\n{listed}"
                )
        return None

    def write_quarantine(self, file: Path) -> Path:
        """Every bad file with task, split and reason, as Parquet."""
        rows = [
            {"task": task, "split": split, "example": int(example), "path": path, "reason": reason}
            for task, splits in self.bad.items()
            for split, found in splits.items()
            for example, (path, reason) in found.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
