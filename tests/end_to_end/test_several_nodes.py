"""A cluster of three nodes that share no folder: two train, one decodes and drives. Media, checkpoints and the record
lie in an S3 store; MLflow is the server of cluster/mlflow/kubernetes.yaml, over PostgreSQL and that store. Ray asks for a
token, MLflow for a login, which nodes have from a file, as cluster/README.md gives it to machines of `ray up`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import yaml
from job_runner import ROOT, Job, Runner, only_run
from locked_mlflow import ADMIN, Behind, LockedServer, locked_server, settings

from polytrain.data import storage
from polytrain.run_folder import open_run
from postgres_server import PASSWORD as DATABASE_PASSWORD
from postgres_server import free_port, postgres_server
from small_media import tiny_recipe
from store_server import ACCESS, s3_server

pytestmark = pytest.mark.slow
RAY = Path(sys.executable).parent / "ray"
TOKEN = "planted-t0ken-of-ray-0123456789abcdef"
PASSWORD = "planted-p4ssword-of-mlflow"
CPUS = {
    "decoder": ("--head", "--include-dashboard=false", "--num-cpus=2"),
    "trainer-1": ("--num-cpus=1",),
    "trainer-2": ("--num-cpus=1",),
}


class Cluster:
    """Ray nodes on this machine, each with an address, a home and folders of its own."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths may have 107 bytes only
        self.address = f"127.0.0.1:{free_port()}"

    def environment(self, node: str) -> dict[str, str]:
        return self.runner.environment | {
            "NODE": node,
            "HOME": str(self.folder / node),
            "TMPDIR": str(self.folder / node / "tmp"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_raylet_start_wait_time_s": "120",  # on a machine with much else to do
        }

    def start(self) -> None:
        for number, (node, words) in enumerate(CPUS.items(), start=1):
            (self.folder / node / "tmp").mkdir(parents=True)
            log_in(self.folder / node)
            where = f"--port={self.address.rpartition(':')[2]}" if number == 1 else f"--address={self.address}"
            resources = {"trainer": 1} if "trainer" in node else {}
            done = subprocess.run(
                [RAY, "start", *words, where, f"--node-ip-address=127.0.0.{number}",
                 f"--temp-dir={self.folder / node / 'ray'}", f"--resources={json.dumps(resources)}",
                 "--object-store-memory=200000000", "--disable-usage-stats"],
                cwd=self.folder / node, env=self.environment(node), capture_output=True, text=True, timeout=200,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr

    def job(self, *arguments: object, node: str = "decoder") -> Job:
        """`python jobs/cotrain.py` in a node's folder."""
        job = Job(arguments, self.environment(node) | {"RAY_ADDRESS": self.address}, self.folder / node)
        self.runner.jobs.append(job)
        return job

    def nodes_of(self, title: str) -> set[str]:
        """The nodes on which processes of this title run."""
        found = set()
        for pid in self.runner.named(title):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found |= {v.decode().removeprefix("NODE=") for v in variables if v.startswith(b"NODE=")}
        return found


def log_in(home: Path) -> None:
    """A login of MLflow's where its client looks for one."""
    (home / ".mlflow").mkdir()
    lines = ("[mlflow]", f"mlflow_tracking_username = {ADMIN}", f"mlflow_tracking_password = {PASSWORD}")
    (home / ".mlflow" / "credentials").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def setting(media, tmp_path_factory):
    """The cluster, a bucket for its runs, a recipe over media in another bucket, and the run on one node alone."""
    folder = tmp_path_factory.mktemp("several")
    runner = Runner(folder)
    tree = tiny_recipe(media, folder / "alone")
    with contextlib.ExitStack() as stack:
        stack.callback(runner.clean)
        s3 = stack.enter_context(s3_server())
        runner.environment |= ACCESS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"}
        bucket = s3.bucket()
        for task in tree["tasks"].values():
            local = next(path.parent for path in media.values() if str(path) == task["manifest"])
            for file in local.iterdir():
                storage.write_bytes(storage.join(bucket, local.name, file.name), file.read_bytes())
            task["manifest"] = storage.join(bucket, local.name, "manifest.parquet")
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tree))
        cluster = Cluster(runner)
        stack.callback(shutil.rmtree, cluster.folder, ignore_errors=True)
        with ThreadPoolExecutor() as pool:  # the server takes its time
            alone = pool.submit(runner.run, recipe)
            postgres = stack.enter_context(postgres_server(settings()["databases.sql"]))
            endpoint = {"MLFLOW_S3_ENDPOINT_URL": runner.environment["AWS_ENDPOINT_URL"]}
            secrets = ACCESS | endpoint | {"PGPASSWORD": DATABASE_PASSWORD}
            behind = Behind(postgres, f"{s3.bucket()}/files", secrets)
            tracking = stack.enter_context(locked_server(folder, free_port(), PASSWORD, behind))
            alone.result()
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)  # tests look, too
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        cluster.start()
        stack.callback(runner.clean)  # Ray's nodes end before what they use
        yield cluster, recipe, tracking, s3, only_run(folder / "alone")


def weights(place: str):
    return safetensors.torch.load(storage.fetch(storage.join(place, "final", "model.safetensors")))


def arguments(setting) -> tuple[object, ...]:
    _, recipe, tracking, s3, _ = setting
    return (
        recipe,
        f"output={s3.bucket()}/runs",
        f"tracking.uri={tracking.uri}",
        "train.workers=2",
        "train.resources.trainer=1",
    )


def place_of(words: tuple[object, ...], alone: Path) -> str:
    """Where the run will lie: neither workers nor output are in its name."""
    return storage.join(words[1].removeprefix("output="), alone.name)


def assert_equal(alone: Path, run: str, losses) -> None:
    """To 1e-4: every loss that was logged, each once, and every weight."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_bytes(storage.fetch(storage.join(run, "run.json")))
        here, there = losses(alone), losses(Path(folder))
    assert here.keys() == there.keys()
    for name, values in here.items():
        assert [step for step, _ in there[name]] == [step for step, _ in values]
        assert [value for _, value in there[name]] == pytest.approx([value for _, value in values], abs=1e-4), name
    for (name, mine), theirs in zip(sorted(weights(str(alone)).items()), sorted(weights(run).items()), strict=True):
        assert name == theirs[0]
        assert float((mine - theirs[1]).abs().max()) < 1e-4, name


def test_a_run_over_three_nodes_equals_the_run_on_one(setting, losses):
    cluster, _, tracking, _, alone = setting
    words = arguments(setting)
    run = place_of(words, alone)
    job = cluster.job(*words)
    train, decode = set(), set()
    while job.process.poll() is None:
        train |= cluster.nodes_of("ray::RayTrainWorker")
        decode |= cluster.nodes_of("ray::Read")
        time.sleep(0.2)
    assert job.wait() == 0, job.output
    assert (train, decode) == ({"trainer-1", "trainer-2"}, {"decoder"})
    assert_equal(alone, run, losses)
    # What is kept is in the store and in MLflow, and on no node.
    kept = {name for name, _ in storage.files(run)}
    assert {"result.json", "recipe.yaml", "best/state.json", "figures/curves.png", "predictions/moves.parquet"} <= kept
    assert sum(name.startswith("checkpoints/") and name.endswith("state.json") for name in kept) == 2
    assert not [name for name in kept if name.startswith("drivers/")]
    assert f"the model lies in {run}/final" in job.output
    from mlflow import MlflowClient

    record, client = open_run(run).record(), MlflowClient(tracking.uri)
    logged = client.get_run(record["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.info.artifact_uri.startswith("mlflow-artifacts:")
    assert {entry.path for entry in client.list_artifacts(record["run_id"], "checkpoint")} >= {"checkpoint/state.json"}
    assert not list(cluster.folder.glob("*/tmp/polytrain-*/run-*/*")), "folders of processes that have ended"
    # A machine that knows nothing but the server is told how far the run came and how good it got.
    (row,) = [line for line in status_elsewhere(cluster.folder / "elsewhere", tracking.uri) if " finished " in line]
    assert " 20/20 " in row
    assert f" {open_run(run).result()['best']['score']:.1f} " in row
    assert places_of_secrets(cluster, tracking, run) == []


def status_elsewhere(home: Path, uri: str) -> list[str]:
    """What `jobs/status.py` prints where there is no Ray, no run and no store, only the server's address and a login."""
    home.mkdir()
    log_in(home)
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment |= {"HOME": str(home), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, ROOT / "jobs" / "status.py"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def places_of_secrets(cluster: Cluster, tracking: LockedServer, run: str) -> list[str]:
    """Files of nodes, servers and the run in which Ray's token or a password turns up, but for the logins' own."""
    folders = (cluster.folder, cluster.runner.folder, tracking.folder)
    files = {str(file): file for folder in folders for file in folder.rglob("*") if file.is_file()}
    contents = {name: file.read_bytes() for name, file in files.items() if file.name != "credentials"}
    contents |= {name: storage.fetch(storage.join(run, name)) for name, _ in storage.files(run)}
    assert len(contents) > 50, "there is something to look through"
    secrets = [secret.encode() for secret in (TOKEN, PASSWORD, DATABASE_PASSWORD)]
    return [name for name, content in contents.items() if any(secret in content for secret in secrets)]


def test_the_tracking_server_over_postgresql_answers_those_who_log_in_and_under_its_own_names_only(setting):
    server, right = setting[2], f"{ADMIN}:{PASSWORD}"
    asked = [
        server.ask(),
        server.ask(login=f"{ADMIN}:guessed"),
        server.ask(login=right),
        server.ask(host=f"mlflow:{server.port}", login=right),
        server.ask(host="rebound.example", login=right),
    ]
    assert asked == [401, 401, 200, 200, 403]


@pytest.mark.soak
def test_a_worker_and_then_the_driver_killed_change_nothing_and_the_run_goes_on_elsewhere(setting, losses):
    cluster, alone = setting[0], setting[-1]
    words = arguments(setting)
    run = place_of(words, alone)

    def has(step: int) -> bool:
        state = storage.join(run, "checkpoints", f"step_{step:09d}", "state.json")
        return storage.kind(state) is pa.fs.FileType.File

    job = cluster.job(*words)
    job.until(lambda: has(6))
    os.kill(cluster.runner.named("ray::RayTrainWorker")[0], signal.SIGKILL)
    job.until(lambda: "A worker was lost; continuing from step" in job.output and has(12))
    job.kill()
    job = cluster.job(*words, node="trainer-1")
    assert job.wait() == 0, job.output
    assert "Continuing from step" in job.output
    assert_equal(alone, run, losses)
    # And on a third machine the same command knows that it is done.
    job = cluster.job(*words, node="trainer-2")
    assert job.wait() == 0, job.output
    assert "is finished" in job.output
