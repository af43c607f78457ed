"""The error class for mistakes of users, helpers for its messages, and the default cache folder."""

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
    """A mistake in the input of a user.

    The command line shows its message without a traceback and exits with code 2.

    Example:
        >>> try:
        ...     fedrift.TrainingConfig(num_clients_per_round=5).cohort_size(num_clients=4)
        ... except fedrift.UserError as error:
        ...     print(error)
        training.num_clients_per_round: 5 of 4 clients; allowed: 1 to 4
    """


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist, with the closest existing name and a list of all names.

    Args:
        kind: The kind of thing that the name should denote, for example ``"corpus"``.
        name: The unknown name.
        known: The names that exist.

    Returns:
        A ``UserError`` such as ``no corpus 'bcc': did you mean 'bbc'? Available: ag_news, bbc``.
    """
    names = sorted(known)
    near = closest_match(name, names)
    hint = f" did you mean {near!r}?" if near else ""
    return UserError(f"no {kind} {quote_value(name)}:{hint} Available: {', '.join(names) or 'none'}")


def quote_value(value: Any) -> str:
    """Return a value as error messages quote it: in YAML notation, on one line, with at most ``MAX_ECHO_CHARS`` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    suffix = ""
    if isinstance(value, str) and len(value) > MAX_ECHO_CHARS - 20:
        value, suffix = value[: MAX_ECHO_CHARS // 2], f" and {len(value) - MAX_ECHO_CHARS // 2:,} more characters"
    text = repr(value) if isinstance(value, (str, int, float)) else SHORT_REPR.repr(value)
    return (text if len(text) <= MAX_ECHO_CHARS else f"{text[: MAX_ECHO_CHARS - 4]} ...") + suffix


def closest_match(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is spelled most similarly to ``name``, ignoring case; None if no name is similar."""
    by_lower_case = {known.lower(): known for known in names}
    if len(name) > MAX_ECHO_CHARS:  # the cost of the comparison grows with the square of the length
        return None
    matches = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    return by_lower_case[matches[0]] if matches else None


def default_cache_dir() -> Path:
    """Return the folder for downloaded models, tokenized corpora and embeddings, all of which can be created again.

    Returns:
        The value of the environment variable ``FEDRIFT_CACHE`` if it is set, else ``~/.cache/fedrift``.
    """
    configured = os.environ.get("FEDRIFT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "fedrift"
