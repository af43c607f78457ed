"""Test the fitting of a table to its margins and the assignment of whole documents by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrift.partition.margins import (
    argsort_by_group,
    assign_documents,
    fit_columns,
    fit_margins,
    split_by_budget,
    tokens_per_group,
    uniform_table,
)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.1, 1, 50]))


@given(shapes)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_fit_meets_both_margins_exactly_and_stays_positive(shape):
    clients, count, seed, alpha = shape
    rng = np.random.default_rng(seed)
    rows, columns = rng.dirichlet(np.ones(clients)) * 1000, rng.dirichlet(np.ones(count)) * 1000
    table = fit_margins(rng.gamma(alpha, size=(clients, count)) + 1e-300, rows, columns)
    assert np.allclose(table.sum(1), rows) and np.allclose(table.sum(0), columns)
    assert (table >= 0).all()


def test_fit_does_not_change_a_table_that_has_its_margins():
    table = np.array([[3.0, 1.0], [2.0, 4.0]])
    assert np.allclose(fit_margins(table, table.sum(1), table.sum(0)), table)


def test_fit_keeps_the_odds_ratio_of_the_requested_table():
    """The nearest table in relative entropy only scales rows and columns (Deming & Stephan 1940)."""
    wish = np.array([[8.0, 1.0], [1.0, 2.0]])
    table = fit_margins(wish, np.array([5.0, 5.0]), np.array([4.0, 6.0]))
    assert np.isclose(table[0, 0] * table[1, 1] / (table[0, 1] * table[1, 0]), 16.0, rtol=1e-4)


def test_fit_moves_only_the_excess_of_an_impossible_table():
    table = fit_margins(np.eye(2) + 1e-9, np.array([5.0, 5.0]), np.array([7.0, 3.0]))
    assert np.allclose(table, [[5, 0], [2, 3]], atol=1e-3)


def test_spread_keeps_zeros_and_columns():
    table = fit_columns(np.eye(2), np.array([5.0, 5.0]), np.array([7.0, 3.0]))
    assert np.allclose(table, [[7, 0], [0, 3]])


def test_cut_assigns_a_document_to_the_part_with_its_midpoint():
    assert split_by_budget(np.array([4.0, 4.0, 4.0]), np.array([5.0, 0.0, 7.0])).tolist() == [0, 2, 2]
    assert split_by_budget(np.ones(10), np.array([3.0, 0.0, 7.0, 0.0])).tolist() == [0] * 3 + [2] * 7


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0, 1.5]), st.sampled_from([0, 0.01, 0.1, 1.0, 100]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_budgets_are_met_within_two_documents_and_mostly_within_one(seed, wildness, alpha):
    rng = np.random.default_rng(seed)
    documents = int(rng.integers(20, 500))
    group = np.unique(rng.integers(0, 8, documents), return_inverse=True)[1]
    size = np.ceil(np.exp(rng.normal(4, wildness, documents)))
    columns, clients = tokens_per_group(group, size), int(rng.integers(1, 20))
    rows = np.full(clients, columns.sum() / clients)
    share = rng.gamma(alpha, size=(clients, len(columns))) + 1e-300
    table = uniform_table(rows, columns) if alpha == 0 else fit_margins(share, rows, columns)
    partition = assign_documents(table, group, size, rng)
    got = np.array([size[held].sum() for held in partition.rows])
    off = np.abs(got - rows) / size.max()
    assert off.max() <= 2 and np.median(off) <= 1


def test_a_client_gets_no_document_of_a_group_with_share_zero():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 40)
    size = np.ceil(rng.exponential(50, 120))
    table = np.kron(np.eye(3), np.ones((2, 1)) / 2) * tokens_per_group(group, size)
    for client, rows in enumerate(assign_documents(table, group, size, rng).rows):
        assert set(group[rows]) == {client // 2}


def test_a_client_without_documents_gets_one_of_its_own_group():
    group, size = np.array([0] * 10 + [1] * 10), np.ones(20)
    table = np.array([[10, 0], [0, 9.99], [0, 0.01]])
    partition = assign_documents(table, group, size, np.random.default_rng(0))
    assert [len(rows) for rows in partition.rows] == [10, 9, 1] and partition.rows[2][0] >= 10


def test_the_mean_assignment_does_not_depend_on_the_order_of_clients():
    """The remaining documents of small cells go to random clients, not always to those with low numbers."""
    group, size = np.repeat(np.arange(20), 10), np.ones(200)
    got = np.zeros(40)
    for seed in range(20):
        partition = assign_documents(uniform_table(np.full(40, 5.0), np.full(20, 10.0)), group, size, np.random.default_rng(seed))
        got += [len(rows) for rows in partition.rows]
    assert np.abs(got / 20 - 5).max() < 1


@pytest.mark.parametrize("low, high", [(-1, 100), (0, 32_768), (-32_768, 32_768), (0, 70_000)])
def test_documents_are_sorted_by_group_as_a_plain_stable_sort_does(low, high):
    group = np.random.default_rng(0).integers(low, high, size=100_000)
    assert (argsort_by_group(group) == np.argsort(group, kind="stable")).all()
    assert not len(argsort_by_group(group[:0]))
