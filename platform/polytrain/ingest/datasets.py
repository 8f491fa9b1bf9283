"""`jobs/prepare.py NAME` for every dataset with an importer of its own."""

from __future__ import annotations

import argparse

from polytrain.data.importers.importer import Importer
from polytrain.ingest import options as common
from polytrain.ingest.preparing import prepare
from polytrain.progress import Progress, ticking


def add_flags(importer: Importer, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help=f"folder or URI that has {importer.layout}".replace("%", "%%"))
    importer.add_flags(parser)
    common.add_flags(parser, splitting=False)


def run(name: str, importer: Importer, options: argparse.Namespace) -> None:
    options.missing = options.missing or "skip"
    with Progress("looking for the annotated files", None, "files") as progress, ticking(progress):
        collection = importer.read(options, progress)
    prepare(collection, options, name)
