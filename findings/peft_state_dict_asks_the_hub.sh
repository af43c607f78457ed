#!/usr/bin/env bash
# Libraries: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
#
# Expected: get_peft_model_state_dict reads tensors from memory. It needs no network once the model is loaded.
# What happens: each call sends a request to the Hugging Face Hub, to find out whether the base model has a config.json
# there, and nothing remembers the answer. It decides whether the embeddings are returned as well. There is no request
# with save_embedding_layers=False, with HF_HUB_OFFLINE=1, or if the base model is a local folder.
# PeftModel.save_pretrained does the same. The script counts the requests with a local server in place of the hub.
# Why it matters: each client of a federation calls the function once per round to send its adapters. 100 clients and
# 200 rounds are 20,000 requests, of which a hub accepts a limited number per minute. Each client tells a third party
# which model it trains and when, and a hub that answers slowly looks like a slow client.
#
# Seen on 2026-11-30:
#     3 calls of get_peft_model_state_dict: 3 requests for /company/base/resolve/main/config.json
#     3 calls with save_embedding_layers=False: 0 requests
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=0 NO_PROXY=127.0.0.1
"$work/venv/bin/python" - <<'PYTHON'
import http.server
import logging
import os
import sys
import threading
import warnings

paths = []

class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        paths.append(self.path)
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()

    def log_message(self, *args):
        pass

hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
base = LlamaForCausalLM(LlamaConfig(**sizes))
base.name_or_path = base.config._name_or_path = "company/base"  # from_pretrained("company/base") sets these names
model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))

def requests(**options):
    paths.clear()
    for _ in range(3):
        get_peft_model_state_dict(model, **options)
    return [path for path in paths if path.startswith("/company/base/")]

by_default, without = requests(), requests(save_embedding_layers=False)
print(f"3 calls of get_peft_model_state_dict: {len(by_default)} requests for {', '.join(sorted(set(by_default)))}")
print(f"3 calls with save_embedding_layers=False: {len(without)} requests")
if len(by_default) != 3 or without:
    sys.exit("This is no longer so.")
PYTHON
