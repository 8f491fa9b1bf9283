"""Decoding makes Ray's autoscaler start nodes of the group that decodes, as cluster/README.md says, up to the CPUs that a
run gives to it.

The nodes are Ray's own make-believe ones: processes of this machine, which its autoscaler starts as it would start pods.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from job_runner import Job
from test_submit import free_ports

from small_media import make_task

RAY = Path(sys.executable).parent / "ray"
HEAD = "f" * 51 + "00000"  # as the make-believe provider calls it
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def group(most: int, **resources: float) -> dict:
    """A group of nodes of which one is there from the start."""
    resources |= {"object_store_memory": 100_000_000}
    return {"resources": resources, "node_config": {}, "min_workers": 1, "max_workers": most}


@pytest.fixture
def cluster(runner, tmp_path):
    """A head without CPUs and an autoscaler, as in cluster/kuberay; returns the environment of jobs and its log."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths may have 107 bytes only
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    config = {
        "cluster_name": "make-believe",
        "provider": {
            "type": "external", "module": PROVIDER, "head_node_id": HEAD, "gcs_address": address,
            "launch_multiple": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "auth": {"ssh_user": "nobody"},
        "max_workers": 8,
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "train-gpu": group(4, CPU=1, trainer=1),
            "decode-cpu": group(3, CPU=2),
        },
        "head_node_type": "ray.head.default",
    }  # fmt: skip
    kinds = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
             "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
             "rsync_filter")  # fmt: skip
    config |= {kind: [] for kind in kinds} | {"docker": {}, "file_mounts": {}}
    (tmp_path / "autoscaling.json").write_text(json.dumps(config))
    jobs = runner.environment | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment = jobs | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_raylet_start_wait_time_s": "120",  # on a machine with much else to do
    }
    done = subprocess.run(
        [RAY, "start", "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}", "--include-dashboard=false",
         f"--autoscaling-config={tmp_path / 'autoscaling.json'}", "--object-store-memory=200000000",
         "--disable-usage-stats"],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    yield jobs | {"RAY_ADDRESS": address}, folder / "session_latest" / "logs" / "monitor.log"
    runner.clean()
    # Ray's agents write their titles over the environment by which the runner knows its processes; their logs stay open.
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(descriptor).startswith(f"{folder}/") for descriptor in descriptors.iterdir()):
                os.kill(int(descriptors.parent.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak
@pytest.mark.slow
def test_decoding_makes_nodes_come_up_to_its_cpus_and_of_its_own_group_only(
    cluster, runner, tiny, recipe_file, tmp_path
):
    environment, log = cluster

    def launched(kind: str) -> int:
        told = log.read_text() if log.exists() else ""
        return sum(map(int, re.findall(rf"Launched (\d+) nodes of type {kind}", told)))

    for _ in range(240):  # a run wants what it trains on at its start
        if launched("train-gpu") and launched("decode-cpu"):
            break
        time.sleep(0.5)

    video = make_task(tmp_path / "video", "video", sizes={"train": 240, "val": 8, "test": 8})
    tiny["modalities"] = {"video": {"frames": 8, "stride": 1, "size": [96, 96], "tubelet": [2, 48, 48]}}
    tiny["tasks"] = {"moves": tiny["tasks"]["moves"] | {"manifest": str(video), "steps": 2000, "batch_size": 60}}
    tiny["train"] |= {"checkpoint_every": 10_000, "eval_every": 10_000}
    words = (recipe_file(tiny), "train.workers=1", "train.resources.trainer=1", "data.decode_cpus=6")
    job = Job(words, environment, tmp_path)
    runner.jobs.append(job)
    job.until(lambda: launched("decode-cpu") == 3, timeout=240)
    assert launched("train-gpu") == 1
