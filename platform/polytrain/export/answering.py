"""What a served model answers: the bytes of media files in, classes with their probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytrain.data.decode import DecodeError
from polytrain.data.media_kind import modalities_of
from polytrain.scan import Scan, run_here
from polytrain.trained import Trained, TrainedTask


class Contents:
    """Files' bytes as a scan's examples."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.numbers: list[int] = []
        """Of each in the request."""

    def __len__(self) -> int:
        return len(self.contents)

    def name(self, example: int) -> str:
        return f"file {self.numbers[example]}"

    def content(self, example: int) -> bytes:
        return self.contents[example]

    def clip(self, example: int) -> tuple[None, None]:
        return None, None

    def labels(self, examples: Sequence[int]) -> list[list[int]]:
        return [[] for _ in examples]


class Answering:
    """A model and what it says of files, each shown to it as in the final test of its run."""

    def __init__(self, trained: Trained, device: str = "auto") -> None:
        self.trained = trained
        self.forward = trained.forward(device)
        self._time_limit_s = trained.recipe.data.decode_time_limit_s

    def answer(self, contents: Sequence[bytes], tasks: Sequence[str | None], top: int = 5) -> list[dict[str, Any]]:
        """One answer a file, in their order: `predictions`, the likeliest `top` classes of each task by falling
        probability, each with `task`, `class` and `probability`; or none of them and `error`, the reason.

        `tasks` names each file's task; None: all tasks of its modality, which its content tells. Where a task has
        several labels an example, probabilities are of each class by itself and do not sum to one.
        """
        answers: list[dict[str, Any]] = [{"predictions": [], "error": None} for _ in contents]
        alike: dict[tuple[str, ...], Contents] = {}
        for number, (content, task) in enumerate(zip(contents, tasks, strict=True)):
            try:
                group = alike.setdefault(self._asked(content, task), Contents())
            except DecodeError as error:
                answers[number]["error"] = str(error)
            else:
                group.contents.append(content)
                group.numbers.append(number)
        for names, group in alike.items():
            for scanned in run_here(self.forward, [self._scan(names, group)]):
                for example, _, reason in scanned.bad:
                    answers[group.numbers[example]]["error"] = reason
                for name, logits in scanned.outputs.items():
                    task = self.trained.tasks[name]
                    for example, row in zip(scanned.ids, task.probabilities(logits), strict=True):
                        answers[group.numbers[example]]["predictions"] += likeliest(task, row, top)
        return answers

    def _asked(self, content: bytes, task: str | None) -> tuple[str, ...]:
        """The tasks that a file is for, all of one modality. Raises DecodeError."""
        if task is not None:
            if task not in self.trained.tasks:
                raise DecodeError(f"there is no task {task}; this model has {', '.join(self.trained.tasks)}")
            return (task,)
        modalities = modalities_of(content, time_limit_s=self._time_limit_s)
        for modality in modalities:
            if tasks := self.trained.tasks_of(modality):
                return tuple(task.name for task in tasks)
        known = ", ".join(self.trained.architecture.modalities)
        raise DecodeError(f"of modality {modalities[0]}; this model knows {known}")

    def _scan(self, names: tuple[str, ...], contents: Contents) -> Scan:
        modality = self.trained.tasks[names[0]].modality
        return Scan(
            key="",
            modality=modality,
            geometry=self.trained.architecture.modalities[modality],
            examples=contents,
            views=self.trained.views_of(modality),
            tasks=names,
            decode_time_limit_s=self._time_limit_s,
        )


def likeliest(task: TrainedTask, row: np.ndarray, top: int) -> list[dict[str, Any]]:
    """The `top` classes of one file's probabilities, the likeliest first."""
    order = np.argsort(-row, kind="stable")[:top]
    return [{"task": task.name, "class": task.classes[index], "probability": float(row[index])} for index in order]
