"""The preview command on real media."""

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image as Pillow

from polytrain.data import manifest as manifests
from polytrain.ingest import prepare_command
from polytrain.preview import about, chosen, class_counts, preview, shown_examples, whole
from small_media import CLASSES, make_task, tiny_recipe, write_image


def of_labels(labels, classes, path):
    """A manifest over files that are not there: enough to choose and to count."""
    several = isinstance(labels[0], list)
    column = pa.array(labels, pa.list_(pa.int32()) if several else pa.int32())
    table = pa.table({
        "path": [f"{row}.png" for row in range(len(labels))], "labels" if several else "label": column,
        "split": ["train"] * len(labels),
    })  # fmt: skip
    manifests.write(path, task="t", modality="image", classes=classes, table=table)
    return manifests.read(path)


@pytest.fixture
def rare(tmp_path):
    """A hundred of class a, three of b, one of c."""
    return of_labels([0] * 100 + [1] * 3 + [2], ["a", "b", "c"], tmp_path / "m.parquet")


def test_rare_classes_are_shown_as_much_as_frequent_ones(rare):
    rows = chosen(rare, "train", 8, 0)
    assert (rows < 100).sum() == 4
    assert set(rows[4:].tolist()) == {100, 101, 102, 103}


def test_the_seed_draws_the_examples(rare):
    assert chosen(rare, "train", 8, 0).tolist() == chosen(rare, "train", 8, 0).tolist()
    assert chosen(rare, "train", 8, 0).tolist() != chosen(rare, "train", 8, 1).tolist()


def test_no_example_is_shown_twice_and_no_more_than_there_are(rare):
    assert sorted(chosen(rare, "train", 1000, 0).tolist()) == list(range(104))


def test_with_more_classes_than_places_classes_are_drawn(tmp_path):
    many = of_labels(list(range(100)) * 3, [str(n) for n in range(100)], tmp_path / "m.parquet")
    rows = chosen(many, "train", 10, 0)
    assert len(set((rows % 100).tolist())) == 10


def test_an_example_of_several_classes_counts_for_its_rarest_and_one_of_none_is_shown(tmp_path):
    several = of_labels([[0]] * 20 + [[0, 1], []], ["a", "b"], tmp_path / "m.parquet")
    assert chosen(several, "train", 3, 0).tolist()[1:] == [20, 21]
    counts = class_counts(several)
    assert counts.splits["train"].tolist() == [21, 1]
    assert counts.without == {"train": 1}


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_real_media_are_shown_with_classes_names_and_sizes(modality, tmp_path):
    manifest = manifests.read(make_task(tmp_path / modality, modality))
    _, shown = shown_examples(manifest, "val", [0, 1, 2])
    assert [one.title for one in shown] == list(CLASSES)
    assert all(one.note.startswith(f"val_00{number}") for number, one in enumerate(shown))
    size = {"image": "20 × 16", "video": "32 × 32, 1 s, 12 frames/s", "audio": "0.3 s, 8 kHz mono"}[modality]
    assert all(size in one.note for one in shown)
    assert {one.media.ndim for one in shown} == {{"image": 3, "video": 4, "audio": 2}[modality]}
    assert preview(manifest, count=5).width == 1360


def test_pictures_are_shown_in_their_own_proportions_upright(tmp_path):
    picture = Pillow.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    (geometry,) = whole("image", [about("image", str(tmp_path / "turned.jpg"))])
    assert geometry.size == (40, 20)


def test_a_bad_file_is_shown_with_the_reason(tmp_path):
    path = make_task(tmp_path / "colours", "image")
    (path.parent / "train_000.png").write_bytes(b"")
    (path.parent / "train_001.png").unlink()
    _, shown = shown_examples(manifests.read(path), "train", [0, 1, 2])
    assert [one.reason for one in shown] == ["empty file", "no such file", ""]
    assert [one.title for one in shown] == list(CLASSES)


def test_media_in_the_manifest_are_shown(tmp_path):
    write_image(tmp_path / "a.png", 0, np.random.default_rng(0))
    data = pa.array([(tmp_path / "a.png").read_bytes()], pa.binary())
    table = pa.table(
        {"path": pa.array([None], pa.string()), "data": data, "label": pa.array([0], pa.int32()), "split": ["train"]}
    )
    manifests.write(tmp_path / "m.parquet", task="t", modality="image", classes=["red"], table=table)
    _, (shown,) = shown_examples(manifests.read(tmp_path / "m.parquet"), "train", [0])
    assert shown.media[..., 0].mean() > shown.media[..., 1].mean() + 100


# --- the command ---


def test_the_command_writes_a_sheet(tmp_path, capsys):
    path = make_task(tmp_path / "tones", "audio", multi_label=True)
    sheet = tmp_path / "sheet.png"
    assert prepare_command("", ["preview", str(path), "--examples", "4", "--out", str(sheet)]) == 0
    assert Pillow.open(sheet).width == 1360
    assert capsys.readouterr().out.startswith(f"tones: {sheet}, 1360 x ")


def test_the_command_shows_what_a_recipe_decodes(tmp_path):
    task = make_task(tmp_path / "moves", "video")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe({"image": task, "video": task, "several": task}, tmp_path)))
    words = ["preview", "--recipe", str(recipe), "--task", "moves", "--out", str(tmp_path / "sheet.png")]
    assert prepare_command("", words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{manifest}", "--out", "sheet.jpg"], "should end in .png"),
        (["--out", "sheet.png"], "no manifest: name one"),
        (["{manifest}", "--split", "test", "--out", "sheet.png"], "has no example in test; it has train"),
        (["{manifest}", "--task", "x", "--out", "sheet.png"], "--recipe, which is not given"),
        (["nowhere.parquet", "--out", "sheet.png"], "there is no such file"),
        (["{manifest}", "--recipe", "nowhere.yaml", "--out", "sheet.png"], "nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_task(tmp_path / "colours", "image", sizes={"train": 3})
    assert prepare_command("", ["preview", *(word.format(manifest=path) for word in words)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
