"""Wrong datasets, wrong versions and damaged annotations, refused by file and line."""

import json

import official_layouts as layouts
import pytest
from official_layouts import read, write

from polytrain.data.importers.collection import IngestError
from polytrain.data.importers.registry import IMPORTERS


def edit(path, old, new):
    def change(root):
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return change


def replace(path, content):
    def change(root):
        (root / path).write_bytes(content)

    return change


def remove(path):
    return lambda root: (root / path).unlink()


def second_of(path, line, times=1):
    """The line stands in the file once more, at its end."""

    def change(root):
        lines = (root / path).read_text().splitlines()
        write(root / path, [*lines, *[lines[line - 1]] * times])

    return change


def python_cifar(root):
    for name in (root / "cifar-10-batches-bin").iterdir():
        name.unlink()
    (root / "cifar-10-batches-bin" / "data_batch_1").touch()


def half_pcam(root):
    path = root / "camelyonpatch_level_2_split_train_x.h5"
    path.write_bytes(path.read_bytes()[:2000])


def packed_pcam(root):
    path = root / "camelyonpatch_level_2_split_test_y.h5"
    path.rename(f"{path}.gz")


K400 = "annotations/train.csv"
BALANCED = "balanced_train_segments.csv"
EPIC = "annotations/EPIC_100_train.csv"

# What is wrong: (command, layout, what spoils it, what the message says).
CASES = {
    "another dataset's records": ("cifar10", layouts.cifar10, replace("cifar-10-batches-bin/data_batch_2.bin", bytes(3074)), ["data_batch_2.bin", "3073-byte records"]),
    "a label outside": ("cifar100", layouts.cifar100, replace("cifar-100-binary/test.bin", bytes(3074) + bytes([0, 100]) + bytes(3072)), ["test.bin, record 2: label 100"]),
    "pickled CIFAR": ("cifar10", layouts.cifar10, python_cifar, ["data_batch_1", "pickle", "cifar-10-binary.tar.gz"]),
    "a missing batch": ("cifar10", layouts.cifar10, remove("cifar-10-batches-bin/data_batch_4.bin"), ["has no cifar-10-batches-bin/data_batch_4.bin"]),
    "a short class list": ("cifar100", layouts.cifar100, replace("cifar-100-binary/fine_label_names.txt", b"a\nb\n"), ["names 2 classes", "100"]),
    "ImageNet's val without labels": ("imagenet", lambda root: layouts.imagenet(root, "flat"), lambda root: None, ["LOC_val_solution.csv", "validation_synset_labels.txt", "ILSVRC2012_devkit_t12"]),
    "a class ImageNet lacks": ("imagenet", lambda root: layouts.imagenet(root, "kaggle"), edit("LOC_val_solution.csv", "n00000003 ", "n99999999 "), ["LOC_val_solution.csv, line 5", "'n99999999'"]),
    "999 classes of ImageNet": ("imagenet", layouts.imagenet, lambda root: (root / "train/n00000000/n00000000_1.JPEG").unlink() or (root / "train/n00000000").rmdir(), ["has 999 classes, ImageNet-1k has 1000"]),
    "a row of another list": ("pets", layouts.pets, edit("annotations/test.txt", "Cat_breed_2_10 3 1 1", "Cat_breed_2_10.jpg 3"), ["test.txt, line 5", "Abyssinian_100 1 1 1"]),
    "a pet's other number": ("pets", layouts.pets, edit("annotations/test.txt", "Cat_breed_2_10 3", "Cat_breed_2_10 4"), ["test.txt, line 5", "class 4 is 'Cat_breed_2' here and 'breed_3' before"]),
    "a pet in both lists": ("pets", layouts.pets, edit("annotations/test.txt", "Cat_breed_2_10 3", "Cat_breed_2_1 3"), ["test.txt, line 5: 'images/Cat_breed_2_1' is in test", "trainval.txt, line 22 has it in"]),
    "44 scenes": ("resisc45", layouts.resisc45, lambda root: (root / "NWPU-RESISC45/class_07").rename(root / "class_07"), ["has 44 classes, RESISC45 has 45"]),
    "Kinetics-600 given to 400": ("kinetics400", lambda root: layouts.kinetics(root, 600), lambda root: None, ["train.csv: has 600 classes, Kinetics-400 has 400"]),
    "a class of test only": ("kinetics400", layouts.kinetics, edit("annotations/test.csv", "doing thing 003", "doing thing 3"), ["test.csv, line 5: class 'doing thing 3' is not among the 400 classes; did you mean 'doing thing "]),
    "val's table as train's": ("kinetics400", layouts.kinetics, edit(K400, "10,20,train", "10,20,validate"), [f"{K400}, line 12: split 'validate'"]),
    "no such column": ("kinetics400", layouts.kinetics, edit(K400, "youtube_id", "video"), [f"{K400}, line 1: has no column 'youtube_id'"]),
    "a comma too many": ("kinetics400", layouts.kinetics, edit(K400, "doing thing 001", "doing, thing 001"), [f"{K400}, line 3: has 6 values"]),
    "a time that is none": ("kinetics400", layouts.kinetics, edit(K400, ",1,11,", ",?,11,"), [f"{K400}, line 3: '?' is no time"]),
    "a clip twice": ("kinetics400", layouts.kinetics, second_of(K400, 7), [f"{K400}, line 402: 'id0_0000005_000005_000015' stands in", f"{K400}, line 7 already"]),
    "a video in train and test": ("kinetics400", layouts.kinetics, edit("annotations/test.csv", "id2_0000004,4,14", "id0_0000004,50,60"), ["test.csv, line 6: 'id0_0000004' is in test", "train.csv, line 6 has it in train"]),
    "Moments in Time 2": ("moments", layouts.moments, edit("moments_categories.txt", "verb+338,338\n", ""), ["has 338 classes, Moments in Time (version 1) has 339"]),
    "a category without index": ("moments", layouts.moments, edit("moments_categories.txt", "verb+5,5", "verb+5"), ["moments_categories.txt, line 6"]),
    "a moment without class": ("moments-sound", layouts.moments, edit("trainingSet.csv", "_verb+2_1.mp4,verb+2,3,0", "_verb+2_1.mp4"), ["trainingSet.csv, line 3: has 1 values"]),
    "a table without its header": ("audioset", layouts.audioset, replace(BALANCED, b'-bal0000003, 3.000, 13.000, "/m/00003"\n'), [f"{BALANCED}, line 1", "three lines of header", "# YTID, start_seconds"]),
    "an unknown mid": ("audioset", layouts.audioset, edit(BALANCED, "/m/00004", "/m/zzz"), [f"{BALANCED}, line 8: class '/m/zzz' is not in class_labels_indices.csv"]),
    "a table cut short": ("audioset", layouts.audioset, lambda root: write(root / BALANCED, (root / BALANCED).read_text().splitlines()[:-3]), [f"{BALANCED}: has 17 segments, its header says num_segs=20"]),
    "a segment in train and eval": ("audioset", layouts.audioset, edit("eval_segments.csv", "-eva0000002", "-bal0000002"), ["eval_segments.csv, line 6: '-bal0000002' is in val/test"]),
    "another class list": ("audioset", layouts.audioset, edit("class_labels_indices.csv", '526,/m/00526,"Sound, 526"\n', ""), ["has 526 classes, AudioSet has 527"]),
    "a moment of an unknown class": ("moments", layouts.moments, edit("validationSet.csv", "verb+4/yt", "verb+400/yt"), ["validationSet.csv, line 5: class 'verb+400' is not among the 339"]),
    "VGGSound's split": ("vggsound", layouts.vggsound, edit("vggsound.csv", "sound 2,train", "sound 2,valid"), ["vggsound.csv, line 5: split 'valid'"]),
    "a sound in train and test": ("vggsound", layouts.vggsound, edit("vggsound.csv", "test-000003,3", "train-000003,20"), ["vggsound.csv, line 8: 'train-000003' is in val/test"]),
    "too few images of a class": ("caltech101", layouts.caltech101, lambda root: [path.unlink() for path in sorted((root / "101_ObjectCategories/thing05").iterdir())[:5]], ["thing05: has 27 images"]),
    "no background class": ("caltech101", layouts.caltech101, lambda root: (root / "101_ObjectCategories/BACKGROUND_Google").rename(root / "x"), ["has 101 classes"]),
    "SUN397's overlap": ("sun397", layouts.sun397, edit("Partitions/Testing_01.txt", "/a/place004/sun_2.jpg", "/a/place004/sun_1.jpg"), ["Testing_01.txt, line 6: '/a/place004/sun_1.jpg' is in test"]),
    "no TFRecord": ("dmlab", layouts.dmlab, replace("dmlab-train.tfrecord-00001-of-00002", b"\x89PNG and more bytes"), ["dmlab-train.tfrecord-00001-of-00002, record 1: is no whole TFRecord"]),
    "other features": ("dmlab", layouts.dmlab, replace("dmlab-test.tfrecord-00000-of-00002", layouts.tfrecord({"jpeg": b"x", "label": 1})), ["record 1: has features jpeg, label; it should have image"]),
    "a record in train and test": ("dmlab", layouts.dmlab, replace("dmlab-test.tfrecord-00001-of-00002", layouts.tfrecord({"image": b"x", "filename": b"train7", "label": 1})), ["record 1: 'train7' is in test", "00001-of-00002, record 4 has it in train"]),
    "46 textures": ("dtd", layouts.dtd, lambda root: write(root / "dtd/labels/train1.txt", [line for line in (root / "dtd/labels/train1.txt").read_text().split() if "texture11" not in line]), ["train1.txt: has 46 classes"]),
    "a label of another task": ("kitti", layouts.kitti, replace("training/label_2/000003.txt", b"Car 0 0 0.5\n"), ["label_2/000003.txt, line 1", "14 numbers"]),
    "no devkit": ("kitti", layouts.kitti, remove("devkit_object/mapping/train_rand.txt"), ["has no mapping/train_rand.txt or devkit_object/mapping/train_rand.txt"]),
    "half an HDF5 file": ("pcam", layouts.pcam, half_pcam, ["split_train_x.h5: is no whole HDF5 file"]),
    "labels still packed": ("pcam", layouts.pcam, packed_pcam, ["split_test_y.h5.gz: is still packed"]),
    "an unknown verb": ("epic-verb", layouts.epic, edit(EPIC, "open,3,", "open,97,"), [f"{EPIC}, line 5: verb_class '97' is not among the 97"]),
    "frames for times": ("epic-noun", layouts.epic, edit(EPIC, "00:02:00.14", "12014"), [f"{EPIC}, line 4: '12014' is no time"]),
    "the unlabelled test table": ("epic-verb", layouts.epic, edit(EPIC, "verb_class,", ""), [f"{EPIC}, line 1: has no column 'verb_class'"]),
    "version 1's labels": ("ssv2", layouts.ssv2, replace("labels/labels.json", json.dumps({"Doing something": "0"}).encode()), ["labels.json: has 1 classes, Something-Something v2 has 174"]),
    "half a JSON": ("ssv2", layouts.ssv2, replace("labels/train.json", b'[{"id": "1",\n "template": "Mov'), ["train.json, line 2: is no JSON"]),
    "the unlabelled test list": ("ssv2", layouts.ssv2, replace("labels/validation.json", b'[{"id": "1420"}]'), ["validation.json, entry 1"]),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_it_is_refused(what, tmp_path):
    name, make, spoil, said = CASES[what]
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(IngestError) as error:
        read(name, tmp_path)
    assert [words for words in said if words not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("name", IMPORTERS)
def test_a_missing_root_is_refused_with_the_official_layout(name, tmp_path):
    with pytest.raises(IngestError) as error:
        read(name, tmp_path / "nowhere")
    assert "there is no such folder" in str(error.value)
    assert IMPORTERS[name].layout in str(error.value)


@pytest.mark.parametrize("name", IMPORTERS)
def test_an_empty_root_is_refused_by_what_it_lacks(name, tmp_path):
    with pytest.raises(IngestError, match=r"has no |has 0 classes"):
        read(name, tmp_path)
