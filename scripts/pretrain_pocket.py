"""Pretrain `pocket`, the small Llama that fedrift carries, on one half of six general corpora.

    python scripts/pretrain_pocket.py --data ../shared/data --out pocket-build

The half is chosen by document hash (`fedrift.data.is_in_pretraining_half`), so that the other half of every
corpus stays unseen for studies. BBC, AG News and tweets are never read. Everything is seeded;
the same data, torch version and thread count give the same weights. Killed, it resumes from
its last checkpoint. On two CPU cores it trains about 6,000 tokens a second.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedrift.data import is_in_pretraining_half

# Corpus -> (train file, how often its documents are read in one pass). MedQuAD's answers share
# boiler-plate and count half; encyclopaedic prose, the scarcest, is read more often.
CORPUS_MIX = {
    "wikitext2": ("train_partial.parquet", 3.0),
    "dbpedia": ("train.parquet", 1.5),
    "reddit_posts": ("train.parquet", 1.0),
    "stackexchange": ("train.parquet", 1.0),
    "medquad": ("train.parquet", 0.5),
    "newsgroups20": ("train.parquet", 1.0),
}
MODEL_CONFIG = dict(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=4,
    intermediate_size=640,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    rope_theta=10000.0,
)  # 3.80 M parameters
END, PAD = "<|endoftext|>", "<|pad|>"


def load_documents(data_dir: Path, corpus: str) -> list[str]:
    """The pretraining half of a corpus. WikiText keeps its headings, before the paragraph they head."""
    rows = pd.read_parquet(data_dir / corpus / CORPUS_MIX[corpus][0])["text"].tolist()
    if corpus != "wikitext2":
        return list(dict.fromkeys(row.strip() for row in rows if row.strip() and is_in_pretraining_half(row)))
    texts, headings = [], ""
    for row in rows:
        text = row.strip()
        if text.startswith("=") and text.endswith("="):
            headings += row
        elif text:
            if is_in_pretraining_half(text):
                texts.append(headings + row)
            headings = ""
    return texts


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=MODEL_CONFIG["vocab_size"],
            special_tokens=[END, PAD],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=512)


def bits_per_byte(model: LlamaForCausalLM, tokenizer, text: str, window: int = 128) -> float:
    """Mean loss over windows that do not overlap (the first token of each is only context), per byte."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    rows = ids[: len(ids) // window * window].view(-1, window)
    model.eval()
    with torch.no_grad():
        losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows.split(64)]
    model.train()
    return sum(losses) / len(rows) * len(ids) / (math.log(2) * len(text.encode()))


def learning_rate(step: int, steps: int) -> float:
    """Warm up for 34 steps, stay, come down to 0 in a straight line over the last 60 %."""
    return min(1.0, (step + 1) / 34, (steps - step) / (0.6 * steps))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=10.65e6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, default=None, help="stop after so many steps (for trials)")
    return parser.parse_args()


def tokenize(data: Path, folder: Path) -> tuple[PreTrainedTokenizerFast, dict[str, list[np.ndarray]]]:
    """Tokenize the documents of all corpora; train the tokenizer first if the folder has none."""
    texts = {corpus: load_documents(data, corpus) for corpus in CORPUS_MIX}
    if not (folder / "tokenizer.json").exists():
        train_tokenizer([t for corpus in CORPUS_MIX for t in texts[corpus]]).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = {
        c: [np.array(row + [tokenizer.eos_token_id], np.int64) for row in tokenizer(texts[c], verbose=False)["input_ids"]]
        for c in CORPUS_MIX
    }
    for corpus in CORPUS_MIX:
        print(f"{corpus:15s} {len(ids[corpus]):7,d} documents {sum(map(len, ids[corpus])):10,d} tokens", flush=True)
    return tokenizer, ids


@dataclass
class TokenStream:
    """The tokens of all epochs in batches; every epoch mixes and shuffles the documents again."""

    ids: dict[str, list[np.ndarray]]
    seed: int
    epoch: int = 0
    at: int = 0  # the position of the next batch in the epoch

    def __post_init__(self) -> None:
        self.data = self.mix(self.epoch)

    def mix(self, epoch: int) -> torch.Tensor:
        draw = np.random.default_rng([self.seed, epoch])
        rows = [row for c in CORPUS_MIX for row in self.ids[c] for _ in range(int(CORPUS_MIX[c][1] + draw.random()))]
        order = draw.permutation(len(rows))
        return torch.from_numpy(np.concatenate([rows[i] for i in order]))

    def next(self, batch: int, window: int) -> torch.Tensor:
        """Return the next ``[batch, window]`` tokens; an epoch's rest that does not fill a batch is left out."""
        chunk = batch * window
        if self.at + chunk > len(self.data):
            self.epoch, self.at = self.epoch + 1, 0
            self.data = self.mix(self.epoch)
        tokens = self.data[self.at : self.at + chunk].view(batch, window)
        self.at += chunk
        return tokens


def make_model(tokenizer: PreTrainedTokenizerFast, device: str) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            **MODEL_CONFIG, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
    )
    return model.to(device)


def make_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train_step(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], batch: torch.Tensor, lr: float) -> float:
    """Take one step on a batch and return its loss in nats per token."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    logits = model(input_ids=batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer, ids = tokenize(args.data, args.out)
    model = make_model(tokenizer, args.device)
    optimizers = make_optimizers(model, args.lr)
    chunk = args.batch * args.window
    steps = int(args.tokens // chunk)
    start, stream, seconds = 0, TokenStream(ids, args.seed), 0.0
    saved = args.out / "checkpoint.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, moments in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(moments)
        start, seconds = state["step"], state["seconds"]
        stream = TokenStream(ids, args.seed, state["epoch"], state["at"])
    wiki = "".join(pd.read_parquet(args.data / "wikitext2" / "validation.parquet")["text"])[:150_000]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps:,} steps, from step {start:,}", flush=True)
    clock = time.time()
    for step in range(start, min(steps, args.stop_after or steps)):
        batch = stream.next(args.batch, args.window).to(args.device)
        loss = train_step(model, optimizers, batch, args.lr * learning_rate(step, steps))
        if step % 20 == 19:
            spent = time.time() - clock + seconds
            print(f"step {step + 1:5d} epoch {stream.epoch} loss {loss:.3f} {spent:6.0f} s", flush=True)
        if step % 200 == 199:
            print(f"  validation bits per byte {bits_per_byte(model, tokenizer, wiki):.3f}", flush=True)
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step + 1,
                    "epoch": stream.epoch,
                    "at": stream.at,
                    "seconds": time.time() - clock + seconds,
                },
                saved.with_suffix(".new"),
            )
            saved.with_suffix(".new").replace(saved)
    if args.stop_after:
        return
    model.cpu().half().save_pretrained(args.out)
    model.float()
    test = "".join(pd.read_parquet(args.data / "wikitext2" / "test.parquet")["text"])
    result = {
        "wikitext2_test_bits_per_byte_window_128": round(bits_per_byte(model, tokenizer, test), 4),
        "tokens": steps * chunk,
        "seconds": round(time.time() - clock + seconds),
        "torch": torch.__version__,
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(result)


if __name__ == "__main__":
    main()
