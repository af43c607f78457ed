"""A preset's network with random weights: its speed, its memory and its code paths, without its files."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..streams import torch_stream
from .presets import Preset


def unread(preset: Preset, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
           **changes: Any) -> PreTrainedModel:
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
