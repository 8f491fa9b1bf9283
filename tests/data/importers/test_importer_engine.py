"""What all importers share: what is missing, what stands twice, what overlaps."""

import argparse
import io

import official_layouts as layouts
import pytest
from official_layouts import read, sizes, touch

from polytrain.data.importers.collection import IngestError
from polytrain.data.importers.importer import Annotation, boundaries, gather, hold_out
from polytrain.data.importers.registry import IMPORTERS
from polytrain.data.importers.root import Root
from polytrain.progress import Progress


def asked(missing="skip", overlap="fail", duplicates="fail"):
    return argparse.Namespace(missing=missing, overlap=overlap, duplicates=duplicates)


def annotations(*names, splits=("train",)):
    return [Annotation((name,), ("a",), splits, "t.csv", line) for line, name in enumerate(names, 1)]


def gathered(tmp_path, rows, modality="image", **options):
    return gather(Root(tmp_path, "its files"), rows, asked(**options), modality=modality, classes=("a", "b"))


def test_missing_files_are_listed_in_the_annotations_order(tmp_path):
    touch(tmp_path / "x" / "2.jpg")
    found = gathered(tmp_path, annotations("x/3", "x/2", "x/1"))
    assert [e.path for e in found.examples] == [f"{tmp_path}/x/2.jpg"]
    assert found.missing == [f"{tmp_path}/x/3", f"{tmp_path}/x/1"]


def test_missing_fail_names_the_first_files_and_their_number(tmp_path):
    touch(tmp_path / "0.jpg")
    with pytest.raises(IngestError, match=r"7 of the annotated files are missing; --missing skip.*\n.*/1\n") as error:
        gathered(tmp_path, annotations(*"01234567"), missing="fail")
    assert str(error.value).endswith("and 2 more")


def test_nothing_on_disk_is_an_error_that_shows_the_layout(tmp_path):
    with pytest.raises(IngestError, match="not one of the annotated files is there .2.; the layout is its files"):
        gathered(tmp_path, annotations("1", "2"))


def test_no_training_file_on_disk_is_an_error(tmp_path):
    touch(tmp_path / "2.jpg")
    with pytest.raises(IngestError, match="none of the training files is there"):
        gathered(tmp_path, [*annotations("1"), *annotations("2", splits=("test",))])


def test_any_suffix_of_the_modality_does_in_any_case(tmp_path):
    for name in ("1.MP4", "2.webm", "3.txt"):
        touch(tmp_path / name)
    found = gathered(tmp_path, annotations("1", "2", "3"), "video")
    assert [e.path[-6:] for e in found.examples] == ["/1.MP4", "2.webm"]


def test_a_sound_file_is_preferred_to_the_video_beside_it(tmp_path):
    for name in ("1.mp4", "1.wav"):
        touch(tmp_path / name)
    assert gathered(tmp_path, annotations("1"), "audio").examples[0].path == f"{tmp_path}/1.wav"


def test_a_row_that_stands_twice_is_refused_with_both_lines(tmp_path):
    with pytest.raises(IngestError, match=r"t.csv, line 3: 'x' stands in t.csv, line 1 already.*--duplicates skip"):
        gathered(tmp_path, annotations("x", "y", "x"))


def test_a_file_in_train_and_test_is_refused_even_if_it_is_missing(tmp_path):
    rows = [*annotations("y", "x"), Annotation(("x",), ("a",), ("test",), "test.csv", 9)]
    with pytest.raises(
        IngestError, match=r"test.csv, line 9: 'x' is in test, and t.csv, line 2 has it in train.*--overlap skip"
    ):
        gathered(tmp_path, rows)


@pytest.mark.parametrize("first", [("train",), ("val", "test")])
def test_clips_of_one_recording_in_train_and_test_are_refused(first, tmp_path):
    other = ("test",) if first == ("train",) else ("train",)
    rows = [
        Annotation(("v_1",), ("a",), first, "1.csv", 5, recording="v"),
        Annotation(("v_2",), ("a",), other, "2.csv", 7, recording="v"),
    ]
    with pytest.raises(
        IngestError, match=r"2.csv, line 7: 'v' is in .* 1.csv, line 5 has it in .*; the splits overlap"
    ):
        gathered(tmp_path, rows)


def clips(tmp_path, *names):
    """A row and a file of each clip of the recording v; those of test are named so."""
    for name in names:
        touch(tmp_path / f"{name}.mp4")
    splits = {name: ("test",) if name.startswith("test") else ("train",) for name in names}
    return [Annotation((n,), ("a",), splits[n], "t.csv", i, recording="" if n[-1] == "w" else "v")
            for i, n in enumerate(names, 1)]  # fmt: skip


@pytest.mark.parametrize("order", [("train1", "train2", "test", "w"), ("w", "test", "train1", "train2")])
def test_overlap_skip_leaves_clips_of_the_tests_recordings_out_of_train(order, tmp_path):
    found = gathered(tmp_path, clips(tmp_path, *order), "video", overlap="skip")
    assert {(e.path.rpartition("/")[2], e.split) for e in found.examples} == {("w.mp4", "train"), ("test.mp4", "test")}
    assert found.notes == ("left 2 training examples out that are in val or test as well: --overlap skip",)


def test_overlap_ignore_leaves_the_lists_as_they_are(tmp_path):
    found = gathered(tmp_path, clips(tmp_path, "train1", "test"), "video", overlap="ignore")
    assert sizes(found) == (1, 0, 1)
    assert found.notes == ()


def test_duplicates_skip_keeps_the_first_row(tmp_path):
    touch(tmp_path / "x.jpg")
    rows = [*annotations("x", "y"), Annotation(("x",), ("b",), ("train",), "t.csv", 3)]
    found = gathered(tmp_path, rows, duplicates="skip")
    assert [e.classes for e in found.examples] == [("a",)]
    assert found.notes == ("left 1 rows out that name an example again: --duplicates skip; the first: t.csv, line 3",)


def test_rows_of_one_name_are_held_out_together():
    rows = hold_out(annotations(*"abcdefghij", *"abcdefghij"), 50)
    split_of = {}
    assert all(split_of.setdefault(a.paths[0], a.splits) == a.splits for a in rows)
    assert len({name for name, splits in split_of.items() if splits == ("val",)}) == 5


def test_several_clips_of_a_recording_may_share_a_split(tmp_path):
    touch(tmp_path / "v.mp4")
    rows = [Annotation(("v",), ("a",), ("train",), "1.csv", i, f"v_{i}", "v", i, i + 1.0) for i in (1, 2)]
    assert [e.start_s for e in gathered(tmp_path, rows, "video").examples] == [1, 2]


def test_an_unknown_class_is_refused_with_the_nearest_known_one(tmp_path):
    rows = [Annotation(("x",), ("abseilin",), ("train",), "t.csv", 4)]
    with pytest.raises(IngestError, match=r"t.csv, line 4: class 'abseilin' is not among the 2 .*mean 'abseiling'"):
        gather(Root(tmp_path, ""), rows, asked(), modality="image", classes=("abseiling", "zumba"))


@pytest.mark.parametrize(
    ("count", "percents", "ends"),
    [(50_000, (98,), [49_000]), (3_680, (90,), [3_312]), (1_281_167, (99,), [1_268_355]), (31_500, (60, 20), [18_900, 25_200])],
)  # fmt: skip
def test_boundaries_at_the_official_sizes(count, percents, ends):
    assert boundaries(count, percents) == ends


def test_what_is_held_out_does_not_depend_on_the_order_of_the_rows():
    rows = annotations(*(f"x/{i}" for i in range(100)))
    again = list(reversed(annotations(*(f"x/{i}" for i in range(100)))))
    held_out = [{a.paths[0] for a in hold_out(r, 10) if a.splits == ("val",)} for r in (rows, again)]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 10


@pytest.fixture
def progress(monkeypatch):
    """A progress of which every state is shown, and what it has shown."""
    monkeypatch.setattr("polytrain.progress.PLAIN_EVERY_S", 0.0)
    out = io.StringIO()
    return Progress("looking", None, "files", out), out


def told(progress, name, root):
    options = argparse.Namespace(root=str(root), official_val=False, **vars(asked()))
    IMPORTERS[name].read(options, progress[0])
    return progress[1].getvalue()


def test_every_annotation_moves_the_progress(progress, tmp_path):
    layouts.moments(tmp_path)
    text = told(progress, "moments", tmp_path)
    assert all(f"looking: {done} files" in text for done in (1, 2, 300, 678))


def test_class_folders_are_counted_as_they_are_listed(progress, tmp_path):
    layouts.imagenet(tmp_path)
    text = told(progress, "imagenet", tmp_path)
    assert "looking: 0 files" in text.partition(", 700 folders listed")[0].splitlines()[-1]


def test_kittis_label_files_are_counted_as_they_are_read(progress, tmp_path):
    layouts.kitti(tmp_path)
    assert ", 100 label files read" in told(progress, "kitti", tmp_path)


def test_vanished_videos_leave_the_rest(tmp_path):
    layouts.kinetics(tmp_path)
    for path in sorted((tmp_path / "train").iterdir())[:100]:
        path.unlink()
    found = read("kinetics400", tmp_path)
    assert sizes(found) == (300, 400, 400)
    assert len(found.missing) == 100
    assert len(found.classes) == 400
