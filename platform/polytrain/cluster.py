"""Joining Ray: the cluster that RAY_ADDRESS names (Ray sets it in a submitted job), else one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Read by Ray as it starts, in this process and in its workers. A quicker look at the worker group ends a run sooner;
# preemption is answered by restarting from the newest checkpoint anyway.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray gives its workers the lowest priority but four: on a laptop, whatever else runs would starve training.
    "RAY_worker_niceness": "0",
}

# What Ray Train passes on to its processes begins with one of these, and what it adds.
_PASSED_ON = ("RAY_TRAIN_", "NCCL_", "TORCHFT_")
_ADDED = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}

# For a Ray of our own: no processes are started before anybody asks, and none that waits is ended.
OWN_PROCESSES = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "1000",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}

# What makes Ray use the loopback address on macOS and Windows makes it do so here. Otherwise a dozen ports of a run on
# one machine would be open to its network.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def is_own() -> bool:
    """Whether Ray is, or would be, started here for this process, and ends with it."""
    return not os.environ.get("RAY_ADDRESS")


def train_environment() -> dict[str, str]:
    """What the processes of a Ray Train run have in their environment, and some more. In a Ray of our own all others
    have it, too: what was started for one task may then serve another."""
    return {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)} | _ADDED


def connect(cpus: int | None = None) -> bool:
    """Join Ray without its chatter; a Ray started here gets `cpus` (its cores) and listens on loopback only.

    Says whether it was joined just now.
    """
    for key, value in (SETTINGS | LOOPBACK | OWN_PROCESSES if is_own() else SETTINGS).items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        return False
    # Workers' own printing is Ray's chatter to a user: what matters comes through the run folder.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if is_own():
        _start(num_cpus=cpus, include_dashboard=False, runtime_env={"env_vars": train_environment()}, **quiet)
    else:
        ray.init(**quiet)
    return True


def _start(**settings: Any) -> None:
    """A Ray of our own. Ray gives a node 30 s to come up, which a busy laptop may not keep: once more, then."""
    import ray

    try:
        ray.init(address="local", **settings)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        ray.init(address="local", **settings)


@contextlib.contextmanager
def joined(cpus: int | None = None) -> Iterator[None]:
    """Within the block Ray is there; what was started here, with `cpus` (its cores), ends with it."""
    here = connect(cpus)
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
