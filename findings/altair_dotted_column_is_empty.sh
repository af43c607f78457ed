#!/usr/bin/env bash
# Libraries: altair 6.3.0, vl-convert-python 1.9.0.post1, pandas 3.1.1.
#
# Expected: a chart of a column that the frame has shows its values, and a column that it does not have is an error.
# What happens: a dot in a column's name is read as a path into nested records. The column "partition.severity" is not
# found, and the chart is drawn with axes and no mark, without an error or a warning from altair or vl-convert. With the
# dot escaped by a backslash the same chart has all its points.
# Why it matters: the settings of an experiment have dotted names (partition.severity, plan.optimizer.lr), and so have
# metrics by client. A report made by a script shows empty figures that read as "nothing happened".
#
# Seen on 2026-11-29:
#     x='partition.severity':   0 points drawn for 3 rows
#     x='partition\.severity':  3 points drawn for 3 rows
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q altair==6.3.0 vl-convert-python==1.9.0.post1 pandas==3.1.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import re
import sys

import altair as alt
import pandas as pd
import vl_convert

frame = pd.DataFrame({"loss": [4.0, 3.5, 3.0], "partition.severity": [0.0, 0.5, 1.0]})

def points(field):
    chart = alt.Chart(frame).mark_point().encode(x=alt.X(field, type="quantitative"), y="loss:Q")
    return len(re.findall('aria-roledescription="point"', vl_convert.vegalite_to_svg(chart.to_json())))

seen = [points("partition.severity"), points(r"partition\.severity")]
print(f"x='partition.severity':   {seen[0]} points drawn for {len(frame)} rows")
print(f"x='partition\\.severity':  {seen[1]} points drawn for {len(frame)} rows")
if seen != [0, 3]:
    sys.exit("This is no longer so.")
PYTHON
