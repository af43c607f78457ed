"""Mistakes of the user's, told so that they can be mended."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

ECHO = 80  # characters of a value that a message repeats
SHORT = Repr()
SHORT.repr_int = lambda x, level: quote(x)  # type: ignore[method-assign]
SHORT.maxlevel, SHORT.maxlist, SHORT.maxtuple, SHORT.maxdict, SHORT.maxstring, SHORT.maxother = 3, 6, 6, 6, 60, 60


class UserError(Exception):
    """A mistake in what was asked: shown without a traceback, exit code 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """``no corpus 'bcc': did you mean 'bbc'? There are: ag_news, bbc``."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f" did you mean {near!r}?" if near else ""
    return UserError(f"no {kind} {quote(name)}:{hint} There are: {', '.join(names) or 'none'}")


def quote(value: Any) -> str:
    """A value as a message repeats it: as it stands in YAML, at most ``ECHO`` characters of it, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    more = ""
    if isinstance(value, str) and len(value) > ECHO - 20:
        value, more = value[:ECHO // 2], f" and {len(value) - ECHO // 2:,} more characters"
    text = repr(value) if isinstance(value, (str, int, float)) else SHORT.repr(value)
    return (text if len(text) <= ECHO else f"{text[:ECHO - 4]} ...") + more


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The spelling in ``names`` closest to ``name``, capitals aside; None if nothing is near."""
    lower = {known.lower(): known for known in names}
    if len(name) > ECHO:  # the comparison takes the square of the length
        return None
    found = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else None
