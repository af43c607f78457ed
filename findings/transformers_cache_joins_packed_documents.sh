#!/usr/bin/env bash
# Libraries: transformers 5.23.0, torch 2.13.0 (CPU).
#
# Expected: DataCollatorWithFlattening packs documents into one row, with positions that begin at 0 in each document. In
# a training step each token then sees its own document only, for all ways to call the model.
# What happens: the positions separate the documents only if the key-value cache is off and there is no attention mask.
# The cache is on by default, in training mode as well. So model(**batch) lets a document see all documents before it,
# without a warning. use_cache=False separates them, and a mask that consists of ones joins them again. Gradient
# checkpointing separates them too, because it switches off the cache, so saving memory changes the loss.
# Why it matters: Trainer switches off the cache, but the loop of a federated client usually calls the model itself. Its
# loss is then not that of Trainer with the same batches, and two sites with the same data differ if only one of them
# needs checkpointing. The documents of a row come from one client, so the loss looks better the more alike they are,
# which is an effect of non-IID data that the model will not show on single documents.
#
# Seen on 2026-11-30:
#     model(**batch) in training mode:       logits differ by 0.07759 from those of the document alone
#     the same with use_cache=False:         logits differ by 0.00000 from those of the document alone
#     use_cache=False and a mask of ones:    logits differ by 0.07759 from those of the document alone
#     model(**batch) with checkpointing:     logits differ by 0.00000 from those of the document alone
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
"$work/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import torch
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes)).train()
first, second = [5, 6, 7], [8, 9, 10]
batch = DataCollatorWithFlattening()([{"input_ids": first}, {"input_ids": second}])
alone = model(torch.tensor([second])).logits

def difference(**options):
    return (model(**batch, **options).logits[:, len(first) :] - alone).abs().max().item()

seen = {
    "model(**batch) in training mode:": difference(),
    "the same with use_cache=False:": difference(use_cache=False),
    "use_cache=False and a mask of ones:": difference(use_cache=False, attention_mask=torch.ones_like(batch["input_ids"])),
}
model.gradient_checkpointing_enable()
seen["model(**batch) with checkpointing:"] = difference()
for name, each in seen.items():
    print(f"{name:<38} logits differ by {each:.5f} from those of the document alone")
if [each > 0.001 for each in seen.values()] != [True, False, True, False]:
    sys.exit("This is no longer so.")
PYTHON
