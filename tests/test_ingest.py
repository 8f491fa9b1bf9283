import hashlib
import wave

import pytest

from polytrain.data import manifest
from polytrain.ingest import prepare_command


def sound(path):
    """A sound of its own: files of one content are copies, which are told apart from overlap in test_ingest_copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(hashlib.sha256(str(path).encode()).digest() * 50)


def folder(root, sizes, splits=("train",)):
    for split in splits:
        for name, size in sizes.items():
            for index in range(size):
                sound(root / split / name / f"{index:03d}.wav")
    return root


def prepare(*words):
    return prepare_command("", [str(word) for word in words])


def prepared(tmp_path, *more):
    out = tmp_path / "out"
    assert prepare("folder", "--modality", "audio", "--root", tmp_path / "birds", "--out", out, *more) == 0
    return manifest.read(out / "manifest.parquet")


def refused(capsys, tmp_path, *words):
    assert prepare(*words, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


def csv(tmp_path, text):
    for name in "abcd":
        sound(tmp_path / "media" / f"{name}.wav")
    (tmp_path / "t.csv").write_text(text)
    return ("csv", "--modality", "audio", "--table", tmp_path / "t.csv", "--root", tmp_path / "media")


def test_split_folders_become_splits_and_class_folders_sorted_classes(tmp_path):
    folder(tmp_path / "birds", {"wren": 3, "crow": 2}, ("train", "val", "test"))
    m = prepared(tmp_path)
    assert (m.task, m.modality, m.classes) == ("birds", "audio", ("crow", "wren"))
    assert m.sizes == {"train": 5, "val": 5, "test": 5}


def test_paths_are_relative_to_the_manifest_and_lead_to_the_media(tmp_path):
    folder(tmp_path / "birds", {"wren": 3, "crow": 2}, ("train", "val", "test"))
    m = prepared(tmp_path)
    stored = m.table["path"][0].as_py()
    assert stored == "../birds/train/crow/000.wav"
    assert m.location(stored) == str(tmp_path / "birds/train/crow/000.wav")


def test_missing_splits_are_split_off_class_by_class(tmp_path):
    folder(tmp_path / "birds", {"wren": 40, "crow": 20})
    m = prepared(tmp_path, "--val-fraction", 0.2)
    assert m.split("val")["label"].to_pylist().count(0) == 4
    assert m.split("val")["label"].to_pylist().count(1) == 8
    assert m.sizes == {"train": 42, "val": 12, "test": 6}


def test_the_seed_decides_what_is_split_off(tmp_path):
    folder(tmp_path / "birds", {"wren": 40})
    chosen = [prepared(tmp_path, "--seed", seed).split("val")["path"].to_pylist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_split_that_exists_is_left_as_it_is(tmp_path):
    folder(tmp_path / "birds", {"wren": 20}, ("train", "val"))
    assert prepared(tmp_path, "--val-fraction", 0.5).sizes == {"train": 18, "val": 20, "test": 2}


def test_a_class_never_loses_its_last_training_example(tmp_path):
    folder(tmp_path / "birds", {"wren": 1, "crow": 30})
    assert 1 in prepared(tmp_path).split("train")["label"].to_pylist()


def test_class_folders_without_split_folders_are_training(tmp_path):
    for index in range(10):
        sound(tmp_path / "birds" / "wren" / f"{index}.wav")
    assert prepared(tmp_path, "--test-fraction", 0).sizes == {"train": 9, "val": 1, "test": 0}


def test_hidden_and_foreign_files_are_counted_in_one_line(tmp_path, capsys):
    folder(tmp_path / "birds", {"wren": 5})
    sound(tmp_path / "birds/train/wren/LOUD.WAV")
    (tmp_path / "birds/train/wren/.DS_Store").touch()
    (tmp_path / "birds/train/wren/notes.txt").touch()
    assert sum(prepared(tmp_path).sizes.values()) == 6
    assert "skipped 2 hidden or foreign files: 1 hidden, 1 .txt\n" in capsys.readouterr().out


def test_it_ends_with_recipe_lines_that_are_yaml(tmp_path, capsys):
    import yaml

    folder(tmp_path / "birds", {"wren": 40, "crow": 20})
    m = prepared(tmp_path)
    text = capsys.readouterr().out
    task = yaml.safe_load(text[text.index("tasks:") :])["tasks"]["birds"]
    assert manifest.read(task["manifest"]).digest == m.digest
    assert (task["batch_size"], task["loss"]) == (16, "softmax")


def test_a_class_only_in_test_is_refused_by_name(tmp_path, capsys):
    folder(tmp_path / "birds", {"wren": 3}, ("train", "test"))
    sound(tmp_path / "birds/test/owl/0.wav")
    error = refused(capsys, tmp_path, "folder", "--modality", "audio", "--root", tmp_path / "birds")
    assert "class 'owl' has no training example" in error


def test_a_misnamed_split_folder_is_refused(tmp_path, capsys):
    folder(tmp_path / "birds", {"wren": 3}, ("train", "valid"))
    error = refused(capsys, tmp_path, "folder", "--modality", "audio", "--root", tmp_path / "birds")
    assert "'valid'" in error
    assert "train, val, test" in error


def test_another_modality_is_told_by_the_suffixes_found(tmp_path, capsys):
    folder(tmp_path / "birds", {"wren": 3})
    error = refused(capsys, tmp_path, "folder", "--modality", "video", "--root", tmp_path / "birds")
    assert "no video file" in error
    assert "3 .wav" in error


def test_a_missing_root_is_refused(tmp_path, capsys):
    assert "no such folder" in refused(capsys, tmp_path, "folder", "--modality", "audio", "--root", tmp_path / "nope")


@pytest.mark.parametrize("fraction", ["-0.1", "1.0"])
def test_a_fraction_outside_0_to_1_is_refused(tmp_path, capsys, fraction):
    folder(tmp_path / "birds", {"wren": 3})
    words = ("folder", "--modality", "audio", "--root", tmp_path / "birds", f"--val-fraction={fraction}")
    assert "below 1" in refused(capsys, tmp_path, *words)


def test_a_table_becomes_a_single_label_task(tmp_path):
    words = csv(tmp_path, "path,label,split\na.wav,dog,train\nb.wav,cat,val\nc.wav,cat,train\nd.wav,dog,test\n")
    assert prepare(*words, "--out", tmp_path / "out") == 0
    m = manifest.read(tmp_path / "out/manifest.parquet")
    assert (m.classes, m.multi_label, m.table["label"].to_pylist()) == (("cat", "dog"), False, [1, 0, 0, 1])


def test_a_semicolon_anywhere_makes_the_task_multi_label(tmp_path):
    words = csv(tmp_path, "path,label,split\na.wav,dog;cat,train\nb.wav,cat,val\nc.wav,,train\nd.wav,dog,test\n")
    assert prepare(*words, "--out", tmp_path / "out") == 0
    m = manifest.read(tmp_path / "out/manifest.parquet")
    assert m.table["labels"].to_pylist() == [[0, 1], [0], [], [1]]


def test_a_table_without_splits_is_split(tmp_path):
    words = csv(tmp_path, "path,label\na.wav,x\nb.wav,x\nc.wav,x\nd.wav,x\n")
    assert prepare(*words, "--out", tmp_path / "out") == 0
    assert manifest.read(tmp_path / "out/manifest.parquet").sizes == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.wav,dog,train\n", "line 1"),
        ("path,label,split\na.wav,dog,train\nz.wav,dog,train\n", "line 3: there is no file"),
        ("path,label,split\na.wav,dog,training\n", "line 2: split 'training' is unknown"),
        ("path,label,split\na.wav,,train\n", "line 2: the label is empty"),
        ("path,label,split\na.wav,dog\n", "line 2: has more or fewer values"),
        ("path,label,split\na.wav,dog,train\na.wav,cat,test\n", "stands in line 2 already"),
        ("path,label,split\nt.txt,dog,train\n", "is no audio file"),
        ("path,label,split\n", "no rows"),
    ],
)
def test_a_wrong_row_is_told_by_its_line_and_nothing_is_written(tmp_path, capsys, text, told):
    assert told in refused(capsys, tmp_path, *csv(tmp_path, text))


@pytest.mark.parametrize(
    ("row", "option", "sizes"), [("a.wav,x,test", "--overlap", (2, 0, 1)), ("a.wav,y,train", "--duplicates", (3, 0, 0))]
)
def test_a_file_in_two_rows_is_refused_with_the_option_that_takes_it(row, option, sizes, tmp_path, capsys):
    words = csv(tmp_path, f"path,label,split\na.wav,x,train\nb.wav,x,train\nc.wav,y,train\n{row}\n")
    words = [*words, "--val-fraction", 0, "--test-fraction", 0, "--out", tmp_path / "out"]
    assert prepare(*words) == 2
    assert "line 2 already" in (told := capsys.readouterr().err)
    assert f"{option} skip" in told
    assert prepare(*words, option, "skip") == 0
    assert f"{option} skip" in capsys.readouterr().out
    assert tuple(manifest.read(tmp_path / "out/manifest.parquet").sizes.values()) == sizes


@pytest.mark.parametrize("command", ["sample", "folder", "csv"])
def test_every_command_explains_its_flags(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare(command, "--help")
    assert stopped.value.code == 0
    assert "--seed" in capsys.readouterr().out
