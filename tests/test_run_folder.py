"""A run's folder in a store: what one machine says there another hears, and one driver at a time works in it.

Two `open_run`s of one place are two machines: each has a folder of its own.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from polytrain import claim
from polytrain.data import storage
from polytrain.run_folder import BusyError, RunFolder, open_run


@pytest.fixture
def place(s3):
    return f"{s3.bucket()}/runs/tiny-0"


@pytest.fixture
def machines(place):
    """The run as driver and worker have it."""
    driver, worker = open_run(place), open_run(place)
    yield driver, worker
    driver.close()
    worker.close()


def until(condition, timeout=20):
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def names(place):
    return {entry.base_name for entry in storage.entries(place)}


# --- messages -----------------------------------------------------------------------------------------------------


def test_a_path_and_a_file_uri_are_folders_and_other_uris_stores(tmp_path, place):
    assert type(open_run(tmp_path)) is RunFolder
    assert open_run(tmp_path.as_uri()).path == tmp_path
    assert open_run(place).remote


def test_what_a_worker_says_its_driver_hears(machines):
    driver, worker = machines
    assert driver.news() == ({}, {})
    worker.write_start(6, f"{driver.place}/checkpoints/step_6", ("one was damaged",))
    worker.write_start(8, None)
    worker.write_progress({"step": 7})
    until(driver.progress)
    start, progress = driver.news()
    assert start == {"attempt": 2, "step": 8, "checkpoint": None, "faults": []}
    assert progress["step"] == 7
    worker.write_result({"status": "finished"})
    assert driver.result() == {"status": "finished"}


def test_a_stop_asked_for_on_one_machine_is_seen_on_the_other(machines):
    driver, worker = machines
    assert not worker.stop_requested()
    driver.request_stop()
    until(worker.stop_requested)


def test_a_new_start_forgets_how_the_one_before_ended(machines):
    driver, worker = machines
    worker.write_result({"status": "stopped"})
    driver.request_stop()
    driver.clear_for_start()
    assert driver.result() == {}
    assert "stop" not in names(driver.place)


def test_starting_over_leaves_nothing_but_the_claim(machines):
    driver, _ = machines
    for name in ("run.json", "journal/000000", "checkpoints/step_000000003/state.json", "figures/confusion/a.png"):
        storage.write_bytes(driver.at(name), b"{}")
    with driver.held(print) as still_held:
        driver.forget()
        assert names(driver.place) == {"drivers"}
        still_held()


def test_checkpoints_tell_of_themselves_newest_first(machines):
    driver, _ = machines
    for step in (3, 12):
        storage.write_bytes(driver.at(f"checkpoints/step_{step:09d}/state.json"), json.dumps({"step": step}).encode())
    storage.write_bytes(driver.at("checkpoints/step_000000020/model.safetensors"), b"not whole")
    assert [state["step"] for state in driver.checkpoint_states()] == [12, 3]


def test_folders_of_processes_go_with_them(place):
    run = open_run(place)
    (run.path / "file").touch()
    run.close()
    assert not run.path.exists()


def test_a_bucket_that_is_not_there_is_told_at_once(s3):
    began = time.monotonic()
    with pytest.raises(storage.StorageError, match="s3://nowhere-at-all"):
        open_run("s3://nowhere-at-all/runs/tiny").write_start(0, None)
    assert time.monotonic() - began < 3


# --- one driver at a time -----------------------------------------------------------------------------------------


HOLD = """
import sys, time
from polytrain.run_folder import open_run
with open_run(sys.argv[1]).held(print):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_driver(place):
    with subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_driver_is_refused_at_once_and_the_place_is_free_afterwards(place):
    with open_run(place).held(print), pytest.raises(BusyError, match=f"process {os.getpid()} on"):
        open_run(place).held(print).__enter__()
    with open_run(place).held(print):
        assert len(names(f"{place}/drivers")) == 1
    assert names(f"{place}/drivers") == set()


def test_the_claim_of_a_driver_killed_on_this_machine_holds_nobody_up(place):
    with another_driver(place) as process:
        with pytest.raises(BusyError, match=f"process {process.pid} on"):
            open_run(place).held(print).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with open_run(place).held(print):
            assert time.monotonic() - began < 10


@pytest.fixture
def short_times(monkeypatch):
    """The store's clock tells whole seconds."""
    for name, value in (("RENEWED_S", 1.0), ("STALE_S", 4.0), ("LOOK_S", 0.3)):
        monkeypatch.setattr(claim, name, value)


ELSEWHERE = json.dumps({"host": "far-away", "pid": 1, "machine": "another kernel"}).encode()


def test_a_driver_that_lives_on_another_machine_keeps_its_run(place, short_times):
    ended = threading.Event()

    def renew():
        while not ended.wait(1.0):
            storage.write_bytes(f"{place}/drivers/0.json", ELSEWHERE)

    storage.write_bytes(f"{place}/drivers/0.json", ELSEWHERE)
    said = []
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(BusyError, match="process 1 on far-away"):
            open_run(place).held(said.append).__enter__()
    finally:
        ended.set()
        thread.join()
    assert names(f"{place}/drivers") == {"0.json"}
    assert "far-away" in said[0]


def test_a_driver_that_died_on_another_machine_is_outlived(place, short_times):
    storage.write_bytes(f"{place}/drivers/0.json", ELSEWHERE)
    began = time.monotonic()
    with open_run(place).held(print):
        assert 2 < time.monotonic() - began < 15
        assert "0.json" not in names(f"{place}/drivers")


def test_a_claim_is_renewed_while_its_driver_lives(place, short_times):
    with open_run(place).held(print):
        first = storage.entries(f"{place}/drivers")[0].mtime_ns
        until(lambda: storage.entries(f"{place}/drivers")[0].mtime_ns > first)


def test_a_driver_that_was_given_up_for_dead_notices(place, short_times):
    with open_run(place).held(print) as still_held:
        still_held()
        (name,) = names(f"{place}/drivers")
        storage.remove_file(f"{place}/drivers/{name}")  # as another driver does after STALE_S

        def noticed():
            with contextlib.suppress(BusyError):
                still_held()
                return False
            return True

        until(noticed)
