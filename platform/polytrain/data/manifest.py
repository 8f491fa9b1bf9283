"""A task's manifest: one Parquet table of labelled media, read from anywhere pyarrow reads, trusted only once checked.

Columns (one row an example):

    path      string       relative to the manifest's folder, absolute, or a URI; null where `data` holds the file
    data      binary       optional: the media file itself
    label     int32        index of the class, or
    labels    list<int32>  indices of all classes that apply (a multi-label task; may be empty, not null)
    split     string       train | val | test
    start_s   float64      optional: the clip within the file, seconds; null: from the start
    end_s     float64      optional: null: to the end

The schema's metadata names the task (`polytrain.task`), its modality (`polytrain.modality`), its class names
(`polytrain.classes`, a JSON list) and the version of this contract (`polytrain.format_version`). Other columns are
left unread. Nothing here imports torch: decode workers read manifests too.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polytrain.data import mapped_rows, storage
from polytrain.modalities import MODALITIES
from polytrain.secrecy import IN_URI, without_secrets

SPLITS = ("train", "val", "test")
FORMAT_VERSION = "1"


class ManifestError(ValueError):
    """What is wrong with a manifest: the file, the row (1-based) and column, and what would be right."""


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. `uri` is as given; `digest` is the SHA-256 of the Parquet file's bytes, in hexadecimal."""

    uri: str
    task: str
    modality: str
    classes: tuple[str, ...]
    multi_label: bool
    table: pa.Table
    digest: str
    mapped: Mapping[str, pa.Table] | None = None
    """Of a large manifest, each split's rows, mapped from this machine's disk; `table` is one after the other then."""

    def split(self, name: str) -> pa.Table:
        """The rows of one split, in the file's order."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: known are {', '.join(SPLITS)}")
        if self.mapped is not None:
            return self.mapped[name]
        return self.table.filter(pc.equal(self.table["split"], name))

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each of the three splits, 0 where there are none."""
        if self.mapped is not None:
            return {name: len(table) for name, table in self.mapped.items()}
        counts = {item["values"]: item["counts"] for item in pc.value_counts(self.table["split"]).to_pylist()}
        return {name: counts.get(name, 0) for name in SPLITS}

    def location(self, path: str) -> str:
        """Where a stored path lies: an absolute local path or a URI. Relative means: relative to the manifest."""
        return location(self.uri, path)


def location(uri: str, path: str) -> str:
    """Where a path stored in the manifest at `uri` lies: `Manifest.location`."""
    if "://" in path or os.path.isabs(path):
        return path
    local = storage.local_path(uri)
    if local is not None:
        return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(local)), path))
    parts = urlsplit(uri)  # a query (an object store's region, its endpoint) holds for the media too
    folder = posixpath.dirname(parts.path)
    return storage.with_path(parts, posixpath.normpath(posixpath.join(folder, quote(path))))


def read(uri: str | os.PathLike) -> Manifest:
    """Reads and checks a manifest from a local path or any URI that data/storage.py opens.

    Raises ManifestError for everything that a run would stumble over later, except for the media themselves.
    """
    uri = os.fspath(uri)
    try:
        digest = _sha256(uri)
    except FileNotFoundError:
        raise ManifestError(f"{uri}: there is no such file; jobs/prepare.py writes manifests") from None
    except storage.StorageError as error:
        raise ManifestError(str(error)) from error
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{uri}: cannot be read: {storage.told(error)}") from error
    try:
        with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
            present = [name for name in _COLUMNS if name in file.schema_arrow.names]
            metadata = file.schema_arrow.metadata or {}
            task, modality, classes = _check_metadata(uri, metadata)
            if file.metadata.num_rows > mapped_rows.LARGE:
                mapped = mapped_rows.mapped(digest, SPLITS, lambda: _checked_batches(uri, file, present, classes))
            else:
                mapped, table = None, _check_table(uri, file.read(columns=present), classes)
    except storage.StorageError as error:
        raise ManifestError(str(error)) from error
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{uri}: is not a whole Parquet file: {storage.told(error)}") from error
    except ManifestError:
        raise
    except ValueError:  # of Ray's types, where Ray is at work: older ones were described by a pickle
        raise ManifestError(
            f"{uri}: has a column of a type that is not Arrow's own; plain ones would be right"
        ) from None
    if mapped is not None:
        table = pa.concat_tables(mapped.values()).replace_schema_metadata(metadata)
    _check_trains(uri, table["split"] if mapped is None else mapped["train"]["split"].slice(0, 1))
    return Manifest(uri, task, modality, classes, "labels" in table.column_names, table, digest, mapped)


def _checked_batches(
    uri: str, file: pq.ParquetFile, columns: Sequence[str], classes: tuple[str, ...]
) -> Iterator[pa.Table]:
    """The rows of a large manifest, some at a time."""
    row = 0
    for batch in file.iter_batches(mapped_rows.BATCH, columns=columns):
        yield _check_table(uri, pa.Table.from_batches([batch]), classes, first_row=row)
        row += len(batch)


def write(
    path: str | os.PathLike,
    *,
    task: str,
    modality: str,
    classes: Sequence[str],
    table: pa.Table,
    data: Iterable[pa.Array] | None = None,
) -> None:
    """Writes a manifest to a local path or URI, whole or not at all; checks what `read` checks, first.

    `data` is the column of that name in pieces, one after the other, where it may be larger than memory: each becomes
    a row group. Rows of `table` without a path are those whose media it holds.
    """
    path = os.fspath(path)
    metadata = {
        b"polytrain.task": task.encode(),
        b"polytrain.modality": modality.encode(),
        b"polytrain.classes": json.dumps(list(classes), ensure_ascii=False).encode(),
        b"polytrain.format_version": FORMAT_VERSION.encode(),
    }
    checked = _check_metadata(path, metadata)
    table = table.select([name for name in _COLUMNS if name in table.column_names])
    if data is not None:
        stand_in = pc.if_else(pc.is_null(table["path"]), pa.scalar(b"", pa.binary()), pa.scalar(None, pa.binary()))
        table = _check_table(path, table.append_column("data", stand_in), checked[2]).drop_columns(["data"])
    else:
        table = _check_table(path, table, checked[2])
    _check_trains(path, table["split"])
    table = table.replace_schema_metadata(metadata)
    with storage.write_whole(path) as temporary:
        if data is None:
            pq.write_table(table, temporary, compression="zstd")
        else:
            _write_pieces(temporary, table, data)


def _write_pieces(path: str, table: pa.Table, data: Iterable[pa.Array]) -> None:
    schema, start = table.schema.append(pa.field("data", pa.binary())), 0
    # Media are compressed already: zstd would only cost time.
    compression = {name: "none" if name == "data" else "zstd" for name in schema.names}
    with pq.ParquetWriter(path, schema, compression=compression, use_dictionary=_COMPACT) as writer:
        for piece in data:
            rows = table.slice(start, len(piece))
            writer.write_table(rows.append_column("data", pa.chunked_array([piece], pa.binary())))
            start += len(piece)
    if start != len(table):
        raise ValueError(f"{start} pieces of media for {len(table)} rows")


_COMPACT = ["label", "split"]


# ------------------------------------------------------------------------------------------------------- checks


def _check_metadata(uri: str, metadata: dict[bytes, bytes]) -> tuple[str, str, tuple[str, ...]]:
    """Task, modality and classes from the schema's metadata."""

    def value(key: str, means: str) -> str:
        raw = metadata.get(f"polytrain.{key}".encode())
        if not raw:
            raise ManifestError(f"{uri}: schema metadata has no polytrain.{key}; it should hold {means}")
        return raw.decode()

    version = value("format_version", f"the format's version, {FORMAT_VERSION}")
    if version != FORMAT_VERSION:
        raise ManifestError(f"{uri}: polytrain.format_version is {version!r}; this polytrain reads {FORMAT_VERSION!r}")
    task = value("task", "the task's name")
    modality = value("modality", f"one of {', '.join(MODALITIES)}")
    if modality not in MODALITIES:
        raise ManifestError(f"{uri}: modality {modality!r} is unknown; known are {', '.join(MODALITIES)}")
    text = value("classes", "the class names, a JSON list of strings")
    try:
        classes = json.loads(text)
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) and name for name in classes):
        raise ManifestError(f"{uri}: polytrain.classes is {text[:80]!r}; it should be a JSON list of class names")
    if len(set(classes)) != len(classes):
        twice = next(name for index, name in enumerate(classes) if name in classes[:index])
        raise ManifestError(f"{uri}: polytrain.classes names {twice!r} twice; every class needs its own name")
    return task, modality, tuple(classes)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_int32_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type == pa.int32()


# Column: what is accepted (pandas and polars write 64-bit offsets), what the contract says, what it is cast to.
_COLUMNS: dict[str, tuple[Callable[[pa.DataType], bool], str, pa.DataType | None]] = {
    "path": (lambda kind: _is_text(kind) or pa.types.is_null(kind), "string", pa.string()),
    "data": (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "binary", None),
    "label": (lambda kind: kind == pa.int32(), "int32", pa.int32()),
    "labels": (_is_int32_list, "list<int32>", pa.list_(pa.int32())),
    "split": (_is_text, "string", pa.string()),
    "start_s": (pa.types.is_floating, "float64", pa.float64()),
    "end_s": (pa.types.is_floating, "float64", pa.float64()),
}


def _check_trains(uri: str, split: pa.ChunkedArray) -> None:
    if not pc.any(pc.equal(split, "train")).as_py():
        raise ManifestError(f"{uri}: has no training example; at least one row needs 'train' in column 'split'")


def _check_table(uri: str, table: pa.Table, classes: tuple[str, ...], first_row: int = 0) -> pa.Table:
    """The table with the contract's types. Every check is one vectorised pass: ten million rows take seconds.

    `first_row` is where the table begins within the manifest.
    """
    names = table.column_names
    for name in ("path", "split"):
        if name not in names:
            raise ManifestError(f"{uri}: has no column {name!r}; it should be of type {_COLUMNS[name][1]}")
    if ("label" in names) == ("labels" in names):
        how = "both columns" if "label" in names else "neither column"
        raise ManifestError(
            f"{uri}: has {how} 'label' and 'labels'; one is right: label (int32), "
            f"or labels (list<int32>) for a multi-label task"
        )
    for name in names:
        accepts, contract, target = _COLUMNS[name]
        kind = table.schema.field(name).type
        if not accepts(kind):
            raise ManifestError(f"{uri}: column {name!r} is of type {kind}; it should be {contract}")
        if target is not None and kind != target:
            table = table.set_column(names.index(name), name, table[name].cast(target))

    def refuse(column: str, bad: pa.ChunkedArray | pa.Array, right: str, rows: pa.Array | None = None) -> None:
        """Raises, where `bad` is true anywhere, with the first such row; `rows`: the row of each entry of `bad`."""
        bad = pc.fill_null(bad, False)
        count = pc.sum(bad).as_py()
        if not count:
            return
        row = pc.index(bad, True).as_py()
        row = row if rows is None else rows[row].as_py()
        value = "<binary>" if column == "data" else table[column][row].as_py()
        more = f" ({count - 1} more like it)" if count > 1 else ""
        shown = without_secrets(repr(value))
        raise ManifestError(f"{uri}: row {first_row + row + 1}, column {column!r}: {shown} {right}{more}")

    split = table["split"]
    known = pc.is_in(split, value_set=pa.array(SPLITS))
    refuse("split", pc.invert(known), f"is no split; known are {', '.join(SPLITS)}")

    nowhere = pc.fill_null(pc.equal(pc.binary_length(table["path"]), 0), True)
    if "data" in names:
        nowhere = pc.and_(nowhere, pc.is_null(table["data"]))
    refuse("path", nowhere, "is no path, and there is no data either; one of the two is needed")
    keys = pc.match_substring_regex(table["path"], IN_URI)
    refuse("path", keys, "holds a password or key, which belongs in the environment: manifests travel")

    outside = f"is outside the classes; there are {len(classes)}: 0 to {len(classes) - 1}"
    if "label" in names:
        label = table["label"]
        refuse("label", pc.is_null(label), outside)
        refuse("label", pc.or_(pc.less(label, 0), pc.greater_equal(label, len(classes))), outside)
    else:
        labels = table["labels"].combine_chunks()
        refuse("labels", pc.is_null(labels), "is no list; an example without any class has an empty one")
        flat, rows = pc.list_flatten(labels), pc.list_parent_indices(labels)
        refuse("labels", pc.is_null(flat), outside, rows)
        refuse("labels", pc.or_(pc.less(flat, 0), pc.greater_equal(flat, len(classes))), outside, rows)

    for name in ("start_s", "end_s"):
        if name in names:
            time = table[name]
            bad = pc.or_(pc.invert(pc.is_finite(time)), pc.less(time, 0))
            refuse(name, bad, "is no time in seconds; it should be 0 or more, or null")
    if "end_s" in names:
        start = pc.fill_null(table["start_s"], 0.0) if "start_s" in names else 0.0
        refuse("end_s", pc.less_equal(table["end_s"], start), "ends the clip at or before its start_s (0 where null)")
    return table


# -------------------------------------------------------------------------------------------------------- files


def _sha256(uri: str) -> str:
    digest = hashlib.sha256()
    with storage.open_file(uri) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
