"""Mistakes of the user's, told so that they can be mended."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what was asked: shown without a traceback, exit code 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """``no corpus 'bcc': did you mean 'bbc'? There are: ag_news, bbc``."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f" did you mean {near!r}?" if near else ""
    return UserError(f"no {kind} {name!r}:{hint} There are: {', '.join(names) or 'none'}")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The spelling in ``names`` closest to ``name``, capitals aside; None if nothing is near."""
    lower = {known.lower(): known for known in names}
    found = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else None
