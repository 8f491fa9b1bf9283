"""Decoding what may end its process: in a process of its own, so that one file is lost and not the work of others.

A decoder is native code, and files come from anywhere. This is slow (a process starts for every file that ends one) and
done only where a process has ended.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from ray import cloudpickle

from polytrain.scan import Decoded, Scan, decoded

ENDED = "reading it ends the process (a crash, or too little memory)"


def decoded_apart(scan: Scan, examples: Sequence[int]) -> Decoded:
    """As `scan.decoded`; what ends the process it is decoded in, is bad too."""
    pickled = cloudpickle.dumps(scan)
    pool = _process(pickled)
    parts = [decoded(scan, ())]
    try:
        for example in examples:
            try:
                parts.append(pool.submit(_decoded, example).result())
            except BrokenProcessPool:
                pool.shutdown(wait=False)
                pool = _process(pickled)
                parts[0].bad.append((example, scan.examples.name(example), ENDED))
    finally:
        pool.shutdown(wait=False)
    return Decoded(
        [one for part in parts for one in part.ids],
        np.concatenate([part.media for part in parts]),
        [one for part in parts for one in part.labels],
        [one for part in parts for one in part.bad],
    )


_scan: list[Scan] = []


def _process(pickled: bytes) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (pickled,))


def _begin(pickled: bytes) -> None:
    _scan.append(cloudpickle.loads(pickled))


def _decoded(example: int) -> Decoded:
    return decoded(_scan[0], [example])
