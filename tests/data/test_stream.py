"""What decode workers make of a plan: rows that are shares, replacements, no torch. (Ray: tests/end_to_end.)"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from ray.data import ExecutionResources

from polytrain.data import manifest, reading
from polytrain.data.decode import DecodeError, decode
from polytrain.data.group_cache import GroupCache
from polytrain.data.reading import Flow, Room, StreamSource, TaskMedia, binary, binary_value, read_chunk
from polytrain.data.stream import FIRST_TASKS, PACKED_MINIBATCHES, TASK_MINIBATCHES, stretch_bounds, task_ranges
from polytrain.data.views import WHOLE, View, views_at_test
from polytrain.experiment import all_splits, open_experiment
from polytrain.packing import Layout, pack
from polytrain.plan import uniform
from polytrain.recipe import check


def source_of(tree):
    recipe = check(tree)
    experiment, manifests = open_experiment(recipe)
    media = tuple(
        TaskMedia(
            geometry := experiment.architecture.modalities[task.modality],
            all_splits(manifest),
            test_views=views_at_test(geometry, recipe.eval.views_of(task.modality)),
        )
        for task, manifest in zip(experiment.tasks, manifests, strict=True)
    )
    return StreamSource(experiment.plan, media, 30.0)


@pytest.fixture
def source(tiny):
    return source_of(tiny)


def test_a_piece_holds_the_decoded_examples_of_its_share(source):
    for step in range(6):
        minibatch = source.plan.train(step)
        task = minibatch.tag.task
        indices = source.plan.share(minibatch, 1, 2)
        piece = read_chunk(source, minibatch, indices, 0)
        examples = source.media[task].splits["train"]
        clips = uniform(minibatch.seeds[indices], "clip")
        expected = [
            decode(source.media[task].geometry, examples.location(int(minibatch.ids[i])), (View(float(p)),))[0]
            for i, p in zip(indices, clips, strict=True)
        ]
        assert piece.ids == minibatch.ids[indices].tolist()
        assert np.array_equal(piece.media, np.stack(expected))


def test_pieces_carry_their_tag_and_the_labels(source):
    minibatch = source.plan.train(3)
    piece = read_chunk(source, minibatch, np.arange(len(minibatch)), 0)
    tag = minibatch.tag
    assert piece.tag == tag
    examples = source.media[tag.task].splits["train"]
    name = "labels" if "labels" in examples.table.column_names else "label"
    labels = [np.atleast_1d(examples.table[name][int(example)].as_py()).tolist() for example in minibatch.ids]
    assert piece.labels == labels


def break_file(source, task, example, split="train"):
    path = source.media[task].splits[split].location(int(example))
    from pathlib import Path

    content = Path(path).read_bytes()
    Path(path).write_bytes(b"")
    return lambda: Path(path).write_bytes(content)


def test_a_bad_file_is_replaced_by_the_next_of_the_pass_and_named(source):
    minibatch = source.plan.train(0)
    task = minibatch.tag.task
    restore = break_file(source, task, minibatch.ids[1])
    try:
        piece = read_chunk(source, minibatch, np.arange(len(minibatch)), 0)
    finally:
        restore()
    expected = minibatch.ids.tolist()
    expected[1] = int(source.plan.replacements(task, int(minibatch.positions[1]), 1)[0])
    assert piece.ids == expected
    ((example, path, reason),) = piece.bad
    assert example == minibatch.ids[1]
    assert path == source.media[task].splits["train"].location(example)
    assert "empty" in reason


def test_in_evaluation_a_bad_file_is_left_out(source):
    task = 0
    minibatch = source.plan.evaluation("val", 8, task, 0)
    restore = break_file(source, task, minibatch.ids[2], "val")
    try:
        piece = read_chunk(source, minibatch, np.arange(len(minibatch)), 0)
    finally:
        restore()
    assert piece.ids == np.delete(minibatch.ids, 2).tolist()
    assert len(piece.media) == len(minibatch) - 1


def test_an_empty_share_is_a_piece_all_the_same(source):
    minibatch = source.plan.evaluation("val", 8, 0, 1)
    piece = read_chunk(source, minibatch, np.empty(0, int), 0)
    assert (piece.ids, len(piece.media)) == ([], 0)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("memory", [80_000, 120_000, 80_000_000])
def test_rows_bring_every_worker_its_shares_in_the_plans_order(source, workers, memory):
    source = replace(source, flow=Flow(cpus=1, memory=memory))
    timeline = source.plan.timeline("image")
    rows = list(reading.read_minibatches(source, "image", 0, 0, len(timeline), workers))
    for rank in range(workers):
        pieces = [piece for row in rows[rank::workers] for piece in reading.unpacked(row, source)]
        assert [piece.tag for piece in pieces] == [minibatch.tag for minibatch in timeline]
        for piece, minibatch in zip(pieces, timeline, strict=True):
            share = source.plan.share(minibatch, rank, workers)
            assert piece.ids == minibatch.ids[share].tolist()
            assert np.array_equal(piece.media, read_chunk(source, minibatch, share, 0).media)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_read_tasks_cover_the_timeline_once(source, workers):
    for modality in ("image", "video", "audio"):
        ranges = task_ranges(source, modality, 0, workers)
        assert ranges[0] == 0
        assert ranges[-1] == len(source.plan.timeline(modality))
        assert (np.diff(ranges) > 0).all()


def test_read_tasks_begin_small_and_grow(tiny):
    tiny["tasks"]["colours"]["steps"] = 4_000
    source = source_of(tiny)
    timeline = source.plan.timeline("image")
    test = sum(minibatch.tag.phase == "test" for minibatch in timeline)
    sizes = np.diff(task_ranges(source, "image", 0, 1))
    begun = np.cumsum(sizes) <= len(timeline) - test
    assert sizes[: FIRST_TASKS + 4].tolist() == [1] * FIRST_TASKS + [2, 4, 8, 16]
    assert (sizes[begun][1:-1] <= 2 * sizes[begun][:-2]).all()
    assert sizes[begun].max() <= TASK_MINIBATCHES
    assert begun.sum() > 4 * source.flow.processes, "a process may have nothing to do at the end"


def test_a_tasks_rows_fit_into_the_memory(source):
    for memory in (40_000, 400_000):
        tight = replace(source, flow=Flow(cpus=2, memory=memory))
        for modality in ("image", "video", "audio"):
            timeline = tight.plan.timeline(modality)
            for begin, end in pairwise(task_ranges(tight, modality, 0, 1)):
                needed = [
                    tight.share_bytes(m.tag.task, m.tag.phase, 1) for m in map(timeline.__getitem__, range(begin, end))
                ]
                assert sum(needed) <= memory // 4 or len(needed) == 1


@pytest.fixture
def packed(tiny, tmp_path, monkeypatch):
    """The tiny recipe, long, with a packed collection of 600 examples, three a row group, in windows of eight groups."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    table = pa.table(
        {"path": pa.nulls(602, pa.string()), "data": [b"three"] * 602, "label": pa.array([0] * 602, pa.int32()),
         "split": ["val", "test"] + ["train"] * 600}
    )  # fmt: skip
    manifest.write(tmp_path / "inline.parquet", task="t", modality="image", classes=["one"], table=table)
    path, _ = pack(str(tmp_path / "inline.parquet"), str(tmp_path / "packed"), Layout(group_bytes=15))
    tiny["tasks"]["colours"] |= {"manifest": path, "steps": 4_000}
    return tiny | {"data": {"shuffle_window": 8}}


def test_read_tasks_of_a_packed_collection_hold_few_minibatches(packed):
    source = source_of(packed)
    ranges = task_ranges(source, "image", 0, 1)
    assert (ranges[0], ranges[-1]) == (0, len(source.plan.timeline("image")))
    sizes = np.diff(ranges)
    assert sizes.max() == PACKED_MINIBATCHES
    assert np.median(sizes) == PACKED_MINIBATCHES
    assert np.diff(task_ranges(source, "video", 0, 1)).max() <= TASK_MINIBATCHES


@pytest.mark.parametrize("cpus", [1, 4])
def test_row_groups_of_all_read_tasks_in_work_and_at_hand_stay_on_the_machine(packed, monkeypatch, cpus):
    """A process makes one read task and has the next at hand; a group that left too soon would be fetched twice."""
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    source = replace(source_of(packed), flow=Flow(cpus=cpus))
    examples, timeline = source.media[0].splits["train"], source.plan.timeline("image")
    asked = []
    monkeypatch.setattr(GroupCache, "fetch_ahead", lambda cache, groups: asked.append(set(groups)))
    for minibatch in timeline:
        if minibatch.tag.phase == "train":
            examples.expect(source.plan, minibatch)
        else:
            asked.append(set())
    limit = examples._groups(source.plan, 0)._limit
    ranges = task_ranges(source, "image", 0, 1)
    most = max(len(set().union(*asked[begin:end])) for begin, end in zip(ranges, ranges[2 * cpus :], strict=False))
    examples.close()
    assert limit / 2 < most <= limit < len(examples.packed.sizes)


def test_streams_share_what_there_is():
    flow = Flow.shared(3, cpus=7, memory=900)
    assert (flow.cpus, flow.memory, flow.processes) == (7 / 3, 300, 2)
    assert flow.processes * flow.task_bytes <= flow.memory // 2
    assert 2 * flow.processes * flow.row_bytes <= flow.memory // 2
    assert Flow.shared(3, cpus=1, memory=900).processes == 1
    assert Flow.shared(3, cpus=1, memory=10).row_bytes == 1


def test_ray_finds_a_place_for_every_process_that_decodes():
    for streams in (1, 2, 3):
        for cpus in (0.5, *range(1, 65)):
            flow = Flow.shared(streams, cpus=cpus, memory=900)
            limit, task = ExecutionResources(cpu=flow.cpus), ExecutionResources(cpu=flow.cpus_each)
            together = ExecutionResources.zero()
            for _ in range(flow.processes):
                together = together.add(task)
            assert together.satisfies_limit(limit), (streams, cpus)


def test_the_test_is_read_by_as_many_processes_as_training(tiny):
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"] | {"batch_size": 1, "steps": 1000}}
    source = source_of(tiny)
    for first_step in (0, 1000):  # the second: where nothing else is left to do
        ranges = task_ranges(source, "image", first_step, 1)
        timeline = source.plan.timeline("image", first_step)
        begin = len(timeline) - source.plan.eval_parts(0, "test")
        assert np.diff(ranges[ranges >= begin]).tolist() == [2, 2, 2, 2]


def test_a_binary_value_is_read_where_it_lies():
    sound = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = pa.concat_arrays([binary_value(np.zeros(5, np.uint8)), binary_value(sound)])
    whole = values.buffers()[2]
    for column in (pa.chunked_array([binary_value(sound)]), pa.chunked_array([values[1:]])):
        assert np.array_equal(np.frombuffer(binary(column), np.float32).reshape(2, 3), sound)
    assert binary(pa.chunked_array([values[1:]])).address == whole.address + 5


def test_a_place_for_which_decoding_failed_is_the_next_examples(source):
    media = source.media[0]
    examples = media.splits["train"]
    room = Room(media.geometry, 2, 1)
    room.decode(examples, 0, WHOLE, 30.0)
    restore = break_file(source, 0, 1)
    try:
        with pytest.raises(DecodeError, match="empty"):
            room.decode(examples, 1, WHOLE, 30.0)
    finally:
        restore()
    room.decode(examples, 2, WHOLE, 30.0)
    expected = [decode(media.geometry, examples.location(number), WHOLE) for number in (0, 2)]
    assert np.array_equal(room.filled, np.concatenate(expected))


def test_stretches_cover_the_read_tasks_once():
    assert [stretch_bounds(25, stretch, 10) for stretch in range(3)] == [(0, 10), (10, 20), (20, 25)]


@pytest.mark.parametrize("module", ["polytrain.data.stream", "polytrain.training.start"])
def test_torch_is_imported_neither_to_decode_nor_to_begin(module):
    code = f"import sys, {module}; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- views at test time ---


@pytest.fixture
def with_views(tiny):
    return source_of(tiny | {"eval": {"views": {"image": [1, 3], "video": [2, 3], "audio": [4, 1]}}})


def test_a_test_example_comes_with_all_its_views(with_views):
    for task, (media, planned) in enumerate(zip(with_views.media, with_views.plan.tasks, strict=True)):
        minibatch = with_views.plan.evaluation("test", 8, task, 0)
        piece = read_chunk(with_views, minibatch, np.arange(len(minibatch)), 0)
        expected = [
            decode(media.geometry, media.splits["test"].location(example), media.test_views) for example in piece.ids
        ]
        assert len(media.test_views) == planned.test_views > 1
        assert np.array_equal(piece.media, np.concatenate(expected))


def test_training_and_validation_show_one_view(with_views):
    for minibatch in (with_views.plan.train(0), with_views.plan.evaluation("val", 8, 0, 0)):
        assert len(read_chunk(with_views, minibatch, np.arange(2), 0).media) == 2


def test_a_bad_test_example_is_left_out_with_all_its_views(with_views):
    minibatch = with_views.plan.evaluation("test", 8, 2, 0)  # four views a sound, one sound a minibatch
    restore = break_file(with_views, 2, minibatch.ids[0], "test")
    try:
        piece = read_chunk(with_views, minibatch, np.arange(len(minibatch)), 0)
    finally:
        restore()
    assert (piece.ids, len(piece.media)) == ([], 0)
    assert [example for example, _, _ in piece.bad] == [minibatch.ids[0]]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("memory", [40_000, 32_000_000])
def test_every_test_example_comes_once_whatever_its_views(with_views, workers, memory):
    with_views = replace(with_views, flow=Flow(cpus=1, memory=memory))
    for modality in ("image", "video", "audio"):
        length = len(with_views.plan.timeline(modality))
        ranges = task_ranges(with_views, modality, 0, workers)
        assert (np.diff(ranges) > 0).all()
        assert (ranges[0], ranges[-1]) == (0, length)
        rows = list(reading.read_minibatches(with_views, modality, 0, 0, length, workers))
        pieces = [piece for row in rows for piece in reading.unpacked(row, with_views) if piece.tag.phase == "test"]
        media = with_views.media[pieces[0].tag.task]
        assert sorted(example for piece in pieces for example in piece.ids) == list(range(len(media.splits["test"])))
        assert sum(len(piece.media) for piece in pieces) == len(media.splits["test"]) * len(media.test_views)


def test_rows_hold_no_more_than_their_part_of_the_memory_or_one_example(with_views):
    with_views = replace(with_views, flow=Flow(cpus=1, memory=40_000))
    for row in reading.read_minibatches(with_views, "video", 0, 0, len(with_views.plan.timeline("video")), 1):
        for piece in reading.unpacked(row, with_views):
            assert piece.media.nbytes <= 10_000 or len(piece.ids) == 1
