"""Datasets that lie in a bucket: a real S3 API, answered by a server of this test."""

import logging

import official_layouts as layouts
import pyarrow.fs
import pytest
from official_layouts import read, sizes

from polytrain.data.importers.collection import IngestError


@pytest.fixture(scope="module")
def endpoint():
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"127.0.0.1:{port}" if host == "0.0.0.0" else f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    """What uploads a folder, and the URI of it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    store = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
    store.create_dir("sets")

    def upload(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                with store.open_output_stream(f"sets/{folder.name}/{path.relative_to(folder)}") as file:
                    file.write(path.read_bytes() or b"-")
        return f"s3://sets/{folder.name}?endpoint_override={endpoint}&scheme=http&region=us-east-1"

    return upload


def test_a_bucket_reads_as_the_local_copy_does(bucket, tmp_path):
    layouts.pets(tmp_path / "pets")
    for number, path in enumerate(sorted((tmp_path / "pets/images").iterdir())):
        if number % 17:
            path.unlink()
    here, there = read("pets", tmp_path / "pets"), read("pets", bucket(tmp_path / "pets"))
    assert 0 < min(sizes(here)) < sum(sizes(here)) < 30

    def below(paths):
        return [path.partition("?")[0].rpartition("/pets/")[2] for path in paths]

    assert below(e.path for e in there.examples) == below(e.path for e in here.examples)
    assert [e.split for e in there.examples] == [e.split for e in here.examples]
    assert below(there.missing) == below(here.missing)
    assert there.examples[0].path.startswith("s3://sets/pets/images/Cat_breed_0_0.jpg?endpoint_override=")


def test_images_in_a_few_large_files_are_read_from_a_disk_only(bucket, tmp_path):
    layouts.dmlab(tmp_path / "dmlab")
    with pytest.raises(IngestError, match="from a local disk only"):
        read("dmlab", bucket(tmp_path / "dmlab"))


def test_a_folder_that_the_bucket_lacks_is_refused(bucket, tmp_path):
    layouts.dmlab(tmp_path / "dmlab")
    with pytest.raises(IngestError, match="there is no such folder"):
        read("pets", bucket(tmp_path / "dmlab").replace("dmlab", "nowhere"))
