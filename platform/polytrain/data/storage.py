"""Where media and manifests lie: a local path, or a URI of any store that pyarrow knows, such as `s3://bucket/key`.

A request to a store is tried up to `TRIES` times with growing pauses; what stays wrong is a StorageError that names
the URI, the tries and the last answer. What asking again cannot mend (no such key, no access) is told at once. Files
are written whole or not at all.

S3 is told where to go by the environment (AWS_ENDPOINT_URL, AWS_REGION) or by the URI's query:
`s3://bucket/key?endpoint_override=host:9000&scheme=http&region=eu-west-1&anonymous=true`. Secrets come from the
environment or the machine's role only: a URI ends up in manifests and logs.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import posixpath
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs

from polytrain.secrecy import uri_with_key, without_secrets

TRIES = 5
FIRST_PAUSE_S = 0.25
"""Before the second try; every further pause is twice as long: four pauses of 3.75 s together, give or take a half."""

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 20.0
"""A connection on which nothing comes for so long is given up and counts as a failed try."""

_S3_QUERY = ("region", "scheme", "endpoint_override", "anonymous", "allow_bucket_creation")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_LASTING_ANSWERS = (
    "HTTP status 401", "HTTP status 403", "ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY", "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN", "INVALID_TOKEN", "UNRECOGNIZED_CLIENT", "MISSING_AUTHENTICATION_TOKEN",
)  # fmt: skip
_WHOLE_AT_CLOSE = ("s3", "gcs", "abfs")
"""Stores in which a file appears when it is complete; in others it is written beside its place and moved there."""

T = TypeVar("T")
_chance = random.Random()  # its own: pauses must not move anybody's seeded draws


class StorageError(OSError):
    """A store did not answer as it should: which URI, how many tries, what came."""


def is_remote(place: str) -> bool:
    return "://" in place and not place.startswith("file://")


def local_path(place: str) -> str | None:
    """The local path that a path or file:// URI means, or None where it lies in a store."""
    if place.startswith("file://"):
        return unquote(urlsplit(place, allow_fragments=False).path)
    return None if "://" in place else place


def join(place: str, *parts: str) -> str:
    """A file or folder below `place`; a URI's query (an object store's endpoint) holds for what lies below it."""
    local = local_path(place)
    if local is not None:
        return os.path.join(local, *parts)
    uri = urlsplit(place, allow_fragments=False)
    return with_path(uri, posixpath.join(uri.path or "/", *map(quote, parts)))


def parent(place: str) -> str:
    """The folder that a file lies in."""
    local = local_path(place)
    if local is not None:
        return os.path.dirname(os.path.abspath(local))
    uri = urlsplit(place, allow_fragments=False)
    return with_path(uri, posixpath.dirname(uri.path))


def with_path(uri: SplitResult, path: str) -> str:
    """Another path (quoted) in the same store. `geturl` would leave out the slashes of a URI without a host: hdfs:///path."""
    return f"{uri.scheme}://{uri.netloc}{path}{'?' if uri.query else ''}{uri.query}"


def filesystem(place: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path within it. A store's own repeats what fails.

    Raises StorageError where the URI is none of a known store, or holds a key.
    """
    local = local_path(place)
    if local is not None:
        return pa.fs.LocalFileSystem(), os.path.abspath(local)
    if uri_with_key(place):
        raise _with_key(place)
    uri = urlsplit(place, allow_fragments=False)
    store, prefix = _store(uri.scheme, uri.netloc, uri.query)
    return store, (prefix + unquote(uri.path).lstrip("/")).rstrip("/")


@functools.lru_cache(maxsize=64)  # opening a store means a client, its credentials, perhaps asking for its region
def _store(scheme: str, host: str, query: str) -> tuple[pa.fs.FileSystem, str]:
    """A store that repeats what fails, and what its paths begin with."""
    base = f"{scheme}://{host}/"
    try:
        if scheme == "s3":
            return pa.fs.PyFileSystem(_Repeating(_open_s3(base, host, query), base, query)), f"{host}/"
        store, path = pa.fs.FileSystem.from_uri(f"{base}x{'?' if query else ''}{query}")
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{base}: is no URI of a known store: {told(error)}") from None
    return pa.fs.PyFileSystem(_Repeating(store, base, query)), path[:-1]


def _open_s3(base: str, bucket: str, query: str) -> pa.fs.FileSystem:
    options = dict(parse_qsl(query))
    if "@" in bucket:
        raise _with_key(f"s3://{bucket}/")
    if unknown := [name for name in options if name not in _S3_QUERY]:
        raise StorageError(f"{base}: {unknown[0]!r} is no setting of S3; known are {', '.join(_S3_QUERY)}")
    if not bucket:
        raise StorageError(f"{base}: names no bucket; s3://BUCKET/KEY would be right")
    endpoint = options.get("endpoint_override") or _endpoint()
    scheme = options.get("scheme")
    if endpoint and "://" in endpoint:
        scheme, _, endpoint = endpoint.partition("://")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        region = pa.fs.resolve_s3_region(bucket)
    return pa.fs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint.rstrip("/") if endpoint else None,
        scheme=scheme,
        anonymous=options.get("anonymous", "false").lower() == "true",
        allow_bucket_creation=options.get("allow_bucket_creation", "false").lower() == "true",
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=SILENCE_TIMEOUT_S,
        # Tries are counted and told here; the client's own would multiply them in silence.
        retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _with_key(place: str) -> StorageError:
    return StorageError(
        f"{without_secrets(place)}: the URI holds a key; manifests and logs would show it. Keys belong in the "
        f"environment, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in a profile"
    )


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


# ---------------------------------------------------------------------------------------------------- repeating


def repeat(place: str, act: Callable[[], T]) -> T:
    """What `act` returns; after a fault that may pass it is tried again. Raises StorageError, or FileNotFoundError."""
    started = time.monotonic()
    for attempt in range(1, TRIES + 1):
        try:
            return act()
        except FileNotFoundError:
            raise FileNotFoundError(f"{place}: there is no such file") from None
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, StorageError):
                raise
            answer = told(error)
            lasting = isinstance(error, _LASTING) or any(word in str(error) for word in _LASTING_ANSWERS)
            if lasting or attempt == TRIES:
                tries = f"{attempt} {'try' if attempt == 1 else 'tries'} in {time.monotonic() - started:.1f} s"
                raise StorageError(f"{place}: failed after {tries}; the last answer: {answer}") from None
        # Many workers that failed together should not come back together.
        time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * _chance.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def told(error: BaseException) -> str:
    """The first line of an error."""
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


class _Repeating(pa.fs.FileSystemHandler):
    """A store whose every request is repeated when it fails. Writes are not: `write_whole` begins them anew."""

    def __init__(self, store: pa.fs.FileSystem, base: str, query: str) -> None:
        self.store, self.base, self.query = store, base, query

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Repeating) and (self.base, self.query) == (other.base, other.query)

    def __hash__(self) -> int:
        return hash((self.base, self.query))

    def _named(self, path: str) -> str:
        scheme = self.base.partition("://")[0]
        return f"{scheme}://{path}" if scheme == "s3" else f"{self.base}{path}"

    def _do(self, path: str, act: Callable[[], T]) -> T:
        return repeat(self._named(path), act)

    def get_type_name(self) -> str:
        return self.store.type_name

    def normalize_path(self, path: str) -> str:
        return self.store.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[pa.fs.FileInfo]:
        return self._do(paths[0] if paths else "", lambda: self.store.get_file_info(paths))

    def get_file_info_selector(self, selector: pa.fs.FileSelector) -> list[pa.fs.FileInfo]:
        return self._do(selector.base_dir, lambda: self.store.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._do(path, lambda: self.store.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._do(path, lambda: self.store.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._do(path, lambda: self.store.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole store is not deleted")

    def delete_file(self, path: str) -> None:
        self._do(path, lambda: self.store.delete_file(path))

    def move(self, source: str, target: str) -> None:
        self._do(source, lambda: self.store.move(source, target))

    def copy_file(self, source: str, target: str) -> None:
        self._do(source, lambda: self.store.copy_file(source, target))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_RepeatingFile(self, path), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self.store.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("files of a store are written whole")


class _RepeatingFile:
    """A file of a store, opened anew where a read fails, at the place it had come to."""

    def __init__(self, store: _Repeating, path: str) -> None:
        self.store, self.path, self.at, self.closed = store, path, 0, False
        self.lock = threading.Lock()  # Parquet's readers ask from several threads
        self.file: pa.NativeFile | None = None
        self.length = store._do(path, self._open)

    def _open(self) -> int:
        self.file = self.store.store.open_input_file(self.path)
        return self.file.size()

    def read(self, count: int | None = None) -> bytes:
        with self.lock:
            left = max(self.length - self.at, 0)
            wanted = left if count is None or count < 0 else min(count, left)
            data = self.store._do(self.path, lambda: self._read(wanted)) if wanted else b""
            self.at += len(data)
            return data

    def _read(self, wanted: int) -> bytes:
        try:
            if self.file is None:
                self._open()
            data = self.file.read_at(wanted, self.at)
            if len(data) < wanted:
                raise OSError(f"{len(data)} of {wanted} bytes came")
        except BaseException:
            self.file = None
            raise
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        self.at = base + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def size(self) -> int:
        return self.length

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed, self.file = True, None


# ------------------------------------------------------------------------------------------- reading and writing


def fetch(place: str) -> bytes:
    """The bytes of a file. Raises FileNotFoundError or StorageError; for local files any OSError."""
    store, path = filesystem(place)
    with store.open_input_file(path) as file:
        return file.read()


def open_file(place: str) -> pa.NativeFile:
    """A file for reading here and there, for Parquet. Raises as `fetch` does."""
    store, path = filesystem(place)
    return store.open_input_file(path)


def kinds(places: Iterable[str]) -> list[pa.fs.FileInfo]:
    """What lies at each of some places of one and the same store, asked for at once."""
    found = [filesystem(place) for place in places]
    return found[0][0].get_file_info([path for _, path in found]) if found else []


def kind(place: str) -> pa.fs.FileType:
    """File, Directory or NotFound."""
    return kinds([place])[0].type


def files(place: str) -> Iterator[tuple[str, int]]:
    """(path below `place`, size in bytes) of every file, sorted, hidden ones as well."""
    store, path = filesystem(place)
    found = store.get_file_info(pa.fs.FileSelector(path, recursive=True))
    start = len(path.rstrip("/")) + 1
    yield from sorted((info.path[start:], info.size) for info in found if info.type is pa.fs.FileType.File)


def entries(place: str) -> list[pa.fs.FileInfo]:
    """What lies directly in a folder, by name; nothing where there is no such folder."""
    store, path = filesystem(place)
    found = store.get_file_info(pa.fs.FileSelector(path, allow_not_found=True))
    return sorted(found, key=lambda info: info.base_name)


_WRITING = ".writing-", ".tmp"
"""How the names of files that are being written begin and end."""


@contextlib.contextmanager
def alone_in(folder: str, refusal: Exception) -> Iterator[None]:
    """On a local disk, only one command at a time writes into a folder; what a killed one began is cleared away.

    Raises `refusal` where another command is there.
    """
    local = local_path(folder)
    if local is None:
        yield
        return
    os.makedirs(local, exist_ok=True)
    held = os.open(local, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        except OSError:
            pass  # NFS locks no folders: then nothing tells what was begun from what is being written
        else:
            for begun in Path(local).rglob("*".join(_WRITING)):
                begun.unlink()
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def write_whole(place: str) -> Iterator[str]:
    """A local path to write to; what was written is at `place` when the block ends, and nothing if it raises."""
    local = local_path(place)
    if local is not None:
        folder = os.path.dirname(os.path.abspath(local))
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=_WRITING[0], suffix=_WRITING[1])
    else:
        handle, temporary = tempfile.mkstemp(prefix="polytrain-")
    os.close(handle)
    try:
        yield temporary
        if local is None:
            with open(temporary, "rb") as file:
                _upload(place, file)
        else:
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide it from the cluster's other users
            os.replace(temporary, local)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_bytes(place: str, data: bytes) -> None:
    """The same for bytes at hand."""
    with write_whole(place) as temporary, open(temporary, "wb") as file:
        file.write(data)


def remove_folder(place: str) -> None:
    """A folder and all in it; nothing happens where there is none."""
    local = local_path(place)
    if local is not None:
        shutil.rmtree(local, ignore_errors=True)
        return
    store, path = filesystem(place)
    with contextlib.suppress(FileNotFoundError):
        store.delete_dir(path)


def remove_file(place: str) -> None:
    """A file; nothing happens where there is none."""
    store, path = filesystem(place)
    with contextlib.suppress(FileNotFoundError):
        store.delete_file(path)


def upload(place: str, file: Path) -> None:
    """A local file's content to `place`, whole or not at all."""
    with file.open("rb") as opened:
        _upload(place, opened)


def download(place: str, file: Path) -> None:
    """The same the other way. Raises as `fetch` does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with open_file(place) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)
    partial.rename(file)


def _upload(place: str, file: BinaryIO) -> None:
    store, path = filesystem(place)
    size = os.fstat(file.fileno()).st_size
    at_once = store.type_name.removeprefix("py::") in _WHOLE_AT_CLOSE
    target = path if at_once else f"{posixpath.dirname(path)}/.writing-{posixpath.basename(path)}"

    def upload() -> None:
        file.seek(0)
        if not at_once:
            store.create_dir(posixpath.dirname(path), recursive=True)
        with store.open_output_stream(target) as out:
            shutil.copyfileobj(file, out, 8 << 20)
        if not at_once:
            store.move(target, path)
        there = store.get_file_info(path).size
        if there != size:
            raise OSError(f"{there} of {size} bytes arrived")

    repeat(place, upload)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
