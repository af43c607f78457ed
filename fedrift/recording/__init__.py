"""What a run keeps of its rounds: the state to go on from and, on request, every report as the server received it."""

from .fork import Parting
from .history import check_history
from .state import Checkpoint, restored
from .updates import Updates

__all__ = ["Checkpoint", "Parting", "Updates", "check_history", "restored"]
