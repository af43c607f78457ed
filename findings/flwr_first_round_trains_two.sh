#!/usr/bin/env bash
# Library: flwr 1.41.0.
#
# Expected: FedAvg(fraction_train=1.0) trains all connected nodes in every round.
# What happens: the number of nodes to train is counted before FedAvg waits for nodes. A ServerApp starts before its
# nodes have connected, so the count is 0, and the first round trains min_train_nodes, which is 2 by default, although
# FedAvg then waits until they are there and its log tells "Sampled 2 nodes (out of 4)". Later rounds train all.
# Flower's simulation on Ray does this as well: seen with 4 nodes.
# Why it matters: the first round is the average of two clients instead of all, and which two is drawn by chance. On
# non-IID data it moves the model toward these two, two runs of one experiment differ, and a run on skewed data and its
# IID baseline do not start alike. min_train_nodes and min_available_nodes set to the number of nodes avoid it.
#
# Seen on 2026-11-29:
#     fraction_train=1.0, 10 nodes, connected late:                  trained per round [2, 10, 10]
#     fraction_train=1.0, 10 nodes, connected before:                trained per round [10, 10, 10]
#     min_train_nodes=10, min_available_nodes=10, connected late:    trained per round [10, 10, 10]
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q flwr==1.41.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import logging
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # a server of Flower sets these; none runs here

class LateGrid:
    """A grid whose ten nodes connect between its first and its second answer, as they do when a run starts."""

    def __init__(self, first_answer):
        self.answers = [first_answer]

    def get_node_ids(self):
        return self.answers.pop() if self.answers else list(range(10))

def trained(strategy, first_answer):
    grid, arrays = LateGrid(first_answer), ArrayRecord({"weight": Array(np.zeros(2, np.float32))})
    return [len(list(strategy.configure_train(number, arrays, ConfigRecord(), grid))) for number in (1, 2, 3)]

late = trained(FedAvg(fraction_train=1.0), [])
before = trained(FedAvg(fraction_train=1.0), list(range(10)))
told = trained(FedAvg(fraction_train=1.0, min_train_nodes=10, min_available_nodes=10), [])
print(f"fraction_train=1.0, 10 nodes, connected late:                  trained per round {late}")
print(f"fraction_train=1.0, 10 nodes, connected before:                trained per round {before}")
print(f"min_train_nodes=10, min_available_nodes=10, connected late:    trained per round {told}")
if late != [2, 10, 10] or before != [10, 10, 10] or told != [10, 10, 10]:
    sys.exit("This is no longer so.")
PYTHON
