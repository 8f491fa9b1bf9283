"""Secrets come from the environment only: places that hold one are refused, texts that would show one are cleaned.

What counts: values of environment variables that are named like secrets (MLFLOW_TRACKING_PASSWORD,
AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN, DB_PASS, ...), and passwords, signatures and keys within URIs.

A short value may also be an ordinary word, which must not make recipes and messages unreadable:

value                                        in recipes and URIs                   in messages
8 characters and more                        anywhere                              anywhere
4 to 7, not letters only, nor digits only    anywhere                              anywhere
4 to 7 letters, or digits                    where it stands alone between spaces  as a whole word
1 to 3                                       where it stands alone between spaces  stays
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

LONG, SHORT = 8, 4
"""Characters: from LONG on a value is no ordinary word, below SHORT it is in every second text."""

_KEYS = "secret|passw|token|signature|credential|access_?key|account_?key"
_PASSWORD = r"([^/?#@\s]*[^/?#@\s0-9][^?#@\s]*|[^/?#@\s]+)"  # keys of AWS hold slashes; h:80/a@b is a port
IN_URI = rf"^[a-z][a-z0-9+.\-]*://([^/?#]*:{_PASSWORD}@|[^?]*\?(.*&)?([^&=]*(?i:{_KEYS})[^&=]*|sig)=.)"
"""A URI with a password before its host, or with a key in its query. An expression that RE2 (Arrow) knows, too."""

_IN_URI = re.compile(IN_URI)
_CERTAIN = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|TOKEN(?![A-Z])|(API|ACCESS|ACCOUNT|PRIVATE|SIGNING|STORAGE)_?KEY"
    r"|(^|_)PASS_?\d*$|_PWD_?\d*$",
    re.IGNORECASE,
)
_LIKELY = re.compile(r"(^|_)(AUTH|KEY)_?\d*$|TOKENS", re.IGNORECASE)
"""Names of what may as well be a plugin's, a column's or a number: a value counts only where it is LONG."""
_NOT_VALUES = re.compile(
    r"(^|_)(FILE|PATH|DIR|ID|MODE|URI|URL|NAME|ARN|TYPE|METHOD|ALGORITHM|PROFILE|HOST|PORT|ADDR|PROTO|ENDPOINT"
    r"|TTL|EXPIRY|EXPIRATION|LIFETIME|TIMEOUT|LENGTH|ENABLED|VERSION)$"
    r"|(^|_)(PUBLIC|PRIMARY|FOREIGN|SORT|PARTITION|CACHE)_?KEY|^MLFLOW_TRACKING_AUTH$",  # a plugin's name
    re.IGNORECASE,
)
_NOBODYS = {"true", "false", "yes", "no", "on", "off", "none", "null", "test", "testing", "dummy"}
"""Switches, and what stands where a local store wants some key: every second message has one of these words."""
_LOGIN = re.compile(rf"([a-zA-Z][a-zA-Z0-9+.\-]*://)([^/\s@?#'\"]*:{_PASSWORD}|[^/\s@?#'\":]+)@")
_IN_QUERY = re.compile(
    rf"([?&](?:[^&=\s]*(?:{_KEYS})[^&=\s]*|sig)=)[^&\s'\"]+?(?=[:,;.]?(?:[&\s'\"]|$))", re.IGNORECASE
)


def held_secrets() -> Iterator[tuple[str, str]]:
    """What this process's environment keeps secret: variables and values."""
    for name, value in os.environ.items():
        if not value.strip() or value.lower() in _NOBODYS or _is_path(value):
            continue
        if not _NOT_VALUES.search(name) and (_CERTAIN.search(name) or (_LIKELY.search(name) and len(value) >= LONG)):
            yield name, value
        if password := password_of(value):
            yield name, password


def _is_path(value: str) -> bool:
    """Whether this is where a secret lies (GOOGLE_APPLICATION_CREDENTIALS) rather than the secret itself."""
    return value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value))


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
    forms = {form for _, value in held_secrets() for form in _forms(value) if len(form) >= SHORT}
    if forms:
        text = re.sub("|".join(map(_in_message, sorted(forms, key=len, reverse=True))), "***", text)
    return _IN_QUERY.sub(r"\1***", _LOGIN.sub(_hidden_login, text))


@contextlib.contextmanager
def faults_without_secrets() -> Iterator[None]:
    """What is raised within the block and would show a secret of this process leaves it without.

    For what other processes run: Ray writes a fault into its own logs before the driver, whose environment may be
    another, hears of it.
    """
    try:
        yield
    except Exception as error:
        if not any(_shows_secret(one) for one in _chain(error)):
            raise
        told = without_secrets(f"{type(error).__name__}: {error}")
        error.args = tuple(without_secrets(said) if isinstance(said, str) else said for said in error.args)
        if not _shows_secret(error):  # what reacts to its type still can
            raise error from None
    else:
        return
    raise RuntimeError(told)  # out here it has no context, which would be shown


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (one := waiting.pop()) is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def _shows_secret(error: BaseException) -> bool:
    told = "\n".join([str(error), *getattr(error, "__notes__", ())])
    return without_secrets(told) != told


def last_line(error: BaseException) -> str:
    """What Ray raised, for people: the last line, which is the innermost cause; the rest is Ray's own stack."""
    lines = [line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _forms(value: str) -> set[str]:
    """A secret as texts hold it: itself, its long lines (of a private key), and as URIs, Python and JSON write it."""
    lines = [line for line in value.splitlines() if len(line) >= LONG]
    return {value, *lines, quote(value, safe=""), repr(value)[1:-1], json.dumps(value)[1:-1]}


def _is_word(value: str) -> bool:
    return len(value) < SHORT or (len(value) < LONG and (value.isalpha() or value.isdigit()))


def _in_message(form: str) -> str:
    return rf"(?<!\w){re.escape(form)}(?!\w)" if _is_word(form) else re.escape(form)


def _in_recipe(value: str, text: str) -> bool:
    if _is_word(value):
        return re.search(rf"(?<!\S){re.escape(value)}(?!\S)", text) is not None
    return any(form in text for form in _forms(value))


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
    name = next((name for name, value in held_secrets() if _in_recipe(value, text)), None)
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
