"""TFRecord files of tf.train.Example messages, as far as a data set needs them: where a feature's bytes lie.

A record is its length (uint64), a checksum of that, the message, a checksum (each checksum is a masked CRC-32C; it is
not checked here: an image that was damaged fails to decode). The message is protocol buffers:
`Example.features.feature` is a map from name to a list of bytes, floats or int64. Only headers are read; a mapped
file's images are not touched.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

from polytrain.data.importers.collection import IngestError

Span = tuple[int, int]
"""(first byte, byte after the last) within the file."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def examples(path: str) -> Iterator[dict[str, Span | int]]:
    """Of every record the features: where the bytes lie, or the number, by name. Float features are left out."""
    if os.path.getsize(path) == 0:
        raise IngestError(f"{path}: is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, record = 0, 0
        while at < len(data):
            record += 1
            try:
                (length,) = struct.unpack_from("<Q", data, at)
                start, end = at + 12, at + 12 + length
                if end + 4 > len(data):
                    raise ValueError("ends too early")
                features = dict(_features(data, start, end))
            except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
                raise IngestError(
                    f"{path}, record {record}: is no whole TFRecord of tf.train.Example: {error}"
                ) from None
            yield features
            at = end + 4


def _features(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[str, Span | int]]:
    for _, features in _fields(data, start, end):
        for _, entry in _fields(data, *_span(features)):
            parts = dict(_fields(data, *_span(entry)))
            name = data[slice(*_span(parts[1]))].decode()
            for kind, values in _fields(data, *_span(parts.get(2, (0, 0)))):
                for _, value in _fields(data, *_span(values)):
                    if kind == 1:
                        yield name, value
                    elif kind == 3:  # packed, or one number a field
                        yield name, value if isinstance(value, int) else _varint(data, value[0])[0]


def _span(value: Span | int) -> Span:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, Span | int]]:
    """(field number, value) of one message."""
    at = start
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
            if wire == _BYTES:
                size, at = _varint(data, at)
            if size is None or at + size > end:
                raise ValueError(f"field {tag >> 3} is malformed")
            value, at = (at, at + size), at + size
        yield tag >> 3, value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
