"""Probes, whole: real Ray Data, real media, real MLflow (sqlite); and the ordinary loop beside them."""

import json
from pathlib import Path

import pytest
import yaml
from job_runner import Runner
from safetensors.torch import load_file

from polytrain.trained import Trained

pytestmark = pytest.mark.slow

GRID = "grid.lr=[0.03,0.1]"


def recipe_of(media, output: Path) -> dict:
    """Three new tasks, one a modality, that say nothing of the model."""
    settings = {"steps": 20, "warmup_steps": 2, "lr": 0.1, "batch_size": 5}
    return {
        "name": "asked",
        "tasks": {
            "shades": {"modality": "image", "manifest": str(media["image"])} | settings,
            "hops": {"modality": "video", "manifest": str(media["video"])} | settings,
            "chords": {"modality": "audio", "manifest": str(media["several"])} | settings,
        },
        "eval": {"views": {"video": [2, 2]}},
        "train": {"precision": "fp32", "eval_every": 8, "log_every": 5, "threads": 1},
        "output": str(output),
    }


def probe(runner, *arguments, code=0):
    return runner.run(*arguments, job="probe.py", code=code)


def runs(output: Path, kind: str) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    found = client.get_experiment_by_name("asked")
    return client.search_runs([found.experiment_id], f"tags.`polytrain.kind` = '{kind}'")


def folder_of(output: Path, printed: str) -> Path:
    """The probe's own folder, whose name it prints first."""
    return output / printed.split(":")[0]


@pytest.fixture(scope="module")
def probed(media, checkpoint_of_three, tmp_path_factory):
    """One probe of three tasks at two rates: the recipe, the output folder, and what it printed."""
    folder = tmp_path_factory.mktemp("probed")
    runner = Runner(folder)
    recipe = folder / "asked.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(media, folder / "runs")))
    printed = probe(runner, checkpoint_of_three, recipe, GRID)
    left = runner.processes()
    runner.clean()
    assert not left, left
    return recipe, folder / "runs", printed


def test_every_head_is_a_nested_run_and_the_parent_has_the_winners_tests(probed, checkpoint_of_three):
    _, output, printed = probed
    (parent,) = runs(output, "probe")
    trials = runs(output, "trial")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["polytrain.checkpoint"] == str(checkpoint_of_three)
    assert {(t.data.tags["polytrain.task"], t.data.tags["polytrain.values"]) for t in trials} == {
        (task, f'{{"lr": {lr}}}') for task in ("shades", "hops", "chords") for lr in (0.03, 0.1)
    }
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {parent.info.run_id}
    assert {t.info.status for t in trials} == {"FINISHED"}
    for task, metric in (("shades", "top1"), ("hops", "top1"), ("chords", "mAP")):
        scores = [t.data.metrics[f"val/{task}/{metric}"] for t in trials if t.data.tags["polytrain.task"] == task]
        assert parent.data.metrics[f"val/{task}/{metric}"] == max(scores)
        assert parent.data.metrics[f"test/{task}/examples"] == 8
        assert 0 <= parent.data.metrics[f"test/{task}/{metric}"] <= 100
    assert "Traceback" not in printed


def test_it_shows_what_computing_features_once_has_saved(probed):
    """24 + 7 examples a task once; two heads of 20 steps of 5, and three validations of 7, in the loop."""
    _, output, printed = probed
    assert "93 examples went through the model once; the ordinary loop would pass 726 through it for 6 heads" in printed
    (parent,) = runs(output, "probe")
    assert parent.data.metrics["probe/hops/examples"] == 31
    assert parent.data.metrics["probe/hops/examples_in_loop"] == 242


def test_the_model_is_bit_by_bit_as_it_was_and_predicts_the_new_tasks(probed, checkpoint_of_three):
    _, output, printed = probed
    final = folder_of(output, printed) / "final"
    before, after = (load_file(place / "model.safetensors") for place in (checkpoint_of_three, final))
    trunk = {name for name in before if not name.startswith("heads.")}
    assert {name for name in after if not name.startswith("heads.")} == trunk
    for name in trunk:
        assert before[name].numpy().tobytes() == after[name].numpy().tobytes(), name
    assert set(Trained.open(final).tasks) == {"shades", "hops", "chords"}


def test_a_head_is_the_one_that_the_ordinary_loop_trains(probed, runner):
    """Which passes every minibatch through the frozen model; its recipe lies with the head."""
    _, output, printed = probed
    (parent,) = runs(output, "probe")
    best = parent.data.tags["polytrain.winner.shades"]
    (trial,) = (run for run in runs(output, "trial") if run.info.run_id == best)
    (recipe,) = (
        file.parent / "recipe.yaml"
        for file in (folder_of(output, printed) / "trials").glob("*/run.json")
        if json.loads(file.read_text())["run_id"] == best
    )
    runner.run(recipe, f"output={runner.folder / 'loop'}")
    (final,) = runner.folder.glob("loop/*/final")
    expected = load_file(final / "model.safetensors")
    heads = load_file(folder_of(output, printed) / "heads.safetensors")
    for part in ("weight", "bias"):
        name = f"heads.shades.{part}"
        assert (heads[name] - expected[name]).abs().max() < 1e-4, part
    results = json.loads((final / "state.json").read_text())["results"]
    for name, value in results["val"]["shades"].items():
        assert trial.data.metrics[f"val/shades/{name}"] == pytest.approx(value, abs=1e-4), name
    for name, value in results["test"]["shades"].items():
        assert parent.data.metrics[f"test/shades/{name}"] == pytest.approx(value, abs=1e-4), name


def test_another_grid_finds_the_features_and_a_repeat_its_result(probed, runner, checkpoint_of_three):
    recipe, _, printed = probed
    again = probe(runner, checkpoint_of_three, recipe, GRID)
    assert "was probed so before" in again
    assert again.strip().splitlines()[-1] == printed.strip().splitlines()[-1]
    more = probe(runner, checkpoint_of_three, recipe, "grid.lr=[0.3]", "tasks=[shades,chords]")
    assert "78 examples' features are known from earlier probes" in more
    # Nothing was left to compute: Ray was never started.
    assert not list((runner.folder / "home").glob("ray*"))


@pytest.mark.soak
def test_features_that_change_take_the_ordinary_loop(probed, runner, checkpoint_of_three):
    recipe, output, _ = probed
    printed = probe(runner, checkpoint_of_three, recipe, "tasks=[chords,shades]", "tasks.chords.mixup_alpha=0.3", GRID)
    assert "chords has mixup_alpha: 0.3" in printed
    final = folder_of(output, printed) / "final"
    before, after = (load_file(place / "model.safetensors") for place in (checkpoint_of_three, final))
    assert all((before[name] == after[name]).all() for name in after if not name.startswith("heads."))
    assert {"heads.chords.weight", "heads.shades.weight"} <= set(after)


def test_a_mistake_is_told_at_once_and_starts_nothing(runner, checkpoint_of_three, probed, tmp_path):
    recipe, _, _ = probed
    output = probe(runner, checkpoint_of_three, recipe, "grid.lr=[]", f"output={tmp_path / 'none'}", code=2)
    assert output.startswith("error: grid.lr: is empty")
    assert "Traceback" not in output
    assert not (tmp_path / "none").exists()
