"""Datasets that lie in a store: a real S3 API, answered by a server of this test, and pyarrow's filesystem in memory."""

import logging

import official_layouts as layouts
import pyarrow.fs
import pytest
from official_layouts import read, sizes

from polytrain.data import manifest, storage
from polytrain.data.examples import examples_of
from polytrain.data.importers.collection import IngestError
from polytrain.ingest import prepare_command


@pytest.fixture(scope="module")
def endpoint():
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
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


@pytest.mark.parametrize("name", ["dmlab", "pcam"])
def test_images_in_a_few_large_files_come_from_a_bucket_too(name, bucket, tmp_path):
    getattr(layouts, name)(tmp_path / name)
    here, there = read(name, tmp_path / name), read(name, bucket(tmp_path / name))
    assert told(there) == told(here)


def told(collection):
    """Split, classes and content of every example."""
    return [(e.split, e.classes, e.inline()) for e in collection.examples]


def test_a_folder_that_the_bucket_lacks_is_refused(bucket, tmp_path):
    layouts.dmlab(tmp_path / "dmlab")
    with pytest.raises(IngestError, match="there is no such folder"):
        read("pets", bucket(tmp_path / "dmlab").replace("dmlab", "nowhere"))


# -------------------------------------------------------------------------------- neither a disk nor a bucket of S3


@pytest.fixture
def in_memory(tmp_path):
    """What copies a folder to pyarrow's filesystem in memory, and the URI of it."""

    def copy(folder):
        uri = f"mock:///{tmp_path.name}/{folder.name}"
        for path in folder.rglob("*"):
            if path.is_file():
                storage.upload(storage.join(uri, *path.relative_to(folder).parts), path)
        return uri

    return copy


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "pcam", "dmlab"])
def test_any_filesystem_of_pyarrow_holds_a_dataset_and_its_manifest(name, in_memory, tmp_path):
    getattr(layouts, name)(tmp_path / name)
    uri = in_memory(tmp_path / name)
    out = storage.join(storage.parent(uri), "out")
    assert prepare_command("", [name, "--root", uri, "--out", out]) == 0
    m = manifest.read(storage.join(out, "manifest.parquet"))
    there = [(split, examples.content(i)) for split, examples in examples_of(m).items() for i in range(len(examples))]
    assert there == [(split, content) for split, _, content in told(read(name, tmp_path / name))]


def test_a_manifest_beside_its_media_names_them_on_any_filesystem(in_memory, tmp_path):
    layouts.pets(tmp_path / "pets")
    uri = in_memory(tmp_path / "pets")
    assert prepare_command("", ["pets", "--root", uri, "--out", storage.parent(uri)]) == 0
    m = manifest.read(storage.join(storage.parent(uri), "manifest.parquet"))
    assert m.table["path"][0].as_py().startswith("pets/images/")
    assert storage.kind(m.location(m.table["path"][0].as_py())) is pyarrow.fs.FileType.File


def test_imagenets_development_kit_may_lie_in_a_store(in_memory, tmp_path):
    layouts.imagenet(tmp_path / "imagenet", "devkit")
    here, there = read("imagenet", tmp_path / "imagenet"), read("imagenet", in_memory(tmp_path / "imagenet"))
    assert [(e.split, e.classes) for e in there.examples] == [(e.split, e.classes) for e in here.examples]
    assert sizes(there) == (990, 10, 10)
