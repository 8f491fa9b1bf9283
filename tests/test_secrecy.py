"""Secrets are known by the environment and by the shape of URIs, and stay out of whatever is written down."""

import os

import pyarrow.compute as pc
import pytest

from polytrain import secrecy
from polytrain.command_line import BAD_INPUT, FAULT, told
from polytrain.data import manifest, storage
from polytrain.ingest.commands import prepare_command
from polytrain.recipe import RecipeError, check
from polytrain.run_folder import RunFolder
from polytrain.tracking import chosen_uri
from polytrain.tracking.login import with_login
from polytrain.training.progress import Progress

PLANTED = "S3cr/et+Value=99"


@pytest.mark.parametrize(
    "place",
    [
        f"http://anna:{PLANTED}@mlflow.example:5000",
        "postgresql://mlflow:S3cret-Value@db.example/mlflow",
        "s3://AKIA:S3cret-Value@bucket/data",
        "s3://bucket/data?region=eu-west-1&secret_key=S3cret-Value",
        "s3://bucket/data?session_token=S3cret-Value",
        "https://host/file?X-Amz-Signature=S3cret-Value",
        "https://account.example/file?sv=2025&sig=S3cret-Value",
    ],
)
def test_a_place_with_a_key_is_known_told_without_it_and_refused_by_recipes_and_stores(place, tiny):
    assert secrecy.holds_secret(place)
    assert "et-Value" not in secrecy.without_secrets(f"at {place}: nothing")
    tiny["tasks"]["colours"]["manifest"] = place
    with pytest.raises(RecipeError, match=r"tasks\.colours\.manifest: holds a password or key") as refused:
        check(tiny)
    assert "et-Value" not in str(refused.value)
    with pytest.raises(storage.StorageError, match="environment|AWS_ACCESS_KEY_ID") as refused:
        storage.filesystem(place)
    assert "et-Value" not in str(refused.value)


@pytest.mark.parametrize(
    "place",
    [
        "runs/one", "/data/a:b@c", "s3://bucket/a@b:c/d?endpoint_override=127.0.0.1:9000&scheme=http", "http://mlflow:5000",
        "postgresql://mlflow@postgres:5432/mlflow", "sqlite:////tmp/mlflow.db", "abfs://container@account/file",
    ],
)  # fmt: skip
def test_an_ordinary_place_is_none_of_a_secret(place):
    assert secrecy.holds_secret(place) is None
    assert secrecy.without_secrets(place) == place


def test_values_of_secret_variables_are_taken_out_of_texts(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PLANTED)
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:proxy-password@proxy:3128")
    monkeypatch.setenv("DB_PASS", "abc")  # too short to be told from a part of a word
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token-file")
    text = f"{PLANTED} S3cr%2Fet%2BValue%3D99 proxy-password abc /var/run/token-file"
    assert secrecy.without_secrets(text) == "*** *** *** abc /var/run/token-file"


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "AWS_SESSION_TOKEN", "PGPASSWORD", "DB_PASS",
        "db_pass_2", "SMTP_PWD", "PASSPHRASE", "AZURE_STORAGE_KEY", "GCP_AUTH", "WANDB_API_KEY", "SECRET_KEY_BASE",
        "STRIPE_KEY", "TOKEN", "CREDENTIALS",
    ],
)  # fmt: skip
def test_variables_with_such_names_hold_secrets(name, monkeypatch):
    monkeypatch.setenv(name, PLANTED)
    assert secrecy.holds_secret(f"mine {PLANTED}") == f"holds the value of {name}"
    assert secrecy.without_secrets(f"mine {PLANTED}") == "mine ***"


@pytest.mark.parametrize(
    "name",
    [
        "XAUTHORITY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "PWD", "OLDPWD", "KEYBOARD", "SSH_PUBLIC_KEY", "LESSKEYIN",
        "TOKENIZERS_PARALLELISM", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_USERNAME", "RAY_AUTH_MODE", "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_NAME", "PASSWORD_FILE", "SSH_ASKPASS", "GIT_ASKPASS", "BYPASS", "AUTHOR", "COMPASS_PORT", "SORT_KEY",
        "POSTGRES_HOST_AUTH_METHOD", "MONKEY",
    ],
)  # fmt: skip
def test_variables_with_such_names_hold_none(name, monkeypatch):
    monkeypatch.setenv(name, PLANTED)
    assert secrecy.holds_secret(f"mine {PLANTED}") is None
    assert secrecy.without_secrets(f"mine {PLANTED}") == f"mine {PLANTED}"


def test_a_path_to_a_secret_a_switch_and_a_placeholder_are_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("USE_AUTH_TOKEN", "true")
    monkeypatch.setenv("MAX_TOKENS", "4096")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    text = f"true 4096 test {tmp_path}"
    assert secrecy.without_secrets(text) == text
    assert secrecy.holds_secret(text) is None


@pytest.mark.parametrize(
    ("value", "text", "refused", "told"),
    [
        ("hunter2", "s3://bucket/hunter2/data", True, "s3://bucket/***/data"),
        ("p@ss", "login=p@ssed", True, "login=***ed"),
        ("hunter", "mine hunter", True, "mine ***"),
        ("hunter", "login 'hunter' failed", False, "login '***' failed"),  # a message: recipes hold no such thing
        ("photo", "runs/photos-0/photo/a", False, "runs/photos-0/***/a"),
        ("mlflow", "http://mlflow:5000", False, "http://***:5000"),
        ("123456", "step 1234567", False, "step 1234567"),
        ("p1", "p1", True, "p1"),
        ("p1", "p11", False, "p11"),
    ],
)
def test_a_short_secret_is_told_from_the_words_around_it(value, text, refused, told, monkeypatch):
    monkeypatch.setenv("DB_PASS", value)
    assert (secrecy.holds_secret(text) is not None) is refused
    assert secrecy.without_secrets(text) == told


def test_a_private_key_is_known_by_each_of_its_lines_and_as_python_and_json_write_it(monkeypatch):
    monkeypatch.setenv("SIGNING_KEY", 'MIIEvQIBADAN\nBgkqhkiG9w0B\n"end"')
    text = "bad line BgkqhkiG9w0B in 'MIIEvQIBADAN\\nBgkqhkiG9w0B\\n\"end\"'"
    assert secrecy.without_secrets(text) == "bad line *** in '***'"


def test_a_fault_leaves_its_block_without_the_secrets_in_it_and_in_what_caused_it(monkeypatch):
    monkeypatch.setenv("DB_PASS", "hunter2")
    with (
        pytest.raises(storage.StorageError, match=r"^login \*\*\* failed$") as raised,
        secrecy.faults_without_secrets(),
    ):
        raise storage.StorageError("login hunter2 failed")
    assert raised.value.__cause__ is None
    with pytest.raises(ValueError, match="^no login$") as raised, secrecy.faults_without_secrets():
        raise ValueError("no login") from RuntimeError("hunter2")
    assert raised.value.__cause__ is None
    with pytest.raises(RuntimeError, match=r"^OSError: \[Errno 5\] \*\*\*$"), secrecy.faults_without_secrets():
        raise OSError(5, "hunter2")
    fault = ValueError("nothing secret")
    with pytest.raises(ValueError, match="nothing secret") as raised, secrecy.faults_without_secrets():
        raise fault from OSError(5, "nor here")
    assert raised.value is fault
    assert raised.value.__cause__ is not None


def test_what_ray_raised_is_told_by_its_last_line_without_secrets(monkeypatch):
    monkeypatch.setenv("DB_PASS", "hunter2")
    assert (
        secrecy.last_line(RuntimeError("ray::Worker\n  File x\nOSError: hunter2 is wrong\n")) == "OSError: *** is wrong"
    )
    assert secrecy.last_line(RuntimeError()) == "RuntimeError"


def test_what_a_runs_folder_and_its_lists_of_bad_media_say_holds_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("DB_PASS", "hunter2")
    run = RunFolder(tmp_path)
    run.write_start(3, None, ("step_2: login hunter2 failed",))
    run.write_result({"status": "failed", "message": "login hunter2 failed"})
    assert run.start()["faults"] == ["step_2: login *** failed"]
    assert run.result()["message"] == "login *** failed"
    progress = Progress()
    progress.note_bad("colours", "train", [(7, "a.png", "login hunter2 failed")])
    assert progress.bad["colours"]["train"] == {"7": ["a.png", "login *** failed"]}


def test_a_short_password_is_refused_by_recipes(tiny, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    tiny["license"] = "hunter2"
    with pytest.raises(RecipeError, match="license: holds the value of MLFLOW_TRACKING_PASSWORD") as refused:
        check(tiny)
    assert "hunter2" not in str(refused.value)


def test_a_recipe_that_would_write_a_secret_of_the_environment_down_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", PLANTED)
    tiny["license"] = f"mine {PLANTED}"
    with pytest.raises(RecipeError, match="license: holds the value of RAY_AUTH_TOKEN") as refused:
        check(tiny)
    assert PLANTED not in str(refused.value)


def test_manifests_with_keys_in_their_paths_are_refused_by_row_without_the_key(media, tmp_path):
    whole = manifest.read(media["image"])
    paths = whole.table["path"].to_pylist()
    paths[2] = "s3://AKIA:S3cret-Value@bucket/a.png"
    table = whole.table.set_column(whole.table.column_names.index("path"), "path", [paths])
    with pytest.raises(manifest.ManifestError, match="row 3, column 'path'.*holds a password or key") as refused:
        manifest.write(tmp_path / "m.parquet", task="t", modality="image", classes=whole.classes, table=table)
    assert "S3cret" not in str(refused.value)


def test_arrow_finds_the_same_uris_as_python():
    places = ["http://a:b@c", "s3://b?secret_key=x", "http://c?sig=x", "a/b:c@d", "http://h:80/a@b"]
    assert pc.match_substring_regex(places, secrecy.IN_URI).to_pylist() == [
        secrecy.holds_secret(place) is not None for place in places
    ]


def test_a_server_with_a_password_is_used_by_environment_and_recorded_without(monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:S3cret-Value@mlflow.example/base")
    uri = chosen_uri(None, tmp_path)
    assert uri == "https://mlflow.example/base"
    assert with_login(uri) == uri
    login = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    assert login == ("anna", "S3cret-Value")


def test_a_database_with_a_password_is_opened_with_it_and_recorded_without(monkeypatch, tmp_path):
    whole = "postgresql://mlflow:S3cret-Value@db.example/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    uri = chosen_uri(None, tmp_path)
    assert uri == "postgresql://mlflow@db.example/mlflow"
    assert with_login(uri) == whole
    assert with_login("http://another:5000") == "http://another:5000"


def test_a_command_that_is_given_a_key_does_not_repeat_it(capsys, tmp_path):
    root = "s3://AKIA:S3cret/Value@bucket/photos"
    words = ["folder", "--modality", "image", "--root", root, "--out", str(tmp_path / "out")]
    assert prepare_command("", words) == BAD_INPUT
    error = capsys.readouterr().err
    assert "s3://***@bucket/photos: the URI holds a key" in error
    assert "S3cret" not in error


def test_a_fault_of_a_librarys_is_told_without_secrets(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PLANTED)

    def fails():
        raise RuntimeError(f"login {PLANTED} failed")

    assert told(fails) == FAULT
    error = capsys.readouterr().err
    assert "RuntimeError: login *** failed" in error
    assert PLANTED not in error
