"""Folders that this machine's processes share: one at a time under a lock, and nothing left of those who died."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from polytrain.data.node_folder import IN_USE, NodeFolder

HOLD = "import sys, time; from polytrain.data.node_folder import NodeFolder; f = NodeFolder('held', sys.argv[1]); print(f.path, flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `held`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_folder_goes_with_its_last_user(tmp_path):
    one, other = NodeFolder("x", tmp_path), NodeFolder("x", tmp_path)
    (one.path / "file").touch()
    one.close()
    assert (other.path / "file").exists()
    other.close()
    assert not other.path.exists()


def test_what_a_killed_process_left_goes_when_the_next_folder_is_opened(tmp_path, holder):
    other = NodeFolder("other", tmp_path)
    held = other.path.with_name("held")
    assert held.exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    NodeFolder("third", tmp_path)
    assert not held.exists()


def test_a_folder_in_use_elsewhere_stays(tmp_path, holder):
    folder = NodeFolder("held", tmp_path)
    folder.close()
    assert (folder.path / IN_USE).exists()


def test_a_folder_goes_at_the_end_of_the_process(tmp_path):
    code = HOLD.replace("time.sleep(60)", "pass")
    path = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert not os.path.exists(path.strip())


def test_a_lock_holds_against_other_threads(tmp_path):
    folder = NodeFolder("x", tmp_path)
    most = {"now": 0, "ever": 0}

    def work() -> None:
        with folder.locked(3):
            most["now"] += 1
            most["ever"] = max(most["ever"], most["now"])
            time.sleep(0.01)
            most["now"] -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most["ever"] == 1


def test_a_lock_that_is_held_is_not_waited_for_on_demand(tmp_path):
    folder = NodeFolder("x", tmp_path)
    with folder.locked(3) as mine, folder.locked(3, wait=False) as too, folder.locked(4, wait=False) as other:
        assert (mine, too, other) == (True, False, True)
