"""MLFLOW_TRACKING_URI may hold a password: it is used, but no record of a run names it."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from polytrain.secrecy import password_of, without_password

VARIABLE = "MLFLOW_TRACKING_URI"


def uri_of_environment() -> str | None:
    """MLFLOW_TRACKING_URI as it may be written down."""
    uri = os.environ.get(VARIABLE)
    return without_password(uri) if uri else None


def with_login(uri: str) -> str:
    """What MLflow must be given to reach a store, where the environment knows its password.

    A server's name and password go to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for MLflow's messages
    repeat URIs; a database's stay in the URI.
    """
    whole = os.environ.get(VARIABLE)
    if not whole or whole == uri or without_password(whole) != uri:
        return uri
    parts = urlsplit(whole)
    if parts.scheme not in ("http", "https"):
        return whole
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username or ""))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", password_of(whole) or "")
    return uri
