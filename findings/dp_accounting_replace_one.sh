#!/usr/bin/env bash
# Library: dp-accounting 0.6.0.
#
# Expected: one event (ten Gaussian releases with noise multiplier 2) under one neighbouring relation (REPLACE_ONE, a
# client's data are replaced by other data) costs about the same epsilon in both accountants of the library, the RDP one
# being a little above the PLD one, as it is under ADD_OR_REMOVE_ONE.
# What happens: RdpAccountant ignores the relation for a Gaussian event and reports the epsilon of adding or removing
# one. PLDAccountant counts that a replacement moves the sum by twice the clip norm. The event's documentation defines
# the noise multiplier by the norm of one value, so the RDP figure is too small by more than a factor of two.
# Why it matters: the accountant for sampling without replacement exists in RDP only and wants REPLACE_ONE. Who clips to
# C, adds noise of s * C and gives it s, publishes less than half of the true epsilon. It must be given s / 2.
#
# Seen on 2026-11-29:
#     ADD_OR_REMOVE_ONE  noise multiplier 2: RDP epsilon 8.08, PLD epsilon 7.51
#     REPLACE_ONE        noise multiplier 2: RDP epsilon 8.08, PLD epsilon 17.86
#     REPLACE_ONE        noise multiplier 1: RDP epsilon 19.05
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q dp-accounting==0.6.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

def epsilon(accountant, relation, multiplier):
    event = SelfComposedDpEvent(GaussianDpEvent(multiplier), 10)
    return accountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)

for relation in (NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE):
    rdp, pld = epsilon(RdpAccountant, relation, 2.0), epsilon(PLDAccountant, relation, 2.0)
    print(f"{relation.name:<18} noise multiplier 2: RDP epsilon {rdp:.2f}, PLD epsilon {pld:.2f}")
one = NeighboringRelation.REPLACE_ONE
halved = epsilon(RdpAccountant, one, 1.0)
print(f"{one.name:<18} noise multiplier 1: RDP epsilon {halved:.2f}")
if not epsilon(RdpAccountant, one, 2.0) < epsilon(PLDAccountant, one, 2.0) / 2 or halved < epsilon(PLDAccountant, one, 2.0):
    sys.exit("This is no longer so.")
PYTHON
