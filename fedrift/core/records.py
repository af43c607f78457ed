"""What a run leaves behind as numbers: tidy records, and the trajectory that they draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np
import pandas as pd

from .errors import UserError, closest_match


class Record(NamedTuple):
    """One number of one round; ``domain`` is "" and ``client`` is -1 where they do not apply."""

    round: int
    metric: str
    domain: str
    client: int
    value: float


@dataclass(frozen=True, eq=False)
class RecordColumns(Sequence[Record]):
    """Records by the column, [records] each, as a Parquet file has them; a row at a time they are what a list of them is.

    ``metric`` and ``domain`` are places in ``metrics`` and ``domains``.
    """

    round: np.ndarray
    metric: np.ndarray
    domain: np.ndarray
    client: np.ndarray
    value: np.ndarray
    metrics: tuple[str, ...]
    domains: tuple[str, ...]

    @staticmethod
    def from_records(records: Iterable[Record]) -> RecordColumns:
        """The same records by the column."""
        if isinstance(records, RecordColumns):
            return records
        metrics: dict[str, int] = {}
        domains: dict[str, int] = {}
        rows = [
            (round, metrics.setdefault(metric, len(metrics)), domains.setdefault(domain, len(domains)), client)
            for round, metric, domain, client, _ in records
        ]
        whole = np.array(rows, dtype=np.int64).reshape(-1, 4)
        values = np.array([record[4] for record in records], dtype=np.float64)
        return RecordColumns(whole[:, 0], whole[:, 1], whole[:, 2], whole[:, 3], values, tuple(metrics), tuple(domains))

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
    """A run's records as curves and tables; of rows that say the same thing the last one counts.

    Missing is NaN. ``seen`` tells a number that was never written from one that was written as NaN.
    A name that the run does not have raises UserError and lists those that it has.
    """

    records: Sequence[Record]

    @cached_property
    def _columns(self) -> RecordColumns:
        return RecordColumns.from_records(self.records)

    @cached_property
    def rounds(self) -> np.ndarray:
        """Every round that has a record, ascending, [rounds] int64."""
        return np.unique(self._columns.round).astype(np.int64)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted(self._columns.metrics[place] for place in np.unique(self._columns.metric)))

    @cached_property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted({self._columns.domains[place] for place in np.unique(self._columns.domain)} - {""}))

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """Numbers 0 to N - 1, N being one above the highest client that has a record."""
        return tuple(range(int(self._columns.client.max(initial=-1)) + 1))

    def curve(self, metric: str, domain: str = "") -> np.ndarray:
        """A metric of the federation, or of one domain, [rounds] float64 aligned with ``rounds``."""
        return self._get_series(metric, domain)[0].copy()

    def observed_mask(self, metric: str, domain: str = "") -> np.ndarray:
        """In which rounds ``curve`` has a written number, be it NaN, [rounds] bool."""
        return self._get_series(metric, domain)[1].copy()

    def client_table(self, metric: str) -> np.ndarray:
        """A metric of every client, [rounds, N] float64: column k is client k."""
        of_metric = self._series_of(metric)
        clients = [client for domain, client in of_metric if domain == "" and client >= 0]
        if not clients:
            raise UserError(f"{metric!r} is not recorded by client in this run; curve({metric!r}) has it")
        table = np.full((len(self.rounds), len(self.clients)), np.nan)
        for client in clients:
            table[:, client] = of_metric["", client][0]
        return table

    def has_curve(self, metric: str, domain: str = "") -> bool:
        """Whether ``curve(metric, domain)`` would answer."""
        return (domain, -1) in self._series_by_metric.get(metric, {})

    def has_client_table(self, metric: str) -> bool:
        """Whether ``table(metric)`` would answer."""
        return any(domain == "" and client >= 0 for domain, client in self._series_by_metric.get(metric, {}))

    def domains_of(self, metric: str) -> tuple[str, ...]:
        """The domains for which ``curve(metric, domain)`` would answer, sorted."""
        return tuple(sorted(domain for domain, client in self._series_by_metric.get(metric, {}) if domain and client < 0))

    def to_frame(self) -> pd.DataFrame:
        """One row a number: round, metric, domain, client, value, in the order of writing."""
        latest = {record[:4]: record for record in self.records}
        frame = pd.DataFrame(list(latest.values()), columns=list(Record._fields))
        return frame.astype({"round": "int64", "client": "int64", "value": "float64"})

    @cached_property
    def _series_by_metric(self) -> dict[str, dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]]:
        """metric -> (domain, client) -> values and whether each was written, both [rounds]."""
        every: dict[str, dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]] = {}
        said = self._columns
        order = np.lexsort((said.client, said.domain, said.metric))  # stable: of rows that say the same the last comes last
        keys = np.stack([said.metric, said.domain, said.client])[:, order]
        begins = np.flatnonzero(np.concatenate([[True], (np.diff(keys) != 0).any(axis=0)])) if len(order) else order
        for begin, end in pairwise([*begins.tolist(), len(order)]):
            rows = order[begin:end]
            place = np.searchsorted(self.rounds, said.round[rows])
            values, seen = np.full(len(self.rounds), np.nan), np.zeros(len(self.rounds), dtype=bool)
            values[place], seen[place] = said.value[rows], True
            metric, domain, client = keys[:, begin].tolist()
            every.setdefault(said.metrics[metric], {})[said.domains[domain], client] = values, seen
        return every

    def _series_of(self, metric: str) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        if metric not in self._series_by_metric:
            raise UserError(f"no metric {metric!r} in this run;{_suggest_name(metric, self.metrics)}")
        return self._series_by_metric[metric]

    def _get_series(self, metric: str, domain: str) -> tuple[np.ndarray, np.ndarray]:
        of_metric = self._series_of(metric)
        if (domain, -1) in of_metric:
            return of_metric[domain, -1]
        if domain:
            raise UserError(f"no {metric!r} of domain {domain!r};{_suggest_name(domain, self.domains_of(metric))}")
        raise UserError(
            f"{metric!r} has no one number for the federation; by client: table({metric!r}), by domain: {list(self.domains_of(metric))}"
        )


def final_round_indices(rounds: np.ndarray, count: int = 5) -> np.ndarray:
    """Where the last of some rounds are; round 0, which no training has touched, only where there is no other."""
    places = np.flatnonzero(rounds > 0)
    return (places if len(places) else np.arange(len(rounds)))[-count:]


def _suggest_name(name: str, known: tuple[str, ...]) -> str:
    near = closest_match(name, known)
    return (f" did you mean {near!r}?" if near else "") + f" it has {list(known)}"
