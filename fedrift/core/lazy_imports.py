"""Imports of large libraries: when one of their attributes is first used, because they take up to seconds, and without their warnings.

A configuration can then be checked, and a finished run can be shown, without these modules. Write ``from ..core.lazy_imports import
torch`` in a module that such a command imports, and ``import torch`` everywhere else. An object of this module stands for one module
and has all attributes of it. Types that occur in annotations only, such as ``Tensor``, are imported for type checkers only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


NOISY_LOGGERS = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
SKIP_KERNELS = "TORCHAO_FORCE_SKIP_LOADING_SO_FILES"


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide warnings while transformers or peft are imported, and restore all settings afterwards, which belong to the calling program.

    Both import torchao and bitsandbytes if these are installed. torchao then warns about GPU kernels that it cannot load and fedrift does
    not use; on processors with AVX-512 for bfloat16, bitsandbytes warns about a kernel of the Hugging Face hub.

    Example:
        >>> with quiet_imports():
        ...     import peft
    """
    levels, had_variable = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}, SKIP_KERNELS in os.environ
    os.environ.setdefault(SKIP_KERNELS, "1")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not had_variable:
            os.environ.pop(SKIP_KERNELS, None)


__all__ = ["LazyModule", "optimize", "pd", "quiet_imports", "sparse", "special", "stats", "torch"]
