"""What a sweep's own run carries: tables, a picture a task, the winners, and links to every trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polytrain.sweep import plots
from polytrain.sweep.outcome import Row, by_task, winners, write_best, write_tables
from polytrain.sweep.points import Space
from polytrain.tracking import AwayError, Finder, Tracker, history_of


def leave_behind(space: Space, rows: Sequence[Row], tracker: Tracker, folder: Path) -> None:
    """Write table.md, table.parquet, figures/TASK.png and best_hparams.yaml to `folder` and hand them to MLflow."""
    for file in write_tables(rows, folder):
        tracker.artifact(file)
    for task, of_task in by_task(rows).items():
        picture = folder / "figures" / f"{task}.png"
        curves = {row.point.fingerprint: trial_curves(row, tracker.uri) for row in of_task}
        plots.task_plot(of_task, curves, picture)
        tracker.artifact(picture)
    where = {"run_id": tracker.run_id, "tracking_uri": tracker.uri}
    tracker.artifact(write_best(space, rows, where, folder / "best_hparams.yaml"))
    tracker.artifact(folder / "recipe.yaml")
    won = winners(rows)
    tracker.tags(
        {f"polytrain.trial.{row.point.task}.{row.point.label}": row.ended.run_id for row in rows}
        | {f"polytrain.winner.{task}": row.ended.run_id for task, row in won.items()}
    )
    scores = {f"val/{task}/{row.point.metric}": row.ended.score for task, row in won.items()}
    tracker.metrics({key: score for key, score in scores.items() if score is not None}, step=0)


def trial_curves(row: Row, uri: str) -> dict[str, list[tuple[int, float]]]:
    """Training loss and validation metric over steps: from the trial's journal, else from MLflow."""
    names = {"loss": f"train/{row.point.task}/loss", "val": f"val/{row.point.task}/{row.point.metric}"}
    if (row.point.folder / "journal.jsonl").exists():
        history: dict[str, list[tuple[int, float]]] = {name: [] for name in names.values()}
        for key, value, step in history_of(row.point.folder):
            if key in history:
                history[key].append((step, value))
        return {short: history[name] for short, name in names.items()}
    finder = Finder(uri)
    try:
        return {short: finder.history(row.ended.run_id, name) for short, name in names.items()}
    except AwayError:
        return {}
