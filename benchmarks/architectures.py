"""Test which causal architectures of transformers fedrift can train, with small random networks.

    make architectures        (python benchmarks/architectures.py [--kinds gpt2 bloom])

The configuration of each architecture is reduced by setting the fields with common names to small values. If this gives no valid
network, the table says so. Every weight is perturbed, so that no bias is zero. Then two clients with different trained weights
compute loss and gradient as a stacked model, and each client alone with plain transformers. The results count as equal if the
losses differ by less than 1e-5 nats per token and every gradient by less than 1e-4 of its norm.
"""

from __future__ import annotations

import copy
import datetime
import json
import multiprocessing
import re
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from machine import MODELS_PAGE, RESULTS, update_docs_table, write_results
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.models.export import check_peft_compatible
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora, Trainable

TRAINABLES: dict[str, Trainable] = {"lora": Lora(r=2), "lora_all": Lora(r=2, target_modules=("all",)), "last": LastBlocks(1), "full": All()}
COLUMNS = {"kind": "architecture", "lora": "LoRA", "lora_all": "LoRA, [all]", "last": "last block", "full": "full"}
MAX_LOSS_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 1e-5, 1e-4
MAX_WEIGHTS = 20_000_000
VOCABULARY, WIDTH, HEADS, LAYERS, WINDOW = 96, 32, 4, 2, 64
# Common names of the configuration fields that determine the size of a network, and their small values.
SMALL_VALUES: dict[str, Any] = {
    name: value
    for names, value in (
        ("vocab_size vocab_size_per_layer_input", VOCABULARY),
        (
            "hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim attention_hidden_size emb_dim input_hidden_size "
            "embedding_dim lru_width dim",
            WIDTH,
        ),
        (
            "intermediate_size ffn_dim decoder_ffn_dim n_inner ffn_hidden_size moe_intermediate_size dim_ff "
            "shared_expert_intermediate_size feed_forward_size block_ff_dim intermediate_size_mlp shared_intermediate_size "
            "moe_shared_expert_intermediate_size expert_ffn_hidden_size prefix_dense_intermediate_size",
            48,
        ),
        ("num_hidden_layers n_layer num_layers decoder_layers num_decoder_layers n_layers", LAYERS),
        ("num_attention_heads n_head num_heads decoder_attention_heads n_heads num_decoder_attention_heads", HEADS),
        ("num_key_value_heads num_query_groups n_kv_heads", 2),
        ("head_dim v_head_dim kv_channels d_kv qk_nope_head_dim qk_rope_head_dim rotary_dim dim_head", 8),
        ("max_position_embeddings n_positions context_length max_seq_len max_sequence_length n_ctx", WINDOW),
        ("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
        ("num_experts_per_tok moe_top_k moe_k topk_group n_group first_k_dense_replace n_shared_experts", 1),
        ("q_lora_rank kv_lora_rank o_lora_rank index_head_dim", 16),
        ("state_size mamba_d_state sliding_window attention_window", 8),
        ("image_size", 32),
        ("patch_size", 16),
        ("mamba_n_heads mamba_num_heads", 8),
        ("mamba_d_head mamba_head_dim", 8),
        ("mamba_n_groups mamba_d_conv n_groups", 1),
        ("mamba_chunk_size chunk_size", 8),
        ("layer_types mlp_layer_types layers_block_type", None),
        ("num_kv_shared_layers", 0),
    )
    for name in names.split()
}


def small_config(kind: str) -> Any:
    """Return the configuration of an architecture with small sizes."""
    config_class = CONFIG_MAPPING[kind]
    return config_class(**small_values(config_class, kind))


def small_values(config_class: Any, kind: str = "") -> dict[str, Any]:
    """Return the arguments of a configuration class that make its network, and those of its sub-configurations, small."""
    fields = {**vars(config_class()), **dict.fromkeys(config_class.attribute_map)}
    values = {name: value for name, value in SMALL_VALUES.items() if name in fields and (value is not None or fields[name] is not None)}
    values |= {name: token_id for token_id, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")) if name in fields}
    if "kv_lora_rank" in fields:  # latent attention
        values.pop("head_dim", None)
        values["num_key_value_heads"] = HEADS
    for name, sub_config in config_class.sub_configs.items():
        default = fields.get(name)
        if default is not None:
            sub_class = type(default) if sub_config.__name__ == "AutoConfig" else sub_config
            values[name] = {"model_type": default.model_type, **small_values(sub_class, default.model_type)}
    return values | SPECIAL_VALUES.get(kind or config_class.model_type, {})


# Architectures whose configuration fields must satisfy relations that the common values violate.
SPECIAL_VALUES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots3_note": {"per_layer_config": {}},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "hidden_size": WIDTH}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
}


def make_network(kind: str) -> Any:
    """Create a small random network in which no weight is exactly 0 or 1.

    Raises:
        ValueError: If the network is not small.
    """
    config = small_config(kind)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > MAX_WEIGHTS:
        raise ValueError(f"{size:,} weights")
    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for leaf in network.parameters():
            if leaf.is_floating_point():
                leaf.add_(torch.randn(leaf.shape, generator=draw) * (0.08 if leaf.ndim > 1 else 0.1))
    network.config.use_cache = False
    return network.requires_grad_(False).eval()


def plain_loss(network: Any, trainable: Trainable, leaves: dict[str, Tensor], tokens: Tensor, keep: Tensor) -> Tensor:
    """Compute the loss of one client with plain transformers.

    Args:
        network: The frozen network.
        trainable: Which weights are trained.
        leaves: The trained weights of the client.
        tokens: Token ids [B, T].
        keep: Which tokens count [B, T].

    Returns:
        The mean loss in nats per token, as a function of ``leaves``.
    """
    weights = dict(leaves)
    if isinstance(trainable, Lora):
        weights = {}
        for path in {name.rsplit(".", 1)[0] for name in leaves}:
            module = network.get_submodule(path)
            change = trainable.scale * (leaves[f"{path}.B"] @ leaves[f"{path}.A"])
            weights[f"{path}.weight"] = module.weight + (change.T if "Conv1D" in type(module).__name__ else change)
    logits = functional_call(network, weights, (), {"input_ids": tokens, "use_cache": False}).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(tokens[:, 1:].shape)
    return (losses * keep[:, 1:]).sum() / keep[:, 1:].sum()


def compare(network: Any, trainable: Trainable) -> tuple[float, float]:
    """Compare a stacked model of two clients with plain transformers.

    Returns:
        The largest difference of the losses in nats per token, and of the gradients relative to their norm.

    Raises:
        UserError: If fedrift refuses the network or PEFT could not load its adapters.
    """
    plain, model = copy.deepcopy(network), StackedModel(network, trainable)
    if isinstance(trainable, Lora):
        check_peft_compatible(model, trainable)
    draw = torch.Generator().manual_seed(5)
    size = min(VOCABULARY, model.head.weight.shape[0])
    tokens = torch.randint(3, size, (2, 3, 16), generator=draw)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[1, 2, 10:], tokens[1, 2, 10:], tokens[0, 0, 5] = False, 0, 0
    params = Tree(
        {
            name: (leaf + 0.05 * torch.randn(2, *leaf.shape[1:], generator=draw)).requires_grad_()
            for name, leaf in model.init_params().items()
        }
    )
    loss = model(params, {"tokens": tokens, "loss_mask": keep})
    gradients = torch.autograd.grad(loss.sum(), list(params.values()), materialize_grads=True)
    loss_difference = gradient_difference = 0.0
    for client in range(2):
        leaves = {name: leaf[client].detach().clone().requires_grad_() for name, leaf in params.items()}
        expected_loss = plain_loss(plain, trainable, leaves, tokens[client], keep[client])
        expected = torch.autograd.grad(expected_loss, list(leaves.values()), materialize_grads=True)
        loss_difference = max(loss_difference, abs(float(loss[client] - expected_loss)))
        total_norm = torch.cat([leaf.flatten() for leaf in expected]).norm()
        gradient_difference = max(
            gradient_difference,
            *(
                float((gradient[client] - reference).norm() / reference.norm().clamp_min(1e-3 * total_norm))
                for gradient, reference in zip(gradients, expected, strict=True)
            ),
        )
    return loss_difference, gradient_difference


def judge_architecture(kind: str, name: str) -> str:
    """Return ``yes`` if an architecture can be trained in this way, or the reason why not."""
    try:
        network = make_network(kind)
    except Exception as error:
        return f"no small configuration ({first_line(error)})"
    try:
        loss, gradient = compare(network, TRAINABLES[name])
    except UserError as error:
        return f"refused: {first_line(error)}"
    except Exception as error:
        return f"FAULT: {type(error).__name__}: {first_line(error)}"
    return (
        "yes" if loss < MAX_LOSS_DIFFERENCE and gradient < MAX_GRADIENT_DIFFERENCE else f"WRONG: loss {loss:.1e}, gradient {gradient:.1e}"
    )


def first_line(error: BaseException) -> str:
    """Return the message of an error on one line, at most 500 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:500]


def make_row(kind: str) -> dict[str, str]:
    """Test an architecture in this process, and return a row of the table."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    return {"kind": kind, **{name: judge_architecture(kind, name) for name in TRAINABLES}}


def run_with_timeout(work: Callable[[str], dict[str, str]], kind: str, timeout_s: float) -> dict[str, str]:
    """Run ``work(kind)`` in a separate process, because it may crash or take too long."""
    sender, receiver = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(work(kind)))
    process.start()
    row = receiver.recv() if receiver.poll(timeout_s) else None
    process.kill()
    process.join()
    return row or {"kind": kind, **dict.fromkeys(TRAINABLES, f"no result in {timeout_s:.0f} seconds")}


def generalize_reason(reason: str) -> str:
    """Remove the parts of a reason that depend on the architecture, so that it appears only once below the table."""
    reason = re.sub(r"^refused: \w+", "refused: the network", reason)
    reason = re.sub(r"would not load .* for example .*?: remove", "would not load some of the adapters: remove", reason)
    return reason.replace("|", "/").replace("<", "&lt;")


def number_reasons(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], str]:
    """Replace reasons by numbers; return the rows and the numbered list of reasons."""
    numbers, short_rows = dict[str, int](), []
    for row in rows:
        cells = {"kind": f"`{row['kind']}`"}
        for name in TRAINABLES:
            reason = generalize_reason(row[name])
            cells[name] = "yes" if reason == "yes" else f"no ({numbers.setdefault(reason, len(numbers) + 1)})"
        short_rows.append(cells)
    return short_rows, "\n".join(f"{number}. {reason}" for reason, number in numbers.items())


def make_page(results: dict[str, Any]) -> tuple[list[dict[str, str]], dict[str, str], str]:
    """Return the rows, the columns and the footer of the table in docs/models.md."""
    rows, reasons = number_reasons(results["rows"])
    counts = ", ".join(f"{COLUMNS[name]} {count}" for name, count in results["works"].items())
    return (
        rows,
        COLUMNS,
        (
            f"{len(rows)} architectures of transformers {results['transformers']}, peft {results['peft']}, torch "
            f"{results['torch']}, {results['date']}. Supported: {counts}. The numbers mean:\n\n{reasons}"
        ),
    )


def read_partial(path: Path, versions: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return the rows of a command that was stopped, by architecture; rows of other library versions are measured again."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {entry["row"]["kind"]: entry["row"] for entry in map(json.loads, lines) if entry["versions"] == versions}


def main(arguments: list[str] | None = None) -> int:
    """Test all architectures, print a line for each and write the results; return 1 if one is wrong."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kinds", nargs="+", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), help="the architectures to test; by default all"
    )
    parser.add_argument("--seconds", type=float, default=600, help="the maximum number of seconds per architecture")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="the folder for the results; docs/models.md is updated only with the default folder"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    versions = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
    partial = args.out / "architectures-partial.jsonl"
    known = read_partial(partial, versions)
    rows = []
    for kind in args.kinds:
        if kind not in known:
            known[kind] = run_with_timeout(make_row, kind, args.seconds)
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("a") as file:
                file.write(json.dumps({"versions": versions, "row": known[kind]}) + "\n")
        rows.append(known[kind])
        print(" | ".join(rows[-1].values()), flush=True)
    works = {name: sum(row[name] == "yes" for row in rows) for name in TRAINABLES}
    results = {**versions, "date": datetime.date.today().isoformat(), "works": works, "rows": rows}
    if args.out == RESULTS and len(rows) == len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        update_docs_table(MODELS_PAGE, "architectures", *make_page(results))
    print(write_results(args.out, "architectures", results))
    partial.unlink(missing_ok=True)
    return int(any(row[name].startswith(("FAULT", "WRONG")) for row in rows for name in TRAINABLES))


if __name__ == "__main__":
    sys.exit(main())
