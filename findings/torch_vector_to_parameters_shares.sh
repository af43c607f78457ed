#!/usr/bin/env bash
# Library: torch 2.13.0 (CPU).
#
# Expected: torch.nn.utils.vector_to_parameters "copies slices of a vector into an iterable of parameters", as its
# documentation says. So two models that are filled from one vector are independent of each other and of the vector.
# What happens: nothing is copied. The parameters become views of the vector. Two models that were filled from the same
# vector share their weights, and a training step of one changes the other and the vector. The parameters also take the
# type of the vector: float32 parameters become float64.
# Why it matters: a simulation keeps the global model as a vector, fills the model of each client from it, trains, and
# sends the difference. Client 2 then begins where client 1 ended, so the cohort trains one after the other. And all
# differences are 0, because the vector has moved with the models. If the server averages the models, the result looks
# like a federation with little drift, because the clients have in fact trained a single model.
#
# Seen on 2026-11-30:
#     after one step of client 1: client 1 [-1.0, -1.0], client 2 [-1.0, -1.0], global vector [-1.0, -1.0]
#     update of client 1 as a difference from the global vector: [0.0, 0.0]
#     a float32 model filled from a float64 vector: torch.float64
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

def filled(vector):
    model = torch.nn.Linear(2, 1, bias=False)
    vector_to_parameters(vector, model.parameters())
    return model

server = torch.zeros(2)
first, second = filled(server), filled(server)
optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
first(torch.ones(1, 2)).sum().backward()
optimizer.step()
weights = [model.weight.detach().flatten().tolist() for model in (first, second)]
update = (parameters_to_vector(first.parameters()) - server).tolist()
dtype = filled(torch.zeros(2, dtype=torch.float64)).weight.dtype
print(f"after one step of client 1: client 1 {weights[0]}, client 2 {weights[1]}, global vector {server.tolist()}")
print(f"update of client 1 as a difference from the global vector: {update}")
print(f"a float32 model filled from a float64 vector: {dtype}")
if weights != [[-1.0, -1.0], [-1.0, -1.0]] or update != [0.0, 0.0] or dtype != torch.float64:
    sys.exit("This is no longer so.")
PYTHON
