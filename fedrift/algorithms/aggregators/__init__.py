"""Aggregators: rules that combine the updates of a cohort into one update per model.

Configurations select an aggregator by its name in ``__all__``. ``base.Aggregator`` documents how to write another one.
"""

from .lora import FedEx, FFALoRA, FlexLoRA, FLoRA, RoLoRA
from .mean import Mean, NormClippedMean
from .private import DPMean
from .robust import Krum, Median, TrimmedMean

__all__ = ["DPMean", "FFALoRA", "FLoRA", "FedEx", "FlexLoRA", "Krum", "Mean", "Median", "NormClippedMean", "RoLoRA", "TrimmedMean"]
