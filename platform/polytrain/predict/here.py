"""`Trained.predict`: in one process, without Ray."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import pyarrow as pa

from polytrain.predict import InputError
from polytrain.predict.files import asked
from polytrain.predict.ranking import Ranking
from polytrain.scan import run_here
from polytrain.trained import Trained

NAMED = 5
"""Unreadable files that a warning or an error names."""


def predict(
    trained: Trained, paths: str | os.PathLike | Sequence[str | os.PathLike], *, task: str | None, top: int
) -> pa.Table:
    """See `Trained.predict`."""
    if top < 1:
        raise ValueError(f"top {top}: at least 1")
    paths = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    ranking = Ranking(trained, asked(trained, paths, task), top)
    if ranking.asked.files:
        ranking.take(run_here(trained.forward(), ranking.scans()))
    if ranking.bad:
        named = "; ".join(f"{path}: {reason}" for path, reason in ranking.bad[:NAMED])
        more = f"; and {len(ranking.bad) - NAMED} more" if len(ranking.bad) > NAMED else ""
        if not ranking.predicted:
            raise InputError(f"none of the files could be read: {named}{more}")
        warnings.warn(f"{len(ranking.bad)} files can't be read: {named}{more}", stacklevel=3)
    return pa.concat_tables(ranking.tables())
