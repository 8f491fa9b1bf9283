"""Scans over Ray: what ends a process costs one file, and what a lost process had in hand is done again."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import polytrain
from polytrain.data import manifest
from polytrain.data.examples import examples_of
from polytrain.inference import Scan, run_scans
from polytrain.predict.files import Files
from polytrain.scan import run_here

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(checkpoint_of_three):
    return polytrain.load(checkpoint_of_three)


def of_each(scanned) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Outputs by scan and example; each came once."""
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for some in scanned:
        for row, example in enumerate(some.ids.tolist()):
            assert example not in found.setdefault(some.key, {})
            found[some.key][example] = {name: value[row] for name, value in some.outputs.items()}
    return found


def test_several_scans_in_one_pipeline_survive_a_lost_model_and_give_what_one_process_gives(
    trained, media, monkeypatch
):
    monkeypatch.setattr("polytrain.inference.ROW_BYTES", 4000)
    monkeypatch.setattr("polytrain.inference.CHUNK_BYTES", 4000)  # many small rows
    scans = [
        Scan(name, modality, trained.architecture.modalities[modality], examples_of(manifest.read(media[modality]))["train"],
             tasks=tasks)
        for name, modality, tasks in (("pictures", "image", ("colours", "hues")), ("films", "video", ("moves",)),
                                      ("sounds", "audio", ()))
    ]  # fmt: skip
    done, killed = [], []
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("POLYTRAIN_TEST_MARK", mark)  # Ray's processes inherit it

    def kill_the_model(count):
        done.append(count)
        if sum(done) > 8 and not killed:
            killed.extend(pid for pid, command in marked(mark) if b"MapBatches(_Model)" in command)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    there = of_each(run_scans(trained.portable(), scans, batch_size=4, progress=kill_the_model))
    assert killed
    assert sum(done) == 3 * 24
    here = of_each(run_here(trained.forward("cpu"), scans))
    assert {name: sorted(examples) for name, examples in there.items()} == {name: sorted(e) for name, e in here.items()}
    for name, examples in here.items():
        for example, outputs in examples.items():
            for output, value in outputs.items():
                np.testing.assert_allclose(there[name][example][output], value, rtol=1e-4, atol=1e-5)


def marked(mark: str) -> Iterator[tuple[int, bytes]]:
    """(pid, command) of the processes that this test started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes()


def test_a_file_that_ends_its_process_is_listed_and_the_others_are_seen(trained, media):
    class Deadly(Files):
        def content(self, example):
            return os._exit(1) if example == 7 else super().content(example)

    examples = Deadly()
    examples.names += [str(path) for path in sorted(media["image"].parent.glob("train_*.png"))]
    scan = Scan("x", "image", trained.architecture.modalities["image"], examples, tasks=("hues",))
    scanned = list(run_scans(trained.portable(), [scan]))
    assert sorted(example for some in scanned for example in some.ids.tolist()) == [i for i in range(24) if i != 7]
    (bad,) = [entry for some in scanned for entry in some.bad]
    assert bad[:2] == (7, examples.names[7])
    assert "ends the process" in bad[2]
