"""What a client keeps on its own machine between rounds, written so that client and server cannot disagree about it.

A client does not know whether its answer arrived. So it keeps two memories, the one that it had and the one that it would have
had, each with the round it belongs to, and the next message says which round of this client the server counted last.
That one holds; the other is forgotten. c = mean_k c_k of SCAFFOLD then holds whatever was lost on the way.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from ..errors import UserError
from ..store.tensors import load_state, save_state
from ..tree import Tree


class Lost(Exception):
    """The memory that the server means is not here."""


def recall(path: Path, first: Tree, counted: int, given: Tree | None = None) -> Tree:
    """The memory as of round ``counted`` (0: none yet), ``[1, ...]``. ``first`` is how memories begin; ``given``: what to go on
    with in place of one that was lost."""
    if not first or (counted == 0 and given is None):
        return first
    if given is not None:
        return given
    try:
        with lock(path):
            leaves, told = load_state(path)
    except UserError as error:
        raise Lost(f"the memory of round {counted} is not here") from error
    for part in ("after", "before"):
        found = Tree({name: leaves[f"{part}/{name}"].clone() for name in first if f"{part}/{name}" in leaves})
        if told.get(part) == counted and all(found[name].shape == leaf.shape for name, leaf in first.items() if name in found) \
                and found.keys() == first.keys():
            return found
    raise Lost(f"the memory of round {counted} is not here, only those of rounds {told.get('before')} and {told.get('after')}")


def remember(path: Path, counted: int, before: Tree, round: int, after: Tree) -> None:
    """Keep both: the memory as of round ``counted``, and that as of ``round`` should the server count it."""
    if not before:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = {f"{part}/{name}": leaf for part, tree in (("before", before), ("after", after)) for name, leaf in tree.items()}
    with lock(path):
        save_state(path, leaves, {"before": counted, "after": round})


def lock(path: Path) -> FileLock:
    """A client that is asked twice at once writes one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))
