"""Relative paths of a recipe begin where results outlast the job."""

from pathlib import Path

from polytrain.base_folder import base_folder
from polytrain.recipe import check


def test_it_is_the_current_folder_as_a_rule(tmp_path, monkeypatch, tiny):
    monkeypatch.delenv("POLYTRAIN_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path)
    assert base_folder() == tmp_path
    assert check(tiny | {"output": "../runs"}).output == str(tmp_path.parent / "runs")


def test_a_cluster_may_name_another(tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("POLYTRAIN_FOLDER", "/shared")
    monkeypatch.chdir(tmp_path)
    tiny["tasks"]["colours"]["manifest"] = "data/colours/manifest.parquet"
    recipe = check(tiny | {"output": "runs"})
    assert recipe.output == "/shared/runs"
    assert recipe.tasks["colours"].manifest == "/shared/data/colours/manifest.parquet"
    assert recipe.tasks["moves"].manifest == tiny["tasks"]["moves"]["manifest"], "an absolute path stays"
    assert check(tiny | {"output": "s3://bucket/runs"}).output == "s3://bucket/runs"


def test_it_is_in_the_home_folder_where_ray_made_a_copy_of_the_tree(tmp_path, monkeypatch):
    monkeypatch.delenv("POLYTRAIN_FOLDER", raising=False)
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert base_folder() == Path.home() / "polytrain"
