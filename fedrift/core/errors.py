"""Mistakes of the user's, told so that they can be mended."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any

MAX_ECHO_CHARS = 80  # characters of a value that a message repeats
SHORT_REPR = Repr()
SHORT_REPR.repr_int = lambda x, level: quote_value(x)  # type: ignore[method-assign]
SHORT_REPR.maxlevel, SHORT_REPR.maxlist, SHORT_REPR.maxtuple, SHORT_REPR.maxdict, SHORT_REPR.maxstring, SHORT_REPR.maxother = (
    3,
    6,
    6,
    6,
    60,
    60,
)


class UserError(Exception):
    """A mistake in what was asked: shown without a traceback, exit code 2."""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> UserError:
    """``no corpus 'bcc': did you mean 'bbc'? There are: ag_news, bbc``."""
    names = sorted(known)
    near = closest_match(name, names)
    hint = f" did you mean {near!r}?" if near else ""
    return UserError(f"no {kind} {quote_value(name)}:{hint} There are: {', '.join(names) or 'none'}")


def quote_value(value: Any) -> str:
    """A value as a message repeats it: as it stands in YAML, at most ``ECHO`` characters of it, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    more = ""
    if isinstance(value, str) and len(value) > MAX_ECHO_CHARS - 20:
        value, more = value[: MAX_ECHO_CHARS // 2], f" and {len(value) - MAX_ECHO_CHARS // 2:,} more characters"
    text = repr(value) if isinstance(value, (str, int, float)) else SHORT_REPR.repr(value)
    return (text if len(text) <= MAX_ECHO_CHARS else f"{text[: MAX_ECHO_CHARS - 4]} ...") + more


def closest_match(name: str, names: Iterable[str]) -> str | None:
    """The spelling in ``names`` closest to ``name``, capitals aside; None if nothing is near."""
    lower = {known.lower(): known for known in names}
    if len(name) > MAX_ECHO_CHARS:  # the comparison takes the square of the length
        return None
    found = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else None


# Where things are kept that can be made or fetched again.


def default_cache_dir() -> Path:
    """Where fetched models, tokenised corpora and embeddings are kept: ``FEDRIFT_CACHE``, else the user's cache."""
    said = os.environ.get("FEDRIFT_CACHE")
    return Path(said).expanduser() if said else Path.home() / ".cache" / "fedrift"
