"""What tests share: one set of small media, and a recipe over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from small_media import WRITERS, make_checkpoint, make_task, tiny_recipe
from store_server import Proxy, s3_server


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> dict[str, Path]:
    """One manifest a modality and a multi-label one, made once."""
    root = tmp_path_factory.mktemp("media")
    manifests = {modality: make_task(root / modality, modality) for modality in WRITERS}
    return manifests | {"several": make_task(root / "several", "audio", multi_label=True)}


@pytest.fixture
def tiny(media, tmp_path) -> dict:
    return tiny_recipe(media, tmp_path / "runs")


@pytest.fixture(scope="session")
def checkpoint_of_three(media, tmp_path_factory) -> Path:
    """A checkpoint of three modalities over `media`, as a run writes it: two image tasks (colours, hues), a video task
    (moves) and two audio tasks (pitches with one label, tones with several); random weights everywhere."""
    return make_checkpoint(media, tmp_path_factory.mktemp("three"))


@pytest.fixture
def recipe_file(tmp_path):
    """Writes nested dicts as a recipe file and returns its path."""

    def write(tree: dict) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture(scope="module")
def s3():
    """A real S3 server; the environment leads to it."""
    with s3_server() as server:
        yield server


@pytest.fixture
def proxy(s3):
    """A proxy before the S3 server that is slow or fails as told."""
    with Proxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
def quick_tries(monkeypatch):
    """Requests to a store are repeated after hundredths of a second instead of tenths."""
    monkeypatch.setattr("polytrain.data.storage.FIRST_PAUSE_S", 0.01)


@pytest.fixture
def one_thread():
    """torch computes in one thread: sums are the same everywhere."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
