"""`jobs/prepare.py csv`: a comma-separated table path,label[;label][,split]."""

from __future__ import annotations

import argparse
import csv
import io
import os
import posixpath
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs

from polytrain.data import manifest, storage
from polytrain.data.importers.collection import Collection, Example, IngestError
from polytrain.data.importers.root import SUFFIXES
from polytrain.ingest import options as common
from polytrain.ingest.listing import check_root
from polytrain.ingest.preparing import prepare
from polytrain.progress import Progress, ticking


def read_csv(
    table: str,
    root: str,
    modality: str,
    multi_label: bool = False,
    *,
    missing: str | None = "fail",
    overlap: str = "fail",
    duplicates: str = "fail",
) -> Collection:
    """A comma-separated table with the header path,label[,split]; paths are relative to `root`, absolute, or URIs.

    A ';' in any label makes the task multi-label; there an empty label means: none of the classes. With `missing`
    "skip", rows whose file is not there are left out and listed. A file that stands in train and in val or test is
    refused unless `overlap` says otherwise (`without_overlap` then does it), one that stands twice in one of them
    unless `duplicates` is "skip": the first row counts.
    """
    header, rows = _rows(table)
    for column in ("path", "label"):
        if column not in header:
            raise IngestError(
                f"{table}, line 1: the header is {','.join(header)!r}; it should be path,label or path,label,split"
            )
    root = check_root(root, "the files of the table")
    multi_label = multi_label or any(";" in (row["label"] or "") for _, row in rows)
    examples, absent, seen, repeated = [], [], {}, []
    with Progress("looking for the table's files", len(rows), "files") as progress, ticking(progress):
        exists = _there(root)
        for line, row in rows:
            where = f"{table}, line {line}"
            progress.done += 1
            example = _example(where, row, root, modality, multi_label)
            trains = example.split == "train"
            first = seen.setdefault((example.path, trains), line)
            if first != line:
                if duplicates == "fail":
                    raise IngestError(
                        f"{where}: {row['path']} stands in line {first} already; a file has one row, several labels "
                        f"are joined by ';'; --duplicates skip leaves the second row out"
                    )
                repeated.append(line)
                continue
            other = seen.get((example.path, not trains))
            if other is not None and overlap == "fail":
                raise IngestError(
                    f"{where}: {row['path']} is in {example.split}, and stands in line {other} already, in "
                    f"{'val or test' if trains else 'train'}; a test on what was trained on says nothing: take one of "
                    f"the two rows out, or --overlap skip leaves it out of train"
                )
            if exists(example.path):
                examples.append(example)
            elif missing == "skip":
                absent.append(example.path)
            else:
                raise IngestError(
                    f"{where}: there is no file {example.path}; paths are relative to --root; "
                    f"--missing skip leaves such rows out"
                )
    if not examples:
        raise IngestError(f"{table}: not one of its files is there" if absent else f"{table}: has a header and no rows")
    unread = [name for name in header if name not in ("path", "label", "split")]
    notes = [f"columns left unread: {', '.join(unread)}"] if unread else []
    if repeated:
        notes.append(
            f"left {len(repeated):,} rows out that name a file again: --duplicates skip; the first: line {repeated[0]}"
        )
    return Collection(modality, examples, multi_label, tuple(notes), missing=absent)


def _rows(table: str) -> tuple[list[str], list[tuple[int, dict]]]:
    """The header, and (line number, values by column) of every row."""
    try:
        text = storage.fetch(table).decode("utf-8-sig")  # -sig: spreadsheets write a byte-order mark
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        return list(reader.fieldnames or []), [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise IngestError(f"{table}: cannot be read: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise IngestError(f"{table}: is no comma-separated UTF-8 table: {error}") from None


def _example(where: str, row: dict, root: str, modality: str, multi_label: bool) -> Example:
    if None in row or None in row.values():
        raise IngestError(f"{where}: has more or fewer values than the header; a value with a comma needs quotes")
    stored = row["path"].strip()
    path = _absolute(stored, root)
    if os.path.splitext(urlsplit(path).path if "://" in path else path)[1].lower() not in SUFFIXES[modality]:
        raise IngestError(f"{where}: {stored!r} is no {modality} file; suffixes: {' '.join(SUFFIXES[modality])}")
    classes = tuple(sorted({name.strip() for name in row["label"].split(";")} - {""}))
    if not classes and not multi_label:
        raise IngestError(f"{where}: the label is empty; every example of a single-label task has one")
    split = row.get("split", "train").strip()
    if split not in manifest.SPLITS:
        raise IngestError(f"{where}: split {split!r} is unknown; known are {', '.join(manifest.SPLITS)}")
    return Example(path, classes, split)


def _absolute(path: str, root: str) -> str:
    if "://" in path:
        return path
    if storage.is_remote(root):
        return storage.join(root, *posixpath.normpath(path).split("/"))
    return os.path.abspath(os.path.join(root, path))


def _there(root: str) -> Callable[[str], bool]:
    """Whether the file of a row is there. A store is asked once for all that lies below the root."""
    if not storage.is_remote(root):
        return lambda path: os.path.isfile(path) if "://" not in path else _is_file(path)
    known = {storage.join(root, *path.split("/")) for path, _ in storage.files(root)}
    return lambda path: path in known or unquote(path) in known or _is_file(path)


def _is_file(path: str) -> bool:
    return storage.kind(path) is pa.fs.FileType.File


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table", required=True, help="comma-separated, header path,label[,split]; 'a;b' is two labels"
    )
    parser.add_argument("--root", required=True, help="folder that the table's paths are relative to")
    parser.add_argument("--multi-label", action="store_true", help="multi-label even though no row has several labels")
    parser.add_argument("--duplicates", choices=("fail", "skip"), default="fail",
                        help="a row that names a file again: refuse (fail), or leave it out (skip)")  # fmt: skip
    common.add_modality(parser)
    common.add_flags(parser, splitting=True)


def run(options: argparse.Namespace) -> None:
    collection = read_csv(
        options.table,
        options.root,
        options.modality,
        options.multi_label,
        missing=options.missing or "fail",
        overlap=options.overlap,
        duplicates=options.duplicates,
    )
    prepare(collection, options, os.path.splitext(options.table)[0])
