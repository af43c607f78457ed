"""Quantised bases beside the dense one: what they take of memory, and what they lose of a model's language.

    make bench-quantized      (python benchmarks/quantized.py [--models pocket smollm2-135m])

Weights: bytes of all parameters and buffers as they lie in memory. Perplexity: on windows of 128 tokens, the first of each only
context, spread evenly over the WikiText-2 test set (FEDRIFT_DATA, or ../shared/data), or else the made-up text of `synthetic`; the same
windows for every base. Gradient: 1 - cosine between the adapters' gradients on a base and on the dense one, after an evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from importlib.util import find_spec
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from machine import MODELS_PAGE, RESULTS, describe_machine, update_docs_table, write_results

from fedrift.core.errors import default_cache_dir
from fedrift.core.tree import Tree
from fedrift.data import DatasetConfig, load_corpus
from fedrift.models.load import load_model
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora

BASES = {"none": "torch", "nf4": "bitsandbytes", "int8": "torchao"}


def load_texts() -> tuple[str, list[str]]:
    """The name of the text, and its documents."""
    folder = Path(os.environ.get("FEDRIFT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    name = "wikitext2" if (folder / "wikitext2").is_dir() else "synthetic"
    corpus = load_corpus(DatasetConfig(name), data_dir=folder)
    return name, [str(text) for text in corpus.test.text]


def token_windows(tokenizer: Any, documents: list[str], count: int, length: int = 128) -> torch.Tensor:
    """``[count, length]`` token ids, spread evenly over the text."""
    ids = torch.tensor(tokenizer("\n\n".join(documents), verbose=False)["input_ids"])
    every = ids[: len(ids) // length * length].view(-1, length)
    return every[torch.linspace(0, len(every) - 1, min(count, len(every))).long()]


def weight_bytes(network: torch.nn.Module) -> int:
    """Bytes of the weights as they lie in memory, those inside packed tensors too."""
    seen: dict[int, int] = {}

    def count(leaf: torch.Tensor) -> None:
        inner = getattr(leaf, "__tensor_flatten__", None)
        if inner is not None and type(leaf) not in (torch.Tensor, torch.nn.Parameter):
            for name in inner()[0]:
                count(getattr(leaf, name))
        else:
            seen[leaf.data_ptr()] = leaf.untyped_storage().nbytes()
        state = getattr(leaf, "quant_state", None)
        for part in (getattr(state, name, None) for name in ("absmax", "code")):
            if part is not None:
                seen[part.data_ptr()] = part.untyped_storage().nbytes()

    for leaf in (*network.parameters(), *network.buffers()):
        count(leaf)
    return sum(seen.values())


def adapter_gradient(model: StackedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The adapters' gradient as one vector, both factors moved off their start."""
    draw = torch.Generator().manual_seed(3)
    params = model.init_params()
    leaves = Tree(
        {name: (leaf + 0.02 * torch.randn(leaf.shape, generator=draw).to(leaf)).requires_grad_() for name, leaf in params.items()}
    )
    loss = model(leaves, {"tokens": tokens, "keep": torch.ones_like(tokens, dtype=torch.bool)})
    return torch.cat([leaf.flatten() for leaf in torch.autograd.grad(loss.sum(), list(leaves.values()))])


def measure_base(name: str, base: str, documents: list[str], count: int) -> tuple[dict[str, Any], torch.Tensor]:
    begun = perf_counter()
    language = load_model(name, cache_dir=default_cache_dir(), quantization=base)  # type: ignore[arg-type]
    loaded = perf_counter() - begun
    model = StackedModel(language.network, Lora(quantization=base))  # type: ignore[arg-type]
    tokens = token_windows(language.tokenizer, documents, count)
    total = seen = 0.0
    begun = perf_counter()
    with torch.no_grad():
        for part in tokens.split(8):
            loss, counted = model.sequence_losses(model.init_params(), part[None], torch.ones_like(part, dtype=torch.bool)[None])
            total, seen = total + float(loss.double().sum()), seen + float(counted.sum())
    spent = perf_counter() - begun
    return {
        "model": name,
        "base": base,
        "weights_mb": round(weight_bytes(language.network) / 1e6, 1),
        "nats_per_token": round(total / seen, 5),
        "perplexity": round(exp(total / seen), 3),
        "tokens": int(seen),
        "evaluated_tokens_per_s": round(seen / spent),
        "load_s": round(loaded, 1),
    }, adapter_gradient(model, tokens[:2][None])


def main(words: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", nargs="+", default=["pocket", "smollm2-135m"])
    ask.add_argument("--windows", type=int, default=64)
    ask.add_argument("--out", type=Path, default=RESULTS)
    said = ask.parse_args(words)
    warnings.simplefilter("ignore")
    text, documents = load_texts()
    rows: list[dict[str, Any]] = []
    for name in said.models:
        dense: dict[str, Any] = {}
        for base, package in BASES.items():
            if find_spec(package) is None:
                print(f"{name} {base}: {package} is not installed, pip install 'fedrift[quantised]'")
                continue
            row, slope = measure_base(name, base, documents, said.windows)
            dense = dense or {"slope": slope, **row}
            turned = 1 - float(torch.cosine_similarity(slope.double(), dense["slope"].double(), 0))
            row |= {
                "memory_share": round(row["weights_mb"] / dense["weights_mb"], 3),
                "perplexity_ratio": round(row["perplexity"] / dense["perplexity"], 4),
                "gradient_turned": float(f"{turned:.1e}"),
            }
            rows.append(row)
            print(
                "{model:14} {base:6} {weights_mb:8.1f} MB ({memory_share:.2f})   perplexity {perplexity:8.3f} "
                "({perplexity_ratio:.4f})   gradient turned by {gradient_turned:.1e}".format(**row),
                flush=True,
            )
    if said.out == RESULTS:
        update_docs_table(
            MODELS_PAGE,
            "quantized",
            rows,
            {
                "model": "model",
                "base": "base",
                "weights_mb": "weights, MB",
                "memory_share": "of the dense",
                "perplexity": "perplexity",
                "perplexity_ratio": "to the dense",
                "gradient_turned": "adapters' gradient, 1 - cosine to the dense",
            },
        )
    print(
        write_results(said.out, "quantized", {**describe_machine(torch.device("cpu")), "text": text, "windows": said.windows, "rows": rows})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
