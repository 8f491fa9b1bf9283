"""Roots that can't be read, with every way of preparing a collection; the tests hold for a superuser as well."""

import os

import pytest

from polytrain.data.importers.registry import IMPORTERS
from polytrain.ingest import prepare_command

pytestmark = pytest.mark.usefixtures("quick_tries")

COMMANDS = {
    "folder": ("--modality", "image"),
    "csv": ("--modality", "image", "--table", "TABLE"),
    "pets": (),
    "imagenet": (),
    "cifar10": (),
    "kinetics400": (),
}


@pytest.fixture(params=COMMANDS)
def refused(request, tmp_path, capsys):
    """Runs a command with a root; what it says on stderr. Nothing may be written."""
    (tmp_path / "t.csv").write_text("path,label\na.png,x\n")

    def run(root):
        words = [str(tmp_path / "t.csv") if word == "TABLE" else word for word in COMMANDS[request.param]]
        assert prepare_command("", [request.param, *words, "--root", str(root), "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return run


def test_a_file_is_no_root(refused, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert f"{tmp_path}/a.zip: is a file; --root names" in refused(tmp_path / "a.zip")


def test_a_link_that_leads_nowhere_is_no_root(refused, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert f"{tmp_path}/link: there is no such folder; --root names" in refused(tmp_path / "link")


def test_a_folder_that_a_bucket_lacks_is_no_root(refused, s3):
    root = f"{s3.bucket()}/nowhere"
    assert f"{root}: there is no such folder; --root names" in refused(root)


def test_a_bucket_that_is_not_there_is_no_root(refused, s3):
    assert "s3://no-such-bucket/photos" in refused("s3://no-such-bucket/photos")


def test_a_store_that_denies_access_is_told_at_once(refused, s3, proxy):
    proxy.faults = [403] * 1000
    root = f"{s3.bucket()}/photos{proxy.query}"
    told = refused(root)
    assert "/photos" in told
    assert "cannot be read" in told
    assert "failed after 1 try" in told


def test_an_unknown_kind_of_store_is_named(refused):
    assert "zz://host/: is no URI of a known store" in refused("zz://host/photos")


@pytest.mark.parametrize("name", ["folder", *IMPORTERS])
def test_a_folder_that_may_not_be_listed_is_named(name, tmp_path, monkeypatch, capsys):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    words = ["--modality", "image"] if name == "folder" else []
    assert prepare_command("", [name, *words, "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}: cannot be read: Permission denied" in capsys.readouterr().err
