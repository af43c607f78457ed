#!/usr/bin/env bash
# Libraries: pandas 3.1.1, numpy 2.4.6.
#
# Expected: infinity is a value and not a missing one, so a mean over a window that contains it is infinite, as
# Series.mean says, and an expanding maximum is the cumulative maximum.
# What happens: ewm, expanding and rolling take infinity for a missing value. The smoothed loss of a run whose loss was
# infinite in one round is a smooth curve through that round, and the expanding maximum is finite. There is no warning.
# isna() says False for the same value, and mean, max, cummax and a mean by group count it.
# Why it matters: a loss overflows to infinity before it becomes NaN, so this is how divergence begins. Curves of losses
# are smoothed with ewm as a matter of course. The run that diverged in one round has the best-looking curve, and a
# detector that takes the maximum of the smoothed loss finds nothing.
#
# Seen on 2026-11-30 with the losses 2.0, inf, 2.0, 3.0:
#     mean inf, maximum inf, missing values 0
#     ewm(alpha=0.5).mean()                 [2.0, 2.0, 2.0, 2.6153846153846154]
#     rolling(2, min_periods=1).mean()      [2.0, 2.0, 2.0, 2.5]
#     expanding().max()                     [2.0, 2.0, 2.0, 3.0]
#     cummax()                              [2.0, inf, inf, inf]
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pandas==3.1.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import math
import sys

import pandas as pd

loss = pd.Series([2.0, math.inf, 2.0, 3.0])
ways = {
    "ewm(alpha=0.5).mean()": loss.ewm(alpha=0.5).mean(),
    "rolling(2, min_periods=1).mean()": loss.rolling(2, min_periods=1).mean(),
    "expanding().max()": loss.expanding().max(),
    "cummax()": loss.cummax(),
}
print(f"mean {loss.mean()}, maximum {loss.max()}, missing values {loss.isna().sum()}")
for name, values in ways.items():
    print(f"{name:<37} {values.tolist()}")
finite = [all(map(math.isfinite, values)) for values in ways.values()]
if finite != [True, True, True, False] or loss.isna().any() or loss.mean() != math.inf:
    sys.exit("This is no longer so.")
PYTHON
