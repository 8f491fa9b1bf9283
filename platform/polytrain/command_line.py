"""What the jobs share on the command line: a recipe, overrides and flags in any order, and errors for people."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from polytrain.data.manifest import ManifestError
from polytrain.data.storage import StorageError
from polytrain.predict import InputError
from polytrain.recipe import RecipeError, describe
from polytrain.recipe_file import load
from polytrain.run_folder import BusyError
from polytrain.secrecy import without_secrets
from polytrain.training.checkpoint import CheckpointError

BAD_INPUT, FAULT = 2, 1
RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
"""The recipes that come with the repository; jobs run from a checkout."""


def cotrain_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/cotrain.py [RECIPE] [key.path=value ...] [--dry-run] [--fresh]`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python jobs/cotrain.py",
        description=usage,
        epilog="Keys of a recipe\n\n" + describe().replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = "a recipe (jobs/recipes/sample.yaml unless given) and values that replace its own"
    parser.add_argument("words", nargs="*", metavar="[RECIPE] [key.path=value ...]", help=words)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--fresh", action="store_true", help="start over, also where a checkpoint or a result exists")
    options = parser.parse_intermixed_args(arguments)

    def run() -> int:
        path, overrides = split_words(options.words)
        recipe = load(path or RECIPES / "sample.yaml", overrides)
        from polytrain import launch  # after the recipe is known to be right: a mistake is told at once

        return launch.dry_run(recipe) if options.dry_run else launch.cotrain(recipe, fresh=options.fresh)

    return told(run)


def sweep_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/sweep.py [RECIPE] [tasks=[a,b]] [grid.KEY=[...]] [--dry-run]`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python jobs/sweep.py",
        description=usage,
        epilog="Points: grid.lr=[0.03,0.1,0.3], grid.KEY=[...] for a key of tasks, grid.optimizer.weight_decay=[...] "
        "for\nanother; or search.sampler=tpe search.trials=20 search.lr=[0.001,1]. tasks=[a,b] sweeps some tasks "
        "only.\nA trial that finished before, in any sweep, is not run again.\n\nKeys of a recipe\n\n"
        + describe().replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = "a recipe (jobs/recipes/sample.yaml unless given) and values that replace its own"
    parser.add_argument("words", nargs="*", metavar="[RECIPE] [key.path=value ...]", help=words)
    parser.add_argument("--dry-run", action="store_true", help="print the points and start nothing")
    options = parser.parse_intermixed_args(arguments)

    def run() -> int:
        path, overrides = split_words(options.words)
        recipe = load(path or RECIPES / "sample.yaml", [selecting_tasks(word) for word in overrides])
        from polytrain.sweep import driver

        return driver.dry_run(recipe) if options.dry_run else driver.sweep(recipe)

    return told(run)


def selecting_tasks(word: str) -> str:
    """`tasks=[a,b]` selects tasks; as an override it would replace them."""
    key, _, value = word.partition("=")
    if key != "tasks":
        return word
    return f"sweep.tasks={value if value.startswith('[') else f'[{value}]'}"


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe, which is the first word without "=", and the overrides. Raises RecipeError for two recipes."""
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise RecipeError(f"two recipes were given, {plain[0]} and {plain[1]}; one is run at a time")
    return (plain[0] if plain else None), [word for word in words if "=" in word]


def told(run: Callable[[], int]) -> int:
    """Run a command; what the user got wrong is one message on stderr and exit code 2, never a traceback."""
    try:
        return run()
    except (RecipeError, ManifestError, CheckpointError, InputError, BusyError, StorageError) as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # a fault of polytrain's or of a library's, whose words are not ours
        print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        return FAULT
