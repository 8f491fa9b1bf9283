"""Files of weights: what is read, what is refused, and that nothing in them is ever run."""

import argparse
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polytrain.model.pretrained import WeightsError, open_source
from polytrain.model.pretrained.files import read


class Trap:
    """Unpickled, it makes the file it names."""

    def __init__(self, sprung):
        self.sprung = str(sprung)

    def __reduce__(self):
        return (os.mkdir, (self.sprung,))


@pytest.fixture
def sprung(tmp_path):
    return tmp_path / "sprung"


def test_the_trap_is_one(sprung):
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torchs_that_would_run_code_is_refused_and_not_run(tmp_path, sprung, zipped, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = {"patch_embed.proj.weight": torch.ones(2), "x": Trap(sprung)}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"model\.pth: to read it, posix\.mkdir would have to be run, and nothing is"
    ):
        open_source(tmp_path / "model.pth")
    assert not sprung.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["model.bin", "model.npz", "model.safetensors"])
def test_a_bare_pickle_under_any_name_is_refused_and_not_run(tmp_path, sprung, protocol, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung), protocol=protocol))
    with pytest.raises(WeightsError, match=name):
        open_source(tmp_path / name)
    assert not sprung.exists()


def test_a_training_checkpoint_with_a_namespace_says_what_it_would_run(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"argparse\.Namespace would have to be run.*safetensors.*would be right"):
        read(tmp_path / "x.pth")


def test_an_array_of_objects_in_an_npz_is_refused_and_not_run(tmp_path, sprung):
    np.savez(tmp_path / "vit.npz", cls=np.array([Trap(sprung)], dtype=object))
    with pytest.raises(WeightsError, match=r"vit\.npz, cls: holds Python objects, which would have to be unpickled"):
        read(tmp_path / "vit.npz")
    assert not sprung.exists()


def contents():
    return {"a": torch.randn(30, 40), "b": torch.randn(700)}


def write(path, form):
    if form == "npz":
        np.savez(path, **{name: value.numpy() for name, value in contents().items()})
    elif form == "safetensors":
        save_file(contents(), path)
    else:
        torch.save(contents(), path, _use_new_zipfile_serialization=form == "torch")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["npz", "safetensors", "torch", "torch before 1.6"])
@pytest.mark.parametrize("shapes_only", [True, False])
def test_a_truncated_file_is_named(tmp_path, form, kept, shapes_only):
    whole = tmp_path / "whole.npz"
    write(whole, form)
    data = whole.read_bytes()
    (tmp_path / "torn.npz").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(WeightsError, match=r"torn\.npz.*(truncated|damaged|empty)"):
        read(tmp_path / "torn.npz", shapes_only=shapes_only)


def test_a_flipped_byte_in_an_npz_is_noticed(tmp_path):
    write(tmp_path / "x.npz", "npz")
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[2000] ^= 255
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(WeightsError, match=r"x\.npz is truncated or damaged: Bad CRC-32"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("form", ["npz", "safetensors", "torch", "torch before 1.6"])
def test_shapes_alone_are_those_of_the_tensors_and_take_no_memory(tmp_path, form):
    write(tmp_path / "x", form) if form != "npz" else write(tmp_path / "x.npz", form)
    file = next(tmp_path.iterdir())
    tensors, shapes = read(file), read(file, shapes_only=True)
    assert {name: tensor.shape for name, tensor in shapes.items()} == {"a": (30, 40), "b": (700,)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (30, 40), "b": (700,)}
    assert all(tensor.is_meta for tensor in shapes.values())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, dtype, order, shape):
    array = np.asarray(np.random.default_rng(0).integers(0, 100, shape), dtype=dtype, order=order)
    np.savez(tmp_path / "x.npz", array=array)
    torch.testing.assert_close(read(tmp_path / "x.npz")["array"].numpy(), np.load(tmp_path / "x.npz")["array"])


@pytest.mark.parametrize("dtype", [">f4", "c8", "S3"])
def test_other_types_of_numbers_are_named(tmp_path, dtype):
    np.savez(tmp_path / "x.npz", array=np.zeros(3, dtype))
    with pytest.raises(WeightsError, match=r"x\.npz, array: its numbers are of type"):
        read(tmp_path / "x.npz")


def test_what_is_nothing_known_says_what_would_be(tmp_path):
    (tmp_path / "vit.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(
        WeightsError, match=r"vit\.h5 holds no weights of a known kind; known are \.npz, safetensors, and"
    ):
        open_source(tmp_path / "vit.h5")
    with pytest.raises(WeightsError, match=r"there is nothing at .*absent\.npz"):
        open_source(tmp_path / "absent.npz")


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(WeightsError, match=r"a folder without model\.safetensors or pytorch_model\.bin$"):
        open_source(tmp_path)
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=np.zeros(1))
    with pytest.raises(WeightsError, match=r"but 2 files that may: a\.npz, b\.npz"):
        open_source(tmp_path)


def test_a_run_folder_points_to_its_final_checkpoint(tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "state.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"did you mean .*final\?"):
        open_source(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"there is nothing at .*two\.safetensors"):
        read(tmp_path)


def test_an_index_may_not_name_files_elsewhere(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(WeightsError, match=r"names a file outside its folder, \.\./secret\.safetensors"):
        read(tmp_path)


def test_a_file_of_torchs_without_tensors_shows_its_keys(tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"holds no dict of tensors \(its keys: epoch, best\)"):
        read(tmp_path / "x.pth")


def test_weights_of_another_model_are_told_by_their_first_names(tmp_path):
    save_file({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(
        WeightsError, match=r"no vision transformer that is known by its names .* begins conv1\.weight, fc"
    ):
        open_source(tmp_path / "resnet.safetensors")


def test_a_zip_of_other_things_is_no_file_of_weights(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match=r"x\.zip is truncated or damaged"):
        open_source(tmp_path / "x.zip")
