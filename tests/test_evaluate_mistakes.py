"""The surest mistakes: which they are, what is said of them, and the sheet."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from polytrain.data import manifest as manifests
from polytrain.evaluate.mistakes import Mistake, caption, mistakes, mistakes_sheet
from polytrain.modalities import Audio, Image, Video

CLASSES = ("one", "two", "three")
GEOMETRIES = {
    "image": Image(size=(16, 16), patch=(8, 8)),
    "video": Video(frames=4, stride=2, size=(16, 16), tubelet=(2, 8, 8)),
    "audio": Audio(sample_rate=8000, seconds=0.32, mel_bins=16, patch=(8, 8)),
}


def test_the_surest_of_the_wrong_come_first():
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.0, 0.9], [0.5, 0.3, 0.2]])
    targets = torch.eye(3)[[1, 1, 0, 2]]
    found = mistakes(np.array([4, 5, 8, 9]), probabilities, targets, multi_label=False)
    assert [(one.example, one.class_, one.said) for one in found] == [(8, 2, True), (4, 0, True), (9, 0, True)]
    assert [one.sureness for one in found] == pytest.approx([0.9, 0.6, 0.5])


def test_of_several_labels_the_worst_class_of_each_wrong_example_counts():
    probabilities = torch.tensor([[0.9, 0.6, 0.1], [0.9, 0.2, 0.04], [0.8, 0.3, 0.1]])
    targets = torch.tensor([[1.0, 0, 0], [1, 0, 1], [1, 0, 0]])
    found = mistakes(np.arange(3), probabilities, targets, multi_label=True)
    assert [(one.example, one.class_, one.said) for one in found] == [(1, 2, False), (0, 1, True)]
    assert [one.probability for one in found] == pytest.approx([0.04, 0.6])
    assert [one.sureness for one in found] == pytest.approx([0.96, 0.6])


def test_right_answers_and_no_examples_are_no_mistakes():
    assert mistakes(np.arange(3), torch.eye(3), torch.eye(3), multi_label=False) == []
    assert mistakes(np.arange(3), torch.eye(3), torch.eye(3), multi_label=True) == []
    assert mistakes(np.empty(0, int), torch.empty(0, 3), torch.empty(0, 3), multi_label=False) == []


def test_a_caption_says_what_the_model_says():
    assert caption(Mistake(0, 1, True, 0.974, 0.974), CLASSES) == "two 97 %"
    assert caption(Mistake(0, 2, False, 0.02, 0.98), CLASSES) == "no three (2 %)"
    assert caption(Mistake(0, 0, True, 0.9994, 0.9994), CLASSES) == "one 99.9 %"


@pytest.mark.parametrize("modality", list(GEOMETRIES))
def test_a_sheet_is_drawn_of_every_modality(media, tmp_path, modality):
    found = [Mistake(example, 0, True, 0.9 - example / 10, 0.9 - example / 10) for example in (1, 2, 4)]
    manifest = manifests.read(str(media[modality]))
    file = mistakes_sheet(
        manifest, "test", GEOMETRIES[modality], found, title="t, test", classes=CLASSES, examples=8,
        file=tmp_path / "mistakes" / "t.png",
    )  # fmt: skip
    pixels = np.asarray(Pillow.open(file).convert("RGB"))
    assert pixels.shape[1] == 1360
    assert (pixels.std((1, 2)) > 5).sum() > 80  # rows that are not white


def test_the_sheet_shows_the_examples_themselves(media, tmp_path):
    """Class one is red, two green, three blue: the pictures of three mistakes have these colours from left to right."""
    found = [Mistake(example, 0, True, 0.9, 0.9) for example in (3, 1, 2)]
    file = mistakes_sheet(
        manifests.read(str(media["image"])), "test", GEOMETRIES["image"], found, title="t", classes=CLASSES, examples=8,
        file=tmp_path / "t.png",
    )  # fmt: skip
    pixels = np.asarray(Pillow.open(file).convert("RGB")).astype(int)
    dominant = [
        (pixels[..., c] - pixels.max(2, where=np.arange(3) != c, initial=0) > 60).nonzero()[1] for c in range(3)
    ]
    assert all(len(columns) > 5000 for columns in dominant)
    red, green, blue = (columns.mean() for columns in dominant)
    assert red < green < blue


def test_examples_that_have_gone_are_named_on_the_sheet(media, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(media["image"].parent, folder)
    (folder / "test_001.png").unlink()
    found = [Mistake(1, 0, True, 0.9, 0.9)]
    file = mistakes_sheet(
        manifests.read(str(folder / "manifest.parquet")), "test", GEOMETRIES["image"], found, title="t",
        classes=CLASSES, examples=8, file=tmp_path / "t.png",
    )  # fmt: skip
    assert file.exists()
