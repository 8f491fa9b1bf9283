"""Every run in MLflow, whatever happens to MLflow: a journal on disk first, the store behind it.

The only part of polytrain that imports mlflow, and that only when a store is first used: the import costs a second.
"""

from polytrain.tracking.finding import Finder, FoundRun
from polytrain.tracking.store import AwayError
from polytrain.tracking.tracker import PROGRESS, Tracker, artifact_root, chosen_uri, history_of, local_uri, move

__all__ = [
    "PROGRESS",
    "AwayError",
    "Finder",
    "FoundRun",
    "Tracker",
    "artifact_root",
    "chosen_uri",
    "history_of",
    "local_uri",
    "move",
]
