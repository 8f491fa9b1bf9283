"""The five schedules: counts, orders and learning rates (PolyViT, section 4.2 and Table 1)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytrain.schedule import KINDS, Budget, make_schedule

budgets = st.lists(
    st.builds(
        Budget,
        steps=st.integers(1, 200),
        warmup_steps=st.integers(0, 20),
        lr=st.floats(1e-4, 1.0, allow_nan=False),
    ),
    min_size=1,
    max_size=9,
)
seeds = st.integers(0, 2**32)

# Table 6 and facts of the released configuration: steps, warm-up, learning rate.
NINE_TASKS = {
    "Im1K": Budget(20_000, 500, 0.03),
    "C100": Budget(10_000, 500, 0.03),
    "C10": Budget(10_000, 500, 0.03),
    "Pets": Budget(500, 100, 0.03),
    "R45": Budget(2_500, 200, 0.1),
    "K400": Budget(100_680, 8_390, 0.1),
    "MiT": Budget(123_640, 30_910, 0.25),
    "MiniAS": Budget(15_900, 795, 0.5),
    "VGG": Budget(134_700, 6_735, 0.5),
}


@given(budgets, seeds)
def test_weighted_draws_each_task_exactly_as_often_as_its_single_task_run_has_steps(tasks, seed):
    schedule = make_schedule("weighted", tasks, seed)
    assert schedule.counts().tolist() == [task.steps for task in tasks]
    assert schedule.steps == sum(task.steps for task in tasks)


@given(budgets, seeds)
def test_task_by_task_gives_each_task_one_unbroken_block_of_its_steps(tasks, seed):
    schedule = make_schedule("task_by_task", tasks, seed)
    blocks = np.flatnonzero(np.diff(schedule.draws)) + 1
    assert len(blocks) == len(tasks) - 1
    assert schedule.counts().tolist() == [task.steps for task in tasks]


@given(budgets, seeds)
def test_alternating_goes_round_in_the_recipes_order_whatever_the_seed(tasks, seed):
    schedule = make_schedule("alternating", tasks, seed)
    assert schedule.draws.tolist() == [step % len(tasks) for step in range(sum(task.steps for task in tasks))]


@given(budgets, seeds)
def test_uniform_gives_the_first_tasks_the_remainder_and_every_task_as_much_otherwise(tasks, seed):
    schedule = make_schedule("uniform", tasks, seed)
    total = sum(task.steps for task in tasks)
    each, left = divmod(total, len(tasks))
    assert schedule.counts().tolist() == [each + (task < left) for task in range(len(tasks))]


@given(budgets, seeds)
def test_accumulated_takes_every_task_in_every_one_of_a_tth_of_the_steps(tasks, seed):
    total = sum(task.steps for task in tasks)
    schedule = make_schedule("accumulated", tasks, seed)
    assert schedule.steps == total // len(tasks)
    assert all(schedule.tasks(step).tolist() == list(range(len(tasks))) for step in range(schedule.steps))


@given(budgets, seeds)
def test_accumulated_uses_the_smallest_learning_rate(tasks, seed):
    schedule = make_schedule("accumulated", tasks, seed)
    smallest = min(task.lr for task in tasks)
    assert all(
        schedule.learning_rate(step) == pytest.approx(schedule.factor(step) * smallest)
        for step in range(schedule.steps)
    )


@given(st.sampled_from(KINDS), budgets, seeds)
def test_a_schedule_is_a_pure_function_of_its_arguments(kind, tasks, seed):
    assert np.array_equal(make_schedule(kind, tasks, seed).draws, make_schedule(kind, tasks, seed).draws)


@pytest.mark.parametrize("kind", ["uniform", "weighted"])
def test_random_orders_differ_between_seeds(kind):
    one, other = (make_schedule(kind, list(NINE_TASKS.values())[3:5], seed) for seed in (0, 1))
    assert not np.array_equal(one.draws, other.draws)


def test_task_by_task_orders_tasks_by_seed():
    orders = {
        tuple(np.unique(make_schedule("task_by_task", [Budget(3, 0, 1.0)] * 5, s).draws, return_index=True)[1])
        for s in range(9)
    }
    assert len(orders) > 1


def test_weighted_shuffles_rather_than_blocks():
    schedule = make_schedule("weighted", [Budget(500, 0, 1.0)] * 2, 0)
    changes = np.count_nonzero(np.diff(schedule.draws))
    # A random permutation of two colours changes colour at half of the places (deviation 16).
    assert 400 < changes < 600


def test_the_papers_nine_tasks_take_417_920_steps_with_48_630_of_warmup():
    schedule = make_schedule("weighted", list(NINE_TASKS.values()), 0)
    assert (schedule.steps, schedule.warmup_steps) == (417_920, 48_630)


def test_the_papers_nine_tasks_accumulated_take_46_435_steps_with_warmup_in_proportion():
    schedule = make_schedule("accumulated", list(NINE_TASKS.values()), 0)
    assert (schedule.steps, schedule.warmup_steps) == (46_435, 5_403)
    assert schedule.learning_rate(schedule.warmup_steps - 1) == pytest.approx(0.03)


@given(budgets, seeds)
def test_the_factor_is_one_at_the_end_of_warmup_and_zero_at_the_end(tasks, seed):
    schedule = make_schedule("weighted", tasks, seed)
    if 0 < schedule.warmup_steps < schedule.steps:
        assert schedule.factor(schedule.warmup_steps - 1) == pytest.approx(1.0)
    if schedule.warmup_steps < schedule.steps:
        assert schedule.factor(schedule.steps - 1) == pytest.approx(0.0, abs=1e-12)


def test_rates_of_two_tasks_at_the_same_place_have_the_ratio_of_their_base_rates():
    tasks = [Budget(50, 5, 0.03), Budget(50, 5, 0.5)]
    schedule = make_schedule("alternating", tasks, 0)
    ratios = [schedule.learning_rate(s) / schedule.factor(s) for s in range(98)]
    assert ratios == pytest.approx([0.03, 0.5] * 49)


def test_mean_factors_of_the_papers_task_by_task_blocks():
    """The single global cosine explains Table 1's task-by-task row: the last tasks hardly train."""
    schedule = make_schedule("task_by_task", list(NINE_TASKS.values()), 0)
    order = ["C100", "MiT", "K400", "MiniAS", "VGG", "Pets", "C10", "Im1K", "R45"]
    begin, means = 0, []
    for name in order:
        end = begin + NINE_TASKS[name].steps
        means.append(np.mean([schedule.factor(step) for step in range(begin, end, 7)]))
        begin = end
    assert means == pytest.approx(
        [0.103, 0.847, 0.697, 0.462, 0.189, 0.0193, 0.0138, 0.0034, 0.00004], rel=0.03, abs=5e-6
    )


@pytest.mark.parametrize(
    ("kind", "tasks", "message"),
    [
        ("wieghted", [Budget(1, 0, 1.0)], "known are task_by_task"),
        ("weighted", [], "at least one task"),
        ("weighted", [Budget(0, 0, 1.0)], "0 steps"),
    ],
)
def test_what_no_schedule_can_be_made_of_is_named(kind, tasks, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(kind, tasks, 0)
