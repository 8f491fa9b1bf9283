"""Media stored by workers of Ray: killed in the middle and gone on with, and a file that ends its process."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from polytrain.data import manifest
from polytrain.data.importers.collection import Example
from polytrain.data.recoding import Recoding
from polytrain.ingest import prepare_command
from polytrain.ingest.storing import Storing, store
from polytrain.packing import Layout, pack
from small_media import write_video

ROOT = Path(__file__).parents[2]
IMAGES = 600


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """As large as makes a store of them last some seconds."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 255, (60, 80, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    for index in range(IMAGES):
        folder = root / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.roll(noise, index, axis=1)).save(folder / f"{index:04d}.jpg", quality=80)
    return root


def command(photos, out, *more):
    return [sys.executable, str(ROOT / "jobs/prepare.py"), "folder", "--modality", "image", "--root", str(photos),
            "--out", str(out), "--overlap", "ignore", *more]  # fmt: skip


def finished(out):
    """What stands there, and when it was written."""
    times = {}
    for path in out.rglob("*"):
        if path.suffix in (".jpg", ".parquet"):
            times[path] = path.stat().st_mtime_ns
    return times


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--short-side", "240"), ("--short-side", "240", "--inline", "512")])
def test_a_command_killed_in_the_middle_goes_on_where_it_stopped(photos, tmp_path, more):
    out = tmp_path / "out"
    process = subprocess.Popen(command(photos, out, *more), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 180
    enough = 2 if "--inline" in more else 20
    while len(finished(out)) < enough and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its workers end a moment later
    before = finished(out)
    assert before
    assert not (out / "manifest.parquet").exists()
    again = subprocess.run(command(photos, out, *more), stdout=subprocess.PIPE, text=True, check=True)
    media = {path: written for path, written in before.items() if path.suffix == ".jpg"}
    after = finished(out)
    assert {path: after[path] for path in media} == media
    told = re.search(r"(\d+) of 600 files were finished by an earlier command", again.stdout)
    assert len(media) <= int(told[1]) < IMAGES
    m = manifest.read(out / "manifest.parquet")
    assert sum(m.sizes.values()) == IMAGES
    left = sorted(entry.name for entry in out.iterdir())
    assert left == (["manifest.parquet"] if "--inline" in more else ["manifest.parquet", "media"])


@pytest.mark.slow
def test_a_pack_killed_in_the_middle_goes_on_behind_its_last_shard_and_ends_the_same(photos, tmp_path):
    paths = sorted(map(str, photos.rglob("*.jpg")))
    table = pa.table({"path": paths, "label": pa.array([0] * IMAGES, pa.int32()), "split": ["train"] * IMAGES})
    source, out, whole = str(tmp_path / "manifest.parquet"), tmp_path / "out", tmp_path / "whole"
    manifest.write(source, task="t", modality="image", classes=["one"], table=table)
    sizes = "--group-size", "100kB", "--shard-size", "200kB"  # some hundreds of shards
    words = [sys.executable, str(ROOT / "jobs/prepare.py"), "pack", source, "--out", str(out), *sizes]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 180
    while len(finished(out)) < 20 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(out)
    assert len(before) >= 20
    (out / ".writing-begun.tmp").touch()  # as one that ended while it wrote leaves it
    assert not (out / "manifest.parquet").exists()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    after = finished(out)
    assert before == {path: after[path] for path in before}
    pack(source, str(whole), Layout(group_bytes=100_000, shard_bytes=200_000))
    assert len(after) > 40
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_file_that_ends_its_process_is_found_and_the_others_are_stored(tmp_path):
    def example(name, data):
        return Example(f"/x/{name}", ("a",), "train", data=data)

    files = [example(f"{index}.png", b"p%d" % index) for index in range(300)]
    files[7] = example("bad.png", functools.partial(os._exit, 1))
    stored = store(files, "image", Storing(Recoding(), 1024), str(tmp_path))
    assert [index for index, reason in enumerate(stored.reasons) if reason] == [7]
    assert "ends the process" in stored.reasons[7]
    assert stored.data(8).as_py() == b"p8"
    assert stored.data(299).as_py() == b"p299"


def test_videos_become_small_ones(tmp_path):
    (tmp_path / "c/x").mkdir(parents=True)
    for index in range(5):
        write_video(tmp_path / f"c/x/{index}.mp4", 1, np.random.default_rng(index))
    (tmp_path / "c/x/broken.mp4").write_bytes(b"no video")
    words = ["folder", "--modality", "video", "--root", str(tmp_path / "c"), "--out", str(tmp_path / "out")]
    assert prepare_command("", [*words, "--short-side", "16"]) == 0
    m = manifest.read(tmp_path / "out/manifest.parquet")
    assert len(m.table) == 5
    assert all(os.path.getsize(m.location(path)) > 500 for path in m.table["path"].to_pylist())
