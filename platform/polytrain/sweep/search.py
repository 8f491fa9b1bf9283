"""Which point comes next, as Ray Tune asks: a study of Optuna's for each task, a grid covered exactly or TPE."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from polytrain.sweep.board import Board
from polytrain.sweep.outcome import CRASHED, INTERRUPTED, Ended, Row
from polytrain.sweep.points import Point, Range, Space, TaskSpace

WORST = -1.0
"""Told of a trial without a score, which diverged: below every percentage."""


class Study:
    """One task's search. Points that ended before are told to Optuna and not handed out."""

    def __init__(self, space: Space, of_task: TaskSpace, known: Mapping[str, Ended], earlier: Sequence[Point]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
        self._space, self.of_task, self._known = space, of_task, known
        self.running = 0
        self._asked, self._asked_as = 0, {}  # trials that Optuna was asked for, and their names there
        self._again: deque[Point] = deque()
        seed = space.recipe.seed % 2**32
        if not of_task.ranges:
            self._left = of_task.trials
            self._optuna = OptunaSearch(
                {key: optuna.distributions.CategoricalDistribution(values) for key, values in of_task.grid.items()},
                metric="score",
                mode="max",
                sampler=optuna.samplers.GridSampler(of_task.grid, seed=seed),
            )
            return
        # TPE draws at random until it has seen a few.
        startup = min(10, max(3, of_task.trials // 3))
        self._optuna = OptunaSearch(
            {key: _distribution(limits) for key, limits in of_task.ranges.items()},
            metric="score",
            mode="max",
            # The seed moves on with what is known: a repeated seed would draw the same first points once more.
            sampler=optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed + len(earlier), constant_liar=True),
        )
        for point in earlier[: of_task.trials]:
            if point.fingerprint in known:
                self._optuna.add_evaluated_point(dict(point.values), _told(known[point.fingerprint]))
            else:
                self._again.append(point)
        self._left = max(0, of_task.trials - len(earlier[: of_task.trials]))

    def next(self, trial_id: str) -> Point | None:
        """The next point that has to run; None when this task has no more."""
        if self._again:
            return self._again.popleft()
        while self._left:
            self._left -= 1
            self._asked += 1
            asked = f"{trial_id}-{self._asked}"
            values = {key: _rounded(value) for key, value in self._optuna.suggest(asked).items()}
            point = self._space.point(self.of_task.task, values)
            if point.fingerprint not in self._known:
                self._asked_as[trial_id] = asked
                return point
            self._optuna.on_trial_complete(asked, {"score": _told(self._known[point.fingerprint])})
        return None

    def tell(self, trial_id: str, score: float | None) -> None:
        """The end of a trial; None: it crashed."""
        asked = self._asked_as.pop(trial_id, None)
        if asked is not None:
            self._optuna.on_trial_complete(asked, None if score is None else {"score": score}, error=score is None)


def _told(ended: Ended) -> float:
    return WORST if ended.score is None else ended.score


def _distribution(limits: Range) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    return (IntDistribution if limits.whole else FloatDistribution)(limits.low, limits.high, log=limits.log)


def _rounded(value: Any) -> Any:
    """Three digits are enough to tell rates apart, and to type them."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


class Studies(Searcher):
    """All tasks' studies as one of Tune's searchers. A grid's long trials go first; a search's tasks take turns."""

    def __init__(self, studies: Sequence[Study], board: Board, stopping: threading.Event) -> None:
        super().__init__(metric="score", mode="max")
        self._studies = sorted(studies, key=lambda study: -study.of_task.cost)
        self._board, self._stopping = board, stopping
        self._of_trial: dict[str, Study] = {}

    def suggest(self, trial_id: str) -> Any:
        if self._stopping.is_set():
            return Searcher.FINISHED
        for study in sorted(self._studies, key=lambda study: study.running if study.of_task.ranges else 0):
            point = study.next(trial_id)
            if point is not None:
                study.running += 1
                self._of_trial[trial_id] = study
                self._board.start(point)
                return {"task": point.task, "values": point.values, "fingerprint": point.fingerprint}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has one result: its end."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        study = self._of_trial.pop(trial_id)
        study.running -= 1
        crashed = error or result is None or result["status"] in (CRASHED, INTERRUPTED)
        study.tell(trial_id, None if crashed else result["score"])

    # What a sweep goes on from is in MLflow and in the trials' folders, not in Tune's own files.
    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def __reduce__(self) -> tuple:
        return (Searcher, ("score", "max"))


def _told_by(trial: Any) -> str | None:
    """What a trial's process raised, as text; None when it died without a word."""
    file = Path(trial.error_file) if trial.error_file else None
    return file.read_text() if file is not None and file.exists() else None


class Ends(Callback):
    """Notes how each trial ended: from its folder, or from Tune when it crashed a second time."""

    def __init__(self, board: Board, on_end: Any, on_crash: Any) -> None:
        self._board, self._on_end, self._on_crash = board, on_end, on_crash

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        point = self._board.point(trial.config["fingerprint"])
        self._board.end(Row(point, self._on_end(point)))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        point = self._board.point(trial.config["fingerprint"])
        self._board.end(Row(point, self._on_crash(point, _told_by(trial))))

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self._board.again(trial.config["fingerprint"])

    def __reduce__(self) -> tuple:
        return (Callback, ())
