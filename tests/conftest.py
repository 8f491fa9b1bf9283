"""What tests share: one set of small media, and a recipe over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from small_media import WRITERS, make_task, tiny_recipe


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> dict[str, Path]:
    """One manifest a modality and a multi-label one, made once."""
    root = tmp_path_factory.mktemp("media")
    manifests = {modality: make_task(root / modality, modality) for modality in WRITERS}
    return manifests | {"several": make_task(root / "several", "audio", multi_label=True)}


@pytest.fixture
def tiny(media, tmp_path) -> dict:
    return tiny_recipe(media, tmp_path / "runs")


@pytest.fixture
def recipe_file(tmp_path):
    """Writes nested dicts as a recipe file and returns its path."""

    def write(tree: dict) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
