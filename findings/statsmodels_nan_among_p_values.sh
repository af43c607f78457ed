#!/usr/bin/env bash
# Libraries: statsmodels 0.15.0, numpy 2.4.6.
#
# Expected: a p-value that is missing (NaN) is left out by every method of multipletests, or is refused by every one.
# What happens: the methods do not agree. With fdr_bh and hommel one NaN makes every corrected value NaN, and no
# hypothesis is rejected, without a warning. With holm and bonferroni the others are corrected, and the NaN is counted
# as a test that was made, so they are corrected too much.
# Why it matters: a paired test of an arm whose runs are all equal, or all diverged, has no p-value. One such arm of a
# study's table silences all other arms under one method and costs them power under the other.
#
# Seen on 2026-11-29:
#     holm       with NaN [0.03  nan 0.06], without [0.02 0.03]
#     bonferroni with NaN [0.03  nan 0.09], without [0.02 0.06]
#     fdr_bh     with NaN [nan nan nan], without [0.02 0.03]
#     hommel     with NaN [nan nan nan], without [0.02 0.03]
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q statsmodels==0.15.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from statsmodels.stats.multitest import multipletests

def corrected(values, method):
    return multipletests(values, method=method)[1]

for method in ("holm", "bonferroni", "fdr_bh", "hommel"):
    print(f"{method:<10} with NaN {corrected([0.01, np.nan, 0.03], method)}, without {corrected([0.01, 0.03], method)}")
silent = all(np.isnan(corrected([0.01, np.nan, 0.03], method)).all() for method in ("fdr_bh", "hommel"))
holm = np.allclose(corrected([0.01, np.nan, 0.03], "holm"), [0.03, np.nan, 0.06], equal_nan=True)
if not silent or not holm:
    sys.exit("This is no longer so.")
PYTHON
