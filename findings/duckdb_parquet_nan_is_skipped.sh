#!/usr/bin/env bash
# Libraries: duckdb 2.0.0, pyarrow 25.0.1, numpy 2.4.6.
#
# Expected: a query over a Parquet file gives the answer of the same query over the same table in memory.
# What happens: the statistics that pyarrow writes ignore NaN, as the format asks. DuckDB sorts NaN above every number, but
# trusts these statistics: a filter that only NaN passes finds no row, and the maximum is the largest number. A filter in
# the aggregate itself finds the row. Without statistics of the column all answers are those of the table.
# Why it matters: NaN is how a diverged run says so. `WHERE isnan(loss)` over the files of all runs then finds none.
#
# Seen on 2026-11-29:
#     table in memory:         isnan 1, above 5: 1, greatest nan
#     file with statistics:    isnan 0, above 5: 0, greatest 3.0
#     file without statistics: isnan 1, above 5: 1, greatest nan
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q duckdb==2.0.0 pyarrow==25.0.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

rows = pa.table({"loss": [1.0, float("nan"), 3.0]})
pq.write_table(rows, "with.parquet")
pq.write_table(rows, "without.parquet", write_statistics=False)
seen = {}
for name, source in (("table in memory", "rows"), ("file with statistics", "'with.parquet'"), ("file without statistics", "'without.parquet'")):
    answers = [
        duckdb.sql(f"SELECT {what} FROM {source} {where}").fetchall()[0][0]
        for what, where in (("count(*)", "WHERE isnan(loss)"), ("count(*)", "WHERE loss > 5"), ("max(loss)", ""))
    ]
    seen[name] = str(answers)
    print(f"{name}: isnan {answers[0]}, above 5: {answers[1]}, greatest {answers[2]}")
if list(seen.values()) != ["[1, 1, nan]", "[0, 0, 3.0]", "[1, 1, nan]"]:
    sys.exit("This is no longer so.")
PYTHON
