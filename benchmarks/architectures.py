"""Every causal architecture of transformers, small and with random weights: what of it can be trained, beside plain transformers.

    make architectures        (python benchmarks/architectures.py [--kinds gpt2 bloom])

The configuration of each architecture is made small by the usual names of its numbers; where that gives no network, the table
says so. Every weight is moved a little, so that no bias is zero. Then two clients with different trained weights compute a loss
and a gradient as a stacked model, and each alone by plain transformers. They are the same where the loss differs by less than
1e-5 nats and every gradient by less than 1e-4 of its length.
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
MAX_WEIGHTS = 20_000_000  # weights
VOCABULARY, WIDTH, HEADS, LAYERS, WINDOW = 96, 32, 4, 2, 64
# The usual names of what makes a network large, and what they become.
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
    """The configuration of an architecture with the usual numbers made small."""
    made = CONFIG_MAPPING[kind]
    return made(**small_values(made, kind))


def small_values(config_class: Any, kind: str = "") -> dict[str, Any]:
    """What a class of configurations is given, so that its network, and those of the configurations inside it, are small."""
    known = {**vars(config_class()), **dict.fromkeys(config_class.attribute_map)}
    given = {name: value for name, value in SMALL_VALUES.items() if name in known and (value is not None or known[name] is not None)}
    given |= {name: number for number, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")) if name in known}
    if "kv_lora_rank" in known:  # latent attention
        given.pop("head_dim", None)
        given["num_key_value_heads"] = HEADS
    for name, inner in config_class.sub_configs.items():
        there = known.get(name)
        if there is not None:
            class_of = type(there) if inner.__name__ == "AutoConfig" else inner
            given[name] = {"model_type": there.model_type, **small_values(class_of, there.model_type)}
    return given | SPECIAL_VALUES.get(kind or config_class.model_type, {})


# Numbers that an architecture needs in a relation that the usual ones do not have.
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
    """A small random network, no weight of which is exactly 0 or 1."""
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
    """One client's loss by plain transformers, as a function of its ``leaves``."""
    own = dict(leaves)
    if isinstance(trainable, Lora):
        own = {}
        for path in {name.rsplit(".", 1)[0] for name in leaves}:
            module = network.get_submodule(path)
            change = trainable.scale * (leaves[f"{path}.B"] @ leaves[f"{path}.A"])
            own[f"{path}.weight"] = module.weight + (change.T if "Conv1D" in type(module).__name__ else change)
    logits = functional_call(network, own, (), {"input_ids": tokens, "use_cache": False}).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(tokens[:, 1:].shape)
    return (losses * keep[:, 1:]).sum() / keep[:, 1:].sum()


def compare(network: Any, trainable: Trainable) -> tuple[float, float]:
    """How far two clients' losses (nats) and gradients (as a share of their length) are from those of plain transformers."""
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
    loss = model(params, {"tokens": tokens, "keep": keep})
    found = torch.autograd.grad(loss.sum(), list(params.values()), materialize_grads=True)
    to_loss = to_gradient = 0.0
    for client in range(2):
        leaves = {name: leaf[client].detach().clone().requires_grad_() for name, leaf in params.items()}
        theirs = plain_loss(plain, trainable, leaves, tokens[client], keep[client])
        wanted = torch.autograd.grad(theirs, list(leaves.values()), materialize_grads=True)
        to_loss = max(to_loss, abs(float(loss[client] - theirs)))
        whole = torch.cat([leaf.flatten() for leaf in wanted]).norm()
        to_gradient = max(
            to_gradient,
            *(
                float((ours[client] - other).norm() / other.norm().clamp_min(1e-3 * whole))
                for ours, other in zip(found, wanted, strict=True)
            ),
        )
    return to_loss, to_gradient


def judge_architecture(kind: str, name: str) -> str:
    """``yes``, or why not."""
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
    return (" ".join(str(error).split()) or type(error).__name__)[:250]


def make_row(kind: str) -> dict[str, str]:
    """An architecture's row, in this process."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    return {"kind": kind, **{name: judge_architecture(kind, name) for name in TRAINABLES}}


def run_with_timeout(work: Callable[[str], dict[str, str]], kind: str, timeout_s: float) -> dict[str, str]:
    """``work(kind)`` in a process of its own, which may die or take too long."""
    there, here = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: there.send(work(kind)))
    process.start()
    said = here.recv() if here.poll(timeout_s) else None
    process.kill()
    process.join()
    return said or {"kind": kind, **dict.fromkeys(TRAINABLES, f"no answer in {timeout_s:.0f} seconds")}


def generalize_reason(reason: str) -> str:
    """A reason without what differs from one architecture to the next, so that it stands once under the table."""
    reason = re.sub(r"^refused: \w+", "refused: the network", reason)
    reason = re.sub(r"no place for .* among them: name", "no place for some of the adapters: name", reason)
    return reason.replace("|", "/").replace("<", "&lt;")


def number_reasons(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], str]:
    """The rows with numbers for what is not ``yes``, and the list of what the numbers mean."""
    notes, short = dict[str, int](), []
    for row in rows:
        cells = {"kind": f"`{row['kind']}`"}
        for name in TRAINABLES:
            said = generalize_reason(row[name])
            cells[name] = "yes" if said == "yes" else f"no ({notes.setdefault(said, len(notes) + 1)})"
        short.append(cells)
    return short, "\n".join(f"{number}. {said}" for said, number in notes.items())


def make_page(results: dict[str, Any]) -> tuple[list[dict[str, str]], dict[str, str], str]:
    """What stands in docs/models.md: the rows, their columns, and what is written under them."""
    short, notes = number_reasons(results["rows"])
    works = ", ".join(f"{COLUMNS[name]} {count}" for name, count in results["works"].items())
    return (
        short,
        COLUMNS,
        (
            f"{len(short)} architectures of transformers {results['transformers']}, peft {results['peft']}, torch "
            f"{results['torch']}, {results['date']}. Works: {works}. The numbers stand for:\n\n{notes}"
        ),
    )


def read_partial(path: Path, versions: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return the rows of a command that was stopped, by architecture; rows of other library versions are measured again."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {each["row"]["kind"]: each["row"] for each in map(json.loads, lines) if each["versions"] == versions}


def main(words: list[str] | None = None) -> int:
    ask = ArgumentParser(description=__doc__)
    ask.add_argument("--kinds", nargs="+", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), help="all, if not said")
    ask.add_argument("--seconds", type=float, default=600, help="for each architecture")
    ask.add_argument("--out", type=Path, default=RESULTS, help="only there, docs/models.md is written too")
    said = ask.parse_args(words)
    torch.set_num_threads(1)
    versions = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
    partial = said.out / "architectures-partial.jsonl"
    known = read_partial(partial, versions)
    rows = []
    for kind in said.kinds:
        if kind not in known:
            known[kind] = run_with_timeout(make_row, kind, said.seconds)
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("a") as file:
                file.write(json.dumps({"versions": versions, "row": known[kind]}) + "\n")
        rows.append(known[kind])
        print(" | ".join(rows[-1].values()), flush=True)
    works = {name: sum(row[name] == "yes" for row in rows) for name in TRAINABLES}
    whole = {**versions, "date": datetime.date.today().isoformat(), "works": works, "rows": rows}
    if said.out == RESULTS and len(rows) == len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        update_docs_table(MODELS_PAGE, "architectures", *make_page(whole))
    print(write_results(said.out, "architectures", whole))
    partial.unlink(missing_ok=True)
    return int(any(row[name].startswith(("FAULT", "WRONG")) for row in rows for name in TRAINABLES))


if __name__ == "__main__":
    sys.exit(main())
