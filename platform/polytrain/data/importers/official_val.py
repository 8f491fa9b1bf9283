"""The choice of validation set where a dataset has one of its own and the paper holds out 2 % of train instead."""

from __future__ import annotations

import argparse


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--official-val",
        action="store_true",
        help="val is the dataset's own validation set; unless given it is the last 2 %% of train, as PolyViT's probes "
        "have it, and the dataset's own stays unused",
    )
