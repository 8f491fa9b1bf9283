"""Winners in a co-training recipe: what is taken, what is said, what is refused."""

import pytest
import yaml

from polytrain.recipe import RecipeError, check
from polytrain.recipe_file import load
from polytrain.sweep.outcome import FINISHED, Ended, Row, write_best
from polytrain.sweep.points import open_space
from polytrain.sweep.reuse import with_hparams
from polytrain.tracking import Tracker

RATES = {"colours": 0.5, "moves": 0.25, "tones": 0.125}


@pytest.fixture
def best(tiny, tmp_path):
    """Writes a sweep's winners for some tasks; returns the file."""

    def write(*tasks, grid=None, values=None, run_id="5" * 32):
        space = open_space(check(tiny | {"grid": grid or {"lr": list(RATES.values())}}))
        rows = [
            Row(
                space.point(task, (values or {}).get(task, {"lr": RATES[task]})), Ended(FINISHED, 80.0, f"trial-{task}")
            )
            for task in tasks or RATES
        ]
        where = {"run_id": run_id, "tracking_uri": "sqlite:///x.db"}
        return write_best(space, rows, where, tmp_path / "best_hparams.yaml")

    return write


@pytest.fixture
def record(best, tiny, tmp_path):
    """Records a sweep in the recipe's own MLflow store; returns its run id."""

    def write(name, *tasks, kind="sweep", status="FINISHED", **more):
        uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
        tracker = Tracker.open(
            tmp_path / name, uri=uri, fallback_uri=uri, experiment="tiny", run_name=name,
            tags={"polytrain.kind": kind, "polytrain.tasks": " ".join(tasks or RATES)},
        )  # fmt: skip
        tracker.artifact(best(*tasks, run_id=tracker.run_id, **more))
        assert tracker.close(status) is None
        return tracker.run_id

    return write


def taken(tree, hparams, **more):
    return with_hparams(check(tree | {"hparams": str(hparams)} | more), say=lambda _: None)


def fault(tree, hparams, **more) -> str:
    with pytest.raises(RecipeError) as error:
        taken(tree, hparams, **more)
    return str(error.value)


def test_each_task_takes_its_winner_and_says_from_where(tiny, best):
    said = []
    recipe = with_hparams(check(tiny | {"hparams": str(best())}), said.append)
    assert {name: task.lr for name, task in recipe.tasks.items()} == RATES
    assert said[0] == f"colours: lr=0.5 (80.0 top1 in run trial-colours of sweep {'5' * 32})"


def test_the_resolved_recipe_holds_values_and_runs_and_is_a_recipe(tiny, best, recipe_file):
    recipe = taken(tiny, best())
    again = load(recipe_file(yaml.safe_load(recipe.yaml())))
    assert again == recipe == with_hparams(again)
    assert again.hparams.tasks["moves"].run_id == "trial-moves"


def test_the_run_is_named_by_the_values_not_by_where_they_are_from(tiny, best):
    by_hand = tiny | {"tasks": {name: task | {"lr": RATES[name]} for name, task in tiny["tasks"].items()}}
    assert taken(tiny, best()).run_name == check(by_hand).run_name


def test_a_winner_may_be_for_other_keys_of_the_task_too(tiny, best):
    values = {task: {"lr": RATES[task], "warmup_steps": 2} for task in RATES}
    recipe = taken(tiny, best(grid={"lr": list(RATES.values()), "warmup_steps": [0, 2]}, values=values))
    assert {task.warmup_steps for task in recipe.tasks.values()} == {2}


def test_winners_of_a_key_that_all_tasks_share_must_agree(tiny, best):
    grid = {"optimizer": {"weight_decay": [0.0, 0.1]}}
    same = {task: {"optimizer.weight_decay": 0.1} for task in RATES}
    assert taken(tiny, best(grid=grid, values=same)).optimizer.weight_decay == 0.1
    file = best(grid=grid, values=same | {"moves": {"optimizer.weight_decay": 0.0}})
    assert "optimizer.weight_decay is one for all tasks, and their winners differ" in fault(tiny, file)
    assert taken(tiny, file, hparams_mismatch="allow").optimizer.weight_decay == 0.0


def test_tasks_without_a_winner_are_named_or_allowed(tiny, best):
    file = best("colours")
    assert "has no winner for moves, tones" in fault(tiny, file)
    recipe = taken(tiny, file, hparams_missing="allow")
    assert [task.lr for task in recipe.tasks.values()] == [0.5, 0.02, 0.01]
    assert list(recipe.hparams.tasks) == ["colours"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"depth": 3, "width": 16, "heads": 2, "mlp_width": 32, "adaptor_layers": 1}},
         "model.depth: the sweep had 2, the recipe has 3"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.name: the sweep had sgd, the recipe has adamw"),
    ],
)  # fmt: skip
def test_winners_found_under_other_conditions_are_refused_or_allowed(tiny, best, change, message):
    file = best()
    assert message in fault(tiny | change, file)
    assert taken(tiny | change, file, hparams_mismatch="allow").tasks["colours"].lr == 0.5


def test_winners_of_other_step_counts_or_examples_are_refused(tiny, best, media):
    file = best()
    tiny["tasks"]["colours"]["steps"] = 80
    tiny["tasks"]["tones"]["manifest"] = str(media["audio"])
    told = fault(tiny, file)
    assert "tasks.colours.steps: the sweep had 8, the recipe has 80" in told
    assert "tasks.tones.manifest: not the examples of the sweep" in told


def test_a_sweep_of_another_recipe_is_refused(tiny, best):
    file = best()
    tiny["tasks"] = {"others": tiny["tasks"]["colours"]}
    assert "is of recipe tiny and has none of the tasks others" in fault(tiny, file)


def test_what_is_no_winners_file_is_refused(tiny, tmp_path):
    assert "can't be read" in fault(tiny, "nowhere.yaml")
    (tmp_path / "other.yaml").write_text("a: 1")
    assert "is no best_hparams.yaml" in fault(tiny, tmp_path / "other.yaml")


def test_latest_takes_each_tasks_winner_from_the_newest_sweep_that_has_one(tiny, record):
    first = record("first")
    second = record("second", "colours", values={"colours": {"lr": 0.25}})
    recipe = taken(tiny, "latest")
    assert recipe.tasks["colours"].lr == 0.25
    assert recipe.tasks["moves"].lr == RATES["moves"]
    assert [task.sweep_run_id for task in recipe.hparams.tasks.values()] == [second, first, first]
    assert "hparams: latest" not in recipe.yaml()


def test_a_run_id_names_a_sweep_and_nothing_else(tiny, record):
    run_id = record("first")
    assert taken(tiny, run_id).tasks["colours"].lr == 0.5
    assert "is a cotrain, no sweep" in fault(tiny, record("other", kind="cotrain"))
    assert "has no run" in fault(tiny, "0" * 31 + "a")


def test_without_a_sweep_latest_is_refused(tiny):
    assert "no sweep in" in fault(tiny, "latest")
