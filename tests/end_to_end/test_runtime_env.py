"""A job sent to a cluster that has no polytrain, as cluster/README.md types it: the working tree goes along.

The cluster is a local one, started in another folder, from a virtual environment that has all packages but polytrain.
"""

import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
import venv

import pytest
from job_runner import ROOT, only_run
from test_submit import RAY, free_ports


@pytest.fixture
def bare_ray(tmp_path):
    """`ray` of an environment that borrows this one's packages; what they link to from elsewhere, polytrain, is absent."""
    folder = tmp_path / "bare"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but the .pth files in it, by which polytrain is installed, are not read.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ray = folder / "bin" / "ray"
    ray.write_text(f"#!{folder}/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n")
    ray.chmod(0o755)
    found = subprocess.run([folder / "bin" / "python", "-c", "import av, ray; import polytrain"], capture_output=True)
    assert b"No module named 'polytrain'" in found.stderr
    return ray


@pytest.fixture
def foreign_cluster(runner, bare_ray, tmp_path):
    """A head node in a folder of its own; returns how to run a `ray` command against it from the project folder."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths may have 107 bytes only
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = runner.environment | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    port, dashboard, agent = free_ports(3)

    def ray(*words, program=RAY, cwd=ROOT, check=True):
        if words[:2] == ("job", "submit"):
            words = (*words[:2], "--address", f"http://localhost:{dashboard}", *words[2:])
        path = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [program, *words], cwd=cwd, env=environment | path,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    ray("get-auth-token", "--generate")
    ray("start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--num-cpus=2",
        f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats", program=bare_ray, cwd=elsewhere)  # fmt: skip
    for _ in range(60):  # until the job agent answers
        if "No available agent" not in ray("job", "submit", "--", "true", check=False):
            break
        time.sleep(1)
    yield ray
    runner.clean()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_job_sent_with_the_runtime_environment_trains_where_polytrain_is_not_installed(
    foreign_cluster, tiny, recipe_file, tmp_path
):
    del tiny["output"]  # a relative one: the working directory on the cluster goes away with the job
    recipe = recipe_file(tiny)
    words = ("--runtime-env", "cluster/runtime_env.yaml", "--working-dir", ".")
    output = foreign_cluster("job", "submit", *words, "--", "python", "jobs/cotrain.py", str(recipe))
    assert "succeeded" in output
    run = only_run(tmp_path / "home" / "polytrain" / "runs")
    assert (run / "final" / "model.safetensors").exists()
