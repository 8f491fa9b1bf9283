"""Secrets planted in the environment are used, and turn up nowhere: not in files, logs, MLflow, messages.

The MLflow server is the one of cluster/mlflow/kubernetes.yaml, flags and all; the store is a real S3 API.
"""

import json
import re
import shutil
import tempfile
import urllib.parse
from pathlib import Path

import pytest
from job_runner import only_run
from locked_mlflow import ADMIN, locked_server
from test_submit import free_ports

from postgres_server import PASSWORD as OF_DATABASE
from postgres_server import postgres_server

PASSWORD = "planted-p4ssword/of+mlflow"
KEY = "planted/k3y+of/amazon0123456789ABCDEF"
SHORT = "hunter2"
TOKENS = {
    name: f"planted-{name.lower()}-value"
    for name in ("MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "AWS_SESSION_TOKEN", "SMTP_PWD")
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    (port,) = free_ports(1)
    with locked_server(tmp_path_factory.mktemp("mlflow"), port, PASSWORD) as server:
        yield server


def quoted_uri(server):
    return server.uri_with_login.replace(PASSWORD, urllib.parse.quote(PASSWORD, safe=""))


def files_with(secrets, *folders):
    """Files below the folders that hold one of the secrets, in plain or as URIs hold it."""
    forms = {form.encode() for secret in secrets for form in (secret, urllib.parse.quote(secret, safe=""))}
    files = [file for folder in folders for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 10, "there is something to look through"
    contents = ((file, file.read_bytes()) for file in files)
    return [str(file) for file, content in contents if any(form in content for form in forms)]


@pytest.mark.slow
def test_the_server_answers_those_who_log_in_and_under_its_own_names_only(server):
    right = f"{ADMIN}:{PASSWORD}"
    asked = {
        "nobody": server.ask(),
        "somebody else": server.ask(login=f"{ADMIN}:guessed"),
        "anna": server.ask(login=right),
        "in the cluster": server.ask(host=f"mlflow:{server.port}", login=right),
        "by another name": server.ask(host="rebound.example", login=right),
        "Kubernetes' probe": server.ask(path="/health"),
    }
    assert asked == {
        "nobody": 401, "somebody else": 401, "anna": 200, "in the cluster": 200, "by another name": 403,
        "Kubernetes' probe": 200,
    }  # fmt: skip


@pytest.mark.slow
def test_a_runs_secrets_turn_up_in_no_file_no_log_and_no_message(
    server, s3, runner, tiny, media, recipe_file, tmp_path, monkeypatch
):
    from polytrain.data import storage

    bucket = s3.bucket()
    for file in media["image"].parent.iterdir():
        storage.upload(f"{bucket}/colours/{file.name}", file)
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"] | {"manifest": f"{bucket}/colours/manifest.parquet"}}
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths may have 107 bytes only
    runner.environment |= TOKENS | {
        "MLFLOW_TRACKING_URI": quoted_uri(server),
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}",
        "RAY_TMPDIR": short,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # passwords are hashed slowly on purpose, and machines are busy
    }
    try:
        output = runner.run(recipe_file(tiny))
        assert f"in {server.uri}\n" in output, "the run is recorded where the password was needed"
        run = only_run(tmp_path / "runs")
        predicted = runner.run(run, f"{bucket}/colours/test_000.png", "--out", tmp_path / "p.parquet", job="predict.py")
        assert "1 files predicted" in predicted
        status = runner.run(job="status.py")
        assert f"{run.name}  finished" in status, "which MLflow knows"
        for secret in (PASSWORD, "p4ssword", KEY, *TOKENS.values()):
            assert secret not in output + predicted + status
        assert files_with((PASSWORD, KEY, *TOKENS.values()), tmp_path, short, server.folder) == []
    finally:
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.slow
def test_a_server_that_is_away_or_refuses_is_told_of_without_the_password(server, runner, tiny, recipe_file, tmp_path):
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"] | {"steps": 1}}
    wrong = server.uri_with_login.replace(PASSWORD, "planted-wr0ng-password")
    runner.environment |= {"MLFLOW_TRACKING_URI": wrong, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
    output = runner.run(recipe_file(tiny))
    assert f"MLflow at {server.uri} cannot be reached" in output
    assert "wr0ng" not in output
    assert files_with(["planted-wr0ng-password"], tmp_path, server.folder) == []


@pytest.mark.slow
def test_the_password_of_a_database_is_used_and_turns_up_nowhere(runner, tiny, recipe_file, tmp_path):
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"] | {"steps": 1}}
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        with postgres_server() as address:
            uri = f"postgresql+psycopg2://mlflow:{OF_DATABASE}@{address}/mlflow"
            runner.environment |= {"MLFLOW_TRACKING_URI": uri, "RAY_TMPDIR": short}
            output = runner.run(recipe_file(tiny))
        assert f"in {uri.replace(f':{OF_DATABASE}', '')}\n" in output, (
            "the run is recorded where the password was needed"
        )
        assert OF_DATABASE not in output
        assert files_with([OF_DATABASE], tmp_path, short) == []
    finally:
        shutil.rmtree(short, ignore_errors=True)


FAILING = """
import os, sys
def login(event, arguments):
    if event == "open" and "/checkpoints/" in str(arguments[0]):
        raise RuntimeError(f"login {os.environ['DB_PASS']} failed")
sys.addaudithook(login)
"""
"""A worker's first checkpoint fails with the words of a library that names a secret."""


@pytest.mark.slow
def test_a_worker_that_fails_naming_a_secret_is_told_of_without_it_and_with_what_its_time_was_spent_on(
    runner, tiny, recipe_file, tmp_path
):
    from mlflow import MlflowClient

    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "sitecustomize.py").write_text(FAILING)
    tiny["tasks"] = {"colours": tiny["tasks"]["colours"]}
    tiny["train"] = tiny.get("train", {}) | {"max_failures": 0}
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    path = ":".join([str(tmp_path / "failing"), *filter(None, [runner.environment.get("PYTHONPATH")])])
    runner.environment |= {"DB_PASS": SHORT, "RAY_TMPDIR": short, "PYTHONPATH": path}
    try:
        output = runner.run(recipe_file(tiny), code=1)
        assert SHORT not in output
        run = only_run(tmp_path / "runs")
        record = json.loads((run / "run.json").read_text())
        logged = MlflowClient(record["uri"]).get_run(record["run_id"]).data.tags["polytrain.error"]
        for told in (output, json.loads((run / "result.json").read_text())["message"], logged):
            assert "RuntimeError: login *** failed" in told
        assert re.search(r"Until then: .*\d % waiting for data, \d+ % computing, ", output)
        assert files_with([SHORT], tmp_path, short) == []
    finally:
        shutil.rmtree(short, ignore_errors=True)
