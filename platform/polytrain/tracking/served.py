"""The code of a registered model: MLflow runs this file when it loads one, beside the polytrain that comes with it.

`mlflow models serve -m models:/NAME@current --env-manager uv` then answers `POST /invocations` with
`{"dataframe_records": [{"content": "<a file's bytes, base64>", "task": "shapes"}], "params": {"top": 3}}`.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import polytrain
from polytrain.export.answering import Answering


class Served(PythonModel):
    """A row in, a row out: `predictions` and `error`."""

    def load_context(self, context: PythonModelContext) -> None:
        self.answering = Answering(polytrain.load(context.artifacts["checkpoint"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None):
        contents = model_input["content"].tolist()
        tasks = model_input["task"].tolist() if "task" in model_input else [None] * len(contents)
        tasks = [
            task if isinstance(task, str) and task else None for task in tasks
        ]  # pandas has NaN for what is absent
        # As objects: pandas would make NaN, which is no JSON, of an error that is not there.
        return pd.DataFrame(self.answering.answer(contents, tasks, (params or {}).get("top", 5)), dtype=object)


set_model(Served())
