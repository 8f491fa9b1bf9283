"""Checkpoints in a store are whole or do not count, and bitwise on one machine what another wrote."""

import json
import time

import pytest
import torch
from torch import nn

from polytrain.data import storage
from polytrain.run_folder import open_run
from polytrain.training import checkpoint, run_checkpoints
from polytrain.training.checkpoint import CheckpointError
from polytrain.training.optimizer import make_optimizer, update


@pytest.fixture
def run(s3):
    run = open_run(f"{s3.bucket()}/runs/tiny-0")
    yield run
    run.close()


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = make_optimizer(model, name="adamw")
    model(torch.ones(1, 4)).sum().backward()
    update(optimizer, list(model.parameters()), 0.1, None)
    return model, optimizer


def save(run, step, seed=0, folder=None):
    model, optimizer = trained(seed)
    folder = folder or checkpoint.step_folder(run.checkpoints, step)
    checkpoint.save(folder, model=model, optimizer=optimizer, recipe_yaml="name: x\n", state={"step": step})
    run_checkpoints.written(run, folder)
    run.settle()
    return run.at(folder.relative_to(run.path).as_posix()), model


def test_what_one_machine_wrote_another_loads_bitwise(run):
    place, model = save(run, 3)
    assert not list(run.checkpoints.iterdir())  # nothing stays on the machine that wrote it
    found, state, faults = run_checkpoints.newest(open_run(run.place))
    assert (found, state["step"], faults) == (place, 3, ())
    copy = run_checkpoints.copy(found)
    other, optimizer = trained(seed=1)
    checkpoint.load(copy, other, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    run_checkpoints.release(copy)
    assert not copy.exists()


def flip_a_byte(place):
    content = bytearray(storage.fetch(place))
    content[len(content) // 2] ^= 1
    storage.write_bytes(place, bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: flip_a_byte(f"{place}/model.safetensors"), "/model.safetensors is damaged"),
        (lambda place: storage.remove_file(f"{place}/optimizer.pt"), "/optimizer.pt is missing"),
        (lambda place: storage.remove_file(f"{place}/state.json"), " has no state.json"),
        (lambda place: storage.write_bytes(f"{place}/state.json", b"{"), "/state.json is damaged"),
        (lambda place: storage.write_bytes(f"{place}/state.json", b"[]"), "/state.json is damaged"),
    ],
)
def test_a_damaged_newest_one_is_named_and_the_one_before_it_used(run, damage, message):
    before, _ = save(run, 3)
    newest, _ = save(run, 12)
    damage(newest)
    found, state, faults = run_checkpoints.newest(run)
    assert (found, state["step"]) == (before, 3)
    assert len(faults) == 1
    assert f"{newest}{message}" in faults[0]


def test_a_save_that_was_killed_on_its_way_leaves_no_checkpoint(run):
    place, _ = save(run, 3)
    storage.remove_file(f"{place}/state.json")  # which goes last
    assert run_checkpoints.newest(run)[0] is None
    with pytest.raises(CheckpointError, match="not written to the end"):
        run_checkpoints.copy(place)


def test_what_vouches_for_a_checkpoint_is_written_last_and_removed_first(run, proxy):
    save(run, 3)
    through = open_run(f"{run.place}{proxy.query}")
    save(through, 3, seed=1)
    changes = [word for word in proxy.requests if word.startswith(("PUT", "DELETE")) and "step_000000003/" in word]
    assert "DELETE" in changes[0]
    assert "state.json" in changes[0]
    assert "state.json" in changes[-1]
    assert sum("state.json" in word for word in changes) == 2


def test_the_newest_are_kept(run):
    for step in (1, 2, 10, 30):
        save(run, step)
    run_checkpoints.keep_newest(run, 2)
    run.settle()
    states = run.checkpoint_states()
    assert [state["step"] for state in states] == [30, 10]


def test_training_goes_on_while_checkpoints_are_on_their_way_and_hears_of_one_that_did_not_arrive(
    run, proxy, quick_tries
):
    through = open_run(f"{run.place}{proxy.query}")
    proxy.faults = [0.5] * 100
    began = time.monotonic()
    folder = checkpoint.step_folder(through.checkpoints, 3)
    model, _ = trained()
    checkpoint.save(folder, model=model, optimizer=None, recipe_yaml="", state={"step": 3})
    run_checkpoints.written(through, folder)
    assert time.monotonic() - began < 0.5
    through.settle()
    assert run_checkpoints.newest(run)[1]["step"] == 3
    proxy.faults = [503] * 100
    with pytest.raises(storage.StorageError, match="step_000000004"):
        save(through, 4)
    through.close()


def test_saving_over_a_checkpoint_replaces_it(run):
    save(run, 3)
    place, model = save(run, 3, seed=5)
    other, _ = trained(seed=1)
    copy = run_checkpoints.copy(place)
    checkpoint.load(copy, other, None)
    assert torch.equal(model[0].weight, other[0].weight)
    run_checkpoints.release(copy)


def test_the_final_one_stays_here_for_mlflow_too(run):
    place, _ = save(run, 3, folder=run.path / "final")
    assert json.loads(storage.fetch(f"{place}/state.json"))["step"] == 3
    assert (run.path / "final" / "state.json").exists()


def test_a_run_in_a_folder_reads_and_keeps_its_checkpoints_where_they_are(tmp_path):
    run = open_run(tmp_path)
    for step in (3, 12, 20):
        place, _ = save(run, step)
    run_checkpoints.keep_newest(run, 2)
    found, state, _ = run_checkpoints.newest(run)
    assert (found, state["step"]) == (place, 20)
    assert run_checkpoints.copy(found) == checkpoint.step_folder(run.checkpoints, 20)
    run_checkpoints.release(run_checkpoints.copy(found))
    assert len(list(run.checkpoints.iterdir())) == 2
