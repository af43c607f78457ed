"""Test instruction and chat data: formats, labels equal to those of TRL and transformers, packing, and omitted rows."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, load_corpus, pack_blocks, tokenize_corpus
from fedrift.data.conversations import Example, Turn, Unusable, read_documents
from fedrift.data.tokenization import PLAIN_TEMPLATE, resolve_template, template_notes, tokenize_example
from fedrift.partition import Partition, Style
from fedrift.partition.base import partition_corpus
from fedrift.partition.export import client_table, export_partition
from tests.data.chats import ALPACA, CHATML, CHATS, MARKED, PAIRS, chat_tokenizer

MESSAGES = [{"messages": chat} for chat in CHATS]
SPLIT_CHATS = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS]
# Token ids and positions without -100 that SFTTrainer of TRL 1.16.0 with transformers 5.23 makes of the rows.
TRL = {
    name: [tuple(row) for row in rows] for name, rows in json.loads(Path(__file__).with_name("trl_labels.json").read_text("utf-8")).items()
}
CASES = {
    "assistant_only_loss": (MESSAGES, MARKED, False),
    "completion of messages": (SPLIT_CHATS, CHATML, False),
    "completion of texts": (PAIRS, None, False),
    "completion of texts after BOS": (PAIRS, None, True),
}


def examples_of(rows, data_format="auto"):
    cells = {name: [row.get(name) for row in rows] for row in rows for name in row}
    return read_documents(data_format, "text", cells, list(cells))


def labeled(rows, tokenizer, train_on="answer", chat_template="auto"):
    template = resolve_template(tokenizer, chat_template)
    return [tokenize_example(example, tokenizer, template, train_on) for example in examples_of(rows)]


def write(path: Path, rows) -> Path:
    text = "\n".join(json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return path


@pytest.mark.parametrize("name", CASES)
def test_ids_and_labels_are_those_of_trl(name):
    rows, template, bos = CASES[name]
    assert [(ids, [int(flag) for flag in mask]) for ids, mask in labeled(rows, chat_tokenizer(template, bos))] == TRL[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_trl_itself_has_these_labels(name, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    rows, template, bos = CASES[name]
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {"assistant_only_loss": True} if name == "assistant_only_loss" else {}
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=310, **shape)),
        args=trl.SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=chat_tokenizer(template, bos),
    )
    assert [(row["input_ids"], [int(label != -100) for label in row["labels"]]) for row in trainer.train_dataset] == TRL[name]


def test_masks_equal_those_of_transformers_if_the_template_marks_answers():
    for template in (MARKED, PLAIN_TEMPLATE):
        tokenizer = chat_tokenizer(template)
        for chat, (ids, mask) in zip(CHATS, labeled(MESSAGES, tokenizer), strict=True):
            output = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
            assert (ids, [int(flag) for flag in mask]) == (output["input_ids"], output["assistant_masks"])


def test_without_marks_in_the_template_the_text_after_each_prompt_counts():
    (_, (ids, mask)) = labeled(MESSAGES, tokenizer := chat_tokenizer(CHATML))
    spans = "".join(tokenizer.decode([token]) if flag else "#" for token, flag in zip(ids, mask, strict=True))
    assert [part for part in spans.split("#") if part] == ["mat<|im_end|>\n", "the cat sat<|im_end|>\n"]


def test_an_answer_that_begins_a_conversation_counts_without_the_default_system_prompt():
    template = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}" + CHATML
    tokenizer = chat_tokenizer(template)
    for answer in ("Hello", "  Apples are red.", "B"):
        turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Bye"}]
        ids, mask = labeled([{"messages": turns}], tokenizer)[0]
        shown = tokenizer.decode(ids[: mask.index(True)])
        assert "Be kind." in shown and shown.endswith("assistant\n")
        assert tokenizer.decode(ids[mask.index(True) :]).startswith(answer)


def test_the_default_template_is_as_documented_and_has_a_note():
    tokenizer = chat_tokenizer()
    ids, mask = labeled(MESSAGES, tokenizer)[1]
    assert tokenizer.decode(ids) == "System: the end\nUser: cat?\nAssistant: mat<|end|>\nUser: on the?\nAssistant: the cat sat<|end|>"
    assert tokenizer.decode([token for token, flag in zip(ids, mask, strict=True) if flag]) == " mat<|end|> the cat sat<|end|>"
    assert "no chat template" in template_notes(examples_of(MESSAGES), tokenizer, "auto")[0]
    assert not template_notes(examples_of(MESSAGES), tokenizer, "plain") and not template_notes(examples_of(PAIRS), tokenizer, "auto")
    assert not template_notes(examples_of(MESSAGES), chat_tokenizer(CHATML), "auto")
    assert tokenizer.decode(labeled(MESSAGES, chat_tokenizer(bos=True))[0][0]).startswith("<s>User: the cat")
    with pytest.raises(UserError, match="has no chat template: use"):
        resolve_template(tokenizer, "tokenizer")


def test_all_tokens_except_the_first_count_on_request():
    for rows in (MESSAGES, SPLIT_CHATS, PAIRS):
        for ids, mask in labeled(rows, chat_tokenizer(CHATML), "all"):
            assert mask == [False] + [True] * (len(ids) - 1)


def test_a_template_that_raises_or_changes_messages_is_refused_in_one_line():
    refusing = chat_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"refuses a conversation with the roles user, assistant \(roles must alternate\)"):
        labeled(MESSAGES, refusing)
    rewriting = chat_tokenizer("{{ messages | length }}" + CHATML)
    with pytest.raises(UserError, match="renders the earlier turns of a conversation differently"):
        labeled(MESSAGES, rewriting)


def test_alpaca_is_a_conversation_of_two_turns():
    first, second = examples_of(ALPACA)
    assert first == Example((Turn("user", "the cat"), Turn("assistant", "sat")))
    assert second.turns[0].content == "the cat\n\non the mat" and second.answers == ("the end",)


def test_all_notations_give_the_same_conversation():
    chat = CHATS[1]
    other = [{"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in chat]
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    columns = {name: [turn[name] for turn in chat] for name in ("role", "content")}
    rows = [{"conversations": other}, {"messages": parts}, {"messages": json.dumps(chat)}, {"messages": columns}, {"text": chat}]
    assert [examples_of([row]) for row in rows] == [examples_of([{"messages": chat}])] * 5


def test_rows_without_an_answer_or_a_conversation_are_omitted():
    image = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "cat"}]
    rows = [{"messages": cell} for cell in (CHATS[0][:1], [], None, "text", image, [{"role": "assistant", "content": " "}])]
    assert [row.reason for row in examples_of(rows, "chat")] == ["no answer", *["no conversation"] * 4, "no answer"]
    assert [row.reason for row in examples_of([{"prompt": "the", "completion": ""}])] == ["no answer"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "Human", "content": "a"}, {"role": "AI", "content": "b"}]}, "roles are user, ai, but an answer has"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, "role assistant holds null"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]}, "calls a tool"),
        ({"messages": [{"role": "assistant", "content": "b", "tool_calls": [{"id": 1}]}]}, "calls a tool"),
        ({"messages": ["a", "b"]}, "not all objects"),
        ({"messages": "a"}, "not JSON"),
        ({"prompt": "a", "completion": 5}, "'completion' holds a number"),
        ({"instruction": "a", "input": 5, "output": "b"}, "'input' holds a number"),
        ({"instruction": "a", "output": None}, "'output' holds null"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(tmp_path, row, words):
    (unusable,) = examples_of([row])
    assert isinstance(unusable, Unusable) and words in unusable.detail
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=re.escape(words)):
        load_corpus(DatasetConfig(str(tmp_path / "t.jsonl")))


def test_parts_of_a_content_may_be_plain_text():
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}, "b"], "tool_calls": None}
    assert examples_of([{"messages": [answer]}])[0].answers == ("ab",)


def test_keys_and_columns_without_effect_have_a_note(tmp_path):
    chat = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c", "weight": 0, "name": None}]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": chat, "system": "be kind", "prompt": "x", "label": "y", "id": 1}))
    notes = load_corpus(DatasetConfig(str(path))).notes
    assert any("have no effect: weight" in note and "name" not in note for note in notes)
    assert any("not read: system, prompt; write a system prompt" in note for note in notes)
    path.write_text(json.dumps({"messages": chat[:1] + [{"role": "assistant", "content": "c"}], "label": "y"}))
    assert load_corpus(DatasetConfig(str(path))).notes == ()


@pytest.mark.parametrize("order", [1, -1])
def test_conversations_beside_texts_are_told_whichever_comes_first(tmp_path, order):
    rows = [{"text": "a b c"}, {"messages": [{"role": "assistant", "content": "d"}]}][::order]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    notes = load_corpus(DatasetConfig(str(tmp_path / "t.jsonl"))).notes
    assert any("dataset.format=chat" in note for note in notes) and any("1 rows have no text" in note for note in notes)


@pytest.mark.parametrize(
    ("rows", "data_format"),
    [(MESSAGES, "chat"), (SPLIT_CHATS, "prompt_completion"), (PAIRS, "prompt_completion"), (ALPACA, "alpaca")],
    ids=["chat", "messages", "texts", "alpaca"],
)
def test_every_file_format_gives_the_same_corpus(rows, data_format, tmp_path):
    rows = [{**row, "topic": f"t{index}", "author": f"a{index}"} for index, row in enumerate(rows)]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "zipped.jsonl.gz", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pa.CompressedOutputStream(str(tmp_path / "rows.jsonl.zst"), "zstd") as out:
        out.write("\n".join(json.dumps(row) for row in rows).encode())
    (tmp_path / "list.json").write_text(json.dumps(rows))
    options = {"label_column": "topic", "source_column": "author", "validation_fraction": 0.0, "test_fraction": 0.0}
    corpora = [
        load_corpus(DatasetConfig(str(tmp_path / name), **options, format=chosen))
        for name in ("rows.jsonl", "zipped.jsonl.gz", "rows.parquet", "rows.jsonl.zst", "list.json")
        for chosen in ("auto", data_format)
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert corpora[0].domains == ("t0", "t1") and set(corpora[0].source) == {"a0", "a1"}
    assert set(corpora[0].examples) == set(examples_of(rows))
    assert client_table(corpora[0], []).column_names[-2:] == ["label", "source"]


def test_a_text_column_has_priority_and_the_other_columns_are_named(tmp_path):
    file = write(tmp_path / "both.jsonl", [{**row, "text": f"text {index}"} for index, row in enumerate(ALPACA)])
    corpus = load_corpus(DatasetConfig(str(file), test_fraction=0.0, validation_fraction=0.0))
    assert corpus.examples is None and "dataset.format=alpaca" in corpus.notes[0]
    assert load_corpus(DatasetConfig(str(file), format="alpaca")).examples is not None
    with pytest.raises(UserError, match=r"no column 'messages'.*another dataset\.format"):
        load_corpus(DatasetConfig(str(file), format="chat"))


def test_equal_conversations_count_once_and_order_does_not_matter(tmp_path):
    corpora = [
        load_corpus(DatasetConfig(str(write(tmp_path / f"{n}.jsonl", rows)))) for n, rows in enumerate((MESSAGES, MESSAGES[::-1] * 2))
    ]
    assert corpora[0].fingerprint == corpora[1].fingerprint and corpora[1].drop_counts["duplicate"] == 2


def many(count=40):
    return [{"prompt": "the cat sat " * (1 + n % 7), "completion": f" mat {n}" + " on" * (n % 5)} for n in range(count)]


def test_packing_keeps_examples_complete_with_their_loss_masks(tmp_path):
    tokenizer = chat_tokenizer()
    corpus = load_corpus(DatasetConfig(str(write(tmp_path / "rows.jsonl", many()))))
    tokens = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path / "cache")
    again = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path / "cache")
    assert (again.ids == tokens.ids).all() and (again.mask == tokens.mask).all() and again.keeps_whole
    length = 24
    blocks = pack_blocks(tokens, np.arange(len(corpus)), length)
    cut = [tokens.document_ids(row)[:length].tolist() for row in range(len(corpus))]
    trained = [tokens.mask[tokens.offsets[row] : tokens.offsets[row + 1]][:length] for row in range(len(corpus))]
    used = [row for row in range(len(corpus)) if trained[row].any()]
    assert used
    assert blocks.tokens[blocks.is_token].tolist() == [token for row in used for token in cut[row]]
    assert blocks.mask[blocks.is_token].tolist() == [flag for row in used for flag in trained[row]]
    assert not blocks.mask[:, 0].any() and blocks.mask[:, 1:].any(1).all()
    assert not (blocks.mask & ~blocks.is_token).any()
    starts = {tuple(cut[row]) for row in used}
    for ids, present in zip(blocks.tokens, blocks.is_token, strict=True):
        assert any(tuple(ids[:size]) in starts for size in range(1, present.sum() + 1))
    assert len(pack_blocks(tokens, np.arange(0), length)) == 0


def test_a_rewriting_partition_refuses_conversations_in_one_line(tmp_path):
    corpus = load_corpus(DatasetConfig(str(write(tmp_path / "rows.jsonl", many())))).train
    with pytest.raises(UserError, match="holds conversations, whose prompts must stay as they are"):
        partition_corpus(Style(num_clients=2, severity=1.0), corpus, lambda: np.random.default_rng(0))


def test_conversations_and_plain_text_do_not_mix(tmp_path):
    write(tmp_path / "a.jsonl", MESSAGES)
    write(tmp_path / "b.jsonl", [{"text": "the cat"}])
    with pytest.raises(UserError, match="mixes 2 conversations with 1 documents of running text"):
        load_corpus(DatasetConfig(str(tmp_path)))


def test_examples_of_several_forms_are_not_exported(tmp_path):
    rows = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(10)]
    lists = [{name: [{"role": "user", "content": text}] for name, text in row.items()} for row in rows]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, [*rows[:5], *lists[5:]])))
    corpus = load_corpus(DatasetConfig(str(tmp_path / "one.jsonl")))
    with pytest.raises(UserError, match="cannot be exported, because a column has one type"):
        export_partition(corpus, Partition((np.arange(len(corpus)),)), tmp_path / "exported", {})
    assert not (tmp_path / "exported").exists()
