#!/usr/bin/env bash
# Libraries: duckdb 2.0.0, pandas 3.1.1, pyarrow 25.0.1, numpy 2.4.6.
#
# Expected: one query over one column of losses gives one answer, whether the column lies in a pandas frame or in an
# Arrow table.
# What happens: NaN in a pandas frame is NULL to DuckDB, and NaN in an Arrow table is NaN, which DuckDB sorts above
# infinity and counts as greater than every number. So the average, the maximum, the count and `WHERE loss > 100`
# differ.
# Why it matters: NaN is how a diverged run says so. In a frame it vanishes: the average over seeds is that of the
# survivors, and a count of the runs leaves it out. In the table of the same numbers it is the largest loss.
#
# Seen on 2026-11-29:
#     frame: average 2.0, least 1.0, greatest 3.0, counted 2, above 100: 0
#     arrow: average nan, least 1.0, greatest nan, counted 3, above 100: 1
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q duckdb==2.0.0 pandas==3.1.1 pyarrow==25.0.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import duckdb
import pandas as pd
import pyarrow as pa

losses = [1.0, float("nan"), 3.0]
frame, arrow = pd.DataFrame({"loss": losses}), pa.table({"loss": losses})
query = "SELECT avg(loss), min(loss), max(loss), count(loss), count(*) FILTER (loss > 100) FROM {}"
seen = {}
for name in ("frame", "arrow"):
    seen[name] = duckdb.sql(query.format(name)).fetchall()[0]
    print(f"{name}: average {seen[name][0]}, least {seen[name][1]}, greatest {seen[name][2]}, counted {seen[name][3]}, above 100: {seen[name][4]}")
if seen["frame"] != (2.0, 1.0, 3.0, 2, 0) or str(seen["arrow"]) != "(nan, 1.0, nan, 3, 1)":
    sys.exit("This is no longer so.")
PYTHON
