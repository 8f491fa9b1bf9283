"""A recipe's file: YAML read strictly, `key.path=value` overrides merged in, then checked (recipe.py)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
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
        given = OmegaConf.from_dotlist(list(overrides))
        # Before they are merged, which resolves what other values go into.
        if called := [*_calls(tree), *_calls(OmegaConf.to_container(given, resolve=False))]:
            raise RecipeError("\n".join(f"{path}: {line}" for line in called))
        tree = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(tree), given), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {str(error).splitlines()[0]}") from None
    _check_tasks_are_known(path, before, tree)
    return check(tree, source=str(path))


def _calls(tree: Any, at: str = "") -> Iterator[str]:
    """A line for every value that calls one of OmegaConf's resolvers, such as `${oc.env:X}`.

    What a recipe holds is written down, and it may be somebody else's, a checkpoint's: it must fetch nothing from the
    machine that loads it. `${key.path}`, another value of the recipe, calls none.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _calls(value, f"{at}.{key}" if at else str(key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _calls(value, f"{at}[{number}]")
    elif isinstance(tree, str) and _calls_resolver(tree):
        yield (
            f"{at}: {tree} would be worked out where the recipe is loaded, and written down; a value that differs "
            f"from machine to machine is given on the command line, {at}=VALUE, and secrets stay in the environment"
        )


def _calls_resolver(text: str) -> bool:
    """Whether OmegaConf would call a function for this text. Raises GrammarParseError."""
    if "${" not in text:
        return False
    from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
    from omegaconf.grammar_parser import parse

    waiting = [parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
            return True
        waiting += getattr(node, "children", None) or []
    return False


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
