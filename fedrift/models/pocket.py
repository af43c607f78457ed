"""`pocket`, the small language model that comes with fedrift; ``pocket/README.md`` is its card."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

PARTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def pocket_folder() -> Path:
    """The folder of the package that holds `pocket`'s weights (float16) and tokenizer."""
    folder = Path(__file__).with_name("pocket")
    missing = [part for part in PARTS if not (folder / part).is_file()]
    if missing:
        raise UserError(f"this copy of fedrift lacks {', '.join(missing)} of the model 'pocket', wanted in "
                        f"{folder}: install fedrift again, or make it with scripts/pretrain_pocket.py")
    return folder
