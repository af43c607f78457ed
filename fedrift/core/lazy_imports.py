"""Modules that are imported when one of their attributes is first used, because their import takes up to seconds.

A configuration can then be checked, and a finished run can be shown, without these modules. Write ``from ..core.lazy_imports import
torch`` in a module that such a command imports, and ``import torch`` everywhere else. An object of this module stands for one module
and has all attributes of it. Types that occur in annotations only, such as ``Tensor``, are imported for type checkers only.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A module that is imported when one of its attributes is first used.

    Example:
        >>> math = LazyModule("math")
        >>> math.floor(2.5)
        2
    """

    def __getattr__(self, name: str) -> Any:
        module = vars(self).get("_module")
        if module is None:
            module = vars(self)["_module"] = import_module(self.__name__)
        return getattr(module, name)


if TYPE_CHECKING:
    import pandas as pd
    import torch
    from scipy import optimize, sparse, special, stats
else:
    pd, torch = LazyModule("pandas"), LazyModule("torch")
    optimize, sparse, special, stats = (LazyModule(f"scipy.{name}") for name in ("optimize", "sparse", "special", "stats"))

__all__ = ["LazyModule", "optimize", "pd", "sparse", "special", "stats", "torch"]
