"""Language models by name, through transformers: a preset, a local folder or a hub id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.hub import cached_file, has_file

from ..errors import UserError, unknown
from .pocket import pocket_folder
from .presets import Preset, check_no_adapter, listing, locate, parsed
from .quantised import Base, check_installed, loading, quantised
from .smollm2 import smollm2_folder

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
PARTS = "config.json, the weights (*.safetensors), tokenizer.json and tokenizer_config.json"
# What transformers raises on files it cannot make sense of, or cannot get.
TROUBLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen causal language model, its tokenizer, and the longest input it takes (in tokens)."""

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int

    def sharing(self) -> LanguageModel:
        """The same model in modules of its own, with the same parameters: whoever changes modules changes none of ours, and
        the weights are in memory once."""
        same = {id(parameter): parameter for parameter in self.network.parameters()}
        return replace(self, network=deepcopy(self.network, same))


def load_model(name: str, *, cache: Path, dtype: str = "float32", base: Base = "dense",
               say: Callable[[str], None] = lambda message: None) -> LanguageModel:
    """Load a model by the name of a preset, a local folder or a hub id.

    The network is in eval mode, without gradients and without a key-value cache. ``cache`` is where models
    that are converted first are kept; ``say`` is told of whatever takes long. Raises `UserError` with the way
    out where there is no such model, the hub cannot be reached, or the files are no causal language model's.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    check_installed(base)
    return open_model(name, files(locate(name), cache, say), DTYPES[dtype], base)


def files(found: Preset | Path | str, cache: Path, say: Callable[[str], None]) -> Path | str:
    """Where the model's files are: a folder, or the hub id of a model that can be had."""
    match found:
        case Path():
            return found
        case Preset(origin="package"):
            return pocket_folder()
        case Preset(origin="pip"):
            return smollm2_folder(cache, convert_gguf, say)
        case Preset(hub=hub) | str(hub):
            ask_hub(hub, say)
            return hub


def ask_hub(hub: str, say: Callable[[str], None]) -> None:
    """Raise `UserError` at once if a model is neither in the hub's own cache here nor to be had from the hub.

    transformers would find out too, after half a minute of retries and with less to say.
    """
    if isinstance(try_to_load_from_cache(hub, "config.json"), str):
        return
    say(f"fetching {hub} from the model hub")
    try:
        HfApi().model_info(hub, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(f"no model {hub!r} on the model hub (nor a folder of that name here); "
                        "a private one needs `hf auth login` first") from error
    except Exception as error:      # offline mode, no network, a proxy, a broken answer: all one to the user
        raise UserError(
            f"model {hub!r} must come from the model hub, which cannot be reached ({short(error)}).\n"
            f"Ways out: bring {PARTS} into a folder and say `model: path/to/folder`; or use a model that "
            "needs no hub: `model: pocket`, `model: smollm2-135m`") from error


def open_model(name: str, where: Path | str, dtype: torch.dtype, base: Base = "dense") -> LanguageModel:
    """Read network and tokenizer from a folder or, for a ``str``, the hub, and check that they fit."""
    local: dict[str, Any] = {"local_files_only": isinstance(where, Path), "trust_remote_code": False}
    if isinstance(where, Path):
        check_no_adapter(where)
    with quiet():
        with told("config.json", where):
            config = AutoConfig.from_pretrained(where, **local)
        check_causal(config.model_type, config.architectures or [], where)
        with told("the weights", where):
            # Attention is left to transformers: sdpa wherever the architecture has it.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, config=config, dtype=dtype, output_loading_info=True, **loading(base, dtype), **local)
        network, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"the weights in {where} lack {len(missing)} of the model's tensors, "
                            f"{', '.join(missing[:3])} among them: they would be random")
        with told("the tokenizer", where):
            # tokenizer.json, where there is one, is the tokenizer. For Qwen2 and others AutoTokenizer would
            # build the family's own from parts, and split words otherwise than the file.
            whole = has_file(where, "tokenizer.json", local_files_only=isinstance(where, Path))
            tokenizer = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(where, **local)
    check_tokenizer(tokenizer, network.get_input_embeddings().weight.shape[0], where)
    if whole:
        check_end_token(tokenizer, where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token       # harmless: masks come from lengths, never from ids
    network.config.use_cache = False
    network.requires_grad_(False).eval()
    # An architecture without position limit (ALiBi, state space) names none: its tokenizer's is all there is.
    window = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return LanguageModel(name, quantised(network, base), tokenizer, int(window))


def check_causal(kind: str, architectures: list[str], where: Path | str) -> None:
    """Raise `UserError` unless the config is of a causal language model as transformers knows them."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is None or (architectures and causal.lower() not in [name.lower() for name in architectures]):
        wanted = causal or "a model that predicts the next token (GPT-2, Llama, Qwen2 or the like)"
        raise UserError(f"{where} holds {' / '.join(architectures) or kind}, which is not a causal language "
                        f"model; wanted {wanted}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, where: Path | str) -> None:
    """Raise `UserError` unless every id has a row in the embedding and documents can be ended."""
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {where} is a slow one: it needs tokenizer.json")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise UserError(f"the tokenizer in {where} has ids up to {highest:,}, the model's embedding has "
                        f"{rows:,} rows: they do not belong together")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {where} names no end token: set eos_token in "
                        "tokenizer_config.json")


def check_end_token(tokenizer: PreTrainedTokenizerBase, where: Path | str) -> None:
    """Raise `UserError` where no file of the tokenizer knows its end token: transformers gives such a one an id of its own,
    whose row of the embedding was never trained."""
    texts = {name: cached_file(where, name, local_files_only=isinstance(where, Path), _raise_exceptions_for_missing_entries=False)
             for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")}
    whole, settings, added = (parsed(Path(file)) if file else {} for file in texts.values())
    words = whole.get("model", {}).get("vocab", ())
    known = set(words) if isinstance(words, dict) else {pair[0] for pair in words}
    known |= {entry.get("content") for entry in whole.get("added_tokens", ())} | set(added)
    known |= {entry.get("content") for entry in settings.get("added_tokens_decoder", {}).values() if isinstance(entry, dict)}
    if tokenizer.eos_token not in known:
        raise UserError(f"the end token {str(tokenizer.eos_token)[:80]!r} of the tokenizer in {where} is not in its vocabulary "
                        "(tokenizer.json): set eos_token in tokenizer_config.json to one that is")


def convert_gguf(file: Path, folder: Path) -> None:
    """Turn SmolLM2's GGUF file into a model folder: bfloat16 safetensors and tokenizer."""
    local: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with quiet():
        network: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **local)
        # The weights are dense by now; as long as the model says it is quantised, it refuses to be saved.
        network.hf_quantizer = None
        del network.config.quantization_config
        network.to(torch.bfloat16).save_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **local)
        # The file says `pre = smollm`: every digit apart, then GPT-2's rule. transformers reads the second.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.save_pretrained(folder)


@contextmanager
def told(what: str, where: Path | str) -> Iterator[None]:
    """Say in one line which part of which model could not be read, and what is wanted there."""
    try:
        yield
    except TROUBLE as error:
        has = f"; it has {listing(where)}" if isinstance(where, Path) else ""
        raise UserError(f"cannot read {what} of the model in {where}: {short(error)}\n"
                        f"Wanted there: {PARTS}{has}") from error


def short(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings of transformers; as before afterwards."""
    log: Any = logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
