"""Nothing that a user brings is unpickled: weights, datasets, manifests, media, recipes, winners of sweeps.

Every bomb here is a real one: unpickled, it makes a folder. (Checkpoints: test_trained.py.)
"""

import ast
import json
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

# Importing it registers types with Arrow whose values are pickles, as happens in the processes that decode.
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from polytrain.command_line import BAD_INPUT, cotrain_command
from polytrain.data import manifest
from polytrain.data.decode import DecodeError, decode
from polytrain.data.examples import examples_of
from polytrain.ingest.commands import prepare_command
from polytrain.modalities import Audio, Image, Video
from polytrain.model.pretrained import WeightsError, open_source
from polytrain.packing import Layout, pack
from polytrain.recipe import RecipeError
from polytrain.recipe_file import _StrictLoader, load
from polytrain.training import checkpoint

LIBRARY = Path(manifest.__file__).parents[1]


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def bomb(tmp_path):
    """A bomb that must not have gone off when the test ends."""
    folder = tmp_path / "exploded"
    yield Bomb(folder)
    assert not folder.exists(), "something was unpickled"


def test_the_bomb_goes_off_where_something_unpickles_it(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


# --- weights ------------------------------------------------------------------------------------------------------


def raw(bomb, path):
    path.write_bytes(pickle.dumps(bomb))


def torch_zip(bomb, path):
    torch.save({"weight": torch.zeros(2), "more": bomb}, path)


def torch_old(bomb, path):
    torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False)


def torch_script(bomb, path):
    """A TorchScript archive whose constants are a bomb."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(bomb, 2) if name.endswith(".pkl") else content)


def npz(bomb, path):
    with path.open("wb") as file:
        np.savez(file, weight=np.array([bomb], dtype=object))


def npz_with_a_pickle(bomb, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", pickle.dumps(bomb))


@pytest.mark.parametrize("shapes_only", [True, False], ids=["judged", "loaded"])
@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (raw, "w.bin"), (raw, "w.safetensors"), (raw, "w.npz"), (torch_zip, "w.pt"), (torch_old, "w.pth"),
        (torch_zip, "w.safetensors"), (torch_script, "w.pt"), (npz, "w.npz"), (npz_with_a_pickle, "w.npz"),
        (torch_zip, "folder/pytorch_model.bin"), (raw, "folder/model.safetensors"),
    ],
)  # fmt: skip
def test_weights_with_a_bomb_are_refused(bomb, tmp_path, plant, name, shapes_only):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    plant(bomb, file)
    with pytest.raises(WeightsError):
        open_source(file.parent if "/" in name else file, shapes_only=shapes_only)


def test_a_run_that_is_to_start_from_a_bomb_ends_with_a_message(bomb, tmp_path, tiny, recipe_file, capsys):
    torch_zip(bomb, tmp_path / "w.pt")
    code = cotrain_command("", [str(recipe_file(tiny)), f"model.init={tmp_path / 'w.pt'}", "--dry-run"])
    assert code == BAD_INPUT
    assert "error: model.init:" in capsys.readouterr().err


def test_an_optimizer_state_with_a_bomb_is_refused_when_a_run_goes_on(bomb, tmp_path):
    """Also where `state.json` vouches for it."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder = tmp_path / "step_000000001"
    checkpoint.save(folder, model=model, optimizer=optimizer, recipe_yaml="", state={"step": 1})
    torch_zip(bomb, folder / "optimizer.pt")
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["optimizer.pt"] = checkpoint._digest(folder / "optimizer.pt")
    (folder / "state.json").write_text(json.dumps(state))
    assert checkpoint.newest_whole(tmp_path).path == folder
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(folder, model, optimizer)


# --- manifests and packed collections -------------------------------------------------------------------------------


def pickles(bomb, count):
    """A column of Ray's type whose values are bombs."""
    storage = pa.array([pickle.dumps(bomb)] * count, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)


def with_column(source, target, name, column):
    table = pq.read_table(source)
    place = table.column_names.index(name) if name in table.column_names else None
    metadata = table.schema.metadata
    table = table.append_column(name, column) if place is None else table.set_column(place, name, column)
    pq.write_table(table.replace_schema_metadata(metadata), target)


def test_bombs_in_a_column_go_off_where_somebody_looks_at_them(tmp_path, media):
    """So that the tests below can fail."""
    count = len(pq.read_table(media["image"]))
    with_column(media["image"], tmp_path / "m.parquet", "path", pickles(Bomb(tmp_path / "exploded"), count))
    pq.read_table(tmp_path / "m.parquet")["path"][0].as_py()
    assert (tmp_path / "exploded").exists()


def test_a_pickle_instead_of_a_manifest_is_refused(bomb, tmp_path):
    raw(bomb, tmp_path / "manifest.parquet")
    with pytest.raises(manifest.ManifestError, match="is not a whole Parquet file"):
        manifest.read(tmp_path / "manifest.parquet")


@pytest.mark.parametrize("column", ["path", "data", "split", "label"])
def test_a_manifest_of_bombs_is_refused_by_its_column(bomb, tmp_path, media, column):
    count = len(pq.read_table(media["image"]))
    with_column(media["image"], tmp_path / "manifest.parquet", column, pickles(bomb, count))
    with pytest.raises(manifest.ManifestError, match=f"column '{column}' is of type .*; it should be"):
        manifest.read(tmp_path / "manifest.parquet")


def test_bombs_in_a_column_of_no_concern_are_never_looked_at(bomb, tmp_path, media):
    count = len(pq.read_table(media["image"]))
    with_column(media["image"], tmp_path / "manifest.parquet", "notes", pickles(bomb, count))
    assert sum(manifest.read(tmp_path / "manifest.parquet").sizes.values()) == count


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "arrow.py_extension_type"])
def test_a_bomb_in_a_columns_own_description_is_not_run(bomb, tmp_path, media, name):
    """Types that were described to Arrow by a pickle, in PyArrow before version 14 and in Ray before 2.55."""
    table = pq.read_table(media["image"])
    field = pa.field("notes", pa.list_(pa.int64()), metadata={
        "ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(bomb),
    })  # fmt: skip
    column = pa.array([[1]] * len(table), pa.list_(pa.int64()))
    pq.write_table(table.append_column(field, column), tmp_path / "manifest.parquet")
    if name == "arrow.py_extension_type":  # which Arrow does not know any more
        assert len(manifest.read(tmp_path / "manifest.parquet").table) == len(table)
    else:
        with pytest.raises(manifest.ManifestError, match="a type that is not Arrow's own"):
            manifest.read(tmp_path / "manifest.parquet")


def test_a_packed_collection_with_bombs_for_media_is_refused(bomb, tmp_path, media, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path, _ = pack(str(media["image"]), str(tmp_path / "packed"), Layout(shard_bytes=1 << 20, group_bytes=1 << 20))
    (shard,) = (tmp_path / "packed").glob("train*.parquet")
    with_column(shard, shard, "data", pickles(bomb, pq.read_metadata(shard).num_rows))
    examples = examples_of(manifest.read(path))["train"]
    with pytest.raises(OSError, match="'data' is of type .*; it should be binary"):
        examples.content(0)
    examples.close()


# --- media, datasets, text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "suffix"),
    [
        (Image(size=(8, 8), patch=(8, 8)), ".png"), (Image(size=(8, 8), patch=(8, 8)), ".jpg"),
        (Video(frames=2, stride=1, size=(8, 8), tubelet=(2, 8, 8)), ".mp4"),
        (Audio(sample_rate=8000, seconds=0.32, mel_bins=16, patch=(1, 8)), ".wav"),
    ],
)  # fmt: skip
def test_media_that_are_bombs_are_undecodable(bomb, tmp_path, geometry, suffix):
    file = tmp_path / f"file{suffix}"
    raw(bomb, file)
    for source in (str(file), file.read_bytes()):
        with pytest.raises(DecodeError):
            decode(geometry, source)


def test_a_dataset_in_hdf5_of_bombs_is_refused(bomb, tmp_path, capsys):
    """The layout of PatchCamelyon, with objects instead of pictures and labels."""
    for part in ("train", "valid", "test"):
        for kind in ("x", "y"):
            with h5py.File(tmp_path / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                column = file.create_dataset(kind, (2,), h5py.vlen_dtype(np.uint8))
                column[0] = column[1] = np.frombuffer(pickle.dumps(bomb), np.uint8)
    code = prepare_command("", ["pcam", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    assert code == BAD_INPUT
    assert "error:" in capsys.readouterr().err


def test_a_dataset_of_python_pickles_is_refused(bomb, tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        raw(bomb, folder / name)
    code = prepare_command("", ["cifar10", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    assert code == BAD_INPUT
    assert "a pickle, which runs code when it is loaded" in capsys.readouterr().err


def test_yaml_that_asks_for_python_is_refused(tmp_path, tiny, recipe_file):
    recipe = recipe_file(tiny)
    order = f"!!python/object/apply:os.mkdir ['{tmp_path}/exploded']\n"
    recipe.write_text(f"{recipe.read_text()}license: {order}")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load(recipe)
    (tmp_path / "best_hparams.yaml").write_text(f"tasks: {order}")
    from polytrain.sweep.reuse import with_hparams

    with pytest.raises(RecipeError, match="hparams"):
        with_hparams(load(recipe_file(tiny), [f"hparams={tmp_path / 'best_hparams.yaml'}"]))
    assert not (tmp_path / "exploded").exists()


# --- the library itself ---------------------------------------------------------------------------------------------

PICKLING = {"pickle", "_pickle", "cloudpickle", "ray.cloudpickle", "dill", "joblib", "shelve", "marshal"}
"""Modules that unpickle, or run code otherwise, what they read."""

HARMLESS = {"dump", "dumps", "Pickler", "PickleError", "PicklingError", "UnpicklingError", "HIGHEST_PROTOCOL"}
"""What of them unpickles nothing."""

UNPICKLE = {
    "torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package.PackageImporter", "yaml.load_all",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "omegaconf.OmegaConf.load",
}  # fmt: skip
"""By their whole names."""

ANYWHERE = {"read_pickle", "read_hdf", "HDFStore", "unsafe_load", "full_load", "Unpickler", "load_model"}
"""By their last names, whatever they are called on."""

ALLOWED = {
    ("platform/polytrain/apart.py", "ray.cloudpickle.loads"): "the argument of a process that it starts itself",
    (
        "platform/polytrain/benchmarks/scale.py",
        "pickle.loads",
    ): "a file that it wrote a moment before, in a folder of its own",
    (
        "platform/polytrain/export/judging.py",
        "torch.export.load",
    ): "the graph that the same export wrote a moment before",
    ("platform/polytrain/recipe_file.py", "yaml.load"): "its loader is yaml.SafeLoader made stricter (a test below)",
}


def unpickling(tree):
    """Names of what unpickles, or would if it were asked to, with their lines; aliases are followed."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                package = name.name.partition(".")[0]
                aliases[name.asname or package] = name.name if name.asname else package
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for name in node.names:
                aliases[name.asname or name.name] = whole = f"{node.module}.{name.name}"
                if (is_unpickling(whole) and whole not in PICKLING) or (node.module in PICKLING and name.name == "*"):
                    yield whole, node.lineno
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            first, dot, rest = ast.unparse(node).partition(".")
            whole = f"{aliases.get(first, first)}{dot}{rest}"
            # A module by itself is a value that somebody may take anything of: getattr(pickle, "loads").
            if is_unpickling(whole) and (id(node) not in inner or whole not in PICKLING):
                yield whole, node.lineno
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            first, dot, rest = called.partition(".")
            called = f"{aliases.get(first, first)}{dot}{rest}"
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            words = [word.value for word in node.args if isinstance(word, ast.Constant)]
            if any((
                called in ("torch.load", "torch.serialization.load") and said.get("weights_only") != "True",
                said.get("weights_only", "True") != "True",
                said.get("allow_pickle", "False") != "False",
                called == "yaml.load" and said.get("Loader") not in ("yaml.SafeLoader", "yaml.CSafeLoader"),
                called.rpartition(".")[2] in ("import_module", "__import__") and PICKLING.intersection(words),
            )):  # fmt: skip
                yield called, node.lineno


def is_unpickling(name):
    module, _, last = name.rpartition(".")
    if module in PICKLING:
        return last not in HARMLESS
    return name in PICKLING | UNPICKLE or last in ANYWHERE


def test_the_library_unpickles_nothing_but_what_it_wrote_itself():
    root = LIBRARY.parents[1]
    found = {
        (str(file.relative_to(root)), name): f"line {line}"
        for file in [*LIBRARY.rglob("*.py"), *(root / "jobs").rglob("*.py")]
        for name, line in unpickling(ast.parse(file.read_text()))
    }
    assert set(found) == set(ALLOWED), found


def test_the_loader_of_recipes_makes_nothing_but_data():
    assert issubclass(_StrictLoader, yaml.SafeLoader)
    made = set(_StrictLoader.yaml_constructors) - set(yaml.SafeLoader.yaml_constructors)
    assert not made | set(_StrictLoader.yaml_multi_constructors)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle; pickle.loads(x)", "from pickle import loads", "from pickle import loads as l; l(x)", "from pickle import *",
        "import pickle as p; p.load(x)", "import pickle; pickle.Unpickler(x).load()", "from pickle import Unpickler",
        "import pickle; read = pickle.loads", "import pickle; getattr(pickle, name)(x)", "import _pickle; _pickle.loads(x)",
        "import dill; dill.load(x)", "import cloudpickle; cloudpickle.loads(x)", "from ray import cloudpickle as c; c.loads(x)",
        "import ray; ray.cloudpickle.loads(x)", "import ray.cloudpickle as c; c.load(x)", "import joblib; joblib.load(x)",
        "import shelve; shelve.open(x)", "import marshal; marshal.loads(x)", "import importlib; importlib.import_module('dill')",
        "__import__('pickle')", "import torch; torch.load(x)", "import torch as t; t.load(x, weights_only=False)",
        "from torch import load; load(x)", "import torch; torch.load(x, weights_only=safe)", "import torch; torch.jit.load(x)",
        "from torch import jit; jit.load(x)", "from torch.jit import load", "import torch; torch.export.load(x)",
        "import numpy as np; np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=given)",
        "import pandas as pd; pd.read_hdf(x)", "import pandas as pd; pd.read_pickle(x)", "from pandas import read_hdf",
        "import pandas as pd; pd.HDFStore(x)", "import yaml; yaml.load(x, Loader=yaml.Loader)", "import yaml; yaml.unsafe_load(x)",
        "import yaml; yaml.load(x, yaml.FullLoader)", "from yaml import load; load(x, Loader=Mine)",
        "import mlflow; mlflow.pyfunc.load_model(x)",
    ],
)  # fmt: skip
def test_such_code_would_be_found(text):
    assert list(unpickling(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle; pickle.dumps(x)", "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
        "from ray import cloudpickle; cloudpickle.dumps(x)", "import torch; torch.load(x, weights_only=True)",
        "import numpy as np; np.load(x)", "import json; json.loads(x)", "import yaml; yaml.safe_load(x)",
        "import yaml; yaml.load(x, Loader=yaml.SafeLoader)", "import safetensors.torch; safetensors.torch.load(x)",
    ],
)  # fmt: skip
def test_what_unpickles_nothing_is_not_found(text):
    assert not list(unpickling(ast.parse(text)))
