"""Collections that people have become manifests: folders, tables, and the sample suite.

`COMMANDS` lists what `jobs/prepare.py` can do; another kind of collection is another entry. Media stay where they
are, the manifest points to them. What is wrong with a collection raises IngestError before anything is written.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from polytrain.data import manifest, sample_suite
from polytrain.modalities import MODALITIES

BAD_INPUT = 2
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp"),
    "video": (".mp4", ".webm", ".avi", ".mkv", ".mov"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
}


class IngestError(ValueError):
    """What is wrong with a collection, where, and what would be right."""


@dataclass(frozen=True)
class Example:
    """One media file (an absolute path), the names of its classes and its split."""

    path: str
    classes: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Collection:
    """What was found, before it is split and written; `notes` are lines for the person who asked."""

    modality: str
    examples: list[Example]
    multi_label: bool = False
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------ reading


def read_folder(root: str, modality: str) -> Collection:
    """ROOT/{train,val,test}/<class>/<file>, or ROOT/<class>/<file>, all of which is then training.

    Class folders are searched to any depth. Hidden files and files of another kind are counted in a note.
    """
    if not os.path.isdir(root):
        raise IngestError(f"{root}: there is no such folder; --root names the one that holds train/<class>/<file>")
    root = os.path.abspath(root)
    folders = _folders(root)
    split_folders = [name for name in manifest.SPLITS if name in folders]
    if split_folders:
        if "train" not in folders:
            raise IngestError(f"{root}: has {' and '.join(split_folders)} but no train; there is nothing to train on")
        if strange := [name for name in folders if name not in manifest.SPLITS]:
            raise IngestError(f"{root}: {strange[0]!r} lies beside train; its name should be one of train, val, test")
    skipped: Counter[str] = Counter()
    examples = []
    for split in split_folders or ["train"]:
        top = os.path.join(root, split) if split_folders else root
        for name in _folders(top):
            for path in _files(os.path.join(top, name)):
                suffix = os.path.splitext(path)[1].lower()
                if os.path.basename(path).startswith("."):
                    skipped["hidden"] += 1
                elif suffix not in SUFFIXES[modality]:
                    skipped[suffix or "no suffix"] += 1
                else:
                    examples.append(Example(path, (name,), split))
    kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
    if not examples:
        found = f"; files of other kinds: {kinds}" if kinds else ""
        raise IngestError(
            f"{root}: no {modality} file below train/<class>/ or <class>/{found}. "
            f"Suffixes of {modality}: {' '.join(SUFFIXES[modality])}"
        )
    note = (f"skipped {skipped.total()} hidden or foreign files: {kinds}",) if skipped else ()
    return Collection(modality, examples, notes=note)


def _folders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _files(path: str) -> Iterable[str]:
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in sorted(names))


def read_csv(table: str, root: str, modality: str, multi_label: bool = False) -> Collection:
    """A comma-separated table with the header path,label[,split]; paths are relative to `root`.

    A ';' in any label makes the task multi-label; there an empty label means: none of the classes.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte-order mark
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise IngestError(f"{table}: cannot be read: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise IngestError(f"{table}: is no comma-separated UTF-8 table: {error}") from None
    for column in ("path", "label"):
        if column not in header:
            raise IngestError(
                f"{table}, line 1: the header is {','.join(header)!r}; it should be path,label or path,label,split"
            )
    multi_label = multi_label or any(";" in (row["label"] or "") for _, row in rows)
    examples, seen = [], {}
    for line, row in rows:
        examples.append(_csv_example(f"{table}, line {line}", row, root, modality, multi_label))
        first = seen.setdefault(examples[-1].path, line)
        if first != line:
            raise IngestError(
                f"{table}, line {line}: {row['path']} stands in line {first} already; "
                f"a file has one row, several labels are joined by ';'"
            )
    if not examples:
        raise IngestError(f"{table}: has a header and no rows")
    unread = [name for name in header if name not in ("path", "label", "split")]
    note = (f"columns left unread: {', '.join(unread)}",) if unread else ()
    return Collection(modality, examples, multi_label, note)


def _csv_example(where: str, row: dict, root: str, modality: str, multi_label: bool) -> Example:
    if None in row or None in row.values():
        raise IngestError(f"{where}: has more or fewer values than the header; a value with a comma needs quotes")
    path = os.path.abspath(os.path.join(root, row["path"].strip()))
    if os.path.splitext(path)[1].lower() not in SUFFIXES[modality]:
        raise IngestError(f"{where}: {row['path']!r} is no {modality} file; suffixes: {' '.join(SUFFIXES[modality])}")
    if not os.path.isfile(path):
        raise IngestError(f"{where}: there is no file {path}; paths are relative to --root")
    classes = tuple(sorted({name.strip() for name in row["label"].split(";")} - {""}))
    if not classes and not multi_label:
        raise IngestError(f"{where}: the label is empty; every example of a single-label task has one")
    split = row.get("split", "train").strip()
    if split not in manifest.SPLITS:
        raise IngestError(f"{where}: split {split!r} is unknown; known are {', '.join(manifest.SPLITS)}")
    return Example(path, classes, split)


# ---------------------------------------------------------------------------------------------------- splitting


def split_off(examples: Sequence[Example], fractions: dict[str, float], seed: int) -> list[Example]:
    """Moves a fraction of each class's training examples to every split that has none yet.

    Which ones is decided by a hash of seed and file name, so a collection that grows keeps most of its split. A
    class keeps at least one training example and gives at least one where it has three or more; an example of
    several classes counts for its rarest.
    """
    missing = {name: share for name, share in fractions.items() if share and all(e.split != name for e in examples)}
    training = [index for index, example in enumerate(examples) if example.split == "train"]
    frequency = Counter(name for index in training for name in examples[index].classes)
    groups = defaultdict(list)
    for index in training:
        rarest = min(examples[index].classes, key=lambda name: (frequency[name], name), default=None)
        groups[rarest].append(index)
    result = list(examples)
    for name, members in groups.items():
        key = f"{seed}/{name}/"
        members.sort(key=lambda i: hashlib.sha256((key + os.path.basename(examples[i].path)).encode()).digest())
        start, size = 0, len(members)
        for split, share in missing.items():
            count = max(round(share * size), 1 if size >= 3 else 0)
            count = min(count, size - start - 1)
            for index in members[start : start + count]:
                result[index] = replace(examples[index], split=split)
            start += count
    return result


# ------------------------------------------------------------------------------------------------------ writing


def write_manifest(collection: Collection, out: str, task: str, fractions: dict[str, float], seed: int) -> str:
    """Splits, checks and writes OUT/manifest.parquet; returns its path. Classes are sorted by name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", task):
        raise IngestError(f"task name {task!r}: letters, digits, _ and - make one; --name sets it")
    if any(not 0 <= share < 1 for share in fractions.values()) or sum(fractions.values()) >= 1:
        raise IngestError(f"fractions {fractions}: each should be 0 or more, and together they should be below 1")
    if os.path.exists(out) and not os.path.isdir(out):
        raise IngestError(f"{out}: is a file; --out names the folder that manifest.parquet is written to")
    examples = split_off(collection.examples, fractions, seed)
    trained = {name for example in examples if example.split == "train" for name in example.classes}
    for example in examples:
        for name in example.classes:
            if name not in trained:
                raise IngestError(
                    f"class {name!r} has no training example but stands in {example.split} ({example.path}); "
                    f"a model cannot learn it: add some, or take it out"
                )
    classes = sorted(trained)
    number = {name: index for index, name in enumerate(classes)}
    out = os.path.abspath(out)
    labels = [[number[name] for name in example.classes] for example in examples]
    if collection.multi_label:
        column = {"labels": pa.array(labels, pa.list_(pa.int32()))}
    else:
        column = {"label": pa.array([label for (label,) in labels], pa.int32())}
    table = pa.table(
        {
            "path": pa.array([_stored(example.path, out) for example in examples], pa.string()),
            **column,
            "split": pa.array([example.split for example in examples], pa.string()),
        }
    )
    path = os.path.join(out, "manifest.parquet")
    manifest.write(path, task=task, modality=collection.modality, classes=classes, table=table)
    return path


def _stored(path: str, out: str) -> str:
    """Relative to the manifest's folder, or absolute where the two share nothing but the file system's root."""
    return path if os.path.commonpath([path, out]) == os.path.sep else os.path.relpath(path, out)


def summary(path: str) -> str:
    """What a manifest holds, where it lies, and the three lines of a recipe that use it."""
    m = manifest.read(path)
    sizes = m.sizes
    shown = os.path.relpath(path)
    shown = path if shown.startswith("..") else shown
    names = ", ".join(m.classes[:8]) + (", ..." if len(m.classes) > 8 else "")
    batch = min(16, sizes["train"])
    steps = max(100, round(10 * sizes["train"] / batch))
    loss = "sigmoid" if m.multi_label else "softmax"
    return "\n".join(
        [
            f"{m.task}: {m.modality}, {len(m.classes)} classes{', multi-label' if m.multi_label else ''} ({names})",
            "  " + "  ".join(f"{name} {size}" for name, size in sizes.items()),
            f"  {shown}",
            "In a recipe (ten passes; the learning rate is a first guess):",
            "tasks:",
            f"  {m.task}: {{modality: {m.modality}, manifest: {shown}, steps: {steps},",
            f"    warmup_steps: {steps // 20}, lr: 0.001, batch_size: {batch}, loss: {loss}}}",
        ]
    )


# ----------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Command:
    """One `jobs/prepare.py NAME`: its flags and what it does with them."""

    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _collection_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", required=True, choices=list(MODALITIES), help="what the files are")
    parser.add_argument("--out", required=True, help="folder that manifest.parquet is written to; media stay in place")
    parser.add_argument("--name", help="the task's name; unless given, that of the folder or table")
    parser.add_argument("--val-fraction", type=float, default=0.1, metavar="F",
                        help="share of every class's training examples for val, where there is none (0.1)")  # fmt: skip
    parser.add_argument("--test-fraction", type=float, default=0.1, metavar="F",
                        help="the same for test (0.1); 0 leaves a task without a test")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="which examples are split off (0)")


def _folder_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="holds train/<class>/<file> (val, test) or <class>/<file>")
    _collection_flags(parser)


def _csv_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table", required=True, help="comma-separated, header path,label[,split]; 'a;b' is two labels"
    )
    parser.add_argument("--root", required=True, help="folder that the table's paths are relative to")
    parser.add_argument("--multi-label", action="store_true", help="multi-label even though no row has several labels")
    _collection_flags(parser)


def _sample_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="data/sample", help="folder of the suite (data/sample)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all its media (0)")


def _finish(collection: Collection, options: argparse.Namespace, default_name: str) -> None:
    task = options.name or re.sub(r"[^A-Za-z0-9_-]+", "_", default_name).strip("_")
    fractions = {"val": options.val_fraction, "test": options.test_fraction}
    path = write_manifest(collection, options.out, task, fractions, options.seed)
    for note in collection.notes:
        print(note)
    print(summary(path))


def _run_folder(options: argparse.Namespace) -> None:
    _finish(read_folder(options.root, options.modality), options, os.path.basename(os.path.abspath(options.root)))


def _run_csv(options: argparse.Namespace) -> None:
    collection = read_csv(options.table, options.root, options.modality, options.multi_label)
    _finish(collection, options, Path(options.table).stem)


def _run_sample(options: argparse.Namespace) -> None:
    paths = sample_suite.make(options.out, options.seed, print)
    for path in paths:
        m = manifest.read(path)
        sizes = "  ".join(f"{name} {size:>4}" for name, size in m.sizes.items())
        print(f"{m.task:<12} {m.modality:<6} {len(m.classes):>2} classes  {sizes}  {path}")


COMMANDS: dict[str, Command] = {
    "sample": Command("make the sample suite: eight small tasks, real media", _sample_flags, _run_sample),
    "folder": Command("a folder ROOT/{train,val,test}/<class>/<file>", _folder_flags, _run_folder),
    "csv": Command("a table path,label[;label],split", _csv_flags, _run_csv),
}


def prepare_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/prepare.py NAME ...`. Returns the exit code; what is wrong is one message on stderr and 2."""
    parser = argparse.ArgumentParser(prog="python jobs/prepare.py", description=usage)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for name, command in COMMANDS.items():
        command.add_flags(subparsers.add_parser(name, help=command.help, description=command.help))
    options = parser.parse_args(arguments)
    try:
        COMMANDS[options.command].run(options)
    except (IngestError, manifest.ManifestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130
    return 0
