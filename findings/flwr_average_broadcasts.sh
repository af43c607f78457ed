#!/usr/bin/env bash
# Libraries: flwr 1.41.0, numpy 2.4.6.
#
# Expected: FedAvg refuses to average arrays of different shapes under one name, whoever answers first.
# What happens: it adds with numpy's broadcasting. If the larger array comes first, an adapter of rank 1 is added to
# every row of one of rank 4, and no error is raised. If the smaller one comes first, ValueError is raised. Replies come
# in the order in which the clients finish.
# Why it matters: adapters of different ranks in one federation are a research topic (and a frequent slip of
# configuration). With rank 1 among larger ranks the average is meaningless and looks like training, or the round fails,
# depending on who was faster.
#
# Seen on 2026-11-29:
#     rank 4 answers first: [[3.0, 3.0], [3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]
#     rank 1 answers first: ValueError: non-broadcastable output operand wi
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
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # a server of Flower sets these; none runs here
LARGE, SMALL = np.ones((4, 2), np.float32), np.full((1, 2), 5, np.float32)

class NoGrid:
    def get_node_ids(self):
        return [1, 2]

def average(*arrays):
    strategy = FedAvg()
    messages = strategy.configure_train(1, ArrayRecord({"lora_A": Array(LARGE)}), ConfigRecord(), NoGrid())
    replies = [Message(RecordDict({"arrays": ArrayRecord({"lora_A": Array(array)}), "metrics": MetricRecord({"num-examples": 1})}),
                       reply_to=message) for message, array in zip(messages, arrays)]
    try:
        return strategy.aggregate_train(1, replies)[0]["lora_A"].numpy().tolist()
    except ValueError as error:
        return f"ValueError: {str(error)[:35]}"

first, second = average(LARGE, SMALL), average(SMALL, LARGE)
print(f"rank 4 answers first: {first}")
print(f"rank 1 answers first: {second}")
if first != [[3.0, 3.0]] * 4 or not str(second).startswith("ValueError"):
    sys.exit("This is no longer so.")
PYTHON
