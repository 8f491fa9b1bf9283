"""Where a run's time goes: one thing at a time, and the shares sum to the whole."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytrain.training.time_spent import KINDS, STEPS, TimeSpent, shares, shares_text, steps_on_gpu

CPU = torch.device("cpu")
SOME = st.floats(0, 1e5, allow_nan=False)


def test_the_kinds_sum_to_the_time_that_passed():
    before = time.perf_counter()
    spent = TimeSpent(CPU)
    begun = time.perf_counter()
    with spent.on("computing"):
        time.sleep(0.02)
    with spent.on("validating"), spent.on("checkpointing"):
        time.sleep(0.01)
    ended = time.perf_counter()
    total = sum(spent.seconds().values())
    assert ended - begun <= total <= time.perf_counter() - before


def test_an_inner_blocks_time_is_not_the_outer_ones():
    spent = TimeSpent(CPU)
    began = time.perf_counter()
    with spent.on("validating"):
        time.sleep(0.01)
        with spent.on("checkpointing"):
            time.sleep(0.05)
        time.sleep(0.01)
    passed = time.perf_counter() - began
    seconds = spent.seconds()
    assert seconds["checkpointing"] >= 0.05
    assert seconds["validating"] >= 0.02
    assert seconds["checkpointing"] + seconds["validating"] <= passed  # what is in both would be counted twice


def test_what_raises_ends_its_block():
    spent = TimeSpent(CPU)
    with pytest.raises(ZeroDivisionError), spent.on("computing"):
        1 / 0  # noqa: B018
    time.sleep(0.01)
    assert spent.seconds()["other"] >= 0.01


def test_a_restart_forgets():
    spent = TimeSpent(CPU)
    with spent.on("computing"):
        time.sleep(0.02)
    spent.restart()
    assert spent.seconds()["computing"] == 0


def test_a_gpu_that_computes_while_its_thread_waits_for_data_is_not_waiting():
    thread = {"waiting_for_data": 8.0, "computing": 2.0, "communicating": 0.0}
    found = steps_on_gpu(thread, {"computing": 10.0, "communicating": 0.0})
    assert found == {"waiting_for_data": 0.0, "computing": 10.0, "communicating": 0.0}


def test_a_gpu_that_stands_idle_while_its_thread_waits_for_data_is_waiting():
    thread = {"waiting_for_data": 8.0, "computing": 1.5, "communicating": 0.5}
    found = steps_on_gpu(thread, {"computing": 3.0, "communicating": 1.0})
    assert found == {"waiting_for_data": 6.0, "computing": 3.0, "communicating": 1.0}


def test_a_gpu_that_waits_for_its_threads_own_work_is_computing():
    thread = {"waiting_for_data": 1.0, "computing": 9.0, "communicating": 0.0}
    found = steps_on_gpu(thread, {"computing": 3.0, "communicating": 0.0})
    assert found == {"waiting_for_data": 1.0, "computing": 9.0, "communicating": 0.0}


@given(st.fixed_dictionaries(dict.fromkeys(STEPS, SOME)), SOME, SOME)
def test_whatever_a_gpu_did_the_sum_is_the_threads(thread, computing, communicating):
    found = steps_on_gpu(thread, {"computing": computing, "communicating": communicating})
    assert sum(found.values()) == pytest.approx(sum(thread.values()))
    assert min(found.values()) >= 0


@given(st.fixed_dictionaries(dict.fromkeys(KINDS, SOME)).filter(lambda seconds: sum(seconds.values()) > 1e-3))
def test_shares_are_said_in_whole_numbers_that_sum_to_a_hundred(seconds):
    assert sum(shares(seconds).values()) == pytest.approx(100)
    said = [part.split(" % ") for part in shares_text(seconds).split(", ")]
    assert sum(int(number) for number, _ in said) == 100
    assert [words for _, words in said][:5] == list(KINDS.values())[:5]


def test_the_line_reads_like_this():
    seconds = dict(zip(KINDS, (1.0, 6.0, 1.0, 0.5, 1.5, 0.0)))
    assert shares_text(seconds) == (
        "10 % waiting for data, 60 % computing, 10 % communicating, 5 % checkpointing, 15 % validating and testing"
    )
