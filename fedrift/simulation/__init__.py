"""Simulation of clients: all clients of a cohort train on this machine, in one forward pass per local step."""

from .simulator import ClientPool, ClientSimulator

__all__ = ["ClientPool", "ClientSimulator"]
