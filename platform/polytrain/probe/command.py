"""`python jobs/probe.py CHECKPOINT RECIPE [key=value ...]`: what is asked, told at once when it can't be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from polytrain.command_line import selecting_tasks, told
from polytrain.recipe import RecipeError

EPILOG = """\
grid.lr=[0.03,0.1,0.3]  rates to try, by validation: the paper's, unless given; grid.tasks.NAME.lr=[...] for one task
tasks=[a,b]             which of the recipe's tasks (all)
views=paper             views of an example in the test: paper (video 4 x 3, audio 4), null (one), views.video=[2,3]
probe.conversion=code   videos on a model that knows none: its kernel in the central frame, not in every one (paper)
Any other key of a recipe

CHECKPOINT is a checkpoint's or a run's folder, or anything that model.init takes. RECIPE has the new tasks; model is
the checkpoint's, and so are modalities that the recipe does not give. Heads are new ones, also for tasks that the
checkpoint has. Features are computed once for all heads, and kept in OUTPUT/features, unless a task has augment,
mixup_alpha or drop_path: then its heads are trained by the ordinary loop through the frozen model."""


def probe_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python jobs/probe.py",
        description=usage,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = "the model, a recipe, and values that replace its own"
    parser.add_argument("words", nargs="+", metavar="CHECKPOINT RECIPE [key=value ...]", help=words)
    parser.add_argument("--dry-run", action="store_true", help="print what would be probed and start nothing")
    parser.add_argument("--fresh", action="store_true", help="train heads anew; features that are known stay")
    options = parser.parse_intermixed_args(arguments)

    def run() -> int:
        place, recipe, overrides = sorted_words(options.words)
        from polytrain.launch import make_sample_suite
        from polytrain.probe.opening import open_probing

        probing = open_probing(place, recipe, overrides, prepare=make_sample_suite)
        from polytrain.probe import driver  # Ray, once the probe is known to be right

        return driver.dry_run(probing) if options.dry_run else driver.probe(probing, fresh=options.fresh)

    return told(run)


def sorted_words(words: Sequence[str]) -> tuple[str, str, list[str]]:
    """CHECKPOINT, RECIPE and key=value words in any order. Raises RecipeError."""
    # A folder's name may have a "=" in it; what comes before the "=" of an override has no "/".
    named = [word for word in words if "=" not in word or "/" in word.partition("=")[0]]
    if len(named) != 2:
        raise RecipeError(
            f"a checkpoint and a recipe are needed, {' and '.join(named) or 'neither'} was given"
            if len(named) < 2
            else f"{', '.join(named)}: one checkpoint and one recipe are needed"
        )
    overrides = [word for word in words if word not in named]
    return *named, [f"eval.{w}" if w.startswith(("views=", "views.")) else selecting_tasks(w) for w in overrides]
