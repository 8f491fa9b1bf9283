"""Geometry: grids and sequence lengths of the paper's Table 7, and what a wrong one is told."""

import re

import numpy as np
import pytest

from polytrain.modalities import MODALITIES, Audio, Image, Video

TABLE_7 = [
    (Image(size=(224, 224), patch=(16, 16)), (14, 14), 197),
    (Image(size=(384, 384), patch=(16, 16)), (24, 24), 577),
    (Video(frames=32, stride=2, size=(224, 224), tubelet=(4, 16, 16)), (8, 14, 14), 1569),
    (Video(frames=32, stride=2, size=(224, 224), tubelet=(2, 16, 16)), (16, 14, 14), 3137),
    (Audio(sample_rate=16000, seconds=8.0, mel_bins=128, patch=(16, 16)), (50, 8), 401),
]
IMAGE = {"size": (64, 64), "patch": (8, 8)}
VIDEO = {"frames": 12, "stride": 2, "size": (64, 64), "tubelet": (4, 8, 8)}
AUDIO = {"sample_rate": 16000, "seconds": 0.96, "mel_bins": 64, "patch": (8, 8)}


@pytest.mark.parametrize(("geometry", "grid", "positions"), TABLE_7)
def test_grids_and_sequence_lengths_of_table_7(geometry, grid, positions):
    assert (geometry.grid, geometry.positions) == (grid, positions)
    assert geometry.patches == positions - 1


@pytest.mark.parametrize(
    ("geometry", "inputs"), [(Image(**IMAGE), 8 * 8 * 3), (Video(**VIDEO), 4 * 8 * 8 * 3), (Audio(**AUDIO), 8 * 8 * 3)]
)
def test_a_patch_has_three_channels_in_every_modality(geometry, inputs):
    assert geometry.patch_inputs == inputs


@pytest.mark.parametrize(
    ("geometry", "shape", "dtype"),
    [
        (Image(size=(48, 64), patch=(8, 8)), (48, 64, 3), "uint8"),
        (Video(frames=12, stride=2, size=(48, 64), tubelet=(4, 8, 8)), (12, 48, 64, 3), "uint8"),
        (Audio(**AUDIO), (15360,), "float32"),
    ],
)
def test_what_a_decoder_delivers(geometry, shape, dtype):
    assert (geometry.decoded_shape, geometry.decoded_dtype) == (shape, dtype)
    assert geometry.decoded_bytes == np.empty(shape, dtype).nbytes


def test_a_clip_spans_its_frames_and_the_gaps_between_them():
    assert Video(**VIDEO).span == 23
    assert Video(**VIDEO | {"stride": 1}).span == 12


def test_windows_hops_and_clips_of_sound_are_whole_samples():
    audio = Audio(**AUDIO)
    assert (audio.window, audio.hop, audio.samples) == (400, 160, 15360)
    cd_rate = Audio(**AUDIO | {"sample_rate": 44100})
    assert (cd_rate.window, cd_rate.hop, cd_rate.samples) == (1102, 441, 42336)


def test_a_spectrogram_is_time_by_frequency():
    assert Audio(**AUDIO).input_shape == (96, 64)


def test_every_modality_is_found_by_its_name():
    assert {name: kind.name for name, kind in MODALITIES.items()} == {n: n for n in ("image", "video", "audio")}


def test_a_geometry_is_a_value():
    assert Image(**IMAGE) == Image(**IMAGE)
    assert len({Video(**VIDEO), Video(**VIDEO)}) == 1


@pytest.mark.parametrize(
    ("kind", "values", "axis", "size", "patch", "below", "above"),
    [
        (Image, IMAGE | {"size": (384, 390), "patch": (16, 16)}, "width", 390, 16, 384, 400),
        (Image, IMAGE | {"size": (60, 64)}, "height", 60, 8, 56, 64),
        (Video, VIDEO | {"frames": 14}, "frames", 14, 4, 12, 16),
        (Video, VIDEO | {"size": (64, 225)}, "width", 225, 8, 224, 232),
        (Audio, AUDIO | {"mel_bins": 100}, "frequency (mel_bins)", 100, 8, 96, 104),
        (Audio, AUDIO | {"seconds": 1.0}, "time (seconds * 1000 / hop_ms spectrogram frames)", 100, 8, 96, 104),
    ],
)
def test_a_size_that_patches_do_not_fill_is_told_its_axis_and_the_nearest_right_sizes(
    kind, values, axis, size, patch, below, above
):
    message = f"{axis}: input {size} is not a multiple of patch {patch}; {below} or {above} would be"
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**values)


def test_a_patch_larger_than_the_input_is_told_one_right_size_not_two():
    with pytest.raises(ValueError, match=r"height: input 6 is not a multiple of patch 8; 8 would be$"):
        Image(size=(6, 64), patch=(8, 8))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Image, IMAGE | {"patch": (0, 8)}, "height: input 64 and patch 0 must both be at least 1"),
        (Video, VIDEO | {"frames": 0}, "frames: input 0 and patch 4 must both be at least 1"),
        (Video, VIDEO | {"stride": 0}, "stride: 0 must be at least 1"),
        (Audio, AUDIO | {"seconds": 0.0}, "seconds: 0.0 must be greater than 0"),
        (Audio, AUDIO | {"deviation": 0.0}, "deviation: 0.0 must be greater than 0"),
        (Audio, AUDIO | {"hop_ms": 2000.0}, "hop_ms: 2000.0 ms is longer than the clip of 0.96 s"),
    ],
)
def test_impossible_numbers_are_named(kind, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**values)


def test_a_hop_shorter_than_a_sample_is_an_error_not_a_division_by_zero():
    with pytest.raises(ValueError, match="hop_ms"):
        Audio(**AUDIO | {"hop_ms": 0.01})
