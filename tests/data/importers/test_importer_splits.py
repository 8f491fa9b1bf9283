"""What each importer makes of a miniature of its official layout."""

import hashlib
from collections import Counter

import official_layouts as layouts
import pytest
from official_layouts import read, sizes, split

from polytrain.data.importers.registry import IMPORTERS

# Command: (layout, flags, modality, classes, examples in train, val, test).
CASES = {
    "cifar10": (layouts.cifar10, (), "image", 10, (98, 2, 20)),
    "cifar100": (layouts.cifar100, (), "image", 100, (98, 2, 100)),
    "imagenet": (layouts.imagenet, (), "image", 1000, (990, 10, 10)),
    "pets": (layouts.pets, (), "image", 37, (333, 37, 74)),
    "resisc45": (layouts.resisc45, (), "image", 45, (540, 180, 180)),
    "kinetics400": (layouts.kinetics, (), "video", 400, (400, 400, 400)),
    "kinetics600": (lambda root: layouts.kinetics(root, 600), (), "video", 600, (600, 600, 600)),
    "kinetics700": (lambda root: layouts.kinetics(root, 700), (), "video", 700, (700, 700, 700)),
    "kinetics400-sound": (layouts.kinetics, (), "audio", 400, (400, 400, 400)),
    "moments": (layouts.moments, (), "video", 339, (339, 339, 339)),
    "moments-sound": (layouts.moments, (), "audio", 339, (339, 339, 339)),
    "audioset": (layouts.audioset, (), "audio", 527, (20, 10, 10)),
    "vggsound": (layouts.vggsound, (), "audio", 309, (309, 309, 309)),
    "caltech101": (layouts.caltech101, (), "image", 102, (2999, 61, 204)),
    "sun397": (layouts.sun397, (), "image", 397, (389, 8, 397)),
    "dmlab": (layouts.dmlab, (), "image", 6, (98, 2, 6)),
    "dtd": (layouts.dtd, (), "image", 47, (92, 2, 47)),
    "kitti": (layouts.kitti, (), "image", 4, (157, 3, 20)),
    "pcam": (layouts.pcam, (), "image", 2, (98, 2, 6)),
    "epic-verb": (layouts.epic, (), "video", 97, (10, 10, 10)),
    "epic-noun": (layouts.epic, (), "video", 300, (10, 10, 10)),
    "ssv2": (layouts.ssv2, (), "video", 174, (174, 174, 174)),
}


def test_every_importer_is_tried_here():
    assert set(CASES) == set(IMPORTERS)


@pytest.mark.parametrize("name", CASES)
def test_a_miniature_of_the_official_layout_is_read_whole(name, tmp_path):
    make, flags, modality, classes, counts = CASES[name]
    make(tmp_path)
    found = read(name, tmp_path, *flags, missing="fail")
    assert (found.modality, len(found.classes), sizes(found)) == (modality, classes, counts)
    assert not found.missing
    assert {label for e in found.examples for label in e.classes} <= set(found.classes)
    assert found.multi_label == (name == "audioset")


@pytest.mark.parametrize("name", CASES)
def test_its_help_says_what_the_layout_and_the_splits_are(name):
    import argparse

    parser = argparse.ArgumentParser()
    IMPORTERS[name].add_flags(parser)
    text = parser.format_help()
    assert "layout" in text
    assert "val" in text


def test_cifar_holds_out_the_last_images_of_the_last_batch(tmp_path):
    layouts.cifar10(tmp_path)
    found = read("cifar10", tmp_path)
    assert [path.rpartition("/")[2] for path in split(found, "val")] == ["data_batch_5.bin#18", "data_batch_5.bin#19"]


def last_by_hash(names, percent):
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(order[round(len(order) * (100 - percent) / 100) :])


def test_pets_holds_out_the_last_tenth_of_the_list_in_hash_order(tmp_path):
    layouts.pets(tmp_path)
    listed = [f"images/{line.split()[0]}" for line in (tmp_path / "annotations/trainval.txt").read_text().splitlines()]
    found = read("pets", tmp_path)
    assert {path.removeprefix(f"{tmp_path}/").removesuffix(".jpg") for path in split(found, "val")} == last_by_hash(
        listed, 10
    )


def test_a_missing_image_moves_no_other_to_another_split(tmp_path):
    layouts.pets(tmp_path)
    before = set(split(read("pets", tmp_path), "val"))
    gone = tmp_path / "images" / "Cat_breed_0_3.jpg"
    gone.unlink()
    found = read("pets", tmp_path)
    assert set(split(found, "val")) == before - {str(gone)}
    assert found.missing == [str(gone.with_suffix(""))]


def test_the_first_60_percent_of_resisc45_hold_every_class(tmp_path):
    layouts.resisc45(tmp_path)
    found = read("resisc45", tmp_path)
    assert len({e.classes for e in found.examples if e.split == "train"}) == 45


def test_imagenet_holds_out_the_same_files_wherever_train_lies(tmp_path):
    layouts.imagenet(tmp_path / "a")
    layouts.imagenet(tmp_path / "b", top="ILSVRC/Data/CLS-LOC")
    held_out = [{path.rpartition("/")[2] for path in split(read("imagenet", tmp_path / r), "val")} for r in "ab"]
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize("val", ["folders", "kaggle", "synset labels", "devkit"])
def test_imagenets_validation_labels_come_from_any_of_its_lists(val, tmp_path):
    layouts.imagenet(tmp_path, val)
    found = read("imagenet", tmp_path)
    wnids = {e.path[-7:-5]: e.classes[0].split()[0] for e in found.examples if e.split == "test"}
    assert wnids == {f"{i:02d}": f"n{10 - i:08d}" for i in range(1, 11)}


def test_imagenets_classes_have_words_where_a_list_of_words_is_there(tmp_path):
    layouts.imagenet(tmp_path, "kaggle")
    assert read("imagenet", tmp_path).classes[7] == "n00000007 word n00000007"


def test_pets_classes_stand_in_the_order_of_their_numbers(tmp_path):
    layouts.pets(tmp_path)
    assert read("pets", tmp_path).classes == tuple(layouts.BREEDS)


def test_kinetics_finds_clips_in_folders_of_their_class(tmp_path):
    layouts.kinetics(tmp_path, flat=False)
    assert sizes(read("kinetics400", tmp_path, missing="fail")) == (400, 400, 400)


def test_without_a_labelled_test_set_kinetics_tests_on_validation(tmp_path):
    layouts.kinetics(tmp_path, 600)
    table = tmp_path / "annotations/test.csv"
    table.write_text("youtube_id,time_start,time_end,split\nx0000000000,1,11,test\n")
    found = read("kinetics600", tmp_path)
    assert split(found, "val") == split(found, "test") != []
    assert "no labelled test set" in found.notes[-1]


@pytest.mark.parametrize(("classes", "train"), [(400, 400), (600, 601), (700, 700)])
def test_of_kinetics_600_the_txt_lists_are_taken_since_its_csv_lists_are_not_whole(classes, train, tmp_path):
    layouts.kinetics(tmp_path, classes)
    rows = (tmp_path / "annotations" / "train.csv").read_text().splitlines()
    layouts.write(tmp_path / "annotations" / "train.txt", [*rows, "doing thing 007,only-in-txt,1,11,train"])
    layouts.touch(tmp_path / "train" / "only-in-txt_000001_000011.mp4")
    assert sizes(read(f"kinetics{classes}", tmp_path))[0] == train


def test_an_unlabelled_test_list_gives_way_to_a_labelled_one(tmp_path):
    layouts.kinetics(tmp_path, 600)
    path = tmp_path / "annotations" / "test.csv"
    layouts.write(path.with_suffix(".txt"), ["youtube_id,time_start,time_end,split", "id2_0000003,3,13,test"])
    found = read("kinetics600", tmp_path)
    assert sizes(found) == (600, 600, 600)
    assert found.notes == ()


def test_moments_validation_clips_are_val_and_test(tmp_path):
    layouts.moments(tmp_path)
    found = read("moments", tmp_path)
    assert split(found, "val") == split(found, "test")
    assert found.classes[:2] == ("verb+0", "verb+1")


@pytest.mark.parametrize(("subset", "train"), [("balanced", 20), ("unbalanced", 200), ("full", 220), ("500k", 220)])
def test_audiosets_subsets(subset, train, tmp_path):
    layouts.audioset(tmp_path)
    assert sizes(read("audioset", tmp_path, "--subset", subset)) == (train, 10, 10)


def test_audioset_segments_have_all_their_labels_by_display_name(tmp_path):
    layouts.audioset(tmp_path)
    example = next(e for e in read("audioset", tmp_path).examples if e.path.endswith("-bal0000003.wav"))
    assert example.classes == ("Sound, 3", "Sound, 20")


@pytest.mark.parametrize("file", ["audio/bal_train/Y-bal0000003.flac", "balanced_train/-bal0000003_3000_13000.mp3",
                                  "balanced_train_segments_part07/-bal0000003_000003_000013.m4a"])  # fmt: skip
def test_audioset_media_as_downloaders_name_them(file, tmp_path):
    layouts.audioset(tmp_path)
    (tmp_path / "balanced_train_segments" / "-bal0000003.wav").unlink()
    layouts.touch(tmp_path / file)
    assert read("audioset", tmp_path, missing="fail").examples[3].path == str(tmp_path / file)


def test_the_drawn_subset_prefers_rare_classes_and_obeys_its_seed(tmp_path, monkeypatch):
    layouts.audioset(tmp_path)
    monkeypatch.setattr("polytrain.data.importers.audioset.DRAWN", 60)
    first, again, other = (
        split(read("audioset", tmp_path, "--subset", "500k", "--seed", seed), "train") for seed in "001"
    )
    assert first == again != other
    assert len(first) == 60
    found = read("audioset", tmp_path, "--subset", "500k")
    classes = Counter(name for e in found.examples if e.split == "train" for name in e.classes)
    assert classes["Sound, 0"] <= 32  # of 180 + 2; the 38 others are nearly all drawn


def test_vggsounds_labels_may_hold_commas(tmp_path):
    layouts.vggsound(tmp_path)
    assert "sound, 1" in read("vggsound", tmp_path).classes


def test_caltech_trains_on_30_images_of_each_class(tmp_path):
    layouts.caltech101(tmp_path)
    found = read("caltech101", tmp_path)
    trained = Counter(e.classes[0] for e in found.examples if e.split != "test")
    assert set(trained.values()) == {30}


def test_sun397_takes_the_partition_that_is_asked_for(tmp_path):
    layouts.sun397(tmp_path)
    found = read("sun397", tmp_path, "--partition", "2")
    assert {path.rpartition("/")[2] for path in split(found, "test")} == {"sun_3.jpg"}
    assert found.classes[-1] == "church/outdoor"


@pytest.mark.parametrize(
    ("name", "counts"), [("dtd", (94, 47, 47)), ("pcam", (100, 4, 6)), ("dmlab", (100, 4, 6)), ("kitti", (160, 20, 20))]
)
def test_official_val_takes_the_datasets_own_validation_set(name, counts, tmp_path):
    CASES[name][0](tmp_path)
    assert sizes(read(name, tmp_path, "--official-val")) == counts


def test_kittis_test_drives_are_those_of_tensorflow_datasets(tmp_path):
    import numpy as np

    layouts.kitti(tmp_path)
    drives = [f"2011_09_26_drive_{i:04d}_sync" for i in range(10)]
    np.random.seed(123)  # the legacy stream, as tensorflow_datasets/object_detection/kitti.py draws it
    expected = drives.index(np.random.choice(drives, 1, replace=False)[0])
    found = {int(path[-10:-4]) // 20 for path in split(read("kitti", tmp_path), "test")}
    assert found == {expected}


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([("Car", 8.0), ("Van", 30)], 0),  # VTAB: 8 m is not more than 8 m
        ([("Truck", 8.01)], 1),
        ([("Car", 20.0)], 1),
        ([("Car", 20.01), ("Pedestrian", 2)], 2),
        ([("Tram", 3), ("DontCare", -1000)], 3),
        ([("Car", -3.5)], 0),
    ],
)
def test_kittis_class_is_the_nearest_vehicles_distance(objects, expected, tmp_path):
    from polytrain.data.importers.kitti import distance_class

    path = layouts.write(tmp_path / "0.txt", [layouts.kitti_line(*item) for item in objects])
    assert distance_class(str(path)) == expected


def test_epics_actions_are_clips_of_their_videos(tmp_path):
    layouts.epic(tmp_path)
    example = read("epic-noun", tmp_path).examples[2]
    assert (example.classes, example.start_s, example.end_s) == (("noun102",), 120.14, 123.37)
    assert example.path.endswith("EPIC-KITCHENS/P01/videos/P01_01.MP4")


def test_ssv2s_classes_are_templates_without_brackets_in_the_labels_order(tmp_path):
    layouts.ssv2(tmp_path)
    found = read("ssv2", tmp_path)
    assert found.classes[0] == "Holding something next to something"
    assert found.examples[-1].classes == found.classes[:1]
