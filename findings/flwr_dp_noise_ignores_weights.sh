#!/usr/bin/env bash
# Libraries: flwr 1.41.0, numpy 2.4.6.
#
# Expected: the wrapper for central differential privacy adds noise that hides any client. Either all clients have the
# same weight, or the noise follows the largest weight.
# What happens: updates are clipped to C, FedAvg weights them by num-examples as usual, and the noise is that of equal
# weights: noise_multiplier * C / n. A client with 97 % of the examples moves the model by 0.97 C, but the noise is
# C / 4 for four clients. So the noise multiplier that holds for this client is 0.26 instead of 1. There is no warning.
# Only a wrapper with the optional accountant refuses unequal weights.
# Why it matters: clients of a non-IID federation hold unequal amounts of text, and weights by examples are the default.
# An accountant of one's own takes the noise multiplier of the configuration and computes an epsilon that does not hold
# for the largest client. With equal clients, as in a test, everything is right.
#
# Seen on 2026-11-30:
#     examples 100, 100, 100, 100:  client 1 moves the model by 0.25, noise 0.25, noise multiplier for client 1: 1.00
#     examples 9700, 100, 100, 100: client 1 moves the model by 0.97, noise 0.25, noise multiplier for client 1: 0.26
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
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # a server of Flower sets these; none runs here
SIZE = 100_000

class NoGrid:
    def get_node_ids(self):
        return [1, 2, 3, 4]

def record(values):
    return ArrayRecord({"layer.lora_B.weight": Array(values)})

def new_model(first_client, examples):
    np.random.seed(0)  # the wrapper draws from this generator, so two calls add the same noise
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), noise_multiplier=1.0, clipping_norm=1.0, num_sampled_clients=4)
    messages = strategy.configure_train(1, record(np.zeros(SIZE)), ConfigRecord(), NoGrid())
    models = [first_client, *(np.full(SIZE, 1e-9) for _ in range(3))]
    replies = [
        Message(RecordDict({"arrays": record(model), "metrics": MetricRecord({"num-examples": number})}), reply_to=message)
        for model, number, message in zip(models, examples, messages, strict=True)
    ]
    return strategy.aggregate_train(1, replies)[0]["layer.lora_B.weight"].numpy()

seen = []
large = np.full(SIZE, 1e-9)
large[0] = 100.0  # clipped to a norm of 1
for examples in ([100, 100, 100, 100], [9700, 100, 100, 100]):
    without = new_model(np.full(SIZE, 1e-9), examples)
    moved, noise = np.linalg.norm(new_model(large, examples) - without), without.std()
    seen.append(noise / moved)
    name = f"examples {', '.join(map(str, examples))}:"
    print(f"{name:<29} client 1 moves the model by {moved:.2f}, noise {noise:.2f}, noise multiplier for client 1: {noise / moved:.2f}")
if abs(seen[0] - 1) > 0.05 or seen[1] > 0.5:
    sys.exit("This is no longer so.")
PYTHON
