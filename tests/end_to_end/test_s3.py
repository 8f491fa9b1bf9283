"""Manifests, media and the run's own folder in an S3 store that is slow and fails at times: the same run as on a disk."""

import random

import pytest
import torch
from job_runner import only_run
from safetensors.torch import load

from polytrain.data import storage
from store_server import ACCESS, Proxy, s3_server


@pytest.mark.slow
def test_a_run_on_a_slow_and_failing_store_equals_the_run_on_local_files(runner, tiny, recipe_file, tmp_path, media):
    runner.run(recipe_file(tiny), f"output={tmp_path / 'local'}")
    with s3_server() as s3, Proxy(s3.port) as proxy:
        bucket = s3.bucket()
        for task in tiny["tasks"].values():
            folder = next(path.parent for path in media.values() if str(path) == task["manifest"])
            for file in folder.iterdir():
                storage.write_bytes(storage.join(bucket, folder.name, file.name), file.read_bytes())
            task["manifest"] = storage.join(bucket, folder.name, "manifest.parquet")
        kinds = [503, "drop", "cut", 0.2, *[None] * 28]
        proxy.faults = [random.Random(0).choice(kinds) for _ in range(3000)]
        runner.environment |= ACCESS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server.server_port}"}
        runs = f"{s3.bucket()}/runs"
        output = runner.run(recipe_file(tiny), f"output={runs}")
        assert len(proxy.requests) > 100
        (run,) = [entry.base_name for entry in storage.entries(runs)]
        assert f"the model lies in {runs}/{run}/final" in output
        distant = load(storage.fetch(f"{runs}/{run}/final/model.safetensors"))
    local = load((only_run(tmp_path / "local") / "final" / "model.safetensors").read_bytes())
    assert local.keys() == distant.keys()
    assert all(torch.equal(local[name], distant[name]) for name in local)
