#!/usr/bin/env bash
# Libraries: fluke-fl 0.8.1, torch 2.14.1 (CPU), numpy 2.4.6.
#
# Expected: a client with batch size 1 takes one step for each example, and a client with a single example takes one step
# an epoch. A loss that is reported is the loss of the examples.
# What happens: the loader ends its epoch at the first batch with one example, whatever the position of this batch. With
# batch size 1 that is the first one: no step is taken, the model stays as it was received, and the loss is reported as
# exactly 0, because the sum of no losses is divided by the number of batches, which still counts them. A client with one
# example never trains either. Where the last batch of an epoch has one example, it is left out and the mean loss is too
# small. The option is meant for batch normalization (skip_singleton) and is on by default. The only message is torch's
# warning that a scheduler stepped before its optimizer.
# Why it matters: batch size 1 is usual for language models on small machines, and clients with one example are usual in
# skewed partitions. Such clients send the received model back with a perfect loss, and count in the average.
#
# Seen on 2026-12-01:
#     8 examples, batches of 4: 2 of 2 batches, mean loss 0.60, largest change of a weight 0.052
#     9 examples, batches of 4: 2 of 3 batches, mean loss 0.55, largest change of a weight 0.139
#     8 examples, batches of 1: 0 of 8 batches, mean loss 0.00, largest change of a weight 0.000
#     1 example, batches of 4: 0 of 1 batches, mean loss 0.00, largest change of a weight 0.000
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q fluke-fl==0.8.1 torch==2.14.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader

def train(num_examples, batch_size):
    torch.manual_seed(0)
    loader = FastDataLoader(torch.randn(num_examples, 4), torch.randint(0, 2, (num_examples,)), num_labels=2, batch_size=batch_size)
    optimizer = OptimizerConfigurator({"name": "SGD", "lr": 0.1})
    client = Client(0, loader, None, optimizer, torch.nn.CrossEntropyLoss(), local_epochs=3)
    client.model = torch.nn.Linear(4, 2)
    received = client.model.weight.detach().clone()
    loss = client.fit()
    return len(list(loader)), len(loader), loss, (client.model.weight - received).abs().max().item()

seen = {case: train(*case) for case in ((8, 4), (9, 4), (8, 1), (1, 4))}
for (num_examples, batch_size), (batches, length, loss, change) in seen.items():
    examples = "example" if num_examples == 1 else "examples"
    print(
        f"{num_examples} {examples}, batches of {batch_size}: {batches} of {length} batches, mean loss {loss:.2f}, "
        f"largest change of a weight {change:.3f}"
    )
if any(seen[case][0] or seen[case][2:] != (0.0, 0.0) for case in ((8, 1), (1, 4))) or not seen[8, 4][3] > 0:
    sys.exit("This is no longer so.")
PYTHON
