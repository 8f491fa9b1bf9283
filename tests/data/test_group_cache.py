"""Row groups on this machine: fetched once for all its processes, bounded, gone afterwards."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from polytrain.data import manifest
from polytrain.data.examples import examples_of
from polytrain.data.group_cache import GroupCache
from polytrain.packing import Layout, pack


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def split(media, tmp_path):
    """24 training images in eight row groups of three."""
    path, _ = pack(str(media["image"]), str(tmp_path / "packed"), Layout(shard_bytes=8_000, group_bytes=2_000))
    packed = examples_of(manifest.read(path))["train"].packed
    assert packed.sizes.tolist() == [3] * 8
    return packed


def test_a_group_is_fetched_once_for_two_readers(split):
    one, other = GroupCache(split, "x", 8), GroupCache(split, "x", 8)
    same = [one.content(example) == other.content(example) for example in range(24)]
    assert all(same)
    assert (one.fetched, other.fetched) == (8, 0)


def test_no_more_groups_stay_than_the_limit(split):
    cache = GroupCache(split, "x", 3)
    for example in range(24):
        cache.content(example)
        assert sum(name.startswith("group-") for name in os.listdir(cache._folder.path)) <= 3
    assert len(cache._open) <= 3
    assert cache.fetched == 8


def test_a_group_that_had_to_leave_is_fetched_again(split):
    cache = GroupCache(split, "x", 1)
    first = cache.content(0)
    cache.content(10)
    assert cache.content(0) == first
    assert cache.fetched == 3


def test_groups_fetched_ahead_are_there_when_they_are_needed(split):
    cache = GroupCache(split, "x", 8)
    cache.fetch_ahead(range(8))
    cache._fetchers.shutdown(wait=True)
    assert cache.fetched == 8
    cache.content(0)
    assert cache.fetched == 8


def test_a_lost_shard_is_an_error_that_names_it(split):
    Path(split.uri(0)).unlink()
    cache = GroupCache(split, "x", 8)
    for _ in range(2):  # remembered for a while: each of a group's examples would ask again
        with pytest.raises(OSError, match="train-00000.parquet"):
            cache.content(0)


def test_a_damaged_shard_is_an_error_that_names_it(split):
    path = Path(split.uri(0))
    content = bytearray(path.read_bytes())
    content[600:700] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"train-00000.parquet, row group 0"):
        GroupCache(split, "x", 8).content(0)


def test_nothing_is_left_when_the_readers_are_gone(split, tmp_path):
    cache = GroupCache(split, "x", 8)
    cache.content(0)
    folder = cache._folder.path
    cache.close()
    assert not folder.exists()


READ = """
import sys
from polytrain.data import manifest
from polytrain.data.examples import examples_of
from polytrain.data.group_cache import GroupCache
cache = GroupCache(examples_of(manifest.read(sys.argv[1]))["train"].packed, "shared", 8)
for _ in range(3):
    for example in range(24):
        cache.content(example)
print(cache.fetched, flush=True)
sys.stdin.read()
"""


def test_several_processes_fetch_a_group_once_together(split, tmp_path):
    command = [sys.executable, "-c", READ, str(tmp_path / "packed" / "manifest.parquet")]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    fetched = [int(reader.stdout.readline()) for reader in readers]
    for reader in readers:
        reader.communicate()
    assert sum(fetched) == 8
