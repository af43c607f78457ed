"""What a sink is: told what was asked, then the numbers of one round after another, then how it ended."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from ..errors import UserError

Said = dict[str, Any]


class Sink:
    """``folder``: where a sink that keeps files puts them; ``again``: the run was told of before and goes on."""

    package: ClassVar[str] = ""
    pip: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = library(self.package, self.pip)

    def begin(self, run: str, name: str, asked: Said, again: bool) -> None:
        raise NotImplementedError

    def write(self, round: int, numbers: dict[str, float]) -> None:
        """All numbers of one round; each round once, in order."""
        raise NotImplementedError

    def end(self, summary: Said) -> None:
        """``summary`` is empty where the run is not finished."""
        raise NotImplementedError


def library(package: str, pip: str) -> ModuleType:
    """The package, or the line that installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f"this sink needs {pip}, which is not here ({error}): pip install '{pip}', "
                        "or all sinks with pip install 'fedrift[sinks]'") from None
