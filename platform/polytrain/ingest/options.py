"""What every command that prepares a collection can be told."""

from __future__ import annotations

import argparse

from polytrain.data.importers.collection import IngestError
from polytrain.data.recoding import Recoding
from polytrain.ingest.storing import Storing
from polytrain.modalities import MODALITIES

INLINE_KIB = 128
"""A 256-pixel JPEG has 20 to 40 KiB, the same as PNG about 130."""


def add_modality(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", required=True, choices=list(MODALITIES), help="what the files are")


def add_flags(parser: argparse.ArgumentParser, *, splitting: bool) -> None:
    """`splitting`: the collection has no official splits, nor annotations that say which files are the same."""
    parser.add_argument(
        "--out", required=True, help="folder or s3:// URI that manifest.parquet is written to; media stay in place"
    )
    parser.add_argument("--name", help="the task's name; unless given, that of the folder, table or dataset")
    if splitting:
        parser.add_argument("--val-fraction", type=float, default=0.1, metavar="F",
                            help="of every class's training examples for val, where there is none (0.1)")  # fmt: skip
        parser.add_argument("--test-fraction", type=float, default=0.1, metavar="F",
                            help="the same for test (0.1); 0 leaves a task without a test")  # fmt: skip
        parser.add_argument("--seed", type=int, default=0, help="which examples are split off (0)")
        parser.add_argument("--overlap", choices=("fail", "skip", "ignore"), default="fail",
                            help="a file of train that is in val or test as well, by its content: refuse (fail), leave "
                            "out of train (skip), or do not look (ignore)")  # fmt: skip
    parser.add_argument("--missing", choices=("skip", "fail"),
                        help="files that are not there or can't be re-encoded: leave out, count and list in "
                        "OUT/left_out.parquet (skip, the default; rows of a csv table need to be told so), or refuse "
                        "(fail)")  # fmt: skip
    storing = parser.add_argument_group(
        "what is stored",
        "Given any of these, media are read once, in parallel on Ray (the cluster of\n"
        "RAY_ADDRESS, or this machine); a command that was killed goes on where it stopped.",
    )
    storing.add_argument("--short-side", type=int, metavar="N",
                         help="store images and videos under OUT/media, their shorter side N pixels (never enlarged): "
                         "JPEG stays JPEG (quality 90), WebP WebP, others become PNG; video becomes H.264 made for "
                         "fast decoding, a key frame every 12 frames, without sound")  # fmt: skip
    storing.add_argument("--sample-rate", type=int, metavar="HZ",
                         help="store sounds under OUT/media as 16-bit mono WAV of this rate")  # fmt: skip
    storing.add_argument("--inline", type=int, nargs="?", const=INLINE_KIB, metavar="KIB",
                         help=f"put files of up to KIB KiB ({INLINE_KIB} unless given) into the manifest")  # fmt: skip


def storing_of(options: argparse.Namespace, modality: str) -> Storing:
    """What is to be stored; IngestError for an option of another modality."""
    if options.short_side is not None and modality == "audio":
        raise IngestError("--short-side is of images and videos; --sample-rate is what makes sounds smaller")
    if options.sample_rate is not None and modality != "audio":
        raise IngestError(f"--sample-rate is of sounds; --short-side is what makes {modality}s smaller")
    for flag, value, least, most in (
        ("--short-side", options.short_side, 8, 8192),
        ("--sample-rate", options.sample_rate, 1000, 192_000),
        ("--inline", options.inline, 1, 65_536),
    ):
        if value is not None and not least <= value <= most:
            raise IngestError(f"{flag} {value}: it should be {least} to {most}")
    return Storing(Recoding(options.short_side, options.sample_rate), (options.inline or 0) * 1024)
