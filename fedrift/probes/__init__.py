"""Probes: functions of a round that read and never change it. One file each, one import line here."""

from .adapters import aggregation_error
from .bench import Bench
from .groups import GROUPS
from .held_out import HeldOut, beside, hold_out, token_table
from .loss import Losses
from .panel import After, Look, Panel, Past, over, period, told
from .probe import Probe, Reading, recorded
from .served import served
from .training import local_training
from .update import update_geometry
from .wording import bytes_per_token

__all__ = ["GROUPS", "After", "Bench", "HeldOut", "Look", "Losses", "Panel", "Past", "Probe", "Reading", "aggregation_error",
           "beside", "bytes_per_token", "hold_out", "local_training", "over", "period", "recorded", "served", "token_table",
           "told", "update_geometry"]
