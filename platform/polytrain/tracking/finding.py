"""Runs that a store holds already: found by their tags, read without touching them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytrain.tracking.store import OPENING_S, AwayError, Store, _reason, _timeout, absolute_uri

PAGE = 500
OURS = "tags.`polytrain.kind` LIKE '%'"


@dataclass(frozen=True)
class FoundRun:
    """A run as MLflow tells of it; metrics are their last values."""

    run_id: str
    name: str
    status: str
    start_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    end_ms: int | None = None


class Finder:
    """Reads one tracking store. Every method raises AwayError while it does not answer; a sqlite file that is not
    there is made, unless told not to (`create`)."""

    def __init__(self, uri: str, *, create: bool = True) -> None:
        self.uri = absolute_uri(uri)
        self._store = Store(self.uri, create=create)

    def runs(self, tags: Mapping[str, str], *, experiment: str | None = None) -> Iterator[FoundRun]:
        """Runs that carry all these tags, newest first, of one experiment or of all."""
        yield from self._search([f"tags.`{key}` = '{value}'" for key, value in tags.items()], experiment)

    def going(self) -> Iterator[FoundRun]:
        """Runs of ours, of whatever kind, that have not ended as far as MLflow knows, newest first."""
        yield from self._search([OURS, "attributes.status = 'RUNNING'"], None)

    def ended(self) -> Iterator[FoundRun]:
        """Runs of ours that have ended, without the trials of sweeps, newest first."""
        yield from self._search([OURS, "tags.`polytrain.kind` != 'trial'", "attributes.status != 'RUNNING'"], None)

    def _search(self, conditions: list[str], experiment: str | None) -> Iterator[FoundRun]:
        wanted = " and ".join(conditions)
        experiments = self._ask(self._experiments, experiment)
        token: str | None = None
        while experiments:
            page = self._ask(
                lambda token=token: self._store.client.search_runs(
                    experiments, wanted, max_results=PAGE, order_by=["attributes.start_time DESC"], page_token=token
                )
            )
            yield from map(_found, page)
            token = page.token
            if not token:
                return

    def run(self, run_id: str) -> FoundRun | None:
        """The run of this id; None where there is none."""

        def get() -> FoundRun | None:
            try:
                return _found(self._store.client.get_run(run_id))
            except Exception as error:
                if getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

        return self._ask(get)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """A metric's values by step."""
        return self._ask(lambda: [(m.step, m.value) for m in self._store.client.get_metric_history(run_id, metric)])

    def text(self, run_id: str, artifact: str) -> str:
        """A small text artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return self._ask(lambda: Path(self._store.client.download_artifacts(run_id, artifact, folder)).read_text())

    def _experiments(self, name: str | None) -> list[str]:
        client = self._store.client
        if name is None:
            return [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.get_experiment_by_name(name)
        return [found.experiment_id] if found is not None else []

    def _ask(self, question: Any, *arguments: Any) -> Any:
        self._store.reach()
        try:
            with _timeout(OPENING_S):
                return question(*arguments)
        except Exception as error:
            raise AwayError(_reason(error)) from error


def _found(run: Any) -> FoundRun:
    info, data = run.info, run.data
    return FoundRun(
        info.run_id,
        info.run_name,
        info.status,
        info.start_time,
        dict(data.tags),
        dict(data.params),
        dict(data.metrics),
        info.end_time,
    )
