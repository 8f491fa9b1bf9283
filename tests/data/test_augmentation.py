"""Draws: a function of each example's seed, within the published ranges, the same for any number of workers."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytrain.data.augment import apply
from polytrain.data.augmentation import AUGMENTATIONS, OPERATIONS, augmentation, fitting
from polytrain.data.views import View
from polytrain.modalities import Audio, Image, Video
from polytrain.plan import Plan, PlannedTask, mix, uniform
from polytrain.schedule import Budget, make_schedule
from polytrain.training.step import mix_mirrored

IMAGE = Image((24, 24), (8, 8))
VIDEO = Video(4, 1, (24, 24), (2, 8, 8))
AUDIO = Audio(sample_rate=16000, seconds=0.96, mel_bins=64, patch=(8, 8))
PAPER_AUDIO = Audio(sample_rate=16000, seconds=8.0, mel_bins=128, patch=(16, 16))
GEOMETRIES = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}
CASES = [(name, modality) for name, entry in AUGMENTATIONS.items() for modality in entry.modalities]
MANY = mix(np.arange(20_000, dtype=np.uint64))


def one_task_plan(modality, batch, alpha=0.0):
    task = PlannedTask("t", modality, batch, {"train": 50, "val": 0, "test": 0}, "d", alpha)
    return Plan(make_schedule("weighted", [Budget(9, 0, 0.1)], 0), [task], seed=3, eval_every=9)


@pytest.mark.parametrize("alpha", [0.0, 0.4], ids=["alone", "under mixup"])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("name", "modality"), CASES)
def test_a_step_shows_the_same_pixels_on_any_number_of_workers(name, modality, workers, alpha):
    geometry, entry, batch = GEOMETRIES[modality], AUGMENTATIONS[name], 7
    plan = one_task_plan(modality, batch, alpha)
    minibatch = plan.train(4)
    x = torch.rand(batch, 3, *geometry.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if modality == "audio":
        x = x[:, :1].expand(-1, 3, -1, -1)

    def shown(indices):
        augmented = apply(x[indices].clone(), entry.draws(geometry, minibatch.seeds[indices]))
        return mix_mirrored(augmented, plan.mixup_lambda(minibatch))

    whole = shown(np.arange(batch))
    for rank in range(workers):
        share = plan.share(minibatch, rank, workers)
        assert torch.equal(shown(share), whole[share])


@pytest.mark.parametrize(("name", "modality"), CASES)
def test_a_view_is_a_function_of_the_seed(name, modality):
    entry, geometry = AUGMENTATIONS[name], GEOMETRIES[modality]
    views = [entry.view(geometry, seed) for seed in MANY[:20]]
    assert views == [entry.view(geometry, seed) for seed in MANY[:20]]
    assert len({view.position for view in views}) == 20


def test_none_draws_the_place_of_the_clip_and_nothing_else():
    for modality, geometry in GEOMETRIES.items():
        entry = augmentation("none")
        assert modality in entry.modalities
        assert entry.view(geometry, MANY[5]) == View(position=float(uniform(MANY[5], "clip")), box=None)
        assert entry.draws(geometry, MANY[:3]) == {}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    case=st.sampled_from([case for case in CASES if case[1] != "audio"]),
)
def test_boxes_lie_within_the_frame(seed, height, width, case):
    name, modality = case
    geometry = GEOMETRIES[modality]
    view = AUGMENTATIONS[name].view(geometry, np.uint64(seed))
    top, left, tall, wide = view.region(height, width, geometry.size)
    assert top >= 0
    assert left >= 0
    assert 0 < tall <= height - top + 1e-6
    assert 0 < wide <= width - left + 1e-6


def test_inception_crops_cover_areas_from_a_twentieth_to_all():
    areas = []
    for seed in MANY[:2000]:
        _, _, tall, wide = AUGMENTATIONS["image"].view(IMAGE, seed).region(600, 600, (224, 224))
        areas.append(tall * wide / 600**2)
    assert 0.049 < min(areas) < 0.06
    assert max(areas) > 0.95


def test_video_crops_are_a_224th_of_256_scaled_by_the_published_factors():
    boxes = [AUGMENTATIONS["video"].view(VIDEO, seed).box for seed in MANY[:2000]]
    for factors in ([box.scale_y for box in boxes], [box.scale_x for box in boxes]):
        assert 0.9 <= min(factors) < 0.903
        assert 1.327 < max(factors) <= 1.33
    scale_y, scale_x = np.array([[box.scale_y, box.scale_x] for box in boxes]).T
    assert abs(np.corrcoef(scale_y, scale_x)[0, 1]) < 0.07, "drawn independently"


def test_video_colours_are_drawn_within_the_published_ranges():
    colour = AUGMENTATIONS["video"].draws(VIDEO, MANY)["colour"]
    for column, (low, high) in enumerate([(-32 / 255, 32 / 255), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2)], start=1):
        assert low <= colour[:, column].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < colour[:, column].max() <= high + 1e-6


@pytest.mark.parametrize(
    ("name", "change", "chance"),
    [("video", "flip", 0.5), ("image", "flip", 0.5), ("video", "grey", 0.1), ("video", "colour", 0.8)],
)
def test_chances_are_the_published_ones(name, change, chance):
    drawn = AUGMENTATIONS[name].draws(VIDEO, MANY)[change]
    happens = drawn[:, 0] > 0 if drawn.ndim > 1 else drawn
    assert happens.mean() == pytest.approx(chance, abs=0.012)


def test_randaugment_takes_every_operation_as_often_in_every_layer():
    operations = AUGMENTATIONS["randaugment"].draws(VIDEO, MANY)["operations"]
    assert operations.shape == (len(MANY), 2, 4)
    for layer in range(2):
        counts = np.bincount(operations[:, layer, 0].astype(int), minlength=len(OPERATIONS))
        assert len(counts) == len(OPERATIONS) == 12
        assert counts / len(MANY) == pytest.approx(1 / 12, abs=0.008)
    assert (operations[:, 0, 0] == operations[:, 1, 0]).mean() == pytest.approx(1 / 12, abs=0.008)


def test_the_magnitude_is_the_recipes():
    assert (augmentation("randaugment", 20).draws(IMAGE, MANY[:3])["operations"][..., 1] == 20).all()


@pytest.mark.parametrize(
    ("geometry", "change", "widest"),
    [
        (PAPER_AUDIO, "time_masks", 192),
        (PAPER_AUDIO, "frequency_masks", 48),
        (AUDIO, "time_masks", 23),
        (AUDIO, "frequency_masks", 24),
    ],
)
def test_masks_are_as_wide_as_published_and_lie_within(geometry, change, widest):
    masks = AUGMENTATIONS["audio"].draws(geometry, MANY)[change]
    assert masks.shape == (len(MANY), 1, 2)
    first, end = masks[:, 0].T
    assert (end - first).min() == 0
    assert widest - 1 <= (end - first).max() <= widest
    assert first.min() == 0
    assert end.max() <= geometry.input_shape[0 if change == "time_masks" else 1]


def test_draws_of_different_purposes_are_independent():
    draws = AUGMENTATIONS["video"].draws(VIDEO, MANY)
    columns = np.column_stack([draws["flip"], draws["grey"], draws["colour"]]).T
    off_diagonal = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(off_diagonal).max() < 0.03


@pytest.mark.parametrize(
    ("modality", "names"),
    [
        ("image", ["none", "image", "randaugment"]),
        ("video", ["none", "video", "randaugment"]),
        ("audio", ["none", "audio"]),
    ],
)
def test_every_modality_has_its_augmentations(modality, names):
    assert fitting(modality) == names


def test_entries_are_frozen_so_that_decode_workers_share_them():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AUGMENTATIONS["randaugment"].magnitude = 3
