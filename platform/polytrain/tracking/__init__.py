"""Every run in MLflow, whatever happens to MLflow: a journal on disk first, the store behind it.

The only part of polytrain that imports mlflow, and that only when a store is first used: the import costs a second.
"""

from polytrain.tracking.tracker import Tracker, history_of, local_uri

__all__ = ["Tracker", "history_of", "local_uri"]
