"""A recipe's file: YAML read strictly, `key.path=value` overrides merged in, then checked (recipe.py)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from polytrain.recipe import Recipe, RecipeError, check


def load(
    path: str | Path, overrides: Sequence[str] = (), *, under: Mapping[str, Mapping[str, Any]] | None = None
) -> Recipe:
    """Read a recipe, apply `key.path=value` overrides, check it, and make its paths absolute.

    `under` has keys by section for a recipe that leaves them out, such as the geometry that a checkpoint knows.
    Relative paths are those of the current directory: workers run elsewhere. Raises RecipeError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    try:
        text = path.read_text()
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; a recipe is a YAML file") from None
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read: {error}") from None
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds no mapping; a recipe has keys such as tasks and modalities")
    before = tree.get("tasks")
    for section, keys in (under or {}).items():
        given = tree.get(section) or {}
        if isinstance(given, dict):
            tree[section] = {**keys, **given}
    try:
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key:
                raise RecipeError(f"override {override!r} is not of the form key.path=value")
        merged = OmegaConf.merge(OmegaConf.create(tree), OmegaConf.from_dotlist(list(overrides)))
        tree = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {str(error).splitlines()[0]}") from None
    _check_tasks_are_known(path, before, tree)
    return check(tree, source=str(path))


def _check_tasks_are_known(path: Path, before: Any, tree: dict[str, Any]) -> None:
    """Overrides may add a whole task; one that has no manifest is another's name misspelt. Raises RecipeError."""
    known = list(before) if isinstance(before, dict) else []
    for name, task in (tree.get("tasks") or {}).items() if isinstance(tree.get("tasks"), dict) else ():
        if known and name not in known and not (isinstance(task, dict) and "manifest" in task):
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean tasks.{close[0]}?" if close else f"its tasks are {', '.join(known)}"
            raise RecipeError(f"tasks.{name}: {path} has no such task; {hint}")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error and 1e-3 is a number (YAML 1.2), not a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _float_loader() -> None:
    import re

    number = re.compile(r"^[-+]?(\d[\d_]*)?(\.\d*)?[eE][-+]?\d+$")
    _StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))


_float_loader()


def _nearest_file(path: Path) -> str:
    names = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1, 0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
