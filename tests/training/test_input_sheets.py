"""The sheet of what the model really sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from polytrain.data.device import DeviceInputs
from polytrain.modalities import Audio, Image, Video
from polytrain.training.input_sheets import DRAWABLE, InputSheets

IMAGE = Image(size=(16, 16), patch=(8, 8))
VIDEO = Video(frames=8, stride=1, size=(16, 16), tubelet=(2, 8, 8))
AUDIO = Audio(sample_rate=8000, seconds=0.32, mel_bins=16, patch=(8, 8))


@pytest.fixture
def told(tmp_path):
    """Sheets in a folder, and what they tell."""
    drawn, failed = [], []
    return InputSheets(tmp_path, drawn.append, failed.append), drawn, failed


def draw(sheets, x, labels, *, geometry=IMAGE, task="colours", weight=1.0):
    sheets.draw(task, geometry, ("cat", "dog"), lambda: (x, labels), about="step 1", weight=weight)
    sheets.close()


def test_pixels_come_back_as_they_were_decoded():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    assert torch.equal(DRAWABLE[Image](IMAGE, DeviceInputs({"image": IMAGE})["image"](frames)), frames)


def test_of_a_clip_the_frames_of_its_strip_come_back():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8))
    back = DRAWABLE[Video](VIDEO, DeviceInputs({"video": VIDEO})["video"](frames))
    assert torch.equal(back, frames[:, [0, 1, 3, 4, 6, 7]])


def test_log_mel_energies_come_back_whatever_they_were_standardised_with():
    sound = torch.randn(2, AUDIO.samples, generator=torch.Generator().manual_seed(0)) * 0.1
    other = replace(AUDIO, mean=2.0, deviation=9.0)
    one = DRAWABLE[Audio](AUDIO, DeviceInputs({"audio": AUDIO})["audio"](sound))
    assert one.shape == (2, 32, 16)
    assert torch.allclose(one, DRAWABLE[Audio](other, DeviceInputs({"audio": other})["audio"](sound)), atol=1e-4)


@pytest.mark.parametrize(("geometry", "shape"), [(IMAGE, (16, 16)), (VIDEO, (8, 16, 16)), (AUDIO, (32, 16))])
def test_a_sheet_is_drawn_and_told(geometry, shape, told, tmp_path):
    sheets, drawn, failed = told
    draw(sheets, torch.zeros(3, 3, *shape), [[0], [1], [0, 1]], geometry=geometry, weight=0.6)
    assert drawn == [tmp_path / "colours.png"]
    assert not failed
    assert Pillow.open(drawn[0]).width == 1360


def test_what_the_augmentation_did_is_seen(told):
    sheets, drawn, _ = told
    x = torch.full((1, 3, 16, 16), -1.0)
    x[:, 1, :, 8:] = 1.0  # the right half green
    draw(sheets, x, [[0]])
    pixels = np.asarray(Pillow.open(drawn[0]).convert("RGB"))
    green = np.nonzero((pixels == (0, 255, 0)).all(axis=2))[1]
    black = np.nonzero((pixels == (0, 0, 0)).all(axis=2))[1]
    assert len(green) == len(black) == 420 * 210
    assert green.min() > black.max()


def test_a_task_is_drawn_once(told):
    sheets, _, _ = told
    assert sheets.wants("colours")
    draw(sheets, torch.zeros(1, 3, 16, 16), [[0]])
    assert not sheets.wants("colours")
    assert sheets.wants("shapes")


def test_a_run_that_goes_on_does_not_draw_again(told, tmp_path):
    sheets, _, _ = told
    draw(sheets, torch.zeros(1, 3, 16, 16), [[0]])
    again = InputSheets(tmp_path, print, print)
    assert not again.wants("colours")
    assert again.wants("shapes")


def test_what_goes_wrong_is_told_and_stops_nothing(told):
    sheets, drawn, failed = told
    draw(sheets, torch.zeros(2, 3, 16, 16), [[0], [7]])  # there is no class 7
    assert not drawn
    assert len(failed) == 1
    assert "sheet of what the model sees of colours could not be drawn: IndexError" in failed[0]


def test_a_sheet_that_cannot_be_written_is_told_too(tmp_path):
    (tmp_path / "file").write_text("in the way")
    failed = []
    sheets = InputSheets(tmp_path / "file", print, failed.append)
    draw(sheets, torch.zeros(1, 3, 16, 16), [[0]])
    assert "could not be drawn" in failed[0]


def test_inputs_that_are_not_finite_are_drawn(told):
    sheets, drawn, failed = told
    draw(sheets, torch.full((1, 3, 16, 16), torch.nan), [[0]])
    assert drawn
    assert not failed
