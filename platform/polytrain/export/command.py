"""`python jobs/export.py CHECKPOINT [key=value ...]`: what is asked, told at once when it can't be."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from polytrain.command_line import told
from polytrain.recipe import Recipe, RecipeError
from polytrain.recipe_file import load
from polytrain.trained import Trained, TrainedTask

FORMATS = ("mlflow", "pt2", "onnx")

EPILOG = """\
mlflow   a registered model: `mlflow models serve` answers files' bytes, all tasks, in an environment of its own
pt2      a torch.export program a task; needs torch to run
onnx     an ONNX graph a task; needs an ONNX runtime to run

A graph takes what a decoder delivers (uint8 frames, sound between -1 and 1) and gives probabilities and logits;
classes and preprocessing stand in its metadata. Each is compared with the model, and an error if it differs by more
than rounding.

tasks.NAME.manifest=PATH, tracking.uri, output and other keys replace those of the checkpoint's recipe."""


@dataclass(frozen=True)
class Wanted:
    """What is exported, and how."""

    trained: Trained
    recipe: Recipe
    tasks: tuple[TrainedTask, ...]
    formats: tuple[str, ...]
    int8: bool
    examples: int
    name: str
    alias: str
    folder: Path


def export_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python jobs/export.py",
        description=usage,
        epilog=EPILOG.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = "a checkpoint's or a run's folder, path or URI; values that replace its recipe's"
    parser.add_argument("words", nargs="+", metavar="CHECKPOINT | key=value", help=words)
    parser.add_argument("--task", action="append", metavar="NAME", help="graphs of this task only; may be repeated")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of %(default)s, those wanted")
    parser.add_argument("--int8", action="store_true", help="ONNX in eight bits too, and what that costs in accuracy")
    parser.add_argument(
        "--examples", type=int, default=200, help="test examples a task by which accuracy is judged (%(default)s)"
    )
    parser.add_argument("--name", help="in MLflow's registry; the recipe's name unless given")
    parser.add_argument(
        "--alias", default="current", help="that then means the new version (%(default)s), as in models:/NAME@current"
    )
    parser.add_argument("--out", metavar="DIR", help="for the graphs; beside the runs unless given")
    options = parser.parse_intermixed_args(arguments)

    def run() -> int:
        wanted = wanted_by(options)
        from polytrain.export import driver  # torch, once it is known what is wanted

        return driver.export(wanted)

    return told(run)


def wanted_by(options: argparse.Namespace) -> Wanted:
    """Raises RecipeError, CheckpointError."""
    # A folder's name may have a "=" in it; what comes before the "=" of an override has no "/".
    places = [word for word in options.words if "=" not in word or "/" in word.partition("=")[0]]
    if len(places) != 1:
        raise RecipeError(f"{len(places)} checkpoints were given; one is exported at a time")
    formats = tuple(dict.fromkeys(filter(None, (word.strip() for word in options.formats.split(",")))))
    _check_formats(formats, options.int8)
    if options.examples < 1:
        raise RecipeError(f"--examples {options.examples}: 1 at least")
    trained = Trained.open(places[0])
    overrides = [word for word in options.words if word not in places]
    recipe = load(trained.path / "recipe.yaml", overrides)
    here = any(word.startswith("output=") for word in overrides)
    if "://" in recipe.output or not (here or os.path.isdir(recipe.output)):
        # The checkpoint of another machine, whose folders are nothing to this one; or of a run that lies in a store.
        recipe = recipe.model_copy(update={"output": os.path.abspath("runs")})
    weights = trained.state["sha256"]["model.safetensors"]
    folder = Path(options.out or Path(recipe.output) / f"{recipe.name}-export-{weights[:8]}").absolute()
    _check_folder(folder)
    name = options.name or re.sub("[/:]", "_", recipe.name)
    _check_name(name, options.alias)
    return Wanted(
        trained,
        recipe,
        tuple(map(trained.task, dict.fromkeys(options.task or trained.tasks))),
        formats,
        options.int8,
        options.examples,
        name,
        options.alias,
        folder,
    )


def _check_formats(formats: Sequence[str], int8: bool) -> None:
    if unknown := [word for word in formats if word not in FORMATS]:
        raise RecipeError(f"--formats {unknown[0]}: is none of {', '.join(FORMATS)}")
    if not formats:
        raise RecipeError(f"--formats: at least one of {', '.join(FORMATS)}")
    if int8 and "onnx" not in formats:
        raise RecipeError("--int8 makes eight bits of ONNX graphs: --formats has to name onnx")
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if "onnx" in formats and lacking:
        raise RecipeError(
            f"ONNX needs {', '.join(lacking)}: pip install 'polytrain[export]' brings them, and --formats "
            f"{','.join(word for word in formats if word != 'onnx') or 'pt2'} does without"
        )


def _check_name(name: str, alias: str) -> None:
    """MLflow's own rules, told before the work."""
    if not name.strip() or set(name) & {"/", ":"}:
        raise RecipeError(f"--name {name!r}: MLflow takes names without / and :")
    if not re.fullmatch(r"[\w\-]+", alias) or alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise RecipeError(f"--alias {alias!r}: MLflow takes letters, digits, _ and -, but not latest or v1, v2, ...")


def _check_folder(folder: Path) -> None:
    """An export replaces one of before, and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "driver.lock").exists():
        raise RecipeError(f"--out {folder} holds files that are no export; an empty or a new folder would be right")
