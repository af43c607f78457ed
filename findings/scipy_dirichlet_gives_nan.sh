#!/usr/bin/env bash
# Libraries: scipy 1.17.1, numpy 2.4.6.
#
# Expected: shares drawn from a Dirichlet distribution are numbers that sum to one, however small the concentration.
# What happens: numpy.random.dirichlet, and scipy.stats.dirichlet.rvs unless it is given a new Generator, divide gamma
# variables by their sum. With a concentration of 0.001 the gamma variables are often smaller than the smallest float,
# all of them are zero, and the shares are NaN. With a Generator the same call gives numbers.
# Why it matters: the Dirichlet split with a small concentration is the standard picture of extreme non-IID clients. At
# 0.001 and three clients a row in eight is NaN, and int(NaN * documents) either raises or, after a cast, deals nobody
# anything.
#
# Seen on 2026-11-29:
#     numpy.random.dirichlet                       rows with NaN at 0.01: 0.00%, at 0.001: 11.94%
#     scipy.stats.dirichlet.rvs, random_state=0    rows with NaN at 0.01: 0.00%, at 0.001: 11.94%
#     Generator.dirichlet                          rows with NaN at 0.01: 0.00%, at 0.001: 0.00%
#     scipy.stats.dirichlet.rvs with a Generator   rows with NaN at 0.01: 0.00%, at 0.001: 0.00%
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q scipy==1.17.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from scipy.stats import dirichlet

def bad(draw, alpha):
    shares = draw([alpha] * 3)
    return float(np.isnan(shares).any(axis=1).mean())

ways = {
    "numpy.random.dirichlet": lambda alpha: np.random.RandomState(0).dirichlet(alpha, size=10_000),
    "scipy.stats.dirichlet.rvs, random_state=0": lambda alpha: dirichlet.rvs(alpha, size=10_000, random_state=0),
    "Generator.dirichlet": lambda alpha: np.random.default_rng(0).dirichlet(alpha, size=10_000),
    "scipy.stats.dirichlet.rvs with a Generator": lambda alpha: dirichlet.rvs(alpha, size=10_000, random_state=np.random.default_rng(0)),
}
for name, draw in ways.items():
    print(f"{name:<44} rows with NaN at 0.01: {bad(draw, 0.01):.2%}, at 0.001: {bad(draw, 0.001):.2%}")
rates = [bad(draw, 0.001) > 0.05 for draw in ways.values()]
if rates != [True, True, False, False]:
    sys.exit("This is no longer so.")
PYTHON
