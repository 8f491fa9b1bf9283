"""polytrain: co-trains one vision transformer on images, videos and sounds.

`polytrain.load(CHECKPOINT).predict(paths)` uses what was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from polytrain.trained import Trained

__version__ = "0.1.0"


def load(checkpoint: str | os.PathLike) -> Trained:
    """A checkpoint, opened for use: the folder of one or of a run, a path or a URI. Raises CheckpointError."""
    from polytrain.trained import Trained  # decode workers import this package too: it stays light

    return Trained.open(checkpoint)
