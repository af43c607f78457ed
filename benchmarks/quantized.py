"""Measure the memory, perplexity and gradients of quantized base weights compared with dense ones.

    make bench-quantized      (python benchmarks/quantized.py [--models pocket smollm2-135m])

Weights: the bytes of all parameters and buffers in memory. Perplexity: windows of 128 tokens, whose first token is only context, are
spread evenly over the WikiText-2 test set (FEDRIFT_DATA or ../shared/data). If that dataset is missing, the synthetic dataset is
used. All bases see the same windows. Gradient: 1 - cosine between the adapters' gradients with the quantized and with the dense
weights, after an evaluation.
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
    """Return the name of the test dataset and its documents."""
    folder = Path(os.environ.get("FEDRIFT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    name = "wikitext2" if (folder / "wikitext2").is_dir() else "synthetic"
    corpus = load_corpus(DatasetConfig(name), data_dir=folder)
    return name, [str(text) for text in corpus.test.text]


def token_windows(tokenizer: Any, documents: list[str], count: int, length: int = 128) -> torch.Tensor:
    """Return at most ``count`` windows of token ids [count, length], spread evenly over the text."""
    ids = torch.tensor(tokenizer("\n\n".join(documents), verbose=False)["input_ids"])
    windows = ids[: len(ids) // length * length].view(-1, length)
    return windows[torch.linspace(0, len(windows) - 1, min(count, len(windows))).long()]


def weight_bytes(network: torch.nn.Module) -> int:
    """Return the bytes of the weights in memory, including those inside packed tensors."""
    bytes_by_pointer: dict[int, int] = {}

    def count(leaf: torch.Tensor) -> None:
        inner = getattr(leaf, "__tensor_flatten__", None)
        if inner is not None and type(leaf) not in (torch.Tensor, torch.nn.Parameter):
            for name in inner()[0]:
                count(getattr(leaf, name))
        else:
            bytes_by_pointer[leaf.data_ptr()] = leaf.untyped_storage().nbytes()
        state = getattr(leaf, "quant_state", None)
        for part in (getattr(state, name, None) for name in ("absmax", "code")):
            if part is not None:
                bytes_by_pointer[part.data_ptr()] = part.untyped_storage().nbytes()

    for leaf in (*network.parameters(), *network.buffers()):
        count(leaf)
    return sum(bytes_by_pointer.values())


def adapter_gradient(model: StackedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the adapters as one vector, at values where neither factor is zero."""
    draw = torch.Generator().manual_seed(3)
    params = model.init_params()
    leaves = Tree(
        {name: (leaf + 0.02 * torch.randn(leaf.shape, generator=draw).to(leaf)).requires_grad_() for name, leaf in params.items()}
    )
    loss = model(leaves, {"tokens": tokens, "loss_mask": torch.ones_like(tokens, dtype=torch.bool)})
    return torch.cat([leaf.flatten() for leaf in torch.autograd.grad(loss.sum(), list(leaves.values()))])


def measure_base(name: str, base: str, documents: list[str], count: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Measure one base; return a row of the table and the gradient of the adapters."""
    start = perf_counter()
    language_model = load_model(name, cache_dir=default_cache_dir(), quantization=base)  # type: ignore[arg-type]
    load_s = perf_counter() - start
    model = StackedModel(language_model.network, Lora(quantization=base))  # type: ignore[arg-type]
    tokens = token_windows(language_model.tokenizer, documents, count)
    total = num_tokens = 0.0
    start = perf_counter()
    with torch.no_grad():
        for batch in tokens.split(8):
            loss, num_counted = model.sequence_losses(model.init_params(), batch[None], torch.ones_like(batch, dtype=torch.bool)[None])
            total, num_tokens = total + float(loss.double().sum()), num_tokens + float(num_counted.sum())
    evaluation_s = perf_counter() - start
    return {
        "model": name,
        "base": base,
        "weights_mb": round(weight_bytes(language_model.network) / 1e6, 1),
        "nats_per_token": round(total / num_tokens, 5),
        "perplexity": round(exp(total / num_tokens), 3),
        "tokens": int(num_tokens),
        "evaluated_tokens_per_s": round(num_tokens / evaluation_s),
        "load_s": round(load_s, 1),
    }, adapter_gradient(model, tokens[:2][None])


def main(arguments: list[str] | None = None) -> int:
    """Measure all models and bases, print a line for each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pocket", "smollm2-135m"], help="the models to measure")
    parser.add_argument("--windows", type=int, default=64, help="the number of windows of text")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="the folder for the results; docs/models.md is updated only with the default folder"
    )
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    text, documents = load_texts()
    rows: list[dict[str, Any]] = []
    for name in args.models:
        dense: dict[str, Any] = {}
        for base, package in BASES.items():
            if find_spec(package) is None:
                print(f"{name} {base}: {package} is not installed: pip install 'fedrift[quantized]'")
                continue
            row, gradient = measure_base(name, base, documents, args.windows)
            dense = dense or {"slope": gradient, **row}
            distance = 1 - float(torch.cosine_similarity(gradient.double(), dense["slope"].double(), 0))
            row |= {
                "memory_share": round(row["weights_mb"] / dense["weights_mb"], 3),
                "perplexity_ratio": round(row["perplexity"] / dense["perplexity"], 4),
                "gradient_turned": float(f"{distance:.1e}"),
            }
            rows.append(row)
            print(
                "{model:14} {base:6} {weights_mb:8.1f} MB ({memory_share:.2f})   perplexity {perplexity:8.3f} "
                "({perplexity_ratio:.4f})   1 - cosine of the gradients {gradient_turned:.1e}".format(**row),
                flush=True,
            )
    if args.out == RESULTS:
        update_docs_table(
            MODELS_PAGE,
            "quantized",
            rows,
            {
                "model": "model",
                "base": "base",
                "weights_mb": "weights, MB",
                "memory_share": "share of dense",
                "perplexity": "perplexity",
                "perplexity_ratio": "ratio to dense",
                "gradient_turned": "adapters' gradient, 1 - cosine to the dense",
            },
        )
    print(
        write_results(args.out, "quantized", {**describe_machine(torch.device("cpu")), "text": text, "windows": args.windows, "rows": rows})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
