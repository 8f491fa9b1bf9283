"""`ray start --head` and `ray job submit -- python jobs/cotrain.py` as cluster/README.md has them, on ports of their own."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from job_runner import ROOT, only_run
from test_loopback import listening

RAY = Path(sys.executable).parent / "ray"
SECRETS = {"MLFLOW_TRACKING_PASSWORD": "planted-password-of-mlflow", "AWS_SECRET_ACCESS_KEY": "planted/key+of/amazon"}
"""In the environment of a cluster and of what submits to it."""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture
def cluster(runner):
    """Starts a head node in the project folder; returns how to run a `ray` command against it."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths may have 107 bytes only

    def start(mode):
        # The python that jobs run is the first on the path, as in an activated environment.
        path = f"{RAY.parent}:{runner.environment['PATH']}"
        exported = {"RAY_AUTH_MODE": mode, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        environment = runner.environment | {"PATH": path} | exported
        port, dashboard, agent = free_ports(3)

        def ray(*words, check=True):
            done = subprocess.run(
                [RAY, *words], cwd=ROOT, env=environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
                capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
            assert not check or done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        if mode == "token":
            ray("get-auth-token", "--generate")
        ray("start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
            f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", "--disable-usage-stats")  # fmt: skip
        for _ in range(60):  # until the job agent answers
            if "No available agent" not in ray("job", "submit", "--", "true", check=False):
                break
            time.sleep(1)
        ray.folder = folder
        return ray

    yield start
    runner.clean()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["token", pytest.param("disabled", marks=pytest.mark.soak)])
def test_a_submitted_job_trains_prints_its_table_and_no_secret(cluster, runner, tiny, recipe_file, tmp_path, mode):
    runner.environment |= SECRETS
    ray = cluster(mode)
    seen = listening(runner.processes())
    assert len(seen) > 5, "Ray was seen to listen"
    assert {address for address, _ in seen} <= {"127.0.0.1", "::1"}
    output = ray("job", "submit", "--", "python", "jobs/cotrain.py", str(recipe_file(tiny)))
    assert "colours" in output
    assert "succeeded" in output
    assert (only_run(tmp_path / "runs") / "final" / "model.safetensors").exists()
    files = [file for folder in (tmp_path, ray.folder) for file in Path(folder).rglob("*") if file.is_file()]
    assert any(file.name.startswith("job-driver-") for file in files), "the job's log is among them"
    contents = [output.encode(), *(file.read_bytes() for file in files)]
    assert not [secret for secret in SECRETS.values() if any(secret.encode() in content for content in contents)]


@pytest.mark.soak
@pytest.mark.slow
def test_a_local_run_works_while_a_cluster_is_up_and_a_job_after_it(cluster, runner, tiny, recipe_file, tmp_path):
    """As `make test` does with a cluster running: a local run is its own Ray, whatever else runs on the machine."""
    ray = cluster("token")
    runner.run(recipe_file(tiny))
    output = ray(
        "job", "submit", "--", "python", "jobs/cotrain.py", str(recipe_file(tiny)), f"output={tmp_path / 'two'}"
    )
    assert "succeeded" in output


@pytest.mark.slow
def test_a_sweep_stopped_by_ray_job_stop_finishes_only_what_is_missing(cluster, tiny, recipe_file, tmp_path):
    ray = cluster("token")
    sweep = ["--", "python", "jobs/sweep.py", str(recipe_file(tiny)), "grid.lr=[0.01,0.1]", "sweep.concurrent=1"]

    def finished():
        results = (tmp_path / "runs" / "trials").glob("*/result.json")
        return {file.parent.name for file in results if json.loads(file.read_text())["status"] == "finished"}

    ray("job", "submit", "--no-wait", "--submission-id", "first", *sweep)
    for _ in range(240):
        if finished():
            break
        time.sleep(0.5)
    ray("job", "stop", "first")
    done = finished()
    assert 0 < len(done) < 6
    assert f"{len(done)} of them are done already" in ray("job", "submit", *sweep)
    assert done < finished()
    assert len(finished()) == 6
