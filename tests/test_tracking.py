"""A run's record: journal first, MLflow behind it. Real sqlite stores, a real `mlflow server`, real kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polytrain.tracking import Tracker, local_uri
from polytrain.tracking.journal import Journal
from polytrain.tracking.store import Store, absolute_uri, batches, clean_key, clip

LOSS = "train/shapes/loss"


class Server:
    """An `mlflow server` over a sqlite file, which a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        for _ in range(1800):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
                time.sleep(0.1)
            else:
                return
        raise TimeoutError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def up(self) -> Server:
        if self.process is None:
            self.start()
        return self


@pytest.fixture(scope="module")
def any_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow") / "server")
    yield server
    server.kill()


@pytest.fixture
def server(any_server):
    return any_server.up()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One output folder for all tests, as one user's `runs`; its name needs quoting in a URI."""
    return tmp_path_factory.mktemp("out") / "my runs #1"


def opened(output: Path, name: str, uri: str | None = None, **more) -> Tracker:
    local = local_uri(output)
    more = {"experiment": "sample", "run_name": name, **more}
    return Tracker.open(output / name, uri=uri or local, fallback_uri=local, **more)


def run_of(uri: str, run_id: str):
    return Store(uri).client.get_run(run_id)


def history(uri: str, run_id: str, key: str = LOSS) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in Store(uri).client.get_metric_history(run_id, key)]


def expected(first: int, last: int) -> list[tuple[int, float]]:
    return [(step, step / 8) for step in range(first, last)]


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last):
        tracker.metrics({LOSS: step / 8}, step)


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, polytrain.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_arrives_whole_in_the_local_store(output, tmp_path):
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "many" / "deep").mkdir(parents=True)
    (tmp_path / "many" / "deep" / "two.txt").write_text("two")
    tracker = opened(output, "whole", tags={"polytrain.kind": "cotrain"}, params={"model.depth": 4, "note": "x" * 9000})
    log_steps(tracker, 0, 30)
    tracker.metrics({"val/mean": float("nan")}, 30)
    tracker.artifact(tmp_path / "one.txt")
    tracker.artifact(tmp_path / "many", "folder")
    tracker.dataset(name="shapes", uri="/data/manifest.parquet", digest="f" * 64, context="train", profile={"train": 9})
    assert tracker.close() is None

    run = run_of(tracker.uri, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "whole"
    assert run.data.tags["polytrain.kind"] == "cotrain"
    assert run.data.params["model.depth"] == "4"
    assert len(run.data.params["note"]) == 6000
    assert history(tracker.uri, tracker.run_id) == expected(0, 30)
    [(step, value)] = history(tracker.uri, tracker.run_id, "val/mean")
    assert step == 30
    assert value != value
    root = output / "mlartifacts" / "sample" / tracker.run_id / "artifacts"
    assert (root / "one.txt").read_text() == "one"
    assert (root / "folder" / "deep" / "two.txt").read_text() == "two"
    [held] = run.inputs.dataset_inputs
    assert (held.dataset.name, held.dataset.digest) == ("shapes", "f" * 36)
    assert json.loads(held.dataset.profile) == {"train": 9}
    assert held.tags[0].value == "train"


def test_twenty_thousand_metrics_take_the_loop_under_two_seconds_and_all_arrive(output):
    tracker = opened(output, "many")
    start = time.perf_counter()
    log_steps(tracker, 0, 20_000)
    assert time.perf_counter() - start < 2
    assert tracker.close() is None
    assert history(tracker.uri, tracker.run_id) == expected(0, 20_000)


def test_opening_a_folder_again_continues_its_run(output):
    first = opened(output, "again", params={"workers": 1})
    log_steps(first, 0, 10)
    assert first.close("KILLED") is None
    second = opened(output, "again", params={"workers": 2, "new": 3})
    assert second.flush(30)
    assert run_of(second.uri, second.run_id).info.status == "RUNNING"
    log_steps(second, 5, 15)
    assert second.close() is None
    assert second.run_id == first.run_id
    assert history(second.uri, second.run_id) == expected(0, 15)
    run = run_of(second.uri, second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"workers": "1", "new": "3"}


def test_driver_and_worker_record_one_run_at_a_time(output):
    driver = opened(output, "two")
    worker = Tracker.resume(output / "two")
    for step in range(200):
        worker.metrics({LOSS: step / 8}, step)
        driver.metrics({"throughput/examples_per_s": step}, step)
    assert worker.detach(30)
    assert run_of(driver.uri, driver.run_id).info.status == "RUNNING"
    assert driver.close() is None
    assert history(driver.uri, driver.run_id) == expected(0, 200)
    assert len(history(driver.uri, driver.run_id, "throughput/examples_per_s")) == 200


def test_a_killed_process_loses_nothing_and_doubles_nothing(output):
    opened(output, "killed").detach()
    code = """
import os, signal, sys
from polytrain.tracking import Tracker
tracker = Tracker.resume(sys.argv[1])
for step in range(3000):
    tracker.metrics({"train/shapes/loss": step / 8}, step)
    if step == 1000:
        tracker.flush(30)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(output / "killed")])
    assert killed.returncode == -signal.SIGKILL
    tracker = Tracker.resume(output / "killed", step=2900)
    assert "2901 to 2999" in tracker.notice
    log_steps(tracker, 2900, 3100)
    assert tracker.close() is None
    assert history(tracker.uri, tracker.run_id) == expected(0, 3100)


def test_a_line_torn_by_a_kill_is_passed_over(output):
    opened(output, "torn").detach()
    with (output / "torn" / "journal.jsonl").open("a") as journal:
        journal.write('{"metrics":[["train/shapes/loss",0.')
    tracker = Tracker.resume(output / "torn")
    log_steps(tracker, 0, 5)
    assert tracker.close() is None
    assert history(tracker.uri, tracker.run_id) == expected(0, 5)


def test_a_cursor_lost_after_delivery_doubles_nothing(output):
    tracker = opened(output, "cursor")
    log_steps(tracker, 0, 2500)
    assert tracker.detach(30)
    (output / "cursor" / "journal.cursor").unlink()
    tracker = Tracker.resume(output / "cursor")
    log_steps(tracker, 2500, 2600)
    assert tracker.close() is None
    assert history(tracker.uri, tracker.run_id) == expected(0, 2600)


def test_a_run_gone_from_the_store_is_recorded_again_from_the_journal(output):
    tracker = opened(output, "gone", params={"depth": 4})
    log_steps(tracker, 0, 8)
    assert tracker.close() is None
    state = json.loads((output / "gone" / "run.json").read_text())
    (output / "gone" / "run.json").write_text(json.dumps({**state, "run_id": "0" * 32}))
    again = opened(output, "gone", params={"depth": 4})
    assert "is gone" in again.notice
    log_steps(again, 8, 12)
    assert again.close() is None
    assert again.run_id not in (tracker.run_id, "0" * 32)
    assert history(again.uri, again.run_id) == expected(0, 12)
    assert run_of(again.uri, again.run_id).data.params == {"depth": "4"}


def test_what_mlflow_refuses_is_named_and_the_rest_arrives(output, tmp_path):
    tracker = opened(output, "refused")
    log_steps(tracker, 0, 3)
    tracker.artifact(tmp_path / "missing.png")
    log_steps(tracker, 3, 6)
    sentence = tracker.close()
    assert "missing.png" in sentence
    assert history(tracker.uri, tracker.run_id) == expected(0, 6)
    assert run_of(tracker.uri, tracker.run_id).info.status == "FINISHED"


def test_a_deleted_experiment_is_restored(output):
    tracker = opened(output, "deleted-1", experiment="deleted")
    assert tracker.close() is None
    Store(tracker.uri).client.delete_experiment(tracker.experiment_id)
    again = opened(output, "deleted-2", experiment="deleted")
    assert again.close() is None
    assert again.experiment_id == tracker.experiment_id


def test_a_parent_run_is_named_in_its_child(output):
    parent = opened(output, "parent")
    child = opened(output, "child", parent_run_id=parent.run_id)
    assert child.close() is None
    assert parent.close("FAILED") is None
    assert run_of(child.uri, child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert run_of(parent.uri, parent.run_id).info.status == "FAILED"


def test_processes_that_first_use_one_sqlite_file_at_once_all_succeed_in_silence(tmp_path):
    code = """
import sys
from pathlib import Path
from polytrain.tracking import Tracker, local_uri
uri = local_uri(Path(sys.argv[1]))
name = sys.argv[2]
tracker = Tracker.open(Path(sys.argv[1]) / name, uri=uri, fallback_uri=uri, experiment="race", run_name=name)
tracker.metrics({"loss": 1.0}, 0)
sys.exit(tracker.close())
"""

    def start(name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, str(tmp_path / "fresh"), name]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(start, ["a", "b"]))
    assert [(each.returncode, each.stdout, each.stderr) for each in done] == [(0, "", "")] * 2
    client = Store(local_uri(tmp_path / "fresh")).client
    assert len(client.search_runs([client.get_experiment_by_name("race").experiment_id])) == 2
    assert not (tmp_path / "mlruns").exists()


def test_a_run_on_a_server_arrives_with_its_artifacts(server, output, tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: sample\n")
    tracker = opened(output, "served", server.uri)
    assert tracker.notice is None
    log_steps(tracker, 0, 1500)
    tracker.artifact(tmp_path / "recipe.yaml", "made")
    assert tracker.close() is None
    assert history(server.uri, tracker.run_id) == expected(0, 1500)
    assert [f.path for f in Store(server.uri).client.list_artifacts(tracker.run_id, "made")] == ["made/recipe.yaml"]


@pytest.fixture(scope="module")
def outage(any_server, output):
    """Two runs on a server that is killed in mid-run: one ends during the outage, one after it."""
    server = any_server.up()
    patient = opened(output, "patient", server.uri)
    abandoned = opened(output, "abandoned", server.uri, params={"depth": 4}, tags={"polytrain.kind": "cotrain"})
    log_steps(abandoned, 0, 100)
    assert abandoned.flush(30)
    log_steps(patient, 0, 1200)
    time.sleep(1.1)  # about when the delivery of these begins
    server.kill()
    log_steps(patient, 1200, 1500)
    log_steps(abandoned, 100, 200)
    seen = {"flushed": patient.flush(1), "away": patient.away, "sentence": abandoned.close(timeout_s=1)}
    server.start()
    log_steps(patient, 1500, 1600)
    seen["closed"] = patient.close()
    return seen | {"server": server, "patient": patient, "abandoned": abandoned}


def test_a_server_killed_and_started_again_has_every_metric_once_and_in_order(outage):
    tracker = outage["patient"]
    assert outage["closed"] is None
    assert history(tracker.uri, tracker.run_id) == expected(0, 1600)
    assert run_of(tracker.uri, tracker.run_id).info.status == "FINISHED"


def test_an_outage_is_said_while_it_lasts(outage):
    assert not outage["flushed"]
    assert "does not answer" in outage["away"]
    assert outage["patient"].away is None


def test_a_run_that_ends_while_the_server_is_away_lies_whole_in_the_local_store(outage, output):
    assert outage["server"].uri in outage["sentence"]
    assert local_uri(output) in outage["sentence"]
    copy = json.loads((output / "abandoned" / "run.json").read_text())["copy"]
    assert history(local_uri(output), copy) == expected(0, 200)
    run = run_of(local_uri(output), copy)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"depth": "4"}
    assert run.data.tags["polytrain.kind"] == "cotrain"


def test_a_run_that_ended_while_the_server_was_away_is_completed_there_when_opened_again(outage, output):
    again = opened(output, "abandoned", outage["server"].uri)
    assert again.close() is None
    assert again.run_id == outage["abandoned"].run_id
    assert history(again.uri, again.run_id) == expected(0, 200)


def test_a_server_that_is_dead_at_the_start_means_the_local_store_and_a_notice(any_server, output):
    any_server.kill()
    start = time.perf_counter()
    tracker = opened(output, "dead", any_server.uri)
    assert time.perf_counter() - start < 10
    assert any_server.uri in tracker.notice
    assert tracker.uri == local_uri(output)
    log_steps(tracker, 0, 10)
    assert tracker.close() is None
    assert history(local_uri(output), tracker.run_id) == expected(0, 10)


def test_a_host_that_swallows_everything_is_given_up_within_seconds(output):
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.perf_counter()
        tracker = opened(output, "silent", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.perf_counter() - start < 20
    assert tracker.uri == local_uri(output)
    assert tracker.close() is None


def test_a_local_store_that_cannot_be_used_is_an_error_that_says_why(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all")
    with pytest.raises(RuntimeError, match=r"mlflow\.db cannot be used: .*not a database"):
        opened(tmp_path, "broken")


def test_resuming_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        Tracker.resume(tmp_path)


def test_relative_store_uris_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert absolute_uri("http://tracking:5000") == "http://tracking:5000"


def test_names_and_values_are_made_acceptable():
    assert clean_key("train/my task (2)/loss") == "train/my task _2_/loss"
    assert clean_key("/a//../b/") == "b"
    assert len(clean_key("x" * 999)) == 250
    assert clip("é" * 7000, "params") == "é" * 5997 + "..."


def test_a_batch_never_exceeds_what_mlflow_takes_and_keeps_the_order():
    rows = [["loss", 0.0, step, 1] for step in range(2500)]
    entries = [(10, {"metrics": rows[:1]}), (20, {"metrics": rows[1:]}), (30, None), (40, {"status": ["FINISHED", 2]})]
    made = list(batches(entries))
    assert [(end, kind, len(items)) for end, kind, items in made] == [
        (10, "metrics", 1000),
        (10, "metrics", 1000),
        (30, "metrics", 500),
        (40, "status", 1),
    ]
    assert [row for _, kind, items in made if kind == "metrics" for row in items] == rows


def test_a_journal_entry_longer_than_a_read_comes_back_whole(tmp_path):
    journal = Journal(tmp_path)
    entry = {"params": {str(n): "v" * 1000 for n in range(1000)}}
    journal.append(entry)
    journal.append({"tags": {"a": "b"}})
    assert list(journal) == [entry, {"tags": {"a": "b"}}]
    journal.close()
