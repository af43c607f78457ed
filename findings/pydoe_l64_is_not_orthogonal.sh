#!/usr/bin/env bash
# Libraries: pyDOE3 1.6.2, numpy 2.4.6 (pyDOE 1.6.0 has the same tables).
#
# Expected: get_orthogonal_array returns an orthogonal array: each column has its levels equally often, and each pair of
# columns has all pairs of levels equally often. The name states the number of levels of the columns.
# What happens: 16 of its 17 arrays are orthogonal. In "L64(2^31)" the columns 27 and 28 have one level 33 times and the
# other 31 times, and 59 of its 465 pairs of columns are unbalanced. Two names state other levels than the arrays have:
# "L27(2^1 3^12)" has 13 columns of three levels, so a factor of two levels raises an error, and "L36(3^23)" has 11
# columns of two levels. No function of the package checks an array.
# Why it matters: an orthogonal array is what makes main effects independent of each other. A study that puts its factors
# into the columns of L64 gets main effects that depend on each other, and nothing reports it.
#
# Seen on 2026-12-01:
#     arrays: 17, with unbalanced pairs of columns: L64(2^31) (59 of 465)
#     L64(2^31), columns that are unbalanced themselves: 27 (33 and 31 rows), 28 (33 and 31 rows)
#     L27(2^1 3^12): 13 columns of 3 levels
#     L36(3^23): 11 columns of 2 levels, 12 columns of 3 levels
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pyDOE3==1.6.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import itertools
import math
import sys
from collections import Counter

import numpy as np
from pyDOE3 import get_orthogonal_array, list_orthogonal_arrays

def counts(array, columns):
    return Counter(map(tuple, array[:, columns].tolist()))

def balanced(array, columns):
    seen = counts(array, columns)
    return len(set(seen.values())) == 1 and len(seen) == math.prod(len(np.unique(array[:, each])) for each in columns)

arrays = {name: np.asarray(get_orthogonal_array(name)) for name in list_orthogonal_arrays()}
pairs = {name: list(itertools.combinations(range(array.shape[1]), 2)) for name, array in arrays.items()}
bad = {name: sum(not balanced(array, list(pair)) for pair in pairs[name]) for name, array in arrays.items()}
listed = ", ".join(f"{name} ({number} of {len(pairs[name])})" for name, number in bad.items() if number)
print(f"arrays: {len(arrays)}, with unbalanced pairs of columns: {listed}")
large = arrays["L64(2^31)"]
alone = {each: sorted(counts(large, [each]).values(), reverse=True) for each in range(large.shape[1]) if not balanced(large, [each])}
print("L64(2^31), columns that are unbalanced themselves: " + ", ".join(f"{each} ({a} and {b} rows)" for each, (a, b) in alone.items()))
levels = {}
for name in ("L27(2^1 3^12)", "L36(3^23)"):
    levels[name] = Counter(len(np.unique(column)) for column in arrays[name].T)
    print(f"{name}: " + ", ".join(f"{number} columns of {each} levels" for each, number in sorted(levels[name].items())))
if not bad["L64(2^31)"] or list(alone) != [27, 28] or levels["L27(2^1 3^12)"] != {3: 13} or levels["L36(3^23)"] != {2: 11, 3: 12}:
    sys.exit("This is no longer so.")
PYTHON
