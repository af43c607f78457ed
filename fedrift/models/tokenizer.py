"""Load the tokenizer of a model without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import UserError


def load_tokenizer(source: Path | str) -> Any:
    """Load the fast tokenizer of a model folder or hub id, as training does.

    A ``tokenizer.json`` is read as it is. transformers would build the tokenizer of some model families from other files.

    Args:
        source: A folder, or a hub id whose files are in the local cache or can be downloaded.

    Raises:
        UserError: There is no readable tokenizer, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # imported here because it takes a second
    from transformers.utils.hub import has_file

    local: dict[str, Any] = {"local_files_only": isinstance(source, Path), "trust_remote_code": False}
    try:
        is_fast = has_file(source, "tokenizer.json", local_files_only=isinstance(source, Path))
        tokenizer = (PreTrainedTokenizerFast if is_fast else AutoTokenizer).from_pretrained(source, **local)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"cannot read the tokenizer of the model in {source}: {reason}. Expected: tokenizer.json, tokenizer_config.json"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {source} has no end-of-sequence token: set eos_token in tokenizer_config.json")
    return tokenizer
