"""The recipe's eval.views: how many views of an example the final test takes."""

import copy

import pytest

from polytrain.experiment import open_experiment
from polytrain.recipe import RecipeError, check


def with_views(tiny, views):
    return check(copy.deepcopy(tiny) | {"eval": {"views": views}})


def test_without_the_key_there_is_one_view_of_everything(tiny):
    assert [check(tiny).eval.views_of(modality) for modality in ("image", "video", "audio")] == [(1, 1)] * 3


def test_paper_means_its_numbers(tiny):
    recipe = with_views(tiny, "paper")
    assert recipe.plain()["eval"]["views"] == {"image": [1, 1], "video": [4, 3], "audio": [4, 1]}
    assert check(recipe.plain()) == recipe


def test_a_modality_left_out_has_one_view(tiny):
    assert with_views(tiny, {"video": [2, 3]}).eval.views_of("audio") == (1, 1)


@pytest.mark.parametrize(
    ("views", "fault"),
    [
        ({"image": [2, 1]}, r"eval.views: image: .*\[1, 1\] would be right"),
        ({"audio": [4, 3]}, r"eval.views: audio: .*\[4, 1\] would be right"),
        ({"video": [0, 1]}, "at least one clip and one crop"),
        ({"vidio": [4, 3]}, "did you mean video"),
        ("papers", "eval.views"),
    ],
)
def test_views_that_can_not_be_are_refused(tiny, views, fault):
    with pytest.raises(RecipeError, match=fault):
        with_views(tiny, views)


def test_views_change_the_runs_name_but_not_the_plan(tiny):
    one, many = check(tiny), with_views(tiny, "paper")
    assert one.run_name != many.run_name
    assert open_experiment(one)[0].plan.digest == open_experiment(many)[0].plan.digest


def test_a_test_minibatch_holds_about_as_many_inputs_as_a_training_one(tiny):
    plan = open_experiment(with_views(tiny, {"image": [1, 2], "video": [4, 3], "audio": [1, 1]}))[0].plan
    # Batches of 5, 3 and 7 examples; with two and twelve views of each:
    assert [len(plan.evaluation("test", 8, task, 0)) for task in range(3)] == [2, 1, 7]
    assert [len(plan.evaluation("val", 8, task, 0)) for task in range(3)] == [5, 3, 7]
