"""Which combinations of levels a study runs. In a study ``design: {is: Name}`` is a class named in ``__all__``."""

from .design import Design as Design
from .full_grid import FullGrid
from .listed import Listed
from .one_factor import OneFactor
from .orthogonal import Orthogonal

__all__ = ["FullGrid", "Listed", "OneFactor", "Orthogonal"]
