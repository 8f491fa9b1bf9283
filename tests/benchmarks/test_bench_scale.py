"""`jobs/bench.py scale` and `packed` at their smallest: every figure that is asked for, and what must hold of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polytrain.benchmarks import packed, scale

ROOT = Path(__file__).parents[2]


def bench(tmp_path, *arguments):
    """Runs a command; returns what it printed and the figures it wrote."""
    command = [sys.executable, ROOT / "jobs" / "bench.py", *arguments, "--json", tmp_path / "out.json"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, json.loads((tmp_path / "out.json").read_text())


@pytest.mark.slow
def test_scale_measures_driver_and_worker_of_both_kinds_of_storage(tmp_path):
    told, figures = bench(tmp_path, "scale", "--rows", "100k")
    for kind in ("files", "packed"):
        for name in ("read_s", "plan_s", "sent_mb", "driver_mb", "driver_peak_mb", "worker_mb", "first_batch_s"):
            assert figures[f"scale.{kind}.100000.{name}"] > 0
    assert "100,000" in told


def test_what_grew_faster_than_the_rows_is_named():
    told = [{name: 1.0 for name, _, _ in scale.COLUMNS.values()} for _ in range(2)]
    told[1] |= {"plan_s": 20.0, "read_s": 10.0}
    line = scale._growth(1_000_000, 10_000_000, dict(zip((1_000_000, 10_000_000), told, strict=True)))
    assert line.startswith("10 x the rows: manifest 1.0, read 10.0, its CPU 1.0, plan 20.0,")
    assert line.endswith("; plan grew faster than the rows")


def test_a_size_that_is_none_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "bench.py"), "scale", "--rows", "many"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "'many' is no number of rows" in result.stderr


@pytest.mark.slow
def test_packed_counts_what_is_asked_of_the_store(tmp_path):
    pytest.importorskip("moto.server")
    _, figures = bench(tmp_path, "packed", "--only", "requests", "--examples", "64")
    assert figures["packed.files.requests_per_example"] == pytest.approx(2, abs=0.2)
    assert figures["packed.packed.requests_per_example"] < 1


def test_wider_windows_mix_a_sorted_collection_better():
    figures = packed.mixing(examples=8_000, classes=50, group=40, batch=64)
    assert figures["mixing.1.sorted"] > 3 * figures["mixing.32.sorted"] > 3 * figures["mixing.full"]
    # Stored in random order, the narrowest window is a full shuffle as far as classes go.
    assert figures["mixing.1.shuffled"] == pytest.approx(figures["mixing.full"], abs=0.1)
