"""Records of metrics, one number per record, and their view as curves and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np

from .errors import UserError, closest_match
from .lazy_imports import pd


class Record(NamedTuple):
    """One value of a metric.

    Args:
        round: The round; 0 is the evaluation before training.
        metric: The name of the metric.
        domain: The domain; "" if the value is not of one domain.
        client: The client; -1 if the value is not of one client.
        value: The value; NaN if it is missing.

    Example:
        >>> Record(round=1, metric="loss", domain="", client=-1, value=4.5).metric
        'loss'
    """

    round: int  # 0 is the evaluation before training
    metric: str
    domain: str  # "" if the value is not of one domain
    client: int  # -1 if the value is not of one client
    value: float


@dataclass(frozen=True, eq=False)
class RecordColumns(Sequence[Record]):
    """Records in columns, as in a Parquet file. As a sequence it behaves like the list of the records."""

    round: np.ndarray  # [records]
    metric: np.ndarray  # [records] indices into ``metrics``
    domain: np.ndarray  # [records] indices into ``domains``
    client: np.ndarray  # [records]
    value: np.ndarray  # [records]
    metrics: tuple[str, ...]
    domains: tuple[str, ...]

    @staticmethod
    def from_records(records: Iterable[Record]) -> RecordColumns:
        """Convert records to columns; return ``records`` unchanged if they are in columns already."""
        if isinstance(records, RecordColumns):
            return records
        metrics: dict[str, int] = {}
        domains: dict[str, int] = {}
        rows = [
            (round, metrics.setdefault(metric, len(metrics)), domains.setdefault(domain, len(domains)), client)
            for round, metric, domain, client, _ in records
        ]
        indices = np.array(rows, dtype=np.int64).reshape(-1, 4)
        values = np.array([record[4] for record in records], dtype=np.float64)
        return RecordColumns(indices[:, 0], indices[:, 1], indices[:, 2], indices[:, 3], values, tuple(metrics), tuple(domains))

    def __len__(self) -> int:
        return len(self.value)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | Sequence[Record]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        return Record(
            int(self.round[place]),
            self.metrics[self.metric[place]],
            self.domains[self.domain[place]],
            int(self.client[place]),
            float(self.value[place]),
        )

    def __iter__(self) -> Iterator[Record]:
        for round, metric, domain, client, value in zip(
            *(column.tolist() for column in (self.round, self.metric, self.domain, self.client, self.value)), strict=True
        ):
            yield Record(round, self.metrics[metric], self.domains[domain], client, value)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The records of a run as curves over rounds and tables over clients.

    If several records have the same round, metric, domain and client, the last one counts. Missing values are NaN;
    ``observed_mask`` distinguishes a missing value from a recorded NaN. Methods raise ``UserError`` for a name that the run has
    not recorded, and the message lists the recorded names.

    Args:
        records: The records of the run, in the order of recording.

    Example:
        >>> trajectory = Trajectory([Record(0, "loss", "", -1, 4.5), Record(1, "loss", "", -1, 4.2)])
        >>> trajectory.rounds, trajectory.curve("loss")
        (array([0, 1]), array([4.5, 4.2]))
    """

    records: Sequence[Record]

    @cached_property
    def _columns(self) -> RecordColumns:
        return RecordColumns.from_records(self.records)

    @cached_property
    def rounds(self) -> np.ndarray:
        """The rounds that have a record, ascending, ``[rounds]`` int64."""
        return np.unique(self._columns.round).astype(np.int64)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of the recorded metrics, sorted."""
        return tuple(sorted(self._columns.metrics[index] for index in np.unique(self._columns.metric)))

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains that have a record, sorted."""
        return tuple(sorted({self._columns.domains[index] for index in np.unique(self._columns.domain)} - {""}))

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """The client ids 0 to N - 1, where N - 1 is the highest id that has a record."""
        return tuple(range(int(self._columns.client.max(initial=-1)) + 1))

    def curve(self, metric: str, domain: str = "") -> np.ndarray:
        """Return the values of a metric over the rounds.

        Args:
            metric: The name of the metric.
            domain: The domain of the values; "" for the value of the whole federation.

        Returns:
            The values ``[rounds]`` in float64, aligned with ``rounds``; NaN where nothing is recorded.

        Raises:
            UserError: The metric is not recorded for this domain.
        """
        return self._get_series(metric, domain)[0].copy()

    def observed_mask(self, metric: str, domain: str = "") -> np.ndarray:
        """Return in which rounds ``curve(metric, domain)`` has a recorded value, which may be NaN, ``[rounds]`` bool."""
        return self._get_series(metric, domain)[1].copy()

    def client_table(self, metric: str) -> np.ndarray:
        """Return the values of a metric for each client.

        Returns:
            The values ``[rounds, N]`` in float64; column k is client k.

        Raises:
            UserError: The metric is not recorded per client.
        """
        series = self._series_of(metric)
        clients = [client for domain, client in series if domain == "" and client >= 0]
        if not clients:
            raise UserError(f"{metric!r} is not recorded per client in this run; use curve({metric!r})")
        table = np.full((len(self.rounds), len(self.clients)), np.nan)
        for client in clients:
            table[:, client] = series["", client][0]
        return table

    def has_curve(self, metric: str, domain: str = "") -> bool:
        """Return whether ``curve(metric, domain)`` is recorded."""
        return (domain, -1) in self._series_by_metric.get(metric, {})

    def has_client_table(self, metric: str) -> bool:
        """Return whether ``client_table(metric)`` is recorded."""
        return any(domain == "" and client >= 0 for domain, client in self._series_by_metric.get(metric, {}))

    def domains_of(self, metric: str) -> tuple[str, ...]:
        """Return the domains for which a metric is recorded, sorted."""
        return tuple(sorted(domain for domain, client in self._series_by_metric.get(metric, {}) if domain and client < 0))

    def to_frame(self) -> pd.DataFrame:
        """Return the records as a table with the columns round, metric, domain, client and value, in the order of recording."""
        latest = {record[:4]: record for record in self.records}
        frame = pd.DataFrame(list(latest.values()), columns=list(Record._fields))
        return frame.astype({"round": "int64", "client": "int64", "value": "float64"})

    @cached_property
    def _series_by_metric(self) -> dict[str, dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]]:
        """Map metric and (domain, client) to the values and to whether each is recorded, both ``[rounds]``."""
        by_metric: dict[str, dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]] = {}
        columns = self._columns
        order = np.lexsort((columns.client, columns.domain, columns.metric))  # the sort is stable, so the last duplicate stays last
        keys = np.stack([columns.metric, columns.domain, columns.client])[:, order]
        starts = np.flatnonzero(np.concatenate([[True], (np.diff(keys) != 0).any(axis=0)])) if len(order) else order
        for start, end in pairwise([*starts.tolist(), len(order)]):
            rows = order[start:end]
            index = np.searchsorted(self.rounds, columns.round[rows])
            values, observed = np.full(len(self.rounds), np.nan), np.zeros(len(self.rounds), dtype=bool)
            values[index], observed[index] = columns.value[rows], True
            metric, domain, client = keys[:, start].tolist()
            by_metric.setdefault(columns.metrics[metric], {})[columns.domains[domain], client] = values, observed
        return by_metric

    def _series_of(self, metric: str) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        if metric not in self._series_by_metric:
            raise UserError(f"no metric {metric!r} in this run;{_suggest_name(metric, self.metrics)}")
        return self._series_by_metric[metric]

    def _get_series(self, metric: str, domain: str) -> tuple[np.ndarray, np.ndarray]:
        series = self._series_of(metric)
        if (domain, -1) in series:
            return series[domain, -1]
        if domain:
            raise UserError(f"no {metric!r} of domain {domain!r};{_suggest_name(domain, self.domains_of(metric))}")
        raise UserError(
            f"{metric!r} is not recorded for the whole federation; use client_table({metric!r}) for the values per client, "
            f"or name one of the domains {list(self.domains_of(metric))}"
        )


def final_round_indices(rounds: np.ndarray, count: int = 5) -> np.ndarray:
    """Return the indices of the last ``count`` rounds of an ascending array of rounds.

    Round 0, which is the evaluation before training, is included only if there is no other round.
    """
    indices = np.flatnonzero(rounds > 0)
    return (indices if len(indices) else np.arange(len(rounds)))[-count:]


def perplexity_change_percent(gap: float) -> float:
    """Convert a difference of losses in nats per token to a percentage change of perplexity; infinite above 700 nats."""
    return math.inf if gap > 700 else 100 * math.expm1(gap)


def _suggest_name(name: str, known: tuple[str, ...]) -> str:
    match = closest_match(name, known)
    return (f" did you mean {match!r}?" if match else "") + f" it has {list(known)}"
