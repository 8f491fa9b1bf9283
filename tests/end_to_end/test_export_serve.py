"""A checkpoint exported by the job, and the registered model behind a server that knows files' bytes."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from job_runner import Runner

import polytrain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    runner = Runner(tmp_path_factory.mktemp("export"))
    yield runner
    runner.clean()


@pytest.fixture(scope="module")
def exported(runner, checkpoint_of_three):
    """The output of `jobs/export.py` with everything on, and where it wrote."""
    output = runner.folder / "runs"
    two = ("--task", "colours", "--task", "tones")
    said = runner.run(checkpoint_of_three, "--int8", *two, f"output={output}", job="export.py")
    return said, output


def test_an_export_leaves_graphs_figures_and_a_registered_model(exported, checkpoint_of_three):
    from mlflow import MlflowClient

    said, output = exported
    (folder,) = output.glob("tiny-export-*")
    for task in ("colours", "tones"):
        for suffix in ("pt2", "onnx", "int8.onnx"):
            assert (folder / f"{task}.{suffix}").stat().st_size > 1000
        assert f"{task}" in said
    for word in ("torch.export", "ONNX int8", "top1", "mAP", "off by", "Eight bits change", "models:/tiny@current"):
        assert word in said
    assert "Warning" not in said
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny", "current")
    assert version.tags["polytrain.checkpoint"] == str(checkpoint_of_three)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["polytrain.kind"] == "export"
    assert run.data.metrics["export/colours/onnx/probability_difference"] < 1e-4
    assert run.data.metrics["export/tones/onnx_int8/megabytes"] < run.data.metrics["export/tones/onnx/megabytes"]
    assert {"export/tones/model/mAP", "export/tones/onnx_int8/mAP"} <= set(run.data.metrics)


def test_nothing_in_a_registered_model_is_pickled(exported):
    _, output = exported
    names = {path.name for path in output.glob("mlartifacts/**/*") if path.is_file()}
    assert {"model.safetensors", "state.json", "recipe.yaml", "served.py", "trained.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


def test_the_registered_model_answers_files_over_http(runner, exported, checkpoint_of_three, media):
    _, output = exported
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with served(runner, output, environment, "--env-manager", "local") as address:
        check_answers(address, checkpoint_of_three, media)


@pytest.mark.soak
def test_the_registered_model_is_served_from_an_environment_of_its_own(runner, exported, checkpoint_of_three, media):
    """`mlflow models serve` makes it from the model's requirements; polytrain comes with the model."""
    _, output = exported
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed; make setup installs it")
    # Its cache is the user's: torch is not fetched again.
    cache = subprocess.run([uv, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
    path = f"{Path(uv).parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "UV_CACHE_DIR": cache, "MLFLOW_ENV_ROOT": str(output / "environments")}
    with served(runner, output, environment, "--env-manager", "uv", timeout=600) as address:
        check_answers(address, checkpoint_of_three, media)
    (python,) = (output / "environments").glob("*/bin/python")
    without = subprocess.run([python, "-c", "import polytrain"], capture_output=True, text=True)
    assert "No module named 'polytrain'" in without.stderr
    assert "mismatches" not in (output / "server.log").read_text()
    shutil.rmtree(output / "environments")  # 6 GB


def check_answers(address, checkpoint, media):
    trained = polytrain.load(checkpoint)
    paths = [
        sorted(media[of].parent.glob(f"test_*{suffix}"))[1]
        for of, suffix in (("image", ".png"), ("video", ".mp4"), ("several", ".wav"))
    ]
    records = [{"content": encoded(path.read_bytes())} for path in paths]
    answers = ask(address, {"dataframe_records": [*records, {"content": encoded(b"no media")}]})
    for path, answer in zip(paths, answers, strict=False):
        expected = trained.predict([path]).to_pylist()
        assert answer["error"] is None
        assert [(one["task"], one["class"]) for one in answer["predictions"]] == [
            (row["task"], row["class"]) for row in expected
        ]
        for one, row in zip(answer["predictions"], expected, strict=True):
            assert one["probability"] == pytest.approx(row["probability"], abs=1e-5)
    assert answers[3]["predictions"] == []
    assert "not media" in answers[3]["error"]
    (named,) = ask(address, {"dataframe_records": [records[0] | {"task": "hues"}], "params": {"top": 1}})
    assert [one["task"] for one in named["predictions"]] == ["hues"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(address, {"dataframe_records": [{"file": "x"}]})


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def ask(address: str, question: dict) -> list[dict]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["predictions"]


@contextmanager
def served(runner, output, environment, *options, timeout=120):
    """`mlflow models serve` as a user would call it, until the block ends; yields its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = output / "server.log"
    uri = f"sqlite:///{output / 'mlflow.db'}"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny@current", "--port", str(port), *options],
            stdout=out, stderr=subprocess.STDOUT, cwd=output, start_new_session=True,
            env=runner.environment | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"} | environment,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + timeout
        while not is_up(address):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def is_up(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/ping", timeout=5).status == 200
    except OSError:
        return False
