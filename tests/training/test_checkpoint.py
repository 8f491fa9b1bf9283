"""Checkpoints are whole or do not count, and nothing in them is ever unpickled."""

import json
import os
import pickle
import shutil

import pytest
import torch
from torch import nn

from polytrain.training import checkpoint
from polytrain.training.checkpoint import CheckpointError
from polytrain.training.optimizer import make_optimizer, update


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = make_optimizer(model, name="adamw")
    model(torch.ones(1, 4)).sum().backward()
    update(optimizer, list(model.parameters()), 0.1, None)
    return model, optimizer


def save(folder, step, seed=0):
    model, optimizer = trained(seed)
    path = checkpoint.step_folder(folder, step)
    checkpoint.save(path, model=model, optimizer=optimizer, recipe_yaml="name: x\n", state={"step": step})
    return path, model, optimizer


def test_what_is_loaded_is_bitwise_what_was_saved(tmp_path):
    path, model, optimizer = save(tmp_path, 3)
    other, other_optimizer = trained(seed=1)
    checkpoint.load(path, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    states = [o.state_dict()["state"] for o in (optimizer, other_optimizer)]
    assert all(torch.equal(states[0][n][key], states[1][n][key]) for n in states[0] for key in states[0][n])


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    save(tmp_path, 3)
    newest, *_ = save(tmp_path, 12)
    found = checkpoint.newest_whole(tmp_path)
    assert (found.path, found.state["step"], found.faults) == (newest, 12, ())


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: flip_a_byte(path / "model.safetensors"), "model.safetensors is damaged"),
        (lambda path: flip_a_byte(path / "optimizer.pt"), "optimizer.pt is damaged"),
        (lambda path: os.truncate(path / "model.safetensors", 10), "model.safetensors is damaged"),
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "state.json").unlink(), "no state.json"),
        (lambda path: os.truncate(path / "state.json", 20), "state.json is damaged"),
        (lambda path: (path / "state.json").write_text("[]"), "state.json is damaged"),
    ],
)
def test_a_damaged_newest_one_is_named_and_the_one_before_it_used(tmp_path, damage, message):
    before, *_ = save(tmp_path, 3)
    newest, *_ = save(tmp_path, 12)
    damage(newest)
    found = checkpoint.newest_whole(tmp_path)
    assert found.path == before
    assert len(found.faults) == 1
    assert message in found.faults[0]


def test_a_save_that_was_killed_leaves_no_checkpoint(tmp_path):
    path, *_ = save(tmp_path, 3)
    shutil.move(path, tmp_path / ".step_000000003.partial")
    assert checkpoint.newest_whole(tmp_path).path is None


def test_the_newest_are_kept_and_leftovers_go(tmp_path):
    for step in (1, 2, 10, 30):
        save(tmp_path, step)
    (tmp_path / ".step_000000040.partial").mkdir()
    checkpoint.keep_newest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000010", "step_000000030"]


def test_saving_over_a_checkpoint_replaces_it(tmp_path):
    save(tmp_path, 3)
    path, model, _ = save(tmp_path, 3, seed=5)
    other, _ = trained(seed=1)
    checkpoint.load(path, other, None)
    assert torch.equal(model[0].weight, other[0].weight)


def test_another_models_checkpoint_is_refused(tmp_path):
    path, *_ = save(tmp_path, 3)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        checkpoint.load(path, nn.Linear(4, 9), None)


def test_a_pickle_in_place_of_the_optimizer_is_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path, model, optimizer = save(tmp_path, 3)
    with (path / "optimizer.pt").open("wb") as file:
        pickle.dump(Trap(), file, protocol=2)
    state = json.loads((path / "state.json").read_text())
    state["sha256"].pop("optimizer.pt")
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError):
        checkpoint.load(path, model, optimizer)
    assert not (tmp_path / "sprung").exists()
