"""Annotation files read row by row; whatever is wrong with one is an IngestError that names file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import IO, Any

from polytrain.data import storage
from polytrain.data.importers.collection import IngestError


@contextmanager
def _opened(path: str, means: str, newline: str | None = None) -> Iterator[IO[str]]:
    """A UTF-8 text, local or at a URI; -sig: spreadsheets write a byte-order mark."""
    try:
        if storage.is_remote(path):
            yield io.TextIOWrapper(io.BytesIO(storage.fetch(path)), encoding="utf-8-sig", newline=newline)
        else:
            with open(path, encoding="utf-8-sig", newline=newline) as file:
                yield file
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise IngestError(f"{path}: is no {means}: {error}") from None


def lines(path: str) -> Iterator[tuple[int, str]]:
    """(line number, text without surrounding space) of every line of a UTF-8 text that holds anything."""
    with _opened(path, "UTF-8 text") as file:
        for number, line in enumerate(file, 1):
            if line := line.strip():
                yield number, line


def records(
    path: str, fields: int, layout: str, skip_lines: int = 0, more: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(line number, values) of a comma-separated table without column names; `layout` is how a row should look.

    With `more` a row may have further values behind its `fields`.
    """
    with _opened(path, "comma-separated UTF-8 table", newline="") as file:
        for _ in range(skip_lines):
            next(file, None)
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        for row in reader:
            if len(row) != fields and not (more and len(row) > fields):
                if not row:
                    continue
                line = skip_lines + reader.line_num
                raise IngestError(f"{path}, line {line}: has {len(row)} values; it should be {layout}")
            yield skip_lines + reader.line_num, row


def table(path: str, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line number, the values of `columns`) of a comma-separated table with a header; other columns are unread."""
    with _opened(path, "comma-separated UTF-8 table", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        header = next(reader, [])
        if absent := [name for name in columns if name not in header]:
            raise IngestError(
                f"{path}, line 1: has no column {absent[0]!r}; its header is {','.join(header)[:120]!r}, "
                f"it should have {','.join(columns)}"
            )
        places = [header.index(name) for name in columns]
        pick = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
        for row in reader:
            if len(row) != len(header):
                if not row:
                    continue
                raise IngestError(
                    f"{path}, line {reader.line_num}: has {len(row)} values, the header has {len(header)}; "
                    f"a value with a comma needs quotes"
                )
            yield reader.line_num, pick(row)


def document(path: str) -> Any:
    """A JSON document."""
    try:
        with _opened(path, "UTF-8 text") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        raise IngestError(f"{path}, line {error.lineno}: is no JSON: {error.msg}") from None


def number(text: str, path: str, line: int, means: str) -> float:
    """A finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise IngestError(f"{path}, line {line}: {text!r} is no {means}")
    return value
