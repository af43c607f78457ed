"""From a wished client-by-domain table to whole documents in clients' hands.

Three steps: ``fit_margins`` or ``fit_columns`` scales the table [N, T] until its rows sum to the clients' budgets and its
columns to the domains' tokens; ``assign_documents`` cuts each domain's shuffled documents by the fitted column and
carries what rounding to whole documents gave too much or too little into the client's next domain. Nothing is
drawn again, nothing is lost.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .base import Partition

MIN_ENTRY = 1e-200  # of the largest entry of a row: any margins can be reached, the least unwished entries first
MARGIN_TOLERANCE = 1e-6  # margins are met to this share before what is left is spread (``fit_margins`` then meets them exactly)


def tokens_per_group(group: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Tokens of each group of documents, [T] float64."""
    return np.bincount(group, weights=size)


def uniform_table(row_totals: np.ndarray, column_totals: np.ndarray) -> np.ndarray:
    """The table of severity 0, [N, T]: every client is the pool in small."""
    return np.outer(row_totals, column_totals) / column_totals.sum()


def fit_margins(table: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray, max_iterations: int = 2000) -> np.ndarray:
    """The table [N, T] nearest in relative entropy to the wished one, with just these margins.

    Sinkhorn-Knopp sweeps (iterative proportional fitting: Deming & Stephan 1940; Sinkhorn 1967), then the
    rounding of Altschuler, Weed & Rigollet (NeurIPS 2017, arXiv:1705.09634, Algorithm 2), which meets both
    margins exactly however far the sweeps came. Zeros of the wished table take mass only where the margins
    cannot be met without them.
    """
    most = table.max(axis=1, keepdims=True)
    table = table / np.where(most > 0, most, 1.0) + MIN_ENTRY  # a client whose own groups are empty takes what there is
    table = _sinkhorn(table, row_totals, column_totals, max_iterations)
    table = table * np.minimum(1.0, row_totals / table.sum(axis=1))[:, None]
    table = table * np.minimum(1.0, _safe_ratio(column_totals, table.sum(axis=0)))
    short = np.maximum(row_totals - table.sum(axis=1), 0.0)
    gap = np.maximum(column_totals - table.sum(axis=0), 0.0)
    return table + np.outer(short, gap) / max(gap.sum(), 1e-300)


def fit_columns(table: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray, max_iterations: int = 2000) -> np.ndarray:
    """Like ``fit_margins``, but zeros of the table [N, T] stay zeros: columns are met, rows as nearly as can be."""
    return _sinkhorn(table, row_totals, column_totals, max_iterations)


def _sinkhorn(table: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray, max_iterations: int) -> np.ndarray:
    for _ in range(max_iterations):
        table = table * _safe_ratio(row_totals, table.sum(axis=1))[:, None]
        got = table.sum(axis=0)
        table = table * _safe_ratio(column_totals, got)
        if np.abs(got - column_totals).sum() <= MARGIN_TOLERANCE * column_totals.sum():
            break
    return table


def _safe_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)


def assign_documents(table: np.ndarray, group: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> Partition:
    """Deal documents so that client k holds about ``table[k, t]`` tokens of group t and its row in all.

    ``table`` [N, T] with the groups' tokens as column sums, ``group`` [D] in 0..T-1, ``size`` [D] > 0. A
    client's total is off by about one document (two at most in thousands of random trials): each group's
    rounding is carried into the client's next group, the groups with the shortest documents last. A cell at
    most doubles by it, so that a client never gets documents of a group in which it has no share. A client
    left with nothing gets one document of the richest.
    """
    clients, groups = table.shape
    owner = np.empty(len(group), dtype=np.int64)
    mixed = rng.permutation(len(group))
    mixed = mixed[np.argsort(group[mixed], kind="stable")]
    members = np.split(mixed, np.searchsorted(group[mixed], np.arange(1, groups)))
    seats = [rng.permutation(clients) for _ in range(groups)]

    carry = np.zeros(clients)
    longest = [size[rows].max(initial=0.0) for rows in members]
    for t in np.argsort(longest, kind="stable")[::-1]:
        rows, seat, column = members[t], seats[t], table[:, t]
        if not len(rows):
            continue
        want = column + np.clip(carry, -column, column)
        want = column if want.sum() <= 0 else want * (size[rows].sum() / want.sum())
        owner[rows] = seat[split_by_budget(size[rows], want[seat])]
        carry += column - np.bincount(owner[rows], weights=size[rows], minlength=clients)
    _fill_empty_clients(owner, group, table)
    return partition_from_owners(owner, clients)


def split_by_budget(size: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Cut a list of documents into pieces of about the given amounts; which piece each is in, [D].

    A document goes to the piece in which its middle lies, so a cut is off by half a document at most and a
    piece of amount 0 is empty.
    """
    ends = np.cumsum(size)
    edges = np.cumsum(budgets)
    piece = np.searchsorted(edges * (ends[-1] / edges[-1]), ends - size / 2, side="right")
    return np.minimum(piece, np.flatnonzero(budgets > 0)[-1])


def partition_from_owners(owner: np.ndarray, num_clients: int) -> Partition:
    """The partition in which document d is held by ``owner[d]``; -1 is nobody."""
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(num_clients + 1))
    return Partition(tuple(order[start:end] for start, end in pairwise(edges)))


def _fill_empty_clients(owner: np.ndarray, group: np.ndarray, table: np.ndarray) -> None:
    """Give each client without a document one of its own main group, where one can be spared, or any."""
    clients = len(table)
    held = np.bincount(owner, minlength=clients)
    for client in np.flatnonzero(held == 0):
        spare = held[owner] > 1
        own = spare & (group == table[client].argmax())
        rows = np.flatnonzero(own if own.any() else spare)
        row = rows[held[owner[rows]].argmax()]
        held[owner[row]] -= 1
        held[client] += 1
        owner[row] = client
