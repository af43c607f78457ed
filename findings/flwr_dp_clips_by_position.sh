#!/usr/bin/env bash
# Libraries: flwr 1.41.0, numpy 2.4.6.
#
# Expected: arrays have names in an ArrayRecord, FedAvg aggregates them by name, and the wrapper for differential
# privacy around FedAvg does as well. A client that sends the same arrays in another order changes nothing.
# What happens: DifferentialPrivacyServerSideFixedClipping pairs the arrays of a reply with those of the server by
# position. If the order differs and the shapes agree, it takes differences between unlike arrays and clips those. A
# client that moved each number by 0.1, far less than the clip norm allows, then pulls each array toward the other one.
# The noise is set to zero here to see it.
# Why it matters: the order of a state dict follows how the modules were made, loaded or sorted, and a LoRA adapter has
# many leaves of one shape. A client whose file was sorted by name trains fine under FedAvg and damages the model under
# the private wrapper, without an error.
#
# Seen on 2026-11-29:
#     the server's arrays:              {'q.lora_B': [0.0, 0.0], 'k.lora_B': [10.0, 10.0]}
#     FedAvg, the same order:           {'q.lora_B': [0.10000000149011612, 0.10000000149011612], 'k.lora_B': [10.100000381469727, 10.100000381469727]}
#     FedAvg, another order:            {'q.lora_B': [0.10000000149011612, 0.10000000149011612], 'k.lora_B': [10.100000381469727, 10.100000381469727]}
#     private, the same order:          {'q.lora_B': [0.10000000149011612, 0.10000000149011612], 'k.lora_B': [10.100000381469727, 10.100000381469727]}
#     private, another order:           {'q.lora_B': [9.505000114440918, 9.505000114440918], 'k.lora_B': [0.5049999952316284, 0.5049999952316284]}
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
SERVER = {"q.lora_B": np.zeros(2, np.float32), "k.lora_B": np.full(2, 10, np.float32)}

class NoGrid:
    def get_node_ids(self):
        return [1, 2]

def record(arrays):
    return ArrayRecord({name: Array(each) for name, each in arrays.items()})

def aggregate(strategy, order):
    messages = list(strategy.configure_train(1, record(SERVER), ConfigRecord(), NoGrid()))
    replies = [Message(RecordDict({"arrays": record({name: SERVER[name] + np.float32(0.1) for name in order}),
                                   "metrics": MetricRecord({"num-examples": 1})}), reply_to=each) for each in messages]
    arrays, _ = strategy.aggregate_train(1, replies)
    return {name: arrays[name].numpy().round(3).tolist() for name in SERVER}

def private():
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), noise_multiplier=0.0, clipping_norm=1.0, num_sampled_clients=2)

same, other = list(SERVER), list(SERVER)[::-1]
print(f"the server's arrays:              { {name: each.tolist() for name, each in SERVER.items()} }")
seen = [aggregate(FedAvg(), same), aggregate(FedAvg(), other), aggregate(private(), same), aggregate(private(), other)]
for name, each in zip(("FedAvg, the same order", "FedAvg, another order", "private, the same order", "private, another order"), seen):
    print(f"{name + ':':<33} {each}")
if not seen[0] == seen[1] == seen[2] or seen[3] == seen[2]:
    sys.exit("This is no longer so.")
PYTHON
