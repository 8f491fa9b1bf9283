"""`jobs/bench.py data`: its media are what they are said to be, and it prints and writes every figure asked for."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from polytrain.benchmarks import data, decoders, media, processes, streams
from polytrain.benchmarks.decoders import GEOMETRIES
from polytrain.data.reading import Flow
from polytrain.recipe import check

ROOT = Path(__file__).parents[2]


def bench(tmp_path, *arguments, timeout=600):
    """Runs the command at its smallest; returns what it printed and the figures it wrote."""
    command = [
        sys.executable,
        ROOT / "jobs" / "bench.py",
        "data",
        "--folder",
        tmp_path,
        "--json",
        tmp_path / "out.json",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--repetitions", "1", "--pairs", "1", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the runs it started, too, where it took too long
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    return printed, json.loads((tmp_path / "out.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    return {kind: media.make_files(folder, kind, 1)[0] for kind in media.KINDS}


def test_pictures_have_500_by_375_pixels_in_about_110_kilobytes(files):
    content = files["jpeg"].read_bytes()
    assert Image.open(io.BytesIO(content)).size == (500, 375)
    assert len(content) == pytest.approx(110_000, rel=0.1)


def test_videos_are_h264_of_200_kilobits_a_second(files):
    with av.open(str(files["h264"])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 340, 256)
        assert float(stream.duration * stream.time_base) == pytest.approx(10)
    assert files["h264"].stat().st_size * 8 / 10 == pytest.approx(200_000, rel=0.15)


def test_the_measured_clip_begins_on_a_key_frame(files):
    with av.open(str(files["h264"])) as container:
        stream = container.streams.video[0]
        keys = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.is_keyframe]
    assert decoders.CLIP_START_S in keys


@pytest.mark.parametrize(("kind", "rate", "channels"), [("wav", 16000, 1), ("aac", 44100, 2), ("mp3", 44100, 2)])
def test_sounds_last_ten_seconds(files, kind, rate, channels):
    with av.open(str(files[kind])) as container:
        context = container.streams.audio[0].codec_context
        assert (context.sample_rate, context.channels) == (rate, channels)
        assert container.duration / av.time_base == pytest.approx(10, abs=0.1)


def test_media_are_made_once(files):
    folder = files["wav"].parents[1]
    before = files["wav"].stat().st_mtime_ns
    assert media.make_files(folder, "wav", 1) == [files["wav"]]
    assert files["wav"].stat().st_mtime_ns == before


def test_the_floor_decodes_all_frames_from_the_clips_first_to_its_last(files):
    assert decoders.decode_clip_only(files["h264"]) == decoders.GEOMETRIES["video"].span == 63


def test_ours_and_torchvisions_pictures_are_of_equal_quality(files):
    decoded = decoders.ours(decoders.GEOMETRIES["image"])(files["jpeg"])
    assert decoders.psnr(decoded, decoders.torchvision_image(files["jpeg"])) > 50


@pytest.mark.parametrize("decoders", [1, 2, 16])
def test_a_run_is_ten_times_as_long_as_a_queue_is_deep(tmp_path, files, decoders):
    for modality, kind in data.STREAMED.items():
        examples = streams.examples_for(modality, decoders)
        recipe = check(streams.recipe_for(tmp_path, {modality: [files[kind]]}, {modality: examples}, decoders))
        decoded = examples * GEOMETRIES[modality].decoded_bytes
        assert decoded >= 10 * Flow.shared(1, cpus=decoders, memory=recipe.data.memory_budget).memory


def test_a_streams_ratio_is_the_median_over_its_pairs():
    run = dict.fromkeys(
        ("cpu_s", "steady_cpu_s", "first", "all first", "loop", "process", "imported", "last"), 1.0
    )  # fmt: skip
    pairs = [(run | {"rate": ours}, run | {"rate": 100.0}) for ours in (90.0, 110.0, 300.0)]
    assert streams.measure(pairs)["vs_dataloader"] == pytest.approx(1.1)


def test_cpu_seconds_count_all_processes_of_a_run(tmp_path):
    mark = f"test-{tmp_path}"
    code = """
import subprocess, sys, time
busy = "import time\\nwhile time.process_time() < 0.4: pass"
subprocess.run([sys.executable, "-c", busy])
from polytrain.benchmarks.processes import marked_cpu_seconds
print(marked_cpu_seconds(sys.argv[1]))
"""
    environment = {**os.environ, processes.MARK: mark}
    out = subprocess.run(
        [sys.executable, "-c", code, mark], env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert float(out.stdout) >= 0.4
    assert processes.marked_cpu_seconds(mark) == 0


def test_decoders_are_measured_and_their_reaches_told(tmp_path):
    printed, figures = bench(tmp_path, "--only", "decoders", "--examples", "2")
    assert {"image.vs_torchvision", "video.cpu_vs_floor", "audio.wav10s_ms"} <= figures.keys()
    assert all(np.isfinite(value) and value > 0 for value in figures.values())
    for key in ("image.vs_torchvision", "video.cpu_vs_floor", "audio.wav10s_ms"):
        assert f"  {key} " in printed.partition("reaches")[2]


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [("video",), pytest.param(("image", "video", "audio"), marks=pytest.mark.soak)])
def test_streams_are_measured_against_the_dataloader_alone_and_together(tmp_path, modalities):
    printed, figures = bench(tmp_path, "--only", "streams", "--modality", *modalities, "--examples", "4")
    for modality in modalities:
        assert figures[f"stream.{modality}.vs_dataloader"] > 0
        assert figures[f"stream.{modality}.cpu_ms"] >= 0
        assert 0 < figures[f"stream.{modality}.first_batch_s"] < figures[f"stream.{modality}.whole_run_s"]
    together = len(modalities) > 1
    assert ("stream.three.first_batch_s" in figures) == together
    for moment in ("ray.init done", "worker group runs the loop", "first read task begins", "first minibatch taken"):
        assert printed.count(f"  {moment}\n") == len(modalities) + together


def test_all_that_was_measured_of_a_modality_stands_side_by_side(capsys):
    figures = {"audio.aac10s_floor_ms": 20.0, "audio.aac10s_ms": 25.0, "stream.audio.vs_dataloader": 0.5}
    for key in ("examples_per_s", "cpu_ms", "first_batch_s", "whole_run_s"):
        figures |= {f"stream.audio.{key}": 10.0, f"stream.audio.dataloader_{key}": 40.0}
        figures |= {f"stream.audio.{key}_vs_dataloader": 0.25}
    data._print_side_by_side("audio", figures, 2)
    rates, cpu, first, whole = (line.split()[-6:] for line in capsys.readouterr().out.splitlines()[3:])
    assert rates == ["100.00", "80.00", "40.00", "10.00", "0.50", "0.10"]
    assert cpu == ["20.00", "25.00", "40.00", "10.00", "0.25", "0.50"]
    assert first[-3:] == whole[-3:] == ["40.00", "10.00", "0.25"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "figure"),
    [("packed", "packed.packed.requests_per_example"), ("scale", "scale.files.1000000.first_batch_s")],
)
def test_storage_is_measured_by_the_same_command(tmp_path, part, figure):
    pytest.importorskip("moto.server")
    _, figures = bench(tmp_path, "--only", part, "--examples", "64", "--rows", "1M")
    assert figures[figure] > 0


def test_all_parts_are_measured_unless_one_is_asked_for():
    assert set(data._MEASURES) == set(data.PARTS) == {"decoders", "streams", "packed", "scale"}
