"""Assignment of whole documents to clients from a target table of tokens by client and domain.

``fit_margins`` or ``fit_columns`` scales the target table [N, T] until its rows sum to the clients' budgets and its columns sum
to the domains' tokens. ``assign_documents`` then cuts each domain's shuffled documents in proportion to the fitted column.
The rounding error of a client in one domain is carried into its next domain. No draw is repeated, and no document is dropped.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .base import Partition

# Smallest entry of a row relative to its largest. Positive entries make all margins feasible, and such a small value is used only if
# the margins cannot be met otherwise.
MIN_ENTRY = 1e-200
MARGIN_TOLERANCE = 1e-6  # relative error at which the iteration stops; ``fit_margins`` then distributes the remainder exactly


def tokens_per_group(group: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the number of tokens of each group of documents, [T] float64."""
    return np.bincount(group, weights=size)


def uniform_table(row_totals: np.ndarray, column_totals: np.ndarray) -> np.ndarray:
    """Return the target table of severity 0, [N, T], in which every client has the mixture of the whole corpus."""
    return np.outer(row_totals, column_totals) / column_totals.sum()


def fit_margins(table: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray, max_iterations: int = 2000) -> np.ndarray:
    """Return the table that has exactly the given margins and is closest to the target table in relative entropy.

    The table is scaled by Sinkhorn-Knopp iterations (iterative proportional fitting: Deming & Stephan 1940; Sinkhorn 1967) and then
    rounded as in Altschuler, Weed & Rigollet (NeurIPS 2017, arXiv:1705.09634, Algorithm 2). The rounding meets both margins exactly
    even if the iterations have not converged. Zeros of the target table become positive only if the margins cannot be met otherwise.

    Args:
        table: Target tokens of each client and group, [N, T].
        row_totals: Tokens of each client, [N].
        column_totals: Tokens of each group, [T].
        max_iterations: Largest number of Sinkhorn-Knopp iterations.

    Returns:
        The fitted table, [N, T].
    """
    row_maximum = table.max(axis=1, keepdims=True)
    # MIN_ENTRY lets a client whose own groups are empty receive documents of other groups.
    table = table / np.where(row_maximum > 0, row_maximum, 1.0) + MIN_ENTRY
    table = _sinkhorn(table, row_totals, column_totals, max_iterations)
    table = table * np.minimum(1.0, row_totals / table.sum(axis=1))[:, None]
    table = table * np.minimum(1.0, _safe_ratio(column_totals, table.sum(axis=0)))
    row_deficit = np.maximum(row_totals - table.sum(axis=1), 0.0)
    column_deficit = np.maximum(column_totals - table.sum(axis=0), 0.0)
    return table + np.outer(row_deficit, column_deficit) / max(column_deficit.sum(), 1e-300)


def fit_columns(table: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray, max_iterations: int = 2000) -> np.ndarray:
    """Scale the table to the column totals exactly and to the row totals as closely as possible.

    Unlike in ``fit_margins``, zeros of the table stay zero.

    Args:
        table: Target tokens of each client and group, [N, T].
        row_totals: Tokens of each client, [N].
        column_totals: Tokens of each group, [T].
        max_iterations: Largest number of Sinkhorn-Knopp iterations.
    """
    return _sinkhorn(table, row_totals, column_totals, max_iterations)


def _sinkhorn(table: np.ndarray, row_totals: np.ndarray, column_totals: np.ndarray, max_iterations: int) -> np.ndarray:
    for _ in range(max_iterations):
        table = table * _safe_ratio(row_totals, table.sum(axis=1))[:, None]
        column_sums = table.sum(axis=0)
        table = table * _safe_ratio(column_totals, column_sums)
        if np.abs(column_sums - column_totals).sum() <= MARGIN_TOLERANCE * column_totals.sum():
            break
    return table


def _safe_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)


def assign_documents(table: np.ndarray, group: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> Partition:
    """Assign documents so that client k holds about ``table[k, t]`` tokens of group t and about its row total overall.

    A client's total is off by about one document (two at most in thousands of random trials). To achieve this, the rounding error of
    a client in one group is carried into its next group, and the groups with the shortest documents come last. The carried amount is
    at most the entry itself, so a client receives no documents of a group in which its entry is zero. The exception is a client that would
    hold no document: it receives one document of a client that has more than one.

    Args:
        table: Tokens of each client and group, [N, T]. The columns must sum to the groups' tokens.
        group: Group of each document, [D] in 0..T-1.
        size: Tokens of each document, [D], all positive.
        rng: Random generator that shuffles documents and clients.
    """
    num_clients, num_groups = table.shape
    order = rng.permutation(len(group))
    order = order[argsort_by_group(group[order])]
    # Sizes and owners are gathered and scattered once, because random access to memory is most of the time of a large corpus.
    sizes, owners = size[order], np.empty(len(group), dtype=np.int64)
    ends = np.cumsum(np.bincount(group, minlength=num_groups))
    members = [slice(end - count, end) for end, count in zip(ends, np.diff(ends, prepend=0), strict=True)]
    client_orders = [rng.permutation(num_clients) for _ in range(num_groups)]

    carry = np.zeros(num_clients)
    longest_document = [sizes[rows].max(initial=0.0) for rows in members]
    for t in np.argsort(longest_document, kind="stable")[::-1]:
        rows, client_order, column = members[t], client_orders[t], table[:, t]
        if rows.start == rows.stop:
            continue
        target = column + np.clip(carry, -column, column)
        target = column if target.sum() <= 0 else target * (sizes[rows].sum() / target.sum())
        owners[rows] = client_order[split_by_budget(sizes[rows], target[client_order])]
        carry += column - np.bincount(owners[rows], weights=sizes[rows], minlength=num_clients)
    owner = np.empty_like(owners)
    owner[order] = owners
    _fill_empty_clients(owner, group, table)
    return partition_from_owners(owner, num_clients)


def split_by_budget(size: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Cut a list of documents into consecutive pieces of about the given sizes.

    A document belongs to the piece that contains its midpoint. Each cut is therefore off by at most half a document, and a piece with
    budget 0 is empty.

    Args:
        size: Tokens of each document, [D].
        budgets: Relative size of each piece, [P].

    Returns:
        Piece of each document, [D].
    """
    ends = np.cumsum(size)
    edges = np.cumsum(budgets)
    piece = np.searchsorted(edges * (ends[-1] / edges[-1]), ends - size / 2, side="right")
    return np.minimum(piece, np.flatnonzero(budgets > 0)[-1])


def argsort_by_group(group: np.ndarray) -> np.ndarray:
    """Return the indices that sort documents by their group, [D]; documents of one group keep their order.

    The time is linear in the number of documents for groups from -32,768 to 32,767, because numpy sorts integers of two bytes by radix
    sort.

    Args:
        group: Group of each document, [D] integers.
    """
    limits = np.iinfo(np.int16)
    is_small = bool(len(group)) and limits.min <= group.min() and group.max() <= limits.max
    return np.argsort(group.astype(np.int16) if is_small else group, kind="stable")


def partition_from_owners(owner: np.ndarray, num_clients: int) -> Partition:
    """Return the partition in which document d belongs to client ``owner[d]``.

    Args:
        owner: Client of each document, [D].
        num_clients: N, the number of clients.
    """
    order = argsort_by_group(owner)
    edges = np.cumsum(np.bincount(owner, minlength=num_clients))
    return Partition(tuple(order[start:end] for start, end in pairwise((0, *edges))))


def _fill_empty_clients(owner: np.ndarray, group: np.ndarray, table: np.ndarray) -> None:
    """Give each client without a document one document of its largest group if another client can spare one, else of any group."""
    num_clients = len(table)
    num_documents = np.bincount(owner, minlength=num_clients)
    for client in np.flatnonzero(num_documents == 0):
        can_spare = num_documents[owner] > 1
        in_main_group = can_spare & (group == table[client].argmax())
        rows = np.flatnonzero(in_main_group if in_main_group.any() else can_spare)
        row = rows[num_documents[owner[rows]].argmax()]
        num_documents[owner[row]] -= 1
        num_documents[client] += 1
        owner[row] = client
