"""Who trains: N clients behind one call a round."""

from .simulator import ClientPool, ClientSimulator

__all__ = ["ClientPool", "ClientSimulator"]
