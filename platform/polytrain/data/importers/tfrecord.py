"""TFRecord files of tf.train.Example messages, as far as a data set needs them: where a feature's bytes lie.

A record is its length (uint64), a checksum of that, the message, a checksum (each checksum is a masked CRC-32C; it is
not checked here: an image that was damaged fails to decode). The message is protocol buffers:
`Example.features.feature` is a map from name to a list of bytes, floats or int64. A file is read once, from its
beginning to its end, and one record at a time is in memory.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

from polytrain.data import storage
from polytrain.data.importers.collection import IngestError

Span = tuple[int, int]
"""(first byte, byte after the last) within a message."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_HEADER, _CHECKSUM = 12, 4
_BUFFER = 8 << 20
"""Bytes that are asked for at once; in a store every read is a request."""


class Bytes(NamedTuple):
    """A feature of bytes: first byte and byte after the last within the file, and what they are."""

    start: int
    end: int
    data: memoryview


def examples(path: str) -> Iterator[dict[str, Bytes | int]]:
    """Of every record the features by name: bytes and where they lie, or a number. Float features are left out.

    `path` is a local path or a URI. Raises IngestError, or what `storage.open_file` does.
    """
    with storage.open_file(path) as opened:
        size = opened.size()
        if size == 0:
            raise IngestError(f"{path}: is empty")
        file = io.BufferedReader(opened, _BUFFER)
        at, record = 0, 0
        while at < size:
            record += 1
            try:
                (length,) = struct.unpack_from("<Q", file.read(_HEADER))
                start, end = at + _HEADER, at + _HEADER + length
                if end + _CHECKSUM > size:
                    raise ValueError("ends too early")
                message = file.read(length + _CHECKSUM)
                features = {
                    name: value if isinstance(value, int) else _bytes(message, start, value)
                    for name, value in _features(message, 0, length)
                }
            except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
                raise IngestError(
                    f"{path}, record {record}: is no whole TFRecord of tf.train.Example: {error}"
                ) from None
            yield features
            at = end + _CHECKSUM


def _bytes(message: bytes, start: int, span: Span) -> Bytes:
    """Those of a span of a message that begins at `start`."""
    return Bytes(start + span[0], start + span[1], memoryview(message)[slice(*span)])


def _features(data: bytes, start: int, end: int) -> Iterator[tuple[str, Span | int]]:
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


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, Span | int]]:
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


def _varint(data: bytes, at: int) -> tuple[int, int]:
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
