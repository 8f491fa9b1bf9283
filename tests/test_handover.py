"""A run's record that goes from machine to machine through a store: whole in MLflow, nothing twice.

Two folders of their own are two machines; a real sqlite store is the MLflow that both reach.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from polytrain import handover as handovers
from polytrain.data import storage
from polytrain.handover import Handover
from polytrain.tracking import Tracker, history_of, local_uri


class Machines:
    """Machines that work on one run, one after the other."""

    def __init__(self, folder: Path, place: str) -> None:
        self.folder, self.place, self.count = folder, place, 0
        self.uri = local_uri(folder)

    def another(self) -> Handover:
        self.count += 1
        folder = self.folder / f"machine-{self.count}"
        folder.mkdir()
        return Handover(folder, self.place)

    def driver(self, handover: Handover | None = None) -> Tracker:
        handover = handover or self.another()
        store = {"uri": self.uri, "fallback_uri": self.uri}
        return Tracker.open(handover.folder, **store, experiment="e", run_name="r", handover=handover)

    def worker(self, step: int = 0) -> Tracker:
        handover = self.another()
        return Tracker.resume(handover.folder, step=step, handover=handover)

    def history(self, run_id: str, name: str = "loss") -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in MlflowClient(self.uri).get_metric_history(run_id, name)]


@pytest.fixture
def machines(s3, tmp_path):
    return Machines(tmp_path, f"{s3.bucket()}/runs/tiny-0")


def die(tracker: Tracker) -> None:
    """As a process that is killed: nothing is flushed or handed over any more."""
    tracker._stop()


def test_driver_worker_and_driver_again_record_one_run(machines):
    here = machines.another()
    driver = machines.driver(here)
    (here.folder / "recipe.yaml").write_text("name: x")
    driver.artifact(here.folder / "recipe.yaml")
    driver.detach()
    worker = machines.worker()
    assert worker.run_id == driver.run_id
    for step in (1, 2):
        worker.metrics({"loss": step / 2}, step=step)
    assert worker.detach()
    assert Tracker.resume(here.folder, handover=here).close("FINISHED") is None
    run = MlflowClient(machines.uri).get_run(driver.run_id)
    assert run.info.status == "FINISHED"
    assert machines.history(driver.run_id) == [(1, 0.5), (2, 1.0)]
    assert list(history_of(here.folder)) == [("loss", 0.5, 1), ("loss", 1.0, 2)]
    assert storage.fetch(f"{machines.place}/recipe.yaml") == b"name: x"


def test_steps_trained_again_after_a_worker_died_show_once(machines):
    machines.driver().detach()
    first = machines.worker()
    for step in range(1, 8):
        first.metrics({"loss": float(step)}, step=step)
    assert first.flush(20)
    die(first)
    second = machines.worker(step=3)
    assert "Steps 4 to 7 are trained again" in second.notice
    for step in range(4, 10):
        second.metrics({"loss": float(step)}, step=step)
    second.detach()
    assert machines.history(second.run_id) == [(step, float(step)) for step in range(1, 10)]


def test_mlflow_is_told_nothing_that_the_store_does_not_have(machines, s3, proxy, quick_tries):
    machines.driver().detach()
    machines.place += proxy.query
    worker = machines.worker()
    worker.metrics({"loss": 1.0}, step=1)
    with proxy.lock:
        proxy.faults = [503] * 5000
    assert not worker.flush(1)
    assert "503" in worker.away or "failed after" in worker.away
    die(worker)
    assert machines.history(worker.run_id) == []
    with proxy.lock:
        proxy.faults = []
    worker = machines.worker()
    worker.metrics({"loss": 1.0}, step=1)
    worker.detach()
    assert machines.history(worker.run_id) == [(1, 1.0)]


def test_what_a_dead_worker_left_undelivered_is_delivered_from_another_machine(machines):
    machines.driver().detach()
    database = Path(machines.uri.removeprefix("sqlite:///"))
    worker = machines.worker()
    database.rename(database.with_suffix(".away"))  # MLflow is away
    folder = worker.folder / "final"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    storage.write_bytes(f"{machines.place}/final/state.json", b"{}")  # checkpoints go their own way
    (worker.folder / "curves.png").write_bytes(b"png")
    worker.artifact(folder, "checkpoint")
    worker.artifact(worker.folder / "curves.png")
    worker.metrics({"loss": 1.0}, step=1)
    worker.detach(timeout_s=0.5)
    database.with_suffix(".away").rename(database)
    assert machines.worker().detach()
    client = MlflowClient(machines.uri)
    assert [entry.path for entry in client.list_artifacts(worker.run_id, "checkpoint")] == ["checkpoint/state.json"]
    assert {entry.path for entry in client.list_artifacts(worker.run_id)} == {"checkpoint", "curves.png"}
    assert machines.history(worker.run_id) == [(1, 1.0)]


def test_the_local_store_of_one_machine_is_not_made_anew_on_another(machines):
    driver = machines.driver()
    driver.detach()
    database = Path(machines.uri.removeprefix("sqlite:///"))
    database.unlink()
    worker = machines.worker()
    worker.metrics({"loss": 1.0}, step=1)
    assert not worker.detach(timeout_s=1.0)
    assert "on this machine" in worker.away
    assert not database.exists()


def test_of_a_long_journal_only_the_last_part_is_sent_again(machines, proxy, monkeypatch):
    monkeypatch.setattr(handovers, "PART_BYTES", 1000)
    machines.place += proxy.query
    worker = machines.driver()
    for step in range(1, 101):
        worker.metrics({"loss": step / 7}, step=step)
    worker.flush(20)
    sent = len(proxy.requests)
    worker.metrics({"loss": 0.0}, step=101)
    worker.detach()
    journal = [word for word in proxy.requests[sent:] if word.startswith("PUT") and "/journal/" in word]
    assert 1 <= len({word.split("?")[0] for word in journal}) <= 2
    parts = [entry.size for entry in storage.entries(storage.join(machines.place, "journal"))]
    assert len(parts) > 3
    assert set(parts[:-1]) == {1000}
    there = machines.worker()
    assert [step for _, _, step in history_of(there.folder)] == list(range(1, 102))
    there.detach()


def test_a_journal_that_breaks_off_in_a_line_goes_on_behind_it(machines):
    machines.driver().detach()
    storage.write_bytes(
        f"{machines.place}/journal/000000", storage.fetch(f"{machines.place}/journal/000000") + b'{"metr'
    )
    worker = machines.worker()
    worker.metrics({"loss": 1.0}, step=1)
    worker.detach()
    assert list(history_of(machines.driver().folder)) == [("loss", 1.0, 1)]


def test_files_that_are_as_they_were_are_not_sent_again(machines, proxy):
    machines.place += proxy.query
    here = machines.another()
    driver = machines.driver(here)
    (here.folder / "figures").mkdir()
    (here.folder / "figures" / "a.png").write_bytes(b"one")
    here.publish()
    (here.folder / ".a.png.partial").write_bytes(b"in the making")
    (here.folder / "checkpoints").mkdir()
    (here.folder / "checkpoints" / "x").write_bytes(b"goes its own way")
    here.publish()
    (here.folder / "figures" / "a.png").write_bytes(b"another")
    here.publish()
    driver.detach()
    sent = [word for word in proxy.requests if word.startswith("PUT") and "a.png" in word]
    assert len([word for word in sent if "partNumber" in word or "?" not in word]) == 2
    names = {name for name, _ in storage.files(machines.place)}
    assert {"figures/a.png", "run.json", "journal/000000", "journal.cursor"} == names
