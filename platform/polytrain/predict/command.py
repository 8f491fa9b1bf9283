"""`python jobs/predict.py CHECKPOINT [--task NAME] PATHS... [--out FILE.parquet] [--top K]`, `jobs/describe.py`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

import pyarrow.parquet as pq

from polytrain.command_line import told
from polytrain.data import storage
from polytrain.predict import InputError
from polytrain.predict.files import asked
from polytrain.predict.ranking import Ranking
from polytrain.progress import Progress
from polytrain.report import duration
from polytrain.secrecy import without_secrets
from polytrain.text_table import table
from polytrain.trained import Trained

SHOWN = 20
"""Files of which the terminal shows a line each a task; a file holds all."""

FEW = 16
"""So many files are predicted in this process: starting Ray on this machine would take longer."""


def predict_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 where a file could be read, 1 where none could, 2 where nothing could be asked."""
    parser = argparse.ArgumentParser(
        prog="python jobs/predict.py",
        description=usage,
        epilog="A folder's files are sorted into pictures, videos and sounds by their suffixes. Files that can't be "
        "read are listed on\nstderr, the rest is predicted. A file is shown to the model as in the final test of its "
        "run (eval.views of its recipe).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's or a run's folder; a path or a URI")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="files, folders, manifests (.parquet); paths or URIs")
    parser.add_argument("--task", metavar="NAME", help="one task; without it all tasks of a file's modality")
    parser.add_argument("--out", metavar="FILE.parquet", help="writes columns path, task, rank, class, probability")
    parser.add_argument("--top", metavar="K", type=_positive, default=5, help="classes a file and task (5)")
    options = parser.parse_intermixed_args(arguments)

    def run() -> int:
        _check_out(options.out)
        trained = Trained.open(options.checkpoint)
        return predict(trained, options.paths, task=options.task, out=options.out, top=options.top)

    return told(run)


def predict(trained: Trained, paths: Sequence[str], *, task: str | None, out: str | None, top: int) -> int:
    """Predict, print and write. Returns the exit code."""
    question = asked(trained, paths, task)
    if note := question.note():
        print(f"files left out: {note}", file=sys.stderr)
    ranking = Ranking(trained, question, top)
    started = time.monotonic()
    whole = not question.files or _answer(trained, ranking)
    for path, reason in ranking.bad:
        print(without_secrets(f"can't be read: {path}: {reason}"), file=sys.stderr)
    if not ranking.predicted:
        print("error: none of the files could be read", file=sys.stderr)
        return 1
    print(_shown(ranking))
    if out:
        _write(ranking, out)
    bad = f", {len(ranking.bad):,} can't be read" if ranking.bad else ""
    print(f"\n{ranking.predicted:,} files predicted in {duration(time.monotonic() - started)}{bad}")
    print(f"all of them in {out}" if out else "--out FILE.parquet keeps them")
    return 0 if whole else 1


def _answer(trained: Trained, ranking: Ranking) -> bool:
    """Whether the model has come to the end of the files."""
    scans, files = ranking.scans(), ranking.asked.files
    if files <= FEW and not os.environ.get("RAY_ADDRESS"):
        from polytrain.scan import run_here

        ranking.take(run_here(trained.forward(), scans))
        return True
    from polytrain.inference import LostError, run_scans

    try:
        with Progress("predicting", files, "files") as progress:
            ranking.take(run_scans(trained.portable(), scans, progress=progress.add))
    except LostError as error:
        print(f"error: {error}; {progress.done:,} of {files:,} files were reached", file=sys.stderr)
        return False
    return True


def _shown(ranking: Ranking) -> str:
    rows, last, files = [], None, 0
    for path, clip, task, classes, probabilities in ranking.best():
        if (path, clip) != last:
            last, files = (path, clip), files + 1
            if files > SHOWN:
                break
        (name, best), *others = [(task.classes[i], f"{100 * p:.1f} %") for i, p in zip(classes, probabilities)]
        rows.append([path, task.name, name, best, ", ".join(f"{name} {p}" for name, p in others)])
    text = table(["file", "task", "class", "probability", "next"], rows)
    more = ranking.predicted - SHOWN
    return text + (f"\nand {more:,} files more" if more > 0 else "")


def _write(ranking: Ranking, out: str) -> None:
    with storage.write_whole(out) as temporary, pq.ParquetWriter(temporary, ranking.schema, compression="zstd") as file:
        for part in ranking.tables():
            file.write_table(part)


def _check_out(out: str | None) -> None:
    """What is wrong with the name is told before anything is predicted."""
    if out is None:
        return
    if not out.partition("?")[0].endswith(".parquet"):
        raise InputError(f"--out {out}: a Parquet file is written; its name should end in .parquet")
    local = storage.local_path(out)
    if local is not None and os.path.isdir(local):
        raise InputError(f"--out {out}: is a folder")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


# --- describe ----------------------------------------------------------------------------------------------------


def describe_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python jobs/describe.py", description=usage)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's or a run's folder; a path or a URI")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--recipe", action="store_true", help="print the resolved recipe, which reruns the run")
    what.add_argument("--json", action="store_true", help="print state.json, for programs")
    options = parser.parse_args(arguments)

    def run() -> int:
        trained = Trained.open(options.checkpoint)
        if options.recipe:
            print((trained.path / "recipe.yaml").read_text(), end="")
        else:
            print(json.dumps(trained.state, indent=1) if options.json else trained.about())
        return 0

    return told(run)
