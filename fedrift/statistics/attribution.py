"""What heterogeneity caused: difference-in-differences against IID twins.

DiD_s = [M(a, non-IID) - M(a, IID)] - [M(b, non-IID) - M(b, IID)] for each paired seed s. With b centralised or FedSGD
it says what the skew did to a; with b = FedAvg, how a fails otherwise than FedAvg. What both show on IID data too
cancels (Card & Krueger, AER 84, 1994).
"""

from __future__ import annotations

import numpy as np

from .paired import differences


def difference_in_differences(a: np.ndarray, a_twin: np.ndarray, b: np.ndarray, b_twin: np.ndarray) -> np.ndarray:
    """One number a seed; all ``[seeds]``, in the same order of seeds."""
    return differences(differences(a, a_twin), differences(b, b_twin))
