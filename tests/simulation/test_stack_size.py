"""Test the choice of the number of clients per forward pass."""

from __future__ import annotations

import torch

from fedrift.simulation import batches
from tests.models.networks import network


def test_memory_limits_the_clients_per_pass(monkeypatch):
    plain, cpu = network("llama"), torch.device("cpu")
    need = 4 * 16 * batches.activation_bytes_per_token(plain)
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: need * 6)
    assert batches.choose_clients_per_pass(plain, 10, 4, 16, cpu) == 3  # half of the free memory is enough for three clients
    assert batches.choose_clients_per_pass(plain, 10, 4, 16, cpu, num_passes=2) == 1  # MOON needs a second pass of the same sequences
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: need // 100)
    assert batches.choose_clients_per_pass(plain, 10, 4, 16, cpu) == 1
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: need * 1000)
    assert batches.choose_clients_per_pass(plain, 10, 4, 16, cpu) == 10


def test_on_a_cpu_a_pass_fits_the_cache(monkeypatch):
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: 1 << 50)
    assert batches.choose_clients_per_pass(network("llama"), 10, 8, 128, torch.device("cpu")) == 4
    assert batches.choose_clients_per_pass(network("llama"), 10, 8, 128, torch.device("cuda")) == 10
    assert batches.choose_clients_per_pass(network("gpt2"), 10, 100, 128, torch.device("cpu")) == 1


def test_on_a_cpu_a_large_model_has_few_clients_per_pass(monkeypatch):
    monkeypatch.setattr(batches, "free_memory_bytes", lambda device: 1 << 50)
    need = 4 * 16 * batches.activation_bytes_per_token(network("llama"))
    monkeypatch.setattr(batches, "CPU_BYTES_PER_PASS", 3.5 * need)
    assert batches.choose_clients_per_pass(network("llama"), 10, 4, 16, torch.device("cpu")) == 3
    assert batches.choose_clients_per_pass(network("llama"), 10, 4, 16, torch.device("cpu"), num_passes=2) == 1
    assert batches.choose_clients_per_pass(network("llama"), 10, 4, 16, torch.device("cuda")) == 10
    assert batches.choose_clients_per_pass(network("llama"), 10, 40, 16, torch.device("cpu")) == 1


def test_single_clients_are_chosen_if_measured_as_faster(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(batches, "perf_counter", lambda: clock[0])

    def timed_steps(alone: float, together: float):
        def step(count: int) -> None:
            clock[0] += alone if count == 1 else together

        return step

    assert batches.choose_faster(timed_steps(1.0, 5.0), 4) == 1
    assert batches.choose_faster(timed_steps(1.0, 3.0), 4) == 4
    assert batches.choose_faster(timed_steps(1.0, 4.05), 4) == 4  # equally fast
    assert batches.choose_faster(timed_steps(1.0, 1.0), 1) == 1
