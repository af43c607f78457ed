"""Test the Parquet files of runs and SQL queries over all runs."""

from __future__ import annotations

import json
import math
import os
import time

import pyarrow.parquet as pq
import pytest

from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.diagnosis.finding import final_loss
from fedrift.storage import Run, connect, jsonl, query, query_frame, query_rows
from fedrift.storage.parquet import has_value_statistics, is_parquet_stale, parquet_path, read_parquet, write_parquet
from fedrift.storage.query import _build_table, flatten

ROWS = [
    Record(0, "loss", "", -1, 4.5),
    Record(0, "loss", "sport", -1, 0.1 + 0.2),
    Record(1, "update.norm", "", 2, math.nan),
    Record(1, "loss", "", -1, math.inf),
    Record(1, "loss", "", -1, 3.25),
]


def store_run(root, id: str = "abc", **said) -> Run:
    run = Run(root, id)
    run.write_json(
        "experiment",
        {
            "algorithm": {"type": "FedProx", "mu": 0.1},
            "partition": {"type": "TopicMix", "severity": 0.5},
            "seed": 3,
            "dataset": {"name": "bbc"},
            "model": "pocket",
            "training": {"num_rounds": 3},
            **said,
            "id": id,
            "partition_table": {"tokens": [1]},
        },
    )
    run.append_records(ROWS)
    return run


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        a[:4] == b[:4] and (a[4] == b[4] or (math.isnan(a[4]) and math.isnan(b[4]))) for a, b in zip(one, other, strict=True)
    )


def test_the_parquet_file_of_a_finished_run_has_its_last_rows_bit_for_bit(tmp_path):
    run = store_run(tmp_path)
    run.mark_finished({"rounds": 1})
    assert not is_parquet_stale(run.folder)
    (run.folder / "records.jsonl").unlink()
    assert same(run.records(), [*ROWS[:3], ROWS[4]])
    assert run.trajectory().curve("loss").tolist() == [4.5, 3.25]


def test_equal_rows_give_equal_bytes(tmp_path):
    run = store_run(tmp_path)
    first = write_parquet(run.folder).read_bytes()
    os.remove(parquet_path(run.folder))
    assert write_parquet(run.folder).read_bytes() == first


def test_sql_reads_records_experiments_and_findings_of_all_runs(tmp_path):
    one, other = store_run(tmp_path), store_run(tmp_path, "def", seed=4)
    one.mark_finished({"rounds": 1, "loss": 3.25, "final_loss": 3.0, "train_tokens": 10, "seconds": {"train": 2.0, "final": 1.0}})
    other.mark_failed(1, "it broke")
    one.write_json("findings", [{"failure": "drift", "grade": "suspected", "first_round": 3, "clients": [1, 2]}])
    got = query_frame(
        tmp_path, 'SELECT run, status, algorithm, "algorithm.mu", "partition.severity", seconds, failure FROM runs ORDER BY run'
    )
    assert got.run.tolist() == ["abc", "def"]
    assert got.status.tolist() == ["finished", "failed"]
    assert got.algorithm.tolist() == ["FedProx", "FedProx"]
    assert got["algorithm.mu"].tolist() == [0.1, 0.1]
    assert got.seconds[0] == 3.0
    assert got.failure[1] == "it broke"
    joined = query_frame(
        tmp_path, "SELECT seed, min(value) v FROM records JOIN runs USING (run) WHERE metric = 'loss' AND domain = '' GROUP BY seed"
    )
    assert sorted(joined.v) == [3.25, 3.25]
    assert query_frame(tmp_path, "SELECT failure, clients FROM findings").values.tolist() == [["drift", "[1, 2]"]]


def test_new_rows_are_in_the_next_result(tmp_path):
    run = store_run(tmp_path)
    assert query_frame(tmp_path, "SELECT max(round) r FROM records").r[0] == 1
    run.append_records([Record(2, "loss", "", -1, 3.0)])
    os.utime(run.folder / "records.jsonl", ns=(2**62, 2**62))
    assert query_frame(tmp_path, "SELECT max(round) r FROM records").r[0] == 2


def test_an_empty_folder_has_no_rows_and_a_wrong_query_is_refused(tmp_path):
    assert query_frame(tmp_path, "SELECT count(*) n FROM records").n[0] == 0
    assert query_frame(tmp_path, "SELECT count(*) n FROM findings").n[0] == 0
    with pytest.raises(UserError, match="DESCRIBE runs"):
        query_frame(tmp_path, "SELECT nothing FROM runs")
    with connect(tmp_path) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_a_damaged_parquet_file_is_rebuilt_from_the_rows_or_refused(tmp_path):
    run = store_run(tmp_path)
    run.mark_finished({"rounds": 1})
    path, sound = parquet_path(run.folder), parquet_path(run.folder).read_bytes()
    spoilt = bytearray(sound)
    spoilt[sound.index(b"loss") + 1] ^= 16
    path.write_bytes(spoilt)
    with pytest.raises(UserError, match="is damaged"):
        run.trajectory()
    assert query_frame(tmp_path, "SELECT count(*) n FROM records").n[0] == 4 and path.read_bytes() == sound
    (run.folder / "records.jsonl").unlink()
    for content in (bytes(spoilt), sound[:50], b"", b"PAR1nothingPAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            run.records()
        assert query_frame(tmp_path, "SELECT status FROM runs").status.tolist() == ["unreadable"]


def test_a_changed_bit_of_a_parquet_file_never_changes_what_is_read(tmp_path):
    run = store_run(tmp_path)
    run.mark_finished({"rounds": 1})
    path, sound = parquet_path(run.folder), parquet_path(run.folder).read_bytes()
    (run.folder / "records.jsonl").unlink()
    expected, refused = run.records(), 0
    for place in range(0, len(sound), 3):
        changed = bytearray(sound)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert same(run.records(), expected), place
        except UserError:
            refused += 1
    assert refused > len(sound) // 6  # most other bytes have no effect, such as sizes and the name of the writer


def test_a_finished_run_with_missing_rows_is_refused(tmp_path):
    run = store_run(tmp_path)
    run.mark_finished({"rounds": 1})
    rows = run.folder / "records.jsonl"
    rows.write_bytes(rows.read_bytes()[:60])
    os.utime(rows, ns=(2**62, 2**62))
    for ask in (run.records, run.trajectory):
        with pytest.raises(UserError, match="has changed since the run finished"):
            ask()
    assert query_frame(tmp_path, "SELECT failure FROM runs").failure[0].startswith(str(rows))


def test_rows_of_python_keep_every_digit(tmp_path):
    store_run(tmp_path)
    asked = (
        "SELECT 1.23456789012e-12::DOUBLE a, 'inf'::DOUBLE b, 'nan'::DOUBLE c, NULL d, 9007199254740993 e, 1.10 f, 'x' a, "
        "[1, NULL] g, DATE '2026-01-02' h, 0.1::FLOAT i, true j"
    )
    (row,) = query_rows(tmp_path, asked)
    back = json.loads(jsonl.to_json(row))
    assert back == {
        "a": 1.23456789012e-12,
        "b": math.inf,
        "c": None,
        "d": None,
        "e": 9007199254740993,
        "f": 1.1,
        "a_1": "x",
        "g": [1, None],
        "h": "2026-01-02",
        "i": row["i"],
        "j": True,
    }
    values = [each["value"] for each in query_rows(tmp_path, "SELECT value FROM records WHERE domain = 'sport'")]
    assert values == [0.1 + 0.2]


LATE = "SELECT (CASE WHEN i = 500000 THEN 'x' ELSE '1' END)::INT FROM range(600000) t(i)"  # fails when the rows are fetched


@pytest.mark.parametrize("query", ["", "  ", ";", "-- nothing", "SELECT", "SELECT nothing FROM runs", "SELECT * FROM x", "\0", LATE])
def test_a_query_that_cannot_be_answered_is_refused_in_one_line(tmp_path, query):
    for ask in (query_frame, query_rows):
        with pytest.raises(UserError, match="The tables are records, runs and findings") as caught:
            ask(tmp_path, query)
        assert "\n" not in str(caught.value)


WRITES = "COPY runs TO '{}'|COPY (PIVOT runs ON status USING count(*)) TO '{}'|EXPLAIN ANALYZE COPY runs TO '{}'|EXPORT DATABASE '{}'"


@pytest.mark.parametrize("query", [*WRITES.split("|"), "CREATE TABLE a AS SELECT 1", "SET threads = 1", "SELECT 1; COPY runs TO '{}'"])
@pytest.mark.parametrize("read", [query_rows, query_frame])
def test_a_statement_that_does_more_than_read_is_refused(tmp_path, query, read):
    store_run(tmp_path / "runs")
    with pytest.raises(UserError, match=r"SELECT, FROM, WITH|has 2 statements; give one") as refused:
        read(tmp_path / "runs", query.format(tmp_path / "written"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "query",
    [
        "FROM runs",
        "WITH a AS (SELECT 1 b) SELECT b FROM a;",
        "DESCRIBE runs",
        "SUMMARIZE runs",
        "SHOW TABLES",
        "PIVOT records ON metric USING avg(value) GROUP BY round",
        "-- a comment\nSELECT 1",
    ],
)
def test_statements_that_read_are_allowed(tmp_path, query):
    store_run(tmp_path)
    assert query_rows(tmp_path, query)


def test_times_with_a_time_zone_are_refused_as_rows_of_python(tmp_path):
    for text in ("SELECT now() AS h", "SELECT [now()] AS h"):
        with pytest.raises(UserError, match=r"'h' holds times with a time zone: convert them with ::TIMESTAMP"):
            query_rows(tmp_path, text)
    assert len(query_rows(tmp_path, "SELECT now()::TIMESTAMP AS h")) == 1


def test_class_names_replace_their_mappings_and_lists_are_json():
    got = flatten({"a": {"type": "X", "b": {"type": "Y", "c": 1}}, "d": [1, 2], "e": None})
    assert got == {"a": "X", "a.b": "Y", "a.b.c": 1, "d": json.dumps([1, 2]), "e": None}


def test_nan_is_nan_in_both_tables_and_what_is_missing_is_null(tmp_path):
    store_run(tmp_path).mark_finished({"rounds": 1, "loss": math.nan, "final_loss": math.inf})
    store_run(tmp_path, "def")
    rows = {row["run"]: row for row in query_rows(tmp_path, "SELECT * FROM runs")}
    assert math.isnan(rows["abc"]["last_loss"]) and rows["abc"]["large_loss"] == math.inf and rows["def"]["last_loss"] is None
    assert query_rows(tmp_path, "SELECT count(*) n FROM runs WHERE isnan(last_loss)")[0]["n"] == 1


def test_the_final_loss_of_the_table_is_that_of_the_glossary(tmp_path):
    """It is the mean of the last five evaluations, and neither the last loss nor that of the larger evaluation."""
    losses = {"long": [9.0, 8.0, 5.0, 4.0, 3.0, 2.0, 1.0], "short": [9.0, 4.0, 3.0], "untrained": [9.0], "broken": [9.0, 4.0, math.nan]}
    for name, values in losses.items():
        run = store_run(tmp_path, name)
        (run.folder / "records.jsonl").unlink()
        run.append_records([Record(2 * index, "loss", "", -1, value) for index, value in enumerate(values)])
        run.append_records([Record(12, "loss", "sport", -1, 50.0), Record(12, "loss", "", 3, 60.0), Record(12, "final.loss", "", -1, 70.0)])
    store_run(tmp_path, "none").append_records([])
    (tmp_path / "none" / "records.jsonl").unlink()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "experiment.json").write_text("{")
    got = {row["run"]: row["final_loss"] for row in query_rows(tmp_path, "SELECT run, final_loss FROM runs")}
    assert got["long"] == 3.0 and got["short"] == 3.5 and got["untrained"] == 9.0 and math.isnan(got["broken"])
    assert got["none"] is None and got["unreadable"] is None
    for name in losses:
        assert got[name] == pytest.approx(final_loss(Run(tmp_path, name).trajectory()), nan_ok=True)
    assert [row["name"] for row in query_rows(tmp_path, "SHOW TABLES")] == ["findings", "records", "runs"]


def test_values_are_stored_as_byte_streams_and_every_reader_returns_them(tmp_path):
    values = [1.25, math.pi, -0.0, 5e-324, math.inf]
    run = store_run(tmp_path)
    (run.folder / "records.jsonl").unlink()
    run.append_records([Record(index, "loss", "", -1, value) for index, value in enumerate(values)])
    path = write_parquet(run.folder)
    column = pq.read_metadata(path).row_group(0).column(5)
    assert column.path_in_schema == "value" and "BYTE_STREAM_SPLIT" in column.encodings and "RLE_DICTIONARY" not in column.encodings
    assert [row["value"] for row in query_rows(tmp_path, "SELECT value FROM records ORDER BY round")] == values
    assert pq.read_table(path)["value"].to_pylist() == values and list(read_parquet(run.folder).value) == values


@pytest.mark.parametrize("statistics", [False, True], ids=["as written today", "as written before"])
def test_rows_that_are_nan_are_found(tmp_path, statistics):
    """DuckDB 2.0.0 skips these rows if the file has statistics of its values, which ignore NaN."""
    run = store_run(tmp_path)
    path = write_parquet(run.folder)
    assert not has_value_statistics(path)
    if statistics:
        pq.write_table(pq.read_table(path), path, write_page_checksum=True)
        assert has_value_statistics(path)
    assert query_rows(tmp_path, "SELECT count(*) n FROM records WHERE isnan(value)")[0]["n"] == 1
    assert math.isnan(query_rows(tmp_path, "SELECT max(value) v FROM records")[0]["v"])


def test_a_column_of_mixed_types_is_text():
    rows = _build_table([{"seed": 3, "x": None}, {"seed": "text", "x": None}, {"x": None}], {"run": "string"}).to_pylist()
    assert rows == [{"run": None, "seed": seed, "x": None} for seed in ("3", "text", None)]


def test_records_of_another_run_are_reported_and_hide_no_other_run(tmp_path):
    one, other = store_run(tmp_path), store_run(tmp_path, "def", seed=4)
    one.mark_finished({"rounds": 1})
    write_parquet(other.folder)
    parquet_path(other.folder).write_bytes(parquet_path(one.folder).read_bytes())
    rows = {row["run"]: row for row in query_rows(tmp_path, "SELECT run, status, failure FROM runs")}
    assert rows["abc"]["status"] == "finished" and rows["def"]["status"] == "unreadable"
    assert "holds records of run abc, not of run def" in rows["def"]["failure"]


def test_a_file_is_verified_once_until_it_changes(tmp_path, monkeypatch):
    """A report opens several connections; DuckDB does not verify checksums, so that every file is read for it."""
    run, verified = store_run(tmp_path), []
    run.mark_finished({"rounds": 1})
    read = query.read_parquet
    monkeypatch.setattr(query, "read_parquet", lambda folder: verified.append(folder) or read(folder))
    query._verify_parquet_cached.cache_clear()
    for _ in range(3):
        with connect(tmp_path) as connection:
            assert connection.execute("SELECT count(*) FROM records").fetchone() == (4,)
    assert verified == [run.folder]
    path = parquet_path(run.folder)
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    os.utime(path, ns=(time.time_ns() + 10**9,) * 2)
    with connect(tmp_path) as connection:  # the damage is found, and the file is written again from the rows
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (4,)
    assert len(verified) > 1 and path.read_bytes() == content
