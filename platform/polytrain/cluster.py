"""Joining Ray: the cluster that RAY_ADDRESS names (Ray sets it in a submitted job), else one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

# Read by Ray as it starts, in this process and in its workers. A quicker look at the worker group saves three seconds
# at the end of a run; preemption is answered by restarting from the newest checkpoint anyway.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray gives its workers the lowest priority but four: on a laptop, whatever else runs would starve training.
    "RAY_worker_niceness": "0",
}


def connect(cpus: int | None = None) -> bool:
    """Join Ray without its chatter; a Ray started here gets `cpus` (its cores). Says whether it was joined just now."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        return False
    # Workers' own printing is Ray's chatter to a user: what matters comes through the run folder.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    return True


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within the block Ray is there; what was started here ends with it."""
    here = connect()
    try:
        yield
    finally:
        if here:
            import ray

            ray.shutdown()


class Fit(threading.Thread):
    """A trainer's or tuner's `fit` in a thread of its own; `error` is what it raised.

    In the main thread Ray would take Ctrl-C for itself, and abort without a checkpoint.
    """

    def __init__(self, fit: Callable[[], object]) -> None:
        super().__init__(name="fit", daemon=True)
        self._fit = fit
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._fit()
        except BaseException as error:
            self.error = error
