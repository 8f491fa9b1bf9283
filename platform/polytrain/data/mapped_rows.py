"""Rows of manifests too large to be held: one Arrow file a split on this machine's disk, mapped by its processes.

A manifest of ten million rows would take a gigabyte of the driver and another wherever it is sent. Mapped, it takes
pages of the file cache that the kernel takes back when memory is short: what limits it is TMPDIR's disk, some 60 bytes
an example. The files are made once a machine, by whoever comes first, and go when no process uses them any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from polytrain.data.node_folder import NodeFolder

LARGE = 2_000_000
"""Rows beyond which a manifest is mapped instead of held."""

BATCH = 1 << 18
"""Rows that are read, checked and written at a time."""

_held: dict[str, NodeFolder] = {}


def mapped(digest: str, splits: Sequence[str], checked: Callable[[], Iterable[pa.Table]]) -> dict[str, pa.Table]:
    """Each split's rows, the column `split` among them as a dictionary of `splits`.

    `checked` gives the manifest's rows, some at a time, with their final types; it is not asked where the files of the
    manifest with this digest are there already. What it raises is passed on, and no half file stays.
    """
    folder = _held.get(digest) or NodeFolder(f"rows-{digest[:32]}")
    whole = folder.path / "whole"
    with folder.locked(0):
        if not whole.exists():
            _write(folder, splits, checked())
            whole.touch()
    _held[digest] = folder
    return {split: pa.ipc.open_file(pa.memory_map(str(folder.path / f"{split}.arrow"))).read_all() for split in splits}


def _write(folder: NodeFolder, splits: Sequence[str], tables: Iterable[pa.Table]) -> None:
    names = pa.array(splits, pa.string())
    kind = pa.dictionary(pa.int8(), pa.string())
    writers: dict[str, pa.ipc.RecordBatchFileWriter] = {}
    try:
        for table in tables:
            column = table.column_names.index("split")
            indices = pc.index_in(table["split"], value_set=names)
            for number, split in enumerate(splits):
                rows = table.filter(pc.equal(indices, number))
                constant = pa.DictionaryArray.from_arrays(pa.array([number], pa.int8()).take(_zeros(len(rows))), names)
                rows = rows.set_column(column, pa.field("split", kind), constant)
                if split not in writers:
                    writers[split] = pa.ipc.new_file(str(folder.path / f"{split}.arrow"), rows.schema)
                for batch in rows.combine_chunks().to_batches():
                    writers[split].write_batch(batch)
    finally:
        for writer in writers.values():
            writer.close()


def _zeros(count: int) -> pa.Array:
    return pa.nulls(count, pa.int64()).fill_null(0)
