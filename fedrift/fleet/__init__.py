"""Who trains: N clients behind one call a round."""

from .fleet import Fleet
from .simulated import SimulatedFleet

__all__ = ["Fleet", "SimulatedFleet"]
