"""Miniatures of the datasets' official layouts: whole annotation files, empty media where no importer opens them."""

from __future__ import annotations

import argparse
import json
import random
import struct
from pathlib import Path

import numpy as np

from polytrain.data.importers.collection import Collection
from polytrain.data.importers.registry import IMPORTERS


def read(name: str, root: Path | str, *flags: str, missing: str = "skip") -> Collection:
    """What `jobs/prepare.py NAME --root ROOT FLAGS` reads."""
    parser = argparse.ArgumentParser()
    IMPORTERS[name].add_flags(parser)
    options = parser.parse_args(flags)
    options.root, options.missing = str(root), missing
    return IMPORTERS[name].read(options)


def split(collection: Collection, name: str) -> list[str]:
    """The paths of one split."""
    return [example.path for example in collection.examples if example.split == name]


def sizes(collection: Collection) -> tuple[int, int, int]:
    return tuple(len(split(collection, name)) for name in ("train", "val", "test"))


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write(path: Path, lines: list[str] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines))
    return path


# ------------------------------------------------------------------------------------------------------- images


def cifar10(root: Path, images: int = 20) -> None:
    """Five batches and a test batch; pixel value = batch number * 10 + image for red, label for green, 0 for blue."""
    folder = root / "cifar-10-batches-bin"
    write(folder / "batches.meta.txt", [f"class{i}" for i in range(10)] + [""])
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = bytearray()
        for image in range(images):
            records += (
                bytes([image % 10]) + bytes([number * images + image]) * 1024 + bytes([image % 10]) * 1024 + bytes(1024)
            )
        (folder / f"{name}.bin").write_bytes(records)


def cifar100(root: Path, images: int = 100) -> None:
    folder = root / "cifar-100-binary"
    write(folder / "fine_label_names.txt", [f"fine{i}" for i in range(100)])
    write(folder / "coarse_label_names.txt", [f"coarse{i}" for i in range(20)])
    for name in ("train", "test"):
        (folder / f"{name}.bin").write_bytes(b"".join(bytes([i // 5, i]) + bytes(3072) for i in range(images)))


WNIDS = [f"n{index:08d}" for index in range(1000)]


def imagenet(root: Path, val: str = "folders", top: str = "") -> None:
    """One training image a class; ten validation images, of the first ten classes in reverse."""
    for wnid in WNIDS:
        touch(root / top / "train" / wnid / f"{wnid}_1.JPEG")
    labels = {f"ILSVRC2012_val_{i:08d}": WNIDS[10 - i] for i in range(1, 11)}
    for wnid in WNIDS if val == "folders" else []:
        (root / top / "val" / wnid).mkdir(parents=True)
    for image, wnid in labels.items():
        touch(root / top / "val" / (wnid if val == "folders" else "") / f"{image}.JPEG")
    if val == "kaggle":
        rows = [f"{image},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for image, wnid in reversed(labels.items())]
        write(root / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows])
        write(root / "LOC_synset_mapping.txt", [f"{wnid} word {wnid}, other word" for wnid in WNIDS])
    if val == "synset labels":
        write(root / "imagenet_2012_validation_synset_labels.txt", list(labels.values()))
    if val == "devkit":
        import scipy.io

        data = root / "ILSVRC2012_devkit_t12" / "data"
        write(
            data / "ILSVRC2012_validation_ground_truth.txt", [str(1000 - WNIDS.index(wnid)) for wnid in labels.values()]
        )
        synsets = np.zeros(1000, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
        for index in range(1000):  # the kit's own order: number 1 is the last wnid here
            synsets[index] = (index + 1, WNIDS[999 - index])
        scipy.io.savemat(data / "meta.mat", {"synsets": synsets.reshape(-1, 1)})


BREEDS = [f"breed_{index}" if index % 2 else f"Cat_breed_{index}" for index in range(37)]


def pets(root: Path, trainval: int = 10, test: int = 2) -> None:
    """As the official lists, sorted by class."""
    for name, first, last in (("trainval", 0, trainval), ("test", trainval, trainval + test)):
        rows = [f"{breed}_{i} {number} 1 1" for number, breed in enumerate(BREEDS, 1) for i in range(first, last)]
        write(root / "annotations" / f"{name}.txt", rows)
        for row in rows:
            touch(root / "images" / f"{row.split()[0]}.jpg")


def resisc45(root: Path, images: int = 20) -> None:
    for name in range(45):
        for image in range(1, images + 1):
            touch(root / "NWPU-RESISC45" / f"class_{name:02d}" / f"class_{name:02d}_{image:03d}.jpg")


def caltech101(root: Path) -> None:
    for name in ["BACKGROUND_Google", "Faces", *(f"thing{i:02d}" for i in range(100))]:
        for image in range(1, 33):
            touch(root / "101_ObjectCategories" / name / f"image_{image:04d}.jpg")


def sun397(root: Path) -> None:
    names = ["/c/church/outdoor", *(f"/a/place{i:03d}" for i in range(396))]
    write(root / "ClassName.txt", sorted(names))
    for partition in (1, 2):
        for part, image in (("Training", partition), ("Testing", partition + 1)):
            write(root / "Partitions" / f"{part}_{partition:02d}.txt", [f"{name}/sun_{image}.jpg" for name in names])
    for name in names:
        for image in (1, 2, 3):
            touch(root / "SUN397" / name.lstrip("/") / f"sun_{image}.jpg")


def dtd(root: Path) -> None:
    names = [f"texture{i:02d}" for i in range(47)]
    for part, image in (("train", 1), ("train", 2), ("val", 3), ("test", 4)):
        with open(touch(root / "dtd" / "labels" / f"{part}1.txt"), "a") as file:
            file.writelines(f"{name}/{name}_{image:04d}.jpg\n" for name in names)
    for name in names:
        for image in range(1, 5):
            touch(root / "dtd" / "images" / name / f"{name}_{image:04d}.jpg")


def kitti_line(kind: str, z: float) -> str:
    return f"{kind} 0.00 0 -1.5 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 {z:.2f} -1.56"


def kitti(root: Path, drives: int = 10, frames: int = 20) -> None:
    """Images are numbered drive by drive; image i has a car at i metres."""
    count = drives * frames
    rows = [f"2011_09_26 2011_09_26_drive_{i // frames:04d}_sync {i % frames:010d}" for i in range(count)]
    order = list(range(count))
    random.Random(0).shuffle(order)  # the mapping's lines are in another order than the images
    lines = [""] * count
    for image, place in enumerate(order):
        lines[place] = rows[image]
    write(root / "devkit_object" / "mapping" / "train_mapping.txt", lines)
    write(root / "devkit_object" / "mapping" / "train_rand.txt", ",".join(str(place + 1) for place in order) + "\n")
    for image in range(count):
        touch(root / "training" / "image_2" / f"{image:06d}.png")
        write(root / "training" / "label_2" / f"{image:06d}.txt", [kitti_line("Car", image), kitti_line("Misc", 1)])


def pcam(root: Path, train: int = 100) -> None:
    import h5py

    root.mkdir(exist_ok=True)
    for part, count in (("train", train), ("valid", 4), ("test", 6)):
        prefix = f"{root}/camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{prefix}_x.h5", "w") as file:
            x = file.create_dataset("x", (count, 96, 96, 3), np.uint8, chunks=(4, 96, 96, 3), compression="gzip")
            x[:] = np.tile(
                np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (1, 96, 96, 3)
            )  # h5py is slow to broadcast
        with h5py.File(f"{prefix}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def tfrecord(features: dict[str, bytes | int]) -> bytes:
    """One record of a tf.train.Example; checksums are zero, nobody reads them."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, int):
            kind = _field(3, _field(1, _varint(value)))  # packed int64
        else:
            kind = _field(1, _field(1, value))
        entries += _field(1, _field(1, name.encode()) + _field(2, kind))
    message = _field(1, entries)
    return struct.pack("<Q", len(message)) + bytes(4) + message + bytes(4)


def dmlab(root: Path, train: int = 100) -> None:
    root.mkdir(exist_ok=True)
    for part, count in (("train", train), ("validation", 4), ("test", 6)):
        for shard in (0, 1):
            records = [
                tfrecord(
                    {"image": f"JPEG of {part} {i}".encode() * 20, "filename": f"{part}{i}".encode(), "label": i % 6}
                )
                for i in range(shard, count, 2)
            ]
            (root / f"dmlab-{part}.tfrecord-{shard:05d}-of-00002").write_bytes(b"".join(records))


# ---------------------------------------------------------------------------------------------- videos and sounds


def kinetics(root: Path, classes: int = 400, flat: bool = True, test: bool = True) -> None:
    """One clip a class in every split; the crawler's files lie in folders of their class."""
    for number, part in enumerate(("train", "val", "test") if test else ("train", "val")):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for index in range(classes):
            label, video = f"doing thing {index:03d}", f"id{number}_{index:07d}"
            rows.append(f"{label},{video},{index},{index + 10},{'validate' if part == 'val' else part}")
            touch(root / part / ("" if flat else label) / f"{video}_{index:06d}_{index + 10:06d}.mp4")
        write(root / "annotations" / f"{part}.csv", rows)


def moments(root: Path) -> None:
    names = [f"verb+{index}" for index in range(339)]
    write(root / "moments_categories.txt", [f"{name},{index}" for index, name in enumerate(names)])
    for table, folder in (("trainingSet", "training"), ("validationSet", "validation")):
        write(root / f"{table}.csv", [f"{name}/yt-{folder}_{name}_1.mp4,{name},3,0" for name in names])
        for name in names:
            touch(root / folder / name / f"yt-{folder}_{name}_1.mp4")


AUDIOSET_ROWS = {"balanced_train": 20, "unbalanced_train": 200, "eval": 10}


def audioset(root: Path) -> None:
    """Segment i has the classes i % 10 and, every second one, 20; the unbalanced ones are all of class 0 but 20."""
    write(
        root / "class_labels_indices.csv",
        ["index,mid,display_name", *(f'{i},/m/{i:05d},"Sound, {i}"' for i in range(527))],
    )
    for table, count in AUDIOSET_ROWS.items():
        rows = [
            "# Segments csv created Sun Mar  5 10:54:31 2017",
            f"# num_ytids={count}, num_segs={count}, num_unique_labels=527, num_positive_labels=9",
            "# YTID, start_seconds, end_seconds, positive_labels",
        ]
        for i in range(count):
            labels = f"/m/{i % 10:05d},/m/00020" if i % 2 else f"/m/{i % 10:05d}"
            if table == "unbalanced_train":
                labels = "/m/00000" if i < 180 else f"/m/{i:05d}"
            rows.append(f'-{table[:3]}{i:07d}, {i}.000, {i + 10}.000, "{labels}"')
            touch(root / f"{table}_segments" / f"-{table[:3]}{i:07d}.wav")
        write(root / f"{table}_segments.csv", rows)


def vggsound(root: Path) -> None:
    rows = []
    for index in range(309):
        label = f'"sound, {index}"' if index % 2 else f"sound {index}"
        for part in ("train", "test"):
            video = f"{part}-{index:06d}"
            rows.append(f"{video},{index},{label},{part}")
            touch(root / "video" / f"{video}_{index:06d}.mp4")
    write(root / "vggsound.csv", rows)


def epic(root: Path) -> None:
    for target, count in (("verb", 97), ("noun", 300)):
        rows = [f'{i},{target}{i},"[a, b]",kind' for i in range(count)]
        write(root / "annotations" / f"EPIC_100_{target}_classes.csv", ["id,key,instances,category", *rows])
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    for part, video in (("train", "P01_01"), ("validation", "P02_101")):
        rows = [
            f'{video}_{i},P0{video[2]},{video},00:00:01.089,00:{i:02d}:00.14,00:{i:02d}:03.37,8,202,"open it, then",open,{i},'
            f"door,{i + 100},\"['door']\",[{i}]"
            for i in range(10)
        ]
        write(root / "annotations" / f"EPIC_100_{part}.csv", [header, *rows])
        touch(root / "EPIC-KITCHENS" / video[:3] / "videos" / f"{video}.MP4")


def ssv2(root: Path) -> None:
    names = [f"Moving something {index} up" for index in range(173)] + ["Holding something next to something"]
    folder = root / "labels"
    write(folder / "labels.json", json.dumps({name: str(173 - index) for index, name in enumerate(names)}))
    for part, first in (("train", 0), ("validation", 1000)):
        rows = [
            {
                "id": str(first + i),
                "label": "x",
                "template": name.replace("something", "[something]"),
                "placeholders": [],
            }
            for i, name in enumerate(names)
        ]
        write(folder / f"{part}.json", json.dumps(rows))
        for row in rows:
            touch(root / "20bn-something-something-v2" / f"{row['id']}.webm")
