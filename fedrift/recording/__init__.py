"""What a run keeps of its rounds: the state to go on from and, on request, every report as the server received it."""

from .fork import Parting
from .state import keep, restored
from .updates import Updates

__all__ = ["Parting", "Updates", "keep", "restored"]
