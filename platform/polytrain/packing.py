"""`jobs/prepare.py pack`: a collection of many files becomes Parquet shards that are read by row group.

Shards are written one after the other, each whole or not at all, and each says in its footer of which manifest it is
and which stretch of its examples it holds: run again, the command goes on behind the last one. The manifest comes last,
so what has one is complete. Training examples are stored in a seeded random order unless asked otherwise: collections
are often sorted by class, and a window of row groups would then know few classes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polytrain.data import manifest as manifests
from polytrain.data import storage
from polytrain.data.examples import Examples, examples_of
from polytrain.data.manifest import SPLITS, Manifest, ManifestError
from polytrain.data.packed import GROUPS_KEY, groups_metadata, shard_name
from polytrain.plan import key_of, permuted
from polytrain.progress import Progress, ticking
from polytrain.recipe import byte_count

PACK_KEY = b"polytrain.pack"
"""Schema metadata of shards and manifest: of what manifest, how ordered, and of a shard which stretch."""

LARGEST = 2**31 - 1
"""Bytes of a media file that fit one value of a Parquet column."""

REPEATED = 2.0
"""More bytes than so many times the files' own are refused: clips of one file would each bring the whole file."""

AHEAD = 16
"""Files that are read before their turn."""

NAMED = 10


@dataclass(frozen=True)
class Layout:
    """How to pack: sizes in bytes; `shuffled` stores training examples in the random order of `seed`."""

    shard_bytes: int = 256_000_000
    group_bytes: int = 4_000_000
    shuffled: bool = True
    seed: int = 0

    def identity(self, source: Manifest) -> dict[str, object]:
        return {
            "source": source.digest,
            "shard_bytes": self.shard_bytes,
            "group_bytes": self.group_bytes,
            "order": self.seed if self.shuffled else None,
        }


@dataclass
class Shard:
    """What the footer of a shard says: its stretch [first, last) of the split's order, and who is missing from it."""

    split: str
    number: int
    first: int
    last: int
    groups: list[int] = field(default_factory=list)  # examples of each row group
    bad: list[list[str]] = field(default_factory=list)  # [split, path, reason]

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)


def pack(uri: str, out: str, layout: Layout, *, readers: int = 8) -> tuple[str, list[list[str]]]:
    """Pack the manifest at `uri` into OUT. Returns the new manifest's place and what could not be read: split, path,
    reason. Raises ManifestError where nothing sensible can be packed, OSError where OUT can't be written."""
    source = manifests.read(uri)
    with storage.alone_in(out, ManifestError(f"{out}: another command is packing into this folder now")):
        return _pack(source, out, layout, readers)


def _pack(source: Manifest, out: str, layout: Layout, readers: int) -> tuple[str, list[list[str]]]:
    identity = layout.identity(source)
    target = storage.join(out, "manifest.parquet")
    with Progress("looking for packed shards", None, "shards") as progress, ticking(progress):
        there = _shards_there(out, identity)
    if _is_done(target, identity):
        return target, [row for shard in there for row in shard.bad]
    splits = examples_of(source)
    _refuse_repeated_files(source)
    shards = []
    with Progress("packing", len(source.table), "examples") as progress, ThreadPoolExecutor(readers) as pool:
        for split, examples in splits.items():
            known = [shard for shard in there if shard.split == split]
            progress.add(known[-1].last if known else 0, earlier=True)
            shards += known
            shards += _pack_split(source, examples, out, layout, known, pool, progress)
    shards = [shard for shard in shards if shard.groups or shard.bad]
    bad = [row for shard in shards for row in shard.bad]
    if not any(shard.groups for shard in shards if shard.split == "train"):
        first = "".join(f"; the first: {path}: {reason}" for _, path, reason in bad[:1])
        raise ManifestError(f"{source.uri}: none of its training media can be read{first}")
    if bad:
        text = io.StringIO()
        csv.writer(text).writerows([["split", "path", "reason"], *bad])
        storage.write_bytes(storage.join(out, "unreadable.csv"), text.getvalue().encode())
    _write_manifest(source, target, out, [shard for shard in shards if shard.groups], identity)
    manifests.read(target)
    return target, bad


class _NothingLeft(Exception):
    """None of a split's last examples could be read: a shard of nothing is not written."""


# --- what is there already ---------------------------------------------------------------------------------------


def _is_done(target: str, identity: dict[str, object]) -> bool:
    try:
        with storage.open_file(target) as file:
            metadata = pq.read_schema(file).metadata or {}
    except FileNotFoundError:
        return False
    if json.loads(metadata.get(PACK_KEY, b"null")) != identity:
        raise ManifestError(
            f"{target}: is there already and not of this manifest, or packed otherwise; --out another folder"
        )
    return True


def _shards_there(out: str, identity: dict[str, object]) -> list[Shard]:
    """The shards of an earlier attempt, in order. Raises ManifestError where they are somebody else's."""
    try:
        names = {name for name, _ in storage.files(out)}
    except FileNotFoundError:
        return []
    found = []
    for split in SPLITS:
        number = 0
        while shard_name(split, number) in names:
            uri = storage.join(out, shard_name(split, number))
            with storage.open_file(uri) as file, pq.ParquetFile(file) as parquet:
                about = json.loads((parquet.metadata.metadata or {}).get(PACK_KEY, b"{}"))
                groups = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
            if about.get("pack") != identity:
                raise ManifestError(
                    f"{uri}: is no shard of this manifest so packed; --out another folder, or remove it"
                )
            found.append(Shard(split, number, about["first"], about["last"], groups, about["bad"]))
            number += 1
    return found


def _refuse_repeated_files(source: Manifest) -> None:
    """Raises ManifestError where the same files would be stored again and again, once for every clip."""
    paths = source.table["path"]
    rows = len(paths) - paths.null_count
    # A sample says enough, and a hundred million paths would take gigabytes to count.
    sample = paths.slice(0, 1_000_000).drop_null()
    distinct = len(sample.unique())
    if rows and len(sample) > REPEATED * distinct:
        raise ManifestError(
            f"{source.uri}: {len(sample):,} examples are clips of {distinct:,} files, each of which would be stored "
            f"once a clip; store the clips first, `jobs/prepare.py` says how"
        )


# --- shards ------------------------------------------------------------------------------------------------------


def _pack_split(
    source: Manifest,
    examples: Examples,
    out: str,
    layout: Layout,
    known: list[Shard],
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> Iterator[Shard]:
    """Write what is left of a split; yields a shard as soon as it stands."""
    place = known[-1].last if known else 0
    number = len(known)
    contents = _contents(examples, layout, place, pool)
    while place < len(examples):
        shard = Shard(examples.split, number, place, place)
        with contextlib.suppress(_NothingLeft), storage.write_whole(storage.join(out, shard.name)) as temporary:
            _write_shard(temporary, source, examples, contents, shard, layout, progress)
            if not shard.groups:
                raise _NothingLeft
        yield shard
        place, number = shard.last, number + 1


def _contents(
    examples: Examples, layout: Layout, place: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, bytes | str]]:
    """(example, its bytes or as a string why there are none) in storage order, read some way ahead."""
    waiting: deque[tuple[int, Future]] = deque()
    for example in _order(examples, layout, place):
        waiting.append((example, pool.submit(_content, examples, example)))
        if len(waiting) > AHEAD:
            example, future = waiting.popleft()
            yield example, future.result()
    for example, future in waiting:
        yield example, future.result()


def _order(examples: Examples, layout: Layout, place: int) -> Iterator[int]:
    """Examples in the order in which they are stored, from a place on."""
    size, step = len(examples), 1 << 16
    for start in range(place, size, step):
        places = np.arange(start, min(size, start + step))
        if layout.shuffled and examples.split == "train":
            places = permuted(places, size, key_of(layout.seed, "pack"))
        yield from places.tolist()


def _content(examples: Examples, example: int) -> bytes | str:
    """The file's bytes, or as a string why it can't be packed."""
    try:
        content = examples.content(example)
        if isinstance(content, str):
            with open(content, "rb") as file:
                content = file.read(LARGEST + 1)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return storage.told(error)
    if not content:
        return "empty file"
    return content if len(content) <= LARGEST else "larger than 2 GiB"


def _write_shard(
    path: str,
    source: Manifest,
    examples: Examples,
    contents: Iterator[tuple[int, bytes | str]],
    shard: Shard,
    layout: Layout,
    progress: Progress,
) -> None:
    """Take from `contents` until the shard is full; its last, groups and bad become what was written."""
    schema = examples.table.schema
    if "data" in schema.names:
        schema = schema.remove(schema.get_field_index("data"))
    schema = schema.append(pa.field("split", pa.string())).append(pa.field("data", pa.binary()))
    schema = schema.with_metadata(_metadata(source))  # a shard is a manifest too
    options = {
        # Media are compressed already, and statistics or dictionaries of them are of no use to anybody.
        "compression": {name: "none" if name == "data" else "zstd" for name in schema.names},
        "use_dictionary": ["split"],
        "write_statistics": [name for name in schema.names if name != "data"],
        "write_page_checksum": True,
    }
    written, ids, media = 0, [], []

    def write_group() -> None:
        columns = [pa.array([examples.split] * len(ids)), pa.array(media, pa.binary())]
        kept = [pa.array([examples.table[f.name][i].as_py() for i in ids], f.type) for f in list(schema)[:-2]]
        where = schema.get_field_index("path")
        names = [
            name if name is not None else examples.name(i) for name, i in zip(kept[where].to_pylist(), ids, strict=True)
        ]
        kept[where] = pa.array(names, pa.string())
        writer.write_table(pa.table([*kept, *columns], schema=schema), row_group_size=len(ids))
        shard.groups.append(len(ids))
        ids.clear()
        media.clear()

    with pq.ParquetWriter(path, schema, **options) as writer:
        size = 0
        for example, content in contents:
            shard.last += 1
            progress.add()
            if isinstance(content, str):
                shard.bad.append([examples.split, examples.name(example), content])
                continue
            ids.append(example)
            media.append(content)
            size += len(content)
            if size >= layout.group_bytes:
                write_group()
                written, size = written + size, 0
                if written >= layout.shard_bytes:
                    break
        if ids:
            write_group()
        about = {"pack": layout.identity(source), "first": shard.first, "last": shard.last, "bad": shard.bad}
        writer.add_key_value_metadata({PACK_KEY: json.dumps(about).encode()})


def _metadata(source: Manifest) -> dict[bytes, bytes]:
    """The contract's schema metadata, as the manifest had it."""
    kept = (source.table.schema.metadata or {}).items()
    return {key: value for key, value in kept if key.startswith(b"polytrain.") and key not in (PACK_KEY, GROUPS_KEY)}


# --- the manifest -------------------------------------------------------------------------------------------------


def _write_manifest(source: Manifest, target: str, out: str, shards: list[Shard], identity: dict[str, object]) -> None:
    """The shards' rows without their media, and where each row group begins."""
    groups = {split: [shard.groups for shard in shards if shard.split == split] for split in SPLITS}
    metadata = _metadata(source) | {GROUPS_KEY: groups_metadata(groups), PACK_KEY: json.dumps(identity).encode()}
    with (
        Progress("writing the manifest", len(shards), "shards") as progress,
        ticking(progress),
        storage.write_whole(target) as temporary,
    ):
        writer = None
        for shard in shards:
            with storage.open_file(storage.join(out, shard.name)) as file:
                parquet = pq.ParquetFile(file)
                names = [name for name in parquet.schema_arrow.names if name != "data"]
                rows = parquet.read(columns=names).replace_schema_metadata(metadata)
            writer = writer or pq.ParquetWriter(temporary, rows.schema, compression="zstd")
            writer.write_table(rows)
            progress.done += 1
        writer.close()


# --- the command --------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", help="a manifest.parquet, or a URI of one")
    parser.add_argument("--out", required=True, help="folder or URI that shards and manifest.parquet are written to")
    parser.add_argument("--shard-size", type=_size, default=Layout.shard_bytes, metavar="SIZE",
                        help="about how large a shard becomes (256MB)")  # fmt: skip
    parser.add_argument("--group-size", type=_size, default=Layout.group_bytes, metavar="SIZE",
                        help="about how large a row group becomes, what one request fetches (4MB)")  # fmt: skip
    parser.add_argument("--order", choices=("shuffled", "manifest"), default="shuffled",
                        help="of training examples within the shards (shuffled: a window of row groups then holds all "
                        "classes, also where the manifest is sorted by class)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of that order (0)")
    parser.add_argument("--readers", type=int, default=8, metavar="N", help="files that are read at once (8)")


def _size(text: str) -> int:
    try:
        size = byte_count(text)
        size = int(size)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; 4MB or 256MB would be") from None
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; it should be 1 byte or more")
    return size


def run(options: argparse.Namespace) -> None:
    layout = Layout(options.shard_size, options.group_size, options.order == "shuffled", options.seed)
    path, bad = pack(options.manifest, options.out, layout, readers=max(1, options.readers))
    for _, name, reason in bad[:NAMED]:
        print(f"left out: {name}: {reason}")
    if bad:
        more = f"{len(bad):,} files could not be read and were left out"
        print(f"{more}; all are listed in {storage.join(options.out, 'unreadable.csv')}")
    packed = manifests.read(path)
    splits = {split: examples.packed for split, examples in examples_of(packed).items()}
    shards, groups = (sum(len(getattr(s, name)) for s in splits.values()) for name in ("shards", "sizes"))
    sizes = "  ".join(f"{name} {size}" for name, size in packed.sizes.items())
    print(f"{packed.task}: {packed.modality}, {sizes}; {shards - len(splits)} shards, {groups} row groups")
    print(f"  {path}")
