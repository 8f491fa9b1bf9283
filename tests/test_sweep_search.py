"""Which points are handed out: a grid exactly once, nothing that ended before, and a search that goes on."""

import json
import threading

import pytest
from ray.tune.search import Searcher

from polytrain.recipe import check
from polytrain.sweep.board import Board
from polytrain.sweep.outcome import DIVERGED, FINISHED, Ended
from polytrain.sweep.past import observed
from polytrain.sweep.points import open_space
from polytrain.sweep.search import Studies, Study

GRID = {"lr": [0.01, 0.1, 1.0], "warmup_steps": [0, 2]}


@pytest.fixture
def space(tiny):
    def made(**keys):
        return open_space(check(tiny | keys))

    return made


def studies(space, known=None, earlier=None, stopping=None):
    made = [Study(space, of_task, known or {}, (earlier or {}).get(of_task.task, [])) for of_task in space.tasks]
    board = Board([t.task for t in space.tasks], list(space.grid()), {})
    return Studies(made, board, stopping or threading.Event())


def drawn(searcher, score=50.0, at_a_time=2):
    """All points that the searcher hands out, several at a time."""
    points, running = [], []
    while True:
        trial = f"trial{len(points)}"
        config = searcher.suggest(trial)
        if config != Searcher.FINISHED:
            points.append((config["task"], json.dumps(config["values"])))
            running.append(trial)
        while running and (config == Searcher.FINISHED or len(running) == at_a_time):
            searcher.on_trial_complete(running.pop(0), {"score": score, "status": FINISHED})
        if config == Searcher.FINISHED:
            return points


def test_a_grid_is_covered_exactly(space):
    grid = space(grid=GRID)
    points = drawn(studies(grid))
    assert len(points) == len(set(points)) == 3 * 6
    assert set(points) == {(p.task, json.dumps(p.values)) for p in grid.grid()}


def test_points_that_ended_before_are_not_handed_out(space):
    grid = space(grid=GRID)
    done = [p for p in grid.grid() if p.values["lr"] == 0.1]
    known = {p.fingerprint: Ended(FINISHED, 40.0, "r") for p in done[:-1]}
    known |= {done[-1].fingerprint: Ended(DIVERGED, None, "r")}
    points = drawn(studies(grid, known))
    assert len(points) == 3 * 4
    assert not {(p.task, json.dumps(p.values)) for p in done} & set(points)


def test_the_longest_trials_go_first(space):
    grid = space()
    order = list(dict.fromkeys(task for task, _ in drawn(studies(grid))))
    assert order == [t.task for t in sorted(grid.tasks, key=lambda t: -t.cost)]


def test_a_search_draws_so_many_within_its_range_tasks_in_turns(space):
    search = space(search={"sampler": "tpe", "trials": 4, "lr": [0.001, 1.0]})
    points = drawn(studies(search), at_a_time=3)
    assert len(set(points)) == len(points) == 3 * 4
    assert len({task for task, _ in points[:3]}) == 3
    assert all(0.001 <= json.loads(values)["lr"] <= 1 for _, values in points)


def test_a_search_counts_what_was_found_before_and_finishes_what_was_begun(space):
    search = space(search={"sampler": "tpe", "trials": 4, "lr": [0.001, 1.0]}, sweep={"tasks": ["moves"]})
    ended, begun = (search.point("moves", {"lr": lr}) for lr in (0.1, 0.2))
    points = drawn(studies(search, {ended.fingerprint: Ended(FINISHED, 30.0, "r")}, {"moves": [ended, begun]}))
    assert len(points) == 3
    assert points[0] == ("moves", '{"lr": 0.2}')


def test_trials_begun_are_found_on_disk_if_all_else_is_alike(space):
    search = space(search={"sampler": "tpe", "trials": 4, "lr": [0.001, 1.0]}, sweep={"tasks": ["moves"]})
    inside, outside = (search.point("moves", {"lr": lr}) for lr in (0.2, 2.0))
    for point in (inside, outside):
        point.folder.mkdir(parents=True)
        told = {"task": "moves", "values": point.values, "fingerprint": point.fingerprint}
        (point.folder / "trial.json").write_text(json.dumps(told))
    other = space(search={"sampler": "tpe", "trials": 4, "lr": [0.001, 1.0]}, sweep={"tasks": ["moves"]}, seed=5)
    assert [p.fingerprint for p in observed(search, search.tasks[0], {})] == [inside.fingerprint]
    assert list(observed(other, other.tasks[0], {})) == []


def test_once_stopping_nothing_is_handed_out(space):
    stopping = threading.Event()
    stopping.set()
    assert studies(space(), stopping=stopping).suggest("t") == Searcher.FINISHED
