"""What `jobs/prepare.py` can do: `COMMANDS`, one entry a command; another one is another entry.

What is wrong with a collection raises IngestError before anything is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from polytrain.data.importers.collection import IngestError
from polytrain.data.importers.registry import IMPORTERS
from polytrain.data.manifest import ManifestError
from polytrain.ingest import datasets
from polytrain.secrecy import without_secrets

BAD_INPUT = 2


@dataclass(frozen=True)
class Command:
    """One `jobs/prepare.py NAME`: its flags and what it does with them."""

    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def command_in(module: str, help: str) -> Command:
    """A command whose module has `add_flags(parser)` and `run(options)`, imported only when it is asked for."""
    return Command(
        help,
        lambda parser: import_module(module).add_flags(parser),
        lambda options: import_module(module).run(options),
    )


COMMANDS: dict[str, Command] = {
    "sample": command_in("polytrain.ingest.sample", "make the sample suite: eight small tasks, real media"),
    "folder": command_in("polytrain.ingest.folders", "a folder ROOT/{train,val,test}/<class>/<file>"),
    "csv": command_in("polytrain.ingest.tables", "a table path,label[;label],split"),
    "preview": command_in("polytrain.preview", "a contact sheet of a manifest: examples, classes, counts"),
    "stats": command_in("polytrain.stats", "mean and deviation of sounds, as the recipe's lines"),
    "pack": command_in("polytrain.packing", "a manifest's media into Parquet shards, for collections of many files"),
} | {
    name: Command(importer.help, partial(datasets.add_flags, importer), partial(datasets.run, name, importer))
    for name, importer in IMPORTERS.items()
}


def prepare_command(usage: str, arguments: Sequence[str] | None = None) -> int:
    """`python jobs/prepare.py NAME ...`. Returns the exit code; what is wrong is one message on stderr and 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python jobs/prepare.py", description=usage)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        help = command.help.replace("%", "%%")
        subparser = subparsers.add_parser(name, help=help, description=command.help)
        if name == chosen:  # only its module is imported
            command.add_flags(subparser)
    options = parser.parse_args(arguments)
    try:
        COMMANDS[options.command].run(options)
    except (IngestError, ManifestError, OSError) as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0
