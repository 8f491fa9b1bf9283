"""`python jobs/evaluate.py CHECKPOINT [RECIPE] [key=value ...]`: what is asked, told at once when it can't be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from polytrain.command_line import told
from polytrain.data.manifest import SPLITS
from polytrain.evaluate.parts import Asked, open_question
from polytrain.launch import make_sample_suite
from polytrain.recipe import RecipeError

EPILOG = """\
splits=[val,test]     which splits are judged: train, val, test (val and test)
tasks=[a,b]           which tasks (all that the checkpoint and the recipe share)
views=paper           views of an example, logits averaged: paper (video 4 x 3, audio 4), null (one), or
                      views.video=[2,3] views.audio=[4,1] (as the recipe's final test)
Any key of a recipe   tasks.NAME.manifest=PATH judges other examples of the same classes; tracking.uri, output,
                      data.decode_cpus as in jobs/cotrain.py

RECIPE is the checkpoint's own unless given. An evaluation of the same weights, examples and views is not run again:
its results are shown; --fresh runs it anew."""


def evaluate_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python jobs/evaluate.py",
        description=usage,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = "a checkpoint's or a run's folder, path or URI; a recipe, and values that replace its own"
    parser.add_argument("words", nargs="+", metavar="CHECKPOINT [RECIPE] [key=value ...]", help=words)
    parser.add_argument("--dry-run", action="store_true", help="print what would be judged and start nothing")
    parser.add_argument("--fresh", action="store_true", help="judge again what was judged before")
    options = parser.parse_intermixed_args(arguments)

    def run() -> int:
        question = open_question(sorted_words(options.words), prepare=make_sample_suite)
        for notice in question.notices:
            print(notice)
        if options.dry_run:
            print(question.text())
            return 0
        from polytrain.evaluate import driver  # torch and Ray, once the question is known to be right

        return driver.evaluate(question, fresh=options.fresh)

    return told(run)


def sorted_words(words: Sequence[str]) -> Asked:
    """CHECKPOINT, RECIPE and key=value words in any order. Raises RecipeError."""
    # A folder's name may have a "=" in it; what comes before the "=" of an override has no "/".
    named = [word for word in words if "=" not in word or "/" in word.partition("=")[0]]
    if not named:
        raise RecipeError("no checkpoint was given; the first word should be one")
    if len(named) > 2:
        raise RecipeError(f"{', '.join(named)}: a checkpoint and a recipe are all that is judged at a time")
    more: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if word in named:
            continue
        if key == "splits":
            more["splits"] = _listed(value)
        elif key == "tasks":
            more["tasks"] = _listed(value)
        elif key == "views" or key.startswith("views."):
            overrides.append(f"eval.{key}{equals}{value}")
        else:
            overrides.append(word)
    if unknown := [split for split in more.get("splits", ()) if split not in SPLITS]:
        raise RecipeError(f"splits: {', '.join(unknown)} is none of {', '.join(SPLITS)}")
    for key in ("splits", "tasks"):
        if key in more and not more[key]:
            raise RecipeError(f"{key}: name at least one")
    return Asked(named[0], named[1] if len(named) > 1 else None, tuple(overrides), **more)


def _listed(value: str) -> tuple[str, ...]:
    """`[a,b]`, `a,b` or `a`, each once."""
    names = (name.strip() for name in value.strip().removeprefix("[").removesuffix("]").split(","))
    return tuple(dict.fromkeys(filter(None, names)))
