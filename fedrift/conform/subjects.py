"""Finding implementations to judge: ``package.module:NAME`` or ``file.py:NAME``, one subject or several."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError, unknown
from .problem import Subject
from .reference import REFERENCES


def subjects(where: str) -> list[Subject]:
    """The subjects that a module or file calls NAME."""
    place, colon, name = where.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"{where!r}: a subject is written package.module:NAME or file.py:NAME, "
                        "e.g. fedrift.conform.peers.flower:FLOWER")
    module = loaded(place)
    if not hasattr(module, name):
        raise unknown(f"subject in {place}:", name, (known for known in vars(module) if not known.startswith("_")))
    found: Any = getattr(module, name)
    every = list(found) if isinstance(found, Iterable) else [found]
    for subject in every:
        lacks = [part for part in ("name", "version", "algorithm", "run") if not hasattr(subject, part)]
        if lacks:
            raise UserError(f"{where} is no subject: a {type(subject).__name__} without {', '.join(lacks)}; "
                            "fedrift.conform.Subject says what is asked of one")
        if subject.algorithm not in REFERENCES:
            raise unknown("algorithm to be judged by", subject.algorithm, REFERENCES)
    return every


def loaded(place: str) -> ModuleType:
    """The module of a name, or of a file."""
    try:
        if not place.endswith(".py"):
            return import_module(place)
        spec = spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    except (ImportError, FileNotFoundError) as error:
        raise UserError(f"cannot load {place}: {error}. A peer is judged where it is installed: docs/conformance.md") from None


__all__ = ["subjects"]
