"""A sweep's points: what a grid becomes, which points are the same, and what is refused before anything starts."""

import pytest

from polytrain.recipe import RecipeError, check
from polytrain.sweep.points import make_point, open_space


def space(tree, **keys):
    return open_space(check(tree | keys))


def fault(tree, **keys) -> str:
    with pytest.raises(RecipeError) as error:
        space(tree, **keys)
    return str(error.value)


def fingerprint(tree, task="colours", **values) -> str:
    return make_point(check(tree), task, values).fingerprint


def test_without_a_grid_sgd_gets_the_papers(tiny):
    points = list(space(tiny).grid())
    assert [(p.task, p.values["lr"]) for p in points] == [
        (task, lr) for task in ("colours", "moves", "tones") for lr in (0.03, 0.1, 0.3)
    ]


def test_a_point_is_a_recipe_of_one_task_with_its_own_steps_and_warm_up(tiny):
    tiny["tasks"]["moves"]["warmup_steps"] = 2
    tiny["schedule"] = "alternating"
    recipe = space(tiny).point("moves", {"lr": 0.5}).recipe
    assert list(recipe.tasks) == ["moves"]
    assert (recipe.tasks["moves"].lr, recipe.tasks["moves"].steps, recipe.tasks["moves"].warmup_steps) == (0.5, 5, 2)
    assert list(recipe.geometries()) == ["video"]


def test_a_grid_is_the_product_of_its_keys_and_a_dotted_key_is_a_path(tiny):
    points = list(space(tiny, grid={"lr": [0.1, 0.2], "optimizer": {"weight_decay": [0, 0.01]}}).grid())
    assert len(points) == 3 * 4
    assert {p.recipe.optimizer.weight_decay for p in points} == {0, 0.01}


def test_a_task_may_have_a_grid_of_its_own(tiny):
    grid = {"lr": [0.1, 0.2], "tasks": {"tones": {"lr": [0.5]}}}
    found = [(p.task, p.recipe.tasks[p.task].lr) for p in space(tiny, grid=grid).grid()]
    assert found == [("colours", 0.1), ("colours", 0.2), ("moves", 0.1), ("moves", 0.2), ("tones", 0.5)]


def test_tasks_can_be_selected(tiny):
    assert {p.task for p in space(tiny, sweep={"tasks": ["moves", "tones"]}).grid()} == {"moves", "tones"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {}}, "grid: is empty"),
        ({"grid": {"lr": []}}, "grid.lr: is empty"),
        ({"grid": {"lr": 0.1}}, "grid.lr: 0.1 is no list; grid.lr=[0.1] would be"),
        ({"grid": {"lrr": [0.1]}}, "tasks.colours.lrr: unknown key; did you mean lr?"),
        ({"grid": {"optimizer": {"weightdecay": [0.1]}}}, "optimizer.weightdecay: unknown key; did you mean weight_decay?"),
        ({"grid": {"nothing": {"here": [1]}}}, "nothing: unknown key"),
        ({"grid": {"lr": [-1, 0.1]}}, "tasks.colours.lr: input should be greater than 0, not -1"),
        ({"grid": {"batch_size": [5, 500]}}, "batch_size: 500 is more than the 24 training examples"),
        ({"grid": {"lr": [0.1, 0.10]}}, "grid.lr: a value stands twice"),
        ({"grid": {"train": {"log_every": [5, 6]}}}, "grid.train.log_every: makes no difference to a trial"),
        ({"grid": {"modality": ["image"]}}, "grid.modality: is nothing to search"),
        ({"grid": {"tasks": {"nobody": {"lr": [0.1]}}}}, "the sweep has no task nobody"),
        ({"sweep": {"tasks": ["colour"]}}, "the recipe has no task colour; did you mean colours?"),
        ({"sweep": {"tasks": []}}, "tasks: selects no task"),
        ({"optimizer": {"name": "adamw"}}, "not for adamw; grid.lr=[...] would name the rates to try"),
        ({"search": {"lr": [0.1, 1]}}, "ranges are for search.sampler=tpe"),
        ({"search": {"trials": 5}}, "search.trials: a grid runs all of its points"),
        ({"search": {"sampler": "tpe", "trials": 5}}, "tpe needs a range to search"),
        ({"search": {"sampler": "tpe", "lr": [0.1, 1]}}, "search.trials: missing"),
        ({"search": {"sampler": "tpe", "trials": 5, "lr": [1, 0.1]}}, "search.lr: [1, 0.1] is no range"),
        ({"search": {"sampler": "tpe", "trials": 5, "lr": [0, 1]}}, "tasks.colours.lr: input should be greater than 0"),
        ({"search": {"sampler": "tpe", "trials": 5, "lr": [0.1, 1], "trails": 5}}, "did you mean search.trials?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_what_would_be_right(tiny, keys, message):
    assert message in fault(tiny, **keys)


def test_points_are_the_same_whatever_the_recipe_around_them_is_called_or_mixes(tiny):
    other = tiny | {"name": "other", "output": "elsewhere", "schedule": "uniform", "grid": {"lr": [1, 2]}}
    other["tasks"] = {"colours": tiny["tasks"]["colours"]}
    other["train"] = tiny["train"] | {"workers": 4, "threads": 2, "checkpoint_every": 3}
    assert fingerprint(tiny, lr=0.3) == fingerprint(other, lr=0.3)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"model": {"depth": 1, "width": 16, "heads": 2, "mlp_width": 32, "adaptor_layers": 1}},
        {"optimizer": {"name": "sgd", "momentum": 0.8}},
        {"modalities": {"image": {"size": [32, 32], "patch": [8, 8]}}},
        {"train": {"precision": "bf16"}},
    ],
)
def test_whatever_changes_a_trials_result_makes_another_point(tiny, change):
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"]}
    assert fingerprint(tiny, lr=0.3) != fingerprint(tiny | change, lr=0.3)


def test_other_steps_or_examples_are_another_point(tiny, media):
    before = fingerprint(tiny)
    tiny["tasks"]["colours"]["steps"] += 1
    steps = fingerprint(tiny)
    tiny["tasks"]["colours"] |= {"modality": "audio", "manifest": str(media["audio"])}
    assert len({before, steps, fingerprint(tiny)}) == 3


def test_a_rate_written_in_two_ways_is_one_point(tiny):
    assert fingerprint(tiny, lr=1) == fingerprint(tiny, lr=1.0) == fingerprint(tiny, lr="1e0")


def test_keys_of_a_sweep_are_no_part_of_a_co_training_runs_identity(tiny):
    assert check(tiny).digest == check(tiny | {"grid": {"lr": [1]}, "sweep": {"concurrent": 3}}).digest
