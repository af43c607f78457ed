#!/usr/bin/env bash
# Libraries: flwr 1.41.0, scipy 1.17.1, numpy 2.4.6.
#
# Expected: FedTrimmedAvg with its default beta of 0.2 bounds what one wild client can do to the average.
# What happens: the number that is cut off at each end is beta times the clients, rounded down. With two, three or four
# clients a round it is zero: the trimmed mean is the plain mean, and the wild client decides. scipy.stats.trim_mean, on
# which it is based, does the same. Neither warns.
# Why it matters: cohorts of four are common in federated fine-tuning of language models, and a cohort of five loses a
# client now and then. The robust arm of a study is then FedAvg under another name, in some rounds or in all.
#
# Seen on 2026-11-29:
#     3 clients, one of them sends 1e6 and the others 1: FedTrimmedAvg 333334.00, scipy 333334.00, plain mean 333334.00
#     4 clients, one of them sends 1e6 and the others 1: FedTrimmedAvg 250000.75, scipy 250000.75, plain mean 250000.75
#     5 clients, one of them sends 1e6 and the others 1: FedTrimmedAvg 1.00, scipy 1.00, plain mean 200000.80
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q flwr==1.41.0 numpy==2.4.6 scipy==1.17.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import logging
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedTrimmedAvg
from flwr.supercore.task_identity import TaskIdentity
from scipy.stats import trim_mean

logging.disable(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # a server of Flower sets these; none runs here

def aggregate(values):
    class NoGrid:
        def get_node_ids(self):
            return list(range(1, len(values) + 1))

    strategy = FedTrimmedAvg()
    messages = strategy.configure_train(1, ArrayRecord({"w": Array(np.zeros(1))}), ConfigRecord(), NoGrid())
    replies = [Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.array([value]))}), "metrics": MetricRecord({"num-examples": 1})}),
                       reply_to=message) for message, value in zip(messages, values)]
    return float(strategy.aggregate_train(1, replies)[0]["w"].numpy()[0])

seen = {}
for clients in (3, 4, 5):
    values = [1.0] * (clients - 1) + [1e6]
    seen[clients] = aggregate(values)
    print(f"{clients} clients, one of them sends 1e6 and the others 1: FedTrimmedAvg {seen[clients]:.2f}, scipy {trim_mean(values, 0.2):.2f}, "
          f"plain mean {np.mean(values):.2f}")
if seen != {3: (2 + 1e6) / 3, 4: (3 + 1e6) / 4, 5: 1.0}:
    sys.exit("This is no longer so.")
PYTHON
