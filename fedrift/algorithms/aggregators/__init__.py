"""How the changes of a cohort become one: a file each, an import line here. YAML finds them by these names."""

from .lora import FedEx, FFALoRA, FlexLoRA, FLoRA, RoLoRA
from .mean import Mean, NormClippedMean
from .private import DPMean
from .robust import Krum, Median, TrimmedMean

__all__ = ["DPMean", "FFALoRA", "FLoRA", "FedEx", "FlexLoRA", "Krum", "Mean", "Median", "NormClippedMean", "RoLoRA", "TrimmedMean"]
