"""Secrets come from the environment only: places that hold one are refused, texts that would show one are cleaned.

What counts: values of environment variables that are named like secrets (MLFLOW_TRACKING_PASSWORD,
AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN, ...), and passwords, signatures and keys within URIs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

SHORTEST = 8
"""Characters. A shorter value, such as "test", is also an ordinary word."""

_KEYS = "secret|passw|token|signature|credential|access_?key|account_?key"
_PASSWORD = r"([^/?#@\s]*[^/?#@\s0-9][^?#@\s]*|[^/?#@\s]+)"  # keys of AWS hold slashes; h:80/a@b is a port
IN_URI = rf"^[a-z][a-z0-9+.\-]*://([^/?#]*:{_PASSWORD}@|[^?]*\?(.*&)?([^&=]*(?i:{_KEYS})[^&=]*|sig)=.)"
"""A URI with a password before its host, or with a key in its query. An expression that RE2 (Arrow) knows, too."""

_IN_URI = re.compile(IN_URI)
_NAMES = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|API_?KEY|ACCESS_KEY|SIGNING_KEY", re.IGNORECASE)
_NOT_VALUES = re.compile(r"(_FILE|_PATH|_DIR|_ID|_MODE|_URI|_URL)$", re.IGNORECASE)
_LOGIN = re.compile(rf"([a-zA-Z][a-zA-Z0-9+.\-]*://)([^/\s@?#'\"]*:{_PASSWORD}|[^/\s@?#'\":]+)@")
_IN_QUERY = re.compile(rf"([?&](?:[^&=\s]*(?:{_KEYS})[^&=\s]*|sig)=)[^&\s'\"]+", re.IGNORECASE)


def held_secrets() -> dict[str, str]:
    """What this process's environment keeps secret: value by variable."""
    found = {}
    for name, value in os.environ.items():
        if _NAMES.search(name) and not _NOT_VALUES.search(name):
            found[name] = value
        elif (password := password_of(value)) is not None:
            found[name] = password
    return {name: value for name, value in found.items() if len(value) >= SHORTEST}


def password_of(uri: str) -> str | None:
    """The password before a URI's host."""
    if "@" not in uri or "://" not in uri:
        return None
    try:
        password = urlsplit(uri).password
    except ValueError:
        return None
    return unquote(password) if password else None


def without_password(uri: str) -> str:
    """The same URI without the password before its host; with http and https without the name, too."""
    if password_of(uri) is None:
        return uri
    parts = urlsplit(uri)
    login, _, host = parts.netloc.rpartition("@")
    user = "" if parts.scheme in ("http", "https") else login.partition(":")[0]
    return parts._replace(netloc=f"{user}@{host}" if user else host).geturl()


def without_secrets(text: str) -> str:
    """The text with *** for every secret."""
    for value in sorted(held_secrets().values(), key=len, reverse=True):
        text = text.replace(value, "***").replace(quote(value, safe=""), "***")
    return _IN_QUERY.sub(r"\1***", _LOGIN.sub(_hidden_login, text))


def _hidden_login(match: re.Match[str]) -> str:
    scheme, login = match.group(1), match.group(2)
    # A lone name is no secret (postgresql://mlflow@host), but where it is a token (https://TOKEN@host).
    return f"{scheme}***@" if ":" in login or scheme in ("http://", "https://", "s3://") else match.group(0)


def uri_with_key(text: str) -> bool:
    """Whether this is a URI that itself holds a password or key."""
    return "://" in text and bool(_IN_URI.match(text))


def holds_secret(text: str) -> str | None:
    """Why this text must not be written down, or None."""
    if uri_with_key(text):
        return "holds a password or key"
    name = next((name for name, value in held_secrets().items() if value in text), None)
    return f"holds the value of {name}" if name else None


def faults(tree: Any, at: str = "") -> Iterator[str]:
    """A line for everything in nested dicts and lists that must not be written down; the secret is not in it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from faults(value, f"{at}.{key}" if at else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from faults(value, f"{at}[{number}]")
    elif isinstance(tree, str) and (why := holds_secret(tree)):
        yield (
            f"{at}: {why}, and recipes are written down, in checkpoints and in MLflow, too. Secrets belong in the "
            f"environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD"
        )
