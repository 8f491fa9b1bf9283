"""Packed collections on a real S3 API: what is asked of it, and the same examples as from a disk."""

import tempfile

import pytest

from polytrain.data import manifest
from polytrain.data.examples import examples_of
from polytrain.packing import Layout, pack

pytest.importorskip("moto.server", reason="the S3 server of these tests")

from polytrain.benchmarks.object_store import CountingStore
from polytrain.benchmarks.packed import source_of
from polytrain.data.reading import read_minibatches

LAYOUT = Layout(shard_bytes=8_000, group_bytes=2_000)


@pytest.fixture(scope="module")
def store():
    with CountingStore() as store:
        yield store


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_collection_packed_into_a_bucket_is_read_from_there(store, media, tmp_path):
    here = manifest.read(pack(str(media["image"]), str(tmp_path / "packed"), LAYOUT)[0])
    there = manifest.read(pack(str(media["image"]), store.uri("one"), LAYOUT)[0])
    for split in manifest.SPLITS:
        from_disk, from_store = examples_of(here)[split], examples_of(there)[split]
        assert len(from_store) == len(from_disk)
        for example in range(len(from_disk)):
            assert from_store.content(example) == from_disk.content(example)
            assert from_store.labels([example]) == from_disk.labels([example])


def test_a_row_group_is_fetched_about_once_a_pass_and_not_once_an_example(store, media):
    read = manifest.read(pack(str(media["image"]), store.uri("two"), LAYOUT)[0])
    source = source_of(read, 2, 3, batch=8)
    examples = source.media[0].splits["train"]
    store.reset()
    assert list(read_minibatches(source, "image", 0, 0, 3, 1))
    examples._groups()._fetchers.shutdown(wait=True)
    # Eight groups, each a HEAD and a GET, and for each of three shards its footer; of 24 examples two requests each.
    assert store.requests <= 8 * 2 + 3 * 2
    examples.close()
