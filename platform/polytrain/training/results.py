"""What a finished run leaves to look at: figures, and what the model says of every test example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from polytrain import figures
from polytrain.data.reading import StreamSource
from polytrain.experiment import Experiment
from polytrain.training.evaluation import Predictions
from polytrain.training.metrics import confusion_matrix


def write_predictions(
    folder: Path, experiment: Experiment, source: StreamSource, predictions: Mapping[str, Predictions]
) -> Iterator[Path]:
    """FOLDER/TASK.parquet of each task, a row a test example; yields the files as they are written."""
    folder.mkdir(exist_ok=True)
    for number, task in enumerate(experiment.tasks):
        if task.name not in predictions:
            continue
        of_task = predictions[task.name]
        examples = source.media[number].splits["test"]
        names = [examples.name(example) for example in of_task.ids.tolist()]
        file = folder / f"{task.name}.parquet"
        table = of_task.table(names, task.classes, loss=task.loss, multi_label=task.multi_label)
        pq.write_table(table, file, compression="zstd")
        yield file


def write_curves(file: Path, history: Iterator[tuple[str, float, int]]) -> Path:
    """Every metric over the steps, from (key, value, step)."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for key, value, step in history:
        rows[key].append([step, value])
    figures.curves({key: tuple(np.array(of_key).T) for key, of_key in rows.items()}, file)
    return file


def write_confusions(folder: Path, experiment: Experiment, predictions: Mapping[str, Predictions]) -> Iterator[Path]:
    """FOLDER/TASK.png of each task with one label an example; yields the files as they are written."""
    for task in experiment.tasks:
        if task.multi_label or task.name not in predictions:
            continue
        of_task = predictions[task.name]
        matrix = confusion_matrix(of_task.logits, of_task.targets.argmax(1))
        file = folder / f"{task.name}.png"
        figures.confusion(matrix.numpy(), list(task.classes), file)
        yield file
