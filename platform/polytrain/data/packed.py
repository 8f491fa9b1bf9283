"""Packed collections: media inline in Parquet shards of a few hundred megabytes, found and read by row group.

    DIR/manifest.parquet        what a manifest holds, without `data`; rows of a split in the order they are stored
    DIR/train-00000.parquet     a shard: the same columns with `data`; row groups of a few megabytes; one split only
    DIR/train-00001.parquet ...

The manifest's schema metadata holds, beside what every manifest's does, `polytrain.groups`: a JSON object with a list
of shards for each split, a shard being the list of its row groups' sizes in examples. So example i of a split needs no
search in a store: its shard, row group and row follow from i. A `path` is where the example came from, nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polytrain.data import storage
from polytrain.data.manifest import SPLITS, Manifest, ManifestError

GROUPS_KEY = b"polytrain.groups"


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet"


@dataclass(frozen=True, eq=False)
class PackedSplit:
    """Where the examples of one split of a packed collection lie."""

    folder: str  # a local path or URI
    split: str
    shards: np.ndarray  # [shards + 1] int64: the first row group of each shard, and the end
    sizes: np.ndarray  # [groups] int64: examples of each row group

    @cached_property
    def starts(self) -> np.ndarray:
        """The first example of each row group, and the end: [groups + 1] int64."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def find(self, example: int) -> tuple[int, int]:
        """The row group of an example, counted over all shards, and its row in there."""
        group = int(np.searchsorted(self.starts, example, side="right")) - 1
        return group, example - int(self.starts[group])

    def shard(self, group: int) -> tuple[int, int]:
        """The shard of a row group, and which of that shard's row groups it is."""
        number = int(np.searchsorted(self.shards, group, side="right")) - 1
        return number, group - int(self.shards[number])

    def uri(self, shard: int) -> str:
        return storage.join(self.folder, shard_name(self.split, shard))

    def read_group(self, group: int, footer: pq.FileMetaData | None = None) -> tuple[pa.Array, pq.FileMetaData]:
        """The media of one row group, [examples] binary, and the footer of its shard, which spares the next reader's
        request for it. Raises OSError, named, where the shard is not there or not what the manifest says."""
        shard, number = self.shard(group)
        uri = self.uri(shard)
        try:
            with storage.open_file(uri) as source:
                file = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
                if file.metadata.num_row_groups <= number:
                    raise OSError(f"it has {file.metadata.num_row_groups} row groups")
                table = file.read_row_group(number, columns=["data"], use_threads=False)
                footer = file.metadata
        except (FileNotFoundError, storage.StorageError):  # named already
            raise
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{uri}, row group {number}: {storage.told(error)}") from None
        if len(table) != self.sizes[group]:
            raise OSError(f"{uri}, row group {number}: {len(table)} examples, the manifest says {self.sizes[group]}")
        if not pa.types.is_binary(kind := table.schema.field("data").type):
            # Ray registers a type with Arrow whose values are pickles, which looking at them would run.
            raise OSError(f"{uri}: column 'data' is of type {kind}; it should be binary")
        return table["data"].combine_chunks(), footer


def packed_splits(manifest: Manifest) -> dict[str, PackedSplit] | None:
    """Where a packed manifest's media lie, or None where its rows name files. Raises ManifestError."""
    text = (manifest.table.schema.metadata or {}).get(GROUPS_KEY)
    if text is None:
        return None
    try:
        found = json.loads(text)
        folder = storage.parent(manifest.uri)
        splits = {split: _packed_split(folder, split, found.get(split, [])) for split in SPLITS}
    except (ValueError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{manifest.uri}: polytrain.groups is not what jobs/prepare.py pack writes: {error}"
        ) from None
    for split, size in manifest.sizes.items():
        if (stored := int(splits[split].sizes.sum())) != size:
            raise ManifestError(f"{manifest.uri}: has {size} examples of {split}, its shards hold {stored}")
    return splits


def _packed_split(folder: str, split: str, shards: Sequence[Sequence[int]]) -> PackedSplit:
    sizes = np.array([size for shard in shards for size in shard], np.int64)
    if (sizes < 1).any():
        raise ValueError("a row group without examples")
    counts = np.array([len(shard) for shard in shards], np.int64)
    return PackedSplit(folder, split, np.concatenate([[0], np.cumsum(counts)]), sizes)


def groups_metadata(shards: Mapping[str, Sequence[Sequence[int]]]) -> bytes:
    """The value of `polytrain.groups`."""
    return json.dumps(shards, separators=(",", ":")).encode()
