"""Features on disk: found again, added to, torn, and never taken for another model's or another split's."""

from dataclasses import replace

import numpy as np
import pytest

from polytrain.data import manifest
from polytrain.data.examples import examples_of
from polytrain.probe.features import Features, Identity, Selected, Store

IDENTITY = Identity("trunk", "fp32", "manifest", "train", "one view")


def some(*ids):
    """Features [n, 2] that tell whose they are."""
    return np.array([[example, -example] for example in ids], np.float32)


def kept(root, *ids, identity=IDENTITY, seconds=1.0):
    store = Store(root, identity)
    store.add(np.array(ids), some(*ids), seconds)
    store.close()
    return store


def test_what_was_kept_is_found_again(tmp_path):
    kept(tmp_path, 3, 1)
    found = Store(tmp_path, IDENTITY).load(5, 2)
    assert found.known.tolist() == [1, 3]
    assert (found.values[found.rows(np.array([1, 3, 1]))] == some(1, 3, 1)).all()
    assert found.seconds == 1.0


def test_parts_add_up_and_what_is_known_stays(tmp_path):
    kept(tmp_path, 3, 1)
    store = Store(tmp_path, IDENTITY)
    store.add(np.array([1, 2]), some(7, 2), 0.5)
    store.close()
    found = Store(tmp_path, IDENTITY).load(5, 2)
    assert len(found) == 3
    assert (found.values[found.rows(np.array([1, 2, 3]))] == some(1, 2, 3)).all()
    assert found.seconds == 1.5


def test_only_what_nobody_knows_is_missing(tmp_path):
    features = Features(6, 2)
    features.add(np.array([4, 2]), some(4, 2), bad=[(5, "e.png", "torn")])
    assert features.missing(np.array([5, 4, 3, 0, 3])).tolist() == [0, 3]


def test_a_torn_part_does_not_count_and_is_removed(tmp_path):
    store = kept(tmp_path, 0, 1)
    kept(tmp_path, 2)
    torn = sorted(store.folder.glob("part-*"))[0]
    torn.write_bytes(torn.read_bytes()[:-3])
    found = Store(tmp_path, IDENTITY).load(5, 2)
    assert found.known.tolist() == [2]
    assert not torn.exists()


def test_an_unfinished_part_is_not_read(tmp_path):
    store = kept(tmp_path, 0)
    (part,) = store.folder.glob("part-*")
    part.rename(store.folder / f".{part.name}")
    assert not len(Store(tmp_path, IDENTITY).load(5, 2))


@pytest.mark.parametrize("key", ["trunk", "precision", "manifest", "split", "views"])
def test_another_model_manifest_split_or_view_finds_nothing(tmp_path, key):
    kept(tmp_path, 0, 1)
    other = replace(IDENTITY, **{key: "another"})
    assert not len(Store(tmp_path, other).load(5, 2))


def test_a_selection_shows_the_examples_it_names(media):
    examples = examples_of(manifest.read(str(media["image"])))["train"]
    selected = Selected(examples, np.array([5, 2]))
    assert len(selected) == 2
    assert selected.name(1) == examples.name(2)
    assert selected.content(0) == examples.content(5)
    assert selected.labels([0, 1]) == examples.labels([5, 2])
