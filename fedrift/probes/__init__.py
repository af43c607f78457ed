"""Probes: functions of a round that read and never change it. One file each, one import line here."""

from .adapters import aggregation_error
from .held_out import HeldOut, hold_out, token_table
from .loss import Losses
from .probe import Probe, Reading, recorded
from .training import local_training
from .update import update_geometry

__all__ = ["HeldOut", "Losses", "Probe", "Reading", "aggregation_error", "hold_out", "local_training", "recorded", "token_table",
           "update_geometry"]
