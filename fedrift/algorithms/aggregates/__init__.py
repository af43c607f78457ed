"""How the changes of a cohort become one: a file each, an import line here. YAML finds them by these names."""

from .clipped import Clipped
from .fedex import FedEx
from .ffa import FFA
from .flora import FLoRA
from .krum import Krum
from .mean import Mean
from .median import Median
from .private import Private
from .rolora import RoLoRA
from .svd import Svd
from .trimmed import TrimmedMean

__all__ = ["FFA", "Clipped", "FLoRA", "FedEx", "Krum", "Mean", "Median", "Private", "RoLoRA", "Svd", "TrimmedMean"]
