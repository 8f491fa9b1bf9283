import os

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from polytrain.data import storage
from polytrain.data.storage import StorageError

pytestmark = pytest.mark.usefixtures("quick_tries")


@pytest.fixture
def through(s3, proxy):
    """A file of 100,000 bytes, its URI through the proxy."""
    bucket = s3.bucket()
    storage.write_bytes(f"{bucket}/a.bin", bytes(range(250)) * 400)
    return f"{bucket}/a.bin{proxy.query}"


def test_what_is_written_is_read_and_listed(s3):
    bucket = s3.bucket()
    place = storage.join(bucket, "folder", "100% ä b.txt")
    storage.write_bytes(place, b"text")
    assert storage.fetch(place) == b"text"
    assert list(storage.files(bucket)) == [("folder/100% ä b.txt", 4)]
    assert storage.kind(storage.join(bucket, "folder")) is pa.fs.FileType.Directory


def test_local_paths_and_file_uris_are_stores_too(tmp_path):
    storage.write_bytes(f"file://{tmp_path}/x/a%20b.txt", b"text")
    assert storage.fetch(f"{tmp_path}/x/a b.txt") == b"text"
    assert list(storage.files(str(tmp_path))) == [("x/a b.txt", 4)]


@pytest.mark.parametrize("uri", ["hdfs:///data/x", "mock:///data/x", "s3://bucket/data/x?region=y", "gs://bucket/x"])
def test_what_lies_beside_a_file_is_in_the_same_store(uri):
    scheme, _, query = uri.partition("/x")
    assert storage.join(storage.parent(uri), "a b", "c") == f"{scheme}/a%20b/c{query}"


@pytest.mark.parametrize("fault", [503, 500, "drop", "cut"])
def test_a_request_that_fails_is_repeated(proxy, through, fault):
    proxy.faults = [None, fault] if fault == "cut" else [fault, fault, None, fault]
    assert storage.fetch(through) == bytes(range(250)) * 400
    assert not proxy.faults


def test_a_slow_store_is_waited_for(proxy, through):
    proxy.faults = [0.5, 0.5]
    assert len(storage.fetch(through)) == 100_000
    assert len(proxy.requests) == 2


def test_a_store_that_falls_silent_is_asked_again(proxy, through, monkeypatch):
    monkeypatch.setattr(storage, "SILENCE_TIMEOUT_S", 1.0)
    proxy.faults = [20.0]
    assert len(storage.fetch(through)) == 100_000


def test_what_stays_wrong_names_uri_tries_and_answer(proxy, through):
    proxy.faults = [503] * 100
    with pytest.raises(
        StorageError, match=r"s3://bucket\d+/a.bin: failed after 5 tries in .* s; the last answer: .*503"
    ):
        storage.fetch(through)
    assert len(proxy.requests) == 5


def test_what_asking_again_cannot_mend_is_told_at_once(proxy, through):
    proxy.faults = [403] * 100
    with pytest.raises(StorageError, match="failed after 1 try"):
        storage.fetch(through)


def test_a_missing_file_is_asked_for_once(proxy, through):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        storage.fetch(through.replace("a.bin", "b.bin"))
    # HEAD of the file, and a look whether it is a folder
    assert len(proxy.requests) <= 2


def test_a_writing_that_fails_is_begun_anew(proxy, through):
    proxy.faults = [503, "drop"]
    storage.write_bytes(through, b"new")
    assert storage.fetch(through) == b"new"


def test_nothing_is_written_when_the_writer_raises(s3, tmp_path):
    def write_half(place):
        with storage.write_whole(place) as temporary:
            with open(temporary, "w") as file:
                file.write("half of it")
            raise RuntimeError

    for place in (f"{s3.bucket()}/a", f"{tmp_path}/a"):
        with pytest.raises(RuntimeError):
            write_half(place)
        assert storage.kind(place) is pa.fs.FileType.NotFound
    assert os.listdir(tmp_path) == []


def test_a_filesystem_that_shows_half_written_files_gets_them_moved_into_place():
    place = "mock:///moved/folder/a.bin"
    for content in (b"first", b"another"):
        storage.write_bytes(place, content)
        assert storage.fetch(place) == content
    assert list(storage.files("mock:///moved")) == [("folder/a.bin", 7)]


def test_there_is_no_file_in_its_place_before_it_is_whole(monkeypatch):
    monkeypatch.setattr(storage, "TRIES", 1)
    monkeypatch.setattr(storage._Repeating, "move", refuse)
    with pytest.raises(StorageError, match="no moving"):
        storage.write_bytes("mock:///half/a.bin", b"text")
    assert storage.kind("mock:///half/a.bin") is pa.fs.FileType.NotFound


def refuse(*_):
    raise OSError("no moving")


def test_parquet_is_read_row_group_by_row_group_from_a_failing_store(s3, proxy, tmp_path):
    table = pa.table({"x": list(range(100_000))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10_000)
    place = f"{s3.bucket()}/t.parquet"
    storage.write_bytes(place, (tmp_path / "t.parquet").read_bytes())
    proxy.faults = [503, None, "cut", None, 503, "drop"]
    with storage.open_file(place + proxy.query) as source:
        file = pq.ParquetFile(source)
        assert file.read_row_group(7)["x"][0].as_py() == 70_000
        assert file.read_row_group(3)["x"][0].as_py() == 30_000


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "s3://bucket/x?access_key=key&secret_key=secret"])
def test_secrets_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as error:
        storage.fetch(uri)
    assert "secret@" not in str(error.value)
    assert "=secret" not in str(error.value)


@pytest.mark.parametrize(("uri", "told"), [("zz://x/y", "no URI of a known store"), ("s3://b/x?regoin=y", "'regoin'")])
def test_an_unknown_store_or_setting_is_named(uri, told):
    with pytest.raises(StorageError, match=told):
        storage.fetch(uri)
