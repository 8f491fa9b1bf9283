"""The plan: which examples, for any step at once, for any number of workers."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytrain.plan import Groups, Plan, PlannedTask, permuted, uniform
from polytrain.schedule import Budget, make_schedule


def make_plan(*tasks, kind="weighted", seed=0, eval_every=10):
    """A plan of (modality, batch size, train size, steps) tasks, with val and test splits of 7 and 5 examples."""
    planned = [
        PlannedTask(f"task{n}", modality, batch, {"train": size, "val": 7, "test": 5}, "digest")
        for n, (modality, batch, size, _) in enumerate(tasks)
    ]
    schedule = make_schedule(kind, [Budget(steps, 0, 0.1) for *_, steps in tasks], seed)
    return Plan(schedule, planned, seed=seed, eval_every=eval_every)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_reaches_every_index_once(size, key):
    assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size))


def test_permutations_of_different_keys_are_unrelated():
    size = 10_000
    one, other = (permuted(np.arange(size), size, key) for key in (1, 2))
    # Two random permutations agree at one place on average, and are not correlated (deviation 0.01).
    assert np.count_nonzero(one == other) < 10
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.04
    assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 0.04


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 2**63 - 1))
def test_no_example_comes_twice_in_a_pass_and_none_is_left_out(size, batch, seed):
    batch = min(batch, size)
    plan = make_plan(("image", batch, size, 3 * size // batch + 1), seed=seed)
    walk = np.concatenate([plan.train(step).ids for step in range(plan.schedule.steps)])
    for start in range(0, len(walk) - size + 1, size):
        assert sorted(walk[start : start + size]) == list(range(size))


def test_every_pass_has_its_own_order():
    plan = make_plan(("image", 50, 50, 4))
    passes = [tuple(plan.train(step).ids) for step in range(4)]
    assert len(set(passes)) == 4


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(["weighted", "uniform", "alternating", "task_by_task"]), data=st.data())
def test_a_step_is_the_same_whether_or_not_earlier_ones_were_asked_for(kind, data):
    tasks = (("image", 3, 20, 17), ("audio", 4, 11, 23))
    walked = make_plan(*tasks, kind=kind)
    steps = [walked.train(step) for step in range(walked.schedule.steps)]
    step = data.draw(st.integers(0, len(steps) - 1))
    asked = make_plan(*tasks, kind=kind).train(step)
    assert asked.tag == steps[step].tag
    assert np.array_equal(asked.ids, steps[step].ids)
    assert np.array_equal(asked.seeds, steps[step].seeds)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 33), workers=st.integers(1, 9), mixup=st.booleans())
def test_shares_are_disjoint_complete_and_as_even_as_they_can_be(batch, workers, mixup):
    task = PlannedTask("t", "image", batch, {"train": 100, "val": 0, "test": 0}, "d", 0.3 if mixup else 0.0)
    plan = Plan(make_schedule("weighted", [Budget(3, 0, 0.1)], 0), [task], seed=0, eval_every=100)
    shares = [plan.share(plan.train(0), rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(batch))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= (2 if mixup else 1)
    assert max(sizes) == plan.largest_share(0, workers)


@settings(deadline=None)
@given(batch=st.integers(1, 33), workers=st.integers(1, 9))
def test_mixup_partners_are_in_one_share_which_mirrors_in_itself(batch, workers):
    task = PlannedTask("t", "audio", batch, {"train": 100, "val": 0, "test": 0}, "d", 0.3)
    plan = Plan(make_schedule("weighted", [Budget(1, 0, 0.1)], 0), [task], seed=0, eval_every=100)
    for rank in range(workers):
        share = plan.share(plan.train(0), rank, workers)
        assert np.array_equal(batch - 1 - share[::-1], share)


def test_replacements_are_the_next_examples_in_pass_order_and_never_the_example_itself():
    plan = make_plan(("image", 10, 10, 3))
    order = plan.train(1).ids
    assert plan.replacements(0, 10 + 7, 4).tolist() == [order[8], order[9], order[0], order[1]]
    assert len(plan.replacements(0, 3, 50)) == 9


@pytest.mark.parametrize("first_step", [0, 1, 9, 10, 11, 25, 40])
@pytest.mark.parametrize("kind", ["weighted", "accumulated"])
def test_a_timeline_is_what_the_loop_asks_for_from_any_step_on(kind, first_step):
    plan = make_plan(("image", 3, 20, 14), ("audio", 4, 11, 13), ("image", 2, 9, 13), kind=kind)
    first_step = min(first_step, plan.schedule.steps)
    expected = {"image": [], "audio": []}
    for step in range(first_step, plan.schedule.steps):
        for draw in range(plan.schedule.draws_per_step):
            minibatch = plan.train(step, draw)
            expected[plan.tasks[minibatch.tag.task].modality].append(minibatch)
        if step + 1 in plan.eval_steps:
            for task, planned in enumerate(plan.tasks):
                expected[planned.modality] += [
                    plan.evaluation("val", step + 1, task, part) for part in range(plan.eval_parts(task, "val"))
                ]
    for task, planned in enumerate(plan.tasks):
        expected[planned.modality] += [
            plan.evaluation("test", plan.schedule.steps, task, part) for part in range(plan.eval_parts(task, "test"))
        ]
    for modality, minibatches in expected.items():
        timeline = plan.timeline(modality, first_step)
        assert [m.tag for m in timeline] == [m.tag for m in minibatches]
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(timeline, minibatches, strict=True))


@settings(deadline=None)
@given(size=st.integers(0, 50), batch=st.integers(1, 20))
def test_evaluation_takes_every_example_of_a_split_once(size, batch):
    task = PlannedTask("t", "image", batch, {"train": 20, "val": size, "test": 0}, "d")
    plan = Plan(make_schedule("weighted", [Budget(1, 0, 0.1)], 0), [task], seed=0, eval_every=5)
    parts = [plan.evaluation("val", 1, 0, part).ids for part in range(plan.eval_parts(0, "val"))]
    assert np.concatenate([*parts, np.empty(0, int)]).tolist() == list(range(size))


@pytest.mark.parametrize(
    ("eval_every", "expected"), [(10, [10, 20, 25]), (25, [25]), (100, [25]), (5, [5, 10, 15, 20, 25])]
)
def test_validation_runs_every_so_often_and_always_at_the_end(eval_every, expected):
    assert make_plan(("image", 1, 5, 25), eval_every=eval_every).eval_steps.tolist() == expected


def test_the_mixing_weight_follows_its_beta_distribution():
    task = PlannedTask("t", "audio", 1, {"train": 9, "val": 0, "test": 0}, "d", 0.3)
    plan = Plan(make_schedule("weighted", [Budget(2000, 0, 0.1)], 0), [task], seed=0, eval_every=5)
    weights = np.array([plan.mixup_lambda(plan.train(step)) for step in range(2000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / (4 * 1.6), abs=0.015)


def test_uniform_draws_are_uniform_and_differ_by_purpose():
    seeds = make_plan(("image", 64, 5000, 60)).train(3).seeds
    many = np.concatenate([uniform(seeds + np.uint64(k), "clip") for k in range(100)])
    assert many.min() >= 0
    assert many.max() < 1
    assert np.histogram(many, bins=10, range=(0, 1))[0].min() > 500
    assert abs(np.corrcoef(uniform(seeds, "clip"), uniform(seeds, "crop"))[0, 1]) < 0.5


def test_seeds_of_a_run_do_not_repeat():
    plan = make_plan(("image", 8, 20, 100))
    seeds = np.concatenate([plan.train(step).seeds for step in range(100)])
    assert len(np.unique(seeds)) == len(seeds)


def test_the_plan_is_the_same_on_every_machine_and_release():
    """A change here breaks the exact continuation of everybody's runs: change it on purpose only."""
    plan = make_plan(("image", 4, 1000, 50), ("video", 3, 77, 50), seed=7)
    content = b"".join(plan.train(s).ids.tobytes() + plan.train(s).seeds.tobytes() for s in range(100))
    assert hashlib.sha256(content).hexdigest()[:16] == "a841bc667e15933a"


@pytest.mark.parametrize("change", [{"seed": 1}, {"kind": "uniform"}])
def test_the_digest_tells_plans_apart(change):
    tasks = (("image", 4, 1000, 50), ("video", 3, 77, 50))
    assert make_plan(*tasks).digest == make_plan(*tasks).digest
    assert make_plan(*tasks).digest != make_plan(*tasks, **change).digest


def test_memory_does_not_grow_with_the_number_of_examples():
    import pickle

    small, large = (make_plan(("image", 64, size, 100)) for size in (1_000, 100_000_000))
    assert len(pickle.dumps(large)) < len(pickle.dumps(small)) + 100
    assert large.train(99).ids.max() > 50_000_000


# --- packed collections ---


def packed_plan(sizes, window, *, batch=4, steps=50, seed=0):
    """A plan of one packed task whose row groups have these sizes."""
    groups = Groups(np.array(sizes, np.int64), window)
    task = PlannedTask("t", "image", batch, {"train": sum(sizes), "val": 3, "test": 0}, "digest", 0.0, groups)
    schedule = make_schedule("weighted", [Budget(steps, 0, 0.1)], seed)
    return Plan(schedule, [task], seed=seed, eval_every=10)


group_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(sizes=group_sizes, window=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_every_pass_over_row_groups_takes_each_example_once(sizes, window, seed):
    plan = packed_plan(sizes, window, seed=seed)
    walk = plan.example_ids(0, np.arange(3 * sum(sizes)))
    for one_pass in walk.reshape(3, -1):
        assert sorted(one_pass) == list(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(sizes=group_sizes, window=st.integers(1, 40), data=st.data())
def test_a_windowed_walk_is_a_pure_function_of_the_position(sizes, window, data):
    size = sum(sizes)
    walk = packed_plan(sizes, window).example_ids(0, np.arange(3 * size))
    asked = np.array(data.draw(st.lists(st.integers(0, 3 * size - 1), min_size=1, max_size=20)))
    assert np.array_equal(packed_plan(sizes, window).example_ids(0, asked), walk[asked])


@settings(max_examples=60, deadline=None)
@given(sizes=group_sizes, window=st.integers(1, 40))
def test_a_window_needs_its_own_row_groups_and_every_group_comes_once_a_pass(sizes, window):
    plan = packed_plan(sizes, window)
    groups = plan.tasks[0].groups
    position, seen = 0, []
    while position < 2 * sum(sizes):
        found = plan.window(0, position)
        assert found.start == position
        assert len(found.groups) <= window
        ids = plan.example_ids(0, np.arange(position, position + found.size))
        assert set(groups.of(ids)) == set(found.groups)
        assert plan.window(0, position + found.size - 1).start == position
        seen += found.groups.tolist()
        position += found.size
    assert sorted(seen[: len(sizes)]) == sorted(seen[len(sizes) :]) == list(range(len(sizes)))


def test_windows_are_as_even_as_they_can_be():
    plan = packed_plan([5] * 33, 32)
    assert [len(plan.window(0, position).groups) for position in (0, 164)] == [16, 17]


def test_groups_of_a_pass_come_in_another_order_than_stored_and_than_in_the_pass_before():
    plan = packed_plan([1] * 1000, 1)
    one, other = plan.example_ids(0, np.arange(2000)).reshape(2, -1)
    # Two random permutations agree at one place on average, and are not correlated (deviation 0.03).
    assert np.count_nonzero(one == other) < 10
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.12
    assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.12


def test_inside_a_window_the_order_is_that_of_no_group():
    plan = packed_plan([100] * 10, 10)
    groups = plan.example_ids(0, np.arange(1000)) // 100
    same = np.count_nonzero(groups[1:] == groups[:-1])
    assert 60 < same < 140  # 100 of 999 by chance, deviation 9.5


def test_a_packed_minibatch_may_straddle_passes():
    plan = packed_plan([3, 4], 2, batch=5)
    walk = np.concatenate([plan.train(step).ids for step in range(7)])
    assert np.array_equal(walk, plan.example_ids(0, np.arange(35)))


def test_replacements_in_a_packed_task_are_the_next_in_pass_order():
    plan = packed_plan([3, 4, 3], 2)
    order = plan.example_ids(0, np.arange(10, 20))
    assert plan.replacements(0, 10 + 7, 4).tolist() == [order[8], order[9], order[0], order[1]]


def test_another_window_or_other_groups_are_another_plan():
    digests = {packed_plan(sizes, window).digest for sizes in ([3, 4], [4, 3]) for window in (1, 2)}
    assert len(digests) == 4


def test_a_packed_plan_is_the_same_on_every_machine_and_release():
    plan = packed_plan([7, 9, 8] * 20, 8, seed=7)
    content = b"".join(plan.train(step).ids.astype("<i8").tobytes() for step in range(50))
    assert hashlib.sha256(content).hexdigest()[:16] == "253ebb86b57cf609"


def test_a_packed_plan_is_sent_without_the_passes_it_has_walked():
    import pickle

    plan = packed_plan([7] * 1000, 8)
    before = len(pickle.dumps(plan))
    plan.train(3)
    assert len(pickle.dumps(plan)) <= before + plan.tasks[0].groups.starts.nbytes + 100
