"""What evaluation makes of predictions: the mean over views, the table of every example."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from polytrain.training.evaluation import Predictions, gather, mean_of_views

CLASSES = ("cat", "dog", "owl")
NAMES = ["a.mp4", "b.mp4", "c.mp4"]


@pytest.fixture
def predictions():
    logits = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -1.0], [0.0, 0.0, 3.0]])
    return Predictions(np.array([4, 7, 9]), logits, torch.eye(3)[[1, 1, 2]])


def test_logits_of_an_example_are_the_mean_of_its_views():
    logits = torch.arange(24.0).view(6, 4)  # two examples of three views
    assert torch.equal(mean_of_views(logits, 2), torch.stack([logits[:3].mean(0), logits[3:].mean(0)]))


def test_one_view_is_left_as_it_is():
    logits = torch.randn(5, 4)
    assert torch.equal(mean_of_views(logits, 5), logits)
    assert mean_of_views(torch.empty(0, 4), 0).shape == (0, 4)


def test_the_table_of_single_labels(predictions):
    rows = predictions.table(NAMES, CLASSES, loss="softmax", multi_label=False).to_pylist()
    assert [row["example"] for row in rows] == [4, 7, 9]
    assert [row["path"] for row in rows] == NAMES
    assert [row["label"] for row in rows] == [1, 1, 2]
    assert [row["predicted"] for row in rows] == [1, 0, 2]
    expected = torch.softmax(predictions.logits, 1).max(1).values
    assert [row["probability"] for row in rows] == pytest.approx(expected.tolist())
    assert rows[1]["logits"] == [1.0, 0.0, -1.0]


def test_the_table_of_several_labels():
    of_task = Predictions(
        np.arange(2), torch.tensor([[0.1, -1.0, 2.0], [-1.0, -2.0, -3.0]]), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    )
    rows = of_task.table(NAMES[:2], CLASSES, loss="sigmoid", multi_label=True).to_pylist()
    assert [(row["labels"], row["predicted"]) for row in rows] == [([0, 2], [0, 2]), ([1], [])]


def test_the_table_survives_parquet_with_its_class_names(predictions, tmp_path):
    table = predictions.table(NAMES, CLASSES, loss="softmax", multi_label=False)
    pq.write_table(table, tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet")
    assert read.equals(table)
    assert json.loads(read.schema.metadata[b"polytrain.classes"]) == list(CLASSES)


def test_a_split_without_examples_has_an_empty_table():
    of_task = gather([], 3)
    assert of_task.table([], CLASSES, loss="softmax", multi_label=False).num_rows == 0
    assert of_task.table([], CLASSES, loss="sigmoid", multi_label=True).num_rows == 0


def test_an_example_that_came_twice_is_refused():
    part = (np.array([1, 2]), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="twice"):
        gather([part, part], 3)
