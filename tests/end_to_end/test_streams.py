"""Streams on real Ray: every minibatch, in the plan's order, through turn-overs, for one worker and two."""

import pytest

from polytrain.experiment import open_experiment
from polytrain.recipe import check


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_stretches_of_five_read_tasks_bring_all_minibatches_in_order(taken, tiny, workers):
    tiny["tasks"]["colours"]["steps"] = 150
    plan = open_experiment(check(tiny))[0].plan
    by_rank, _ = taken(workers, 5, first_step=3)
    for modality in ("image", "video", "audio"):
        timeline = plan.timeline(modality, 3)
        assert len(timeline) > 2 * 5 or modality != "image"
        for rank, of_rank in enumerate(by_rank):
            expected = [[m.tag.phase, str(m.tag.step), m.ids[plan.share(m, rank, workers)].tolist()] for m in timeline]
            assert of_rank[modality] == expected


@pytest.mark.slow
def test_what_waits_in_a_stream_stays_within_a_small_memory_budget(taken, tiny):
    """A minibatch is nearly all that may wait, so it travels in several rows; taking is slower than decoding."""
    image = tiny["modalities"]["image"] | {"size": [256, 256], "patch": [64, 64]}
    tiny |= {"modalities": {"image": image}, "tasks": {"colours": tiny["tasks"]["colours"] | {"batch_size": 8}}}
    minibatch, budget = 8 * 256 * 256 * 3, 2_000_000
    tiny["tasks"]["colours"]["steps"] = 30
    _, most = taken(1, 1000, memory_budget=budget, pause_s=0.1)
    assert minibatch / 4 < most <= budget + minibatch  # the one in hand waits no more
