#!/usr/bin/env bash
# Library: mlflow 3.17.2, with a database as its store (SQLite).
#
# Expected: a metric is read back as it was logged, or is refused. NaN comes back as NaN.
# What happens: infinity is stored as 1.7976931348623157e+308, the largest finite number, and comes back so, while NaN
# is kept. math.isfinite says that the run was fine.
# Why it matters: a diverged federation reports an infinite loss. A script that drops runs whose last loss is not finite
# keeps them, and a mean over seeds is either near 1e308 or overflows.
#
# Seen on 2026-11-29:
#     logged [2.5, nan, inf], read [2.5, nan, 1.7976931348623157e+308]; is the last one finite: True
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q mlflow==3.17.2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import logging
import math
import sys
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import mlflow

mlflow.set_tracking_uri("sqlite:///runs.db")
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("federation", artifact_location="artifacts")).info.run_id
for step, value in enumerate([2.5, math.nan, math.inf]):
    client.log_metric(run, "loss", value, step=step)
seen = [each.value for each in sorted(client.get_metric_history(run, "loss"), key=lambda each: each.step)]
print(f"logged [2.5, nan, inf], read {seen}; is the last one finite: {math.isfinite(seen[2])}")
if not math.isnan(seen[1]) or seen[2] != sys.float_info.max:
    sys.exit("This is no longer so.")
PYTHON
