#!/usr/bin/env bash
# Libraries: flwr 1.41.0, numpy 2.4.6.
#
# Expected: FedAvg over clients that all send the same float16 arrays gives these arrays, to the precision of float16
# (one part in 2,000).
# What happens: the sum runs in the type of the arrays. Each term is 1/n of a value, so with many clients the terms come
# near the spacing of float16 numbers at the size of the sum. With 100 equal clients the result is 1.2 % too small, with
# 1,000 it is 2.1 % too small, and with 4,096 the sum stops at one half. Rounding has the same sign in each term, so it
# does not average out. In float32 the same mean is right.
# Why it matters: adapters are often sent in float16 to halve the traffic. The server's model then shrinks or grows by a
# percent in every round, with every client healthy, and ten rounds are enough to see it. It looks like a failure of
# federated averaging, and IID clients show it the most, because their values have equal signs.
#
# Seen on 2026-11-29:
#     100 equal clients of 1.0:   float16 0.98828125, float32 0.99999934
#     1,000 equal clients of 1.0: float16 0.97851562, float32 0.99999070
#     4,096 equal clients of 1.0: float16 0.50000000, float32 1.00000000
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

class NoGrid:
    def __init__(self, clients):
        self.clients = clients

    def get_node_ids(self):
        return list(range(1, self.clients + 1))

def mean(clients, dtype):
    record = ArrayRecord({"layer.lora_B.weight": Array(np.ones(4, dtype))})
    strategy = FedAvg()
    messages = strategy.configure_train(1, record, ConfigRecord(), NoGrid(clients))
    replies = [Message(RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 8})}), reply_to=each) for each in messages]
    arrays, _ = strategy.aggregate_train(1, replies)
    return arrays["layer.lora_B.weight"].numpy()

seen = {}
for clients in (100, 1000, 4096):
    half, single = mean(clients, np.float16), mean(clients, np.float32)
    seen[clients] = float(half[0])
    print(f"{f'{clients:,} equal clients of 1.0:':<27} {half.dtype} {half[0]:.8f}, {single.dtype} {single[0]:.8f}")
    if abs(single[0] - 1) > 1e-4:
        sys.exit("This is no longer so.")
if abs(seen[100] - 1) < 0.01 or abs(seen[1000] - 1) < 0.01 or seen[4096] > 0.6:
    sys.exit("This is no longer so.")
PYTHON
