"""Test docs/own-data.md: its commands run and print what the page shows, and its snippets are valid experiments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedrift.config.schema import parse_config
from fedrift.data.tokenization import resolve_template
from fedrift.storage import list_runs
from tests.data.chats import chat_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_an_experiment(snippet):
    assert parse_config(yaml.safe_load(snippet)).id


@pytest.mark.slow
def test_the_commands_run_and_print_what_the_page_shows(tmp_path):
    commands = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].replace("fedrift ", f"{sys.executable} -m fedrift ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FEDRIFT_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    done = subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = re.search(r"```text\n(dataset .*?)```", PAGE, re.DOTALL)[1].splitlines()
    assert not [line for line in shown if line not in done.stdout.splitlines()], done.stdout
    (run,) = list_runs(tmp_path / "runs")
    assert run.trajectory().has_curve("classification.accuracy")


def test_the_plain_template_is_that_of_the_page():
    tokenizer = chat_tokenizer()
    turns = [("system", "You are helpful."), ("user", "Who are you?"), ("assistant", "A model.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, chat_template=resolve_template(tokenizer, "plain"), tokenize=False)
    assert "\n".join(f"  {line}" for line in text.replace(tokenizer.eos_token, "<end>").splitlines()) in PAGE


def test_every_new_key_is_on_the_page():
    from fedrift.config.schema import ADDED_KEYS

    assert not [path for path in ADDED_KEYS if path.split(".")[-1] not in PAGE]
