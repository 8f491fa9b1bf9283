"""Images that have no files of their own: the pixels, and when they are made."""

import io
import pickle

import numpy as np
import official_layouts as layouts
import pytest
from official_layouts import read
from PIL import Image


def pixels(example):
    return np.asarray(Image.open(io.BytesIO(example.inline())))


def test_cifars_planes_become_an_rgb_png(tmp_path):
    layouts.cifar10(tmp_path)
    example = read("cifar10", tmp_path).examples[23]
    assert example.path.endswith("data_batch_2.bin#3")
    assert example.classes == ("class3",)
    np.testing.assert_array_equal(pixels(example), np.broadcast_to(np.uint8([23, 3, 0]), (32, 32, 3)))


def test_cifars_rows_and_columns_stay_in_place(tmp_path):
    layouts.cifar10(tmp_path)
    record = np.arange(3072, dtype=np.uint16).astype(np.uint8)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(bytes([4]) + record.tobytes())
    example = read("cifar10", tmp_path).examples[-1]
    planes = record.reshape(3, 32, 32)
    np.testing.assert_array_equal(pixels(example), np.stack([planes[0], planes[1], planes[2]], axis=-1))


def test_cifar_100_takes_the_fine_label(tmp_path):
    layouts.cifar100(tmp_path)
    assert read("cifar100", tmp_path).examples[37].classes == ("fine37",)


def test_patch_camelyons_patches_are_pngs(tmp_path):
    layouts.pcam(tmp_path)
    found = read("pcam", tmp_path)
    example = next(e for e in found.examples if e.path.endswith("train_x.h5#51"))
    assert example.classes == ("tumour",)
    np.testing.assert_array_equal(pixels(example), np.full((96, 96, 3), 51))


def test_dmlabs_jpegs_are_stored_as_they_are(tmp_path):
    layouts.dmlab(tmp_path)
    found = read("dmlab", tmp_path)
    assert {e.inline() for e in found.examples if e.split == "test"} == {
        f"JPEG of test {i}".encode() * 20 for i in range(6)
    }


@pytest.mark.parametrize("name", ["cifar10", "pcam", "dmlab"])
def test_examples_travel_to_workers_without_their_pixels(name, tmp_path):
    getattr(layouts, name)(tmp_path)
    example = read(name, tmp_path).examples[5]
    travelled = pickle.dumps(example)
    assert len(travelled) < 1000
    assert pickle.loads(travelled).inline() == example.inline()
