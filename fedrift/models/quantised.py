"""Quantised bases: the frozen weights in 4 or 8 bits, with adapters of full precision on top.

``nf4``: 4-bit NormalFloat of Dettmers et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314, by bitsandbytes. ``int8``: one byte and
one scale per output row, weights only, by torchao. Both leave embeddings, norms and the head as they are: what is
quantised are the linear maps of the blocks.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ..errors import UserError

Base = Literal["dense", "nf4", "int8"]
NEEDS = {"nf4": "bitsandbytes", "int8": "torchao"}


def check_installed(base: Base) -> None:
    """Raise `UserError` if the package that quantises this way is not here."""
    package = NEEDS.get(base)
    if package and find_spec(package) is None:
        raise UserError(f"base: {base} needs the package {package}: pip install 'fedrift[quantised]'; or say base: dense")


def loading(base: Base, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told when it reads the weights; 4-bit weights are packed as they are read."""
    if base != "nf4":
        return {}
    config: Any = BitsAndBytesConfig
    return {"quantization_config": config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)}


def quantised(network: PreTrainedModel, base: Base) -> PreTrainedModel:
    """The network with its blocks' linear maps in ``base``; itself, changed in place."""
    if base == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        head = network.get_output_embeddings()
        maps = [module for module in network.modules() if type(module) is nn.Linear and module is not head]
        if not maps:
            raise UserError(f"base: int8 finds no linear map in {type(network).__name__} (GPT-2 keeps its own kind): "
                            "say base: nf4 or dense")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_(network, Int8WeightOnlyConfig(), filter_fn=lambda module, path: any(module is one for one in maps))
    return guarded(network)  # a folder may hold 4-bit weights whatever base is asked for


def guarded(network: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from a processor kernel without gradients.

    On processors with AVX512_BF16 a forward pass without gradients (any evaluation) repacks the weight for a kernel that has no
    backward pass, and going back to training does not undo it: half of the adapters then get no gradient, silently
    (bitsandbytes 0.50.2). Evaluate-then-train is every federated round.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return network
