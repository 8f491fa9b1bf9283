"""What a model says of files: sorted by modality, ranked, what can't be read told, all in the order asked for."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import polytrain
from polytrain.data import manifest, storage
from polytrain.data.decode import decode
from polytrain.data.views import views_at_test
from polytrain.modalities import Video
from polytrain.predict import InputError
from polytrain.predict.command import describe_command, predict_command
from polytrain.predict.files import Files, asked
from polytrain.scan import Scan, run_here
from polytrain.training.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(checkpoint_of_three):
    return polytrain.load(checkpoint_of_three)


@pytest.fixture
def mixed(media, tmp_path):
    """A folder of pictures, a video, a sound, and what is neither."""
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    for modality, name, into in (
        ("image", "val_000.png", "b.png"), ("video", "val_001.mp4", "a.mp4"), ("audio", "val_002.wav", "deeper/c.WAV"),
        ("image", "val_004.png", "d.png"),
    ):  # fmt: skip
        shutil.copy(media[modality].parent / name, folder / into)
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.png").write_bytes(b"x")
    return folder


def answered(table: pa.Table) -> list[tuple[str, str]]:
    """(file, task) of the likeliest classes."""
    return [(Path(row["path"]).name, row["task"]) for row in table.to_pylist() if row["rank"] == 1]


# --- which files --------------------------------------------------------------------------------------------------


def test_a_mixed_folder_is_sorted_by_modality_and_answered_in_its_order(trained, mixed):
    table = trained.predict(mixed)
    assert answered(table) == [
        ("a.mp4", "moves"), ("b.png", "colours"), ("b.png", "hues"), ("d.png", "colours"), ("d.png", "hues"),
        ("c.WAV", "tones"), ("c.WAV", "pitches"),
    ]  # fmt: skip
    assert table.column_names == ["path", "task", "rank", "class", "probability"]


def test_paths_stay_as_they_were_given(trained, mixed, monkeypatch):
    monkeypatch.chdir(mixed.parent)
    assert trained.predict(["mixed/d.png", mixed / "b.png"])["path"].unique().to_pylist() == [
        "mixed/d.png",
        f"{mixed}/b.png",
    ]


def test_with_a_task_other_modalities_are_left_out(trained, mixed):
    question = asked(trained, [str(mixed)], "hues")
    assert answered(trained.predict(mixed, task="hues")) == [("b.png", "hues"), ("d.png", "hues")]
    assert "1 of video, which hues is not for" in question.note()


def test_what_a_folder_holds_besides_is_counted(trained, mixed):
    assert asked(trained, [str(mixed)]).left_out == {"of suffix .txt": 1, "hidden": 1}


def test_a_named_file_is_known_by_its_content_where_its_name_does_not_tell(trained, mixed):
    for name, tasks in (("b.png", ["colours", "hues"]), ("a.mp4", ["moves"]), ("deeper/c.WAV", ["tones", "pitches"])):
        plain = shutil.copy(mixed / name, mixed.parent / "plain")
        assert [task for _, task in answered(trained.predict(plain))] == tasks


def test_a_named_file_is_tried_with_the_task_that_was_named(trained, mixed):
    with pytest.raises(InputError, match=r"none of the files could be read: .*b\.png: no"):
        trained.predict(mixed / "b.png", task="moves")


def test_a_name_that_is_no_text_is_no_trouble(trained, mixed):
    shutil.copy(mixed / "b.png", os.fsencode(mixed) + b"/\xff.png")
    assert ("\ufffd.png", "hues") in answered(trained.predict(mixed, task="hues"))


def test_a_file_that_comes_twice_is_answered_once(trained, mixed):
    assert len(answered(trained.predict([mixed / "a.mp4", mixed, mixed / "a.mp4"], task="moves"))) == 1


def test_a_manifests_files_are_answered_in_its_order(trained, media):
    table = trained.predict(media["video"])
    names = [name for name, _ in answered(table)]
    assert len(names) == 24 + 7 + 8
    assert names[0] == "train_000.mp4"
    assert names[-1] == "test_007.mp4"


def test_clips_of_a_file_are_told_apart(trained, media, tmp_path):
    sound = media["audio"].parent / "val_000.wav"
    rows = {"path": [str(sound)] * 2, "split": ["train"] * 2, "start_s": [0.0, 0.1], "end_s": [0.1, None]}
    table = pa.table(rows | {"label": pa.array([0, 0], pa.int32())})
    manifest.write(tmp_path / "clips.parquet", task="clips", modality="audio", classes=["x"], table=table)
    predicted = trained.predict(tmp_path / "clips.parquet", task="pitches", top=1)
    assert predicted["start_s"].to_pylist() == [0.0, 0.1]
    assert predicted["end_s"].to_pylist() == [0.1, None]


def test_files_of_a_store_are_fetched(s3, trained, mixed):
    bucket = s3.bucket()
    storage.write_bytes(f"{bucket}/in/b.png", (mixed / "b.png").read_bytes())
    here = trained.predict(mixed / "b.png", task="hues")
    for place in (f"{bucket}/in", f"{bucket}/in/b.png"):
        there = trained.predict(place, task="hues")
        assert there["path"][0].as_py() == f"{bucket}/in/b.png"
        assert there["probability"] == here["probability"]


# --- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "function"), [("colours", lambda x: x.softmax(0)), ("tones", torch.sigmoid)])
def test_probabilities_are_the_models_by_falling_rank(trained, mixed, task, function):
    file = mixed / ("b.png" if task == "colours" else "deeper/c.WAV")
    media = decode(trained.architecture.modalities[trained.task(task).modality], str(file))
    expected = function(trained.forward("cpu").logits(task, media)[0])
    rows = trained.predict(file, task=task).to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["class"] for row in rows] == [("one", "two", "three")[i] for i in expected.argsort(descending=True)]
    assert [row["probability"] for row in rows] == pytest.approx(sorted(expected.tolist(), reverse=True))


def test_top_is_how_many_classes_are_told(trained, mixed):
    assert trained.predict(mixed / "b.png", task="hues", top=2)["rank"].to_pylist() == [1, 2]
    assert trained.predict(mixed / "b.png", task="hues", top=50)["rank"].to_pylist() == [1, 2, 3]


def test_logits_are_the_mean_over_the_views(trained, mixed):
    geometry, files = trained.architecture.modalities["video"], Files()
    files.names.append(str(mixed / "a.mp4"))
    forward, views = trained.forward("cpu"), views_at_test(Video, (2, 3))
    of_each = forward.logits("moves", decode(geometry, str(mixed / "a.mp4"), views)).numpy()
    assert np.ptp(of_each, axis=0).min() > 0.01
    (scanned,) = run_here(forward, [Scan("x", "video", geometry, files, views, ("moves",))])
    np.testing.assert_allclose(scanned.outputs["moves"], of_each.mean(0, keepdims=True), rtol=1e-4)


def test_the_answer_tells_which_model_gave_it(trained, mixed):
    said = trained.predict(mixed / "b.png").schema.metadata[b"polytrain.predictions"].decode()
    assert trained.state["sha256"]["model.safetensors"] in said
    assert trained.place in said


# --- what can't be read -------------------------------------------------------------------------------------------


@pytest.fixture
def with_bad(mixed):
    (mixed / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (mixed / "empty.wav").write_bytes(b"")
    return mixed


def test_what_cant_be_read_is_warned_of_and_the_rest_predicted(trained, with_bad):
    with pytest.warns(UserWarning, match=r"2 files can't be read: .*broken\.jpg: .*; .*empty\.wav: empty file"):
        table = trained.predict(with_bad)
    assert len(answered(table)) == 7


def test_nothing_readable_is_an_error(trained, with_bad):
    with pytest.raises(InputError, match=r"none of the files could be read: .*broken\.jpg"):
        trained.predict([with_bad / "broken.jpg", with_bad / "absent.png"])


def test_an_empty_folder_is_an_error(trained, tmp_path):
    with pytest.raises(InputError, match="no picture, video or sound to predict there"):
        trained.predict(tmp_path)


def test_a_task_that_the_model_has_not_is_an_error_before_files_are_looked_at(trained, tmp_path):
    with pytest.raises(CheckpointError, match="has no task hue; it has hues"):
        trained.predict(tmp_path / "absent", task="hue")


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_a_file(checkpoint_of_three, trained, mixed, tmp_path, capsys):
    out = tmp_path / "deep" / "out.parquet"
    assert predict_command("x", [str(checkpoint_of_three), str(mixed), "--out", str(out), "--top", "2"]) == 0
    assert pq.read_table(out) == trained.predict(mixed, top=2)
    printed = capsys.readouterr()
    assert "deeper/c.WAV  tones" in printed.out
    assert re.search(rf"4 files predicted in \d:\d\d\nall of them in {out}", printed.out)
    assert "files left out: 1 hidden, 1 of suffix .txt" in printed.err


def test_the_command_lists_bad_files_and_ends_well(checkpoint_of_three, with_bad, capsys):
    assert predict_command("x", [str(checkpoint_of_three), str(with_bad), str(with_bad / "absent.png")]) == 0
    printed = capsys.readouterr()
    for name, reason in (("empty.wav", "empty file"), ("absent.png", "no such file"), ("broken.jpg", "")):
        assert f"can't be read: {with_bad}/{name}: {reason}" in printed.err
    assert re.search(r"4 files predicted in \d:\d\d, 3 can't be read", printed.out)


def test_the_command_ends_with_1_where_no_file_could_be_read(checkpoint_of_three, with_bad, capsys):
    assert predict_command("x", [str(checkpoint_of_three), str(with_bad / "broken.jpg")]) == 1
    assert "error: none of the files could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "no picture, video or sound to predict there"),
        (["{mixed}", "--task", "hue"], "has no task hue; it has hues"),
        (["{mixed}", "--out", "x.csv"], "its name should end in .parquet"),
        (["{mixed}/notes.parquet"], "there is no such file"),
    ],
)
def test_mistakes_are_told_in_one_line(checkpoint_of_three, mixed, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    filled = [word.format(empty=tmp_path / "empty", mixed=mixed) for word in arguments]
    assert predict_command("x", [str(checkpoint_of_three), *filled]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_wrong_checkpoint_is_told_in_one_line(mixed, capsys):
    assert predict_command("x", [str(mixed), str(mixed)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert describe_command("x", [str(mixed)]) == 2


def test_describe_prints_what_about_says_the_recipe_and_the_state(checkpoint_of_three, trained, capsys):
    assert describe_command("x", [str(checkpoint_of_three)]) == 0
    assert capsys.readouterr().out == trained.about() + "\n"
    assert describe_command("x", [str(checkpoint_of_three), "--recipe"]) == 0
    assert capsys.readouterr().out == trained.recipe.yaml()
    assert describe_command("x", [str(checkpoint_of_three), "--json"]) == 0
    assert '"plan_digest"' in capsys.readouterr().out
