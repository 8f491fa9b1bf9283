"""Models in MLflow's registry: polytrain's own code beside a checkpoint, nothing pickled; they answer files' bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polytrain
from polytrain.tracking.login import with_login
from polytrain.tracking.store import AwayError, Store, _reason

CODE = Path(__file__).with_name("served.py")
PACKAGE = Path(polytrain.__file__).parent


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    uri: str
    """What `mlflow models serve -m` takes."""


def register(
    checkpoint: Sequence[Path],
    *,
    uri: str,
    run_id: str,
    name: str,
    alias: str,
    pins: Sequence[str],
    constraints: Sequence[str],
    example: bytes,
    about: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Registered:
    """Log a checkpoint's files as a model of the run, register it under `name` and point `alias` at it.

    `pins` are installed where it is loaded, within `constraints`. `about` is kept in the model's metadata, `tags` at
    its version. Raises AwayError, with the reason, when the store does not take it.
    """
    store = Store(uri)
    store.reach()
    client = store.client  # sets MLflow up as all of polytrain has it
    import mlflow
    import pandas as pd

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        for file in checkpoint:
            shutil.copy(file, folder)
        within = Path(scratch) / "constraints.txt"
        within.write_text("\n".join(constraints))
        before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        mlflow.set_tracking_uri(with_login(uri))
        mlflow.set_registry_uri(with_login(uri))
        try:
            with _in_run(run_id):
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(CODE),
                    artifacts={"checkpoint": str(folder)},
                    code_paths=[str(PACKAGE)],
                    signature=signature(),
                    input_example=(pd.DataFrame({"content": [example]}), {"top": 5}),
                    pip_requirements=[*pins, *([f"-c {within}"] if constraints else [])],
                    metadata=dict(about),
                    registered_model_name=name,
                )
            version = str(logged.registered_model_version)
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value)
            client.set_registered_model_alias(name, alias, version)
        except Exception as error:
            raise AwayError(_reason(error)) from error
        finally:
            mlflow.set_tracking_uri(before[0])
            mlflow.set_registry_uri(before[1])
    return Registered(name, version, f"models:/{name}@{alias}")


def signature() -> Any:
    """What a served model takes and gives (`tracking/served.py`)."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    text, number = DataType.string, DataType.double
    likely = Object([Property("task", text), Property("class", text), Property("probability", number)])
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "content"), ColSpec(text, "task", required=False)]),
        outputs=Schema([ColSpec(Array(likely), "predictions"), ColSpec(text, "error", required=False)]),
        params=ParamSchema([ParamSpec("top", DataType.integer, 5)]),
    )


@contextlib.contextmanager
def _in_run(run_id: str) -> Iterator[None]:
    """The run is active in the block, and afterwards as it was."""
    import mlflow

    run = mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield
    finally:
        mlflow.end_run(run.info.status)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow's remarks on what it does are for nobody."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
