"""Test `experiments/reddit_communities.yaml` with natural clients, if its corpus exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrift import load_config
from fedrift.data import DatasetConfig, load_corpus
from fedrift.engine.run import run_experiment
from fedrift.partition import BySource
from tests.small_experiment import make_cache

FILE = Path(__file__).resolve().parents[1] / "experiments" / "reddit_communities.yaml"
SMALLER = (
    "training.num_rounds=1",
    "training.participation_rate=0.008",
    "evaluation.interval=1",
    "evaluation.blocks_per_domain=1",
    "evaluation.final_blocks_per_domain=0",
)


@pytest.mark.slow
def test_two_communities_train_for_one_epoch_of_their_own_length(tmp_path, shared_data):
    """The file has ten clients per round; this test has two."""
    run = run_experiment(load_config(FILE, SMALLER), make_cache(tmp_path, data_dir=shared_data))
    assert len(run.config["partition_table"]["tokens"]) == 270
    steps = run.trajectory().client_table("train.steps")[1]
    took = steps[steps > 0]
    assert len(took) == 2 and took[0] != took[1]  # one epoch each, of communities with different sizes
    loss = run.trajectory().curve("loss")
    assert loss[-1] < loss[0]


def test_the_script_of_the_page_writes_one_source_per_subreddit(tmp_path):
    page = (FILE.parents[1] / "docs" / "corpora.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(\"\"\"Write DATA/reddit_posts.*?)```", page, re.DOTALL)
    (tmp_path / "write_reddit.py").write_text(script)
    (tmp_path / "data").mkdir()
    for name, num_posts in (("AskHistorians", 90), ("science", 60), ("tiny", 10)):
        post = {"created_utc": "1.0", "selftext": "", "over_18": "False"}
        rows = [
            {**post, "title": f"{name} asks {number}, " + "word " * 12, "selftext": 'a "b"\nc' * (number % 2)}
            for number in range(num_posts)
        ]
        rows += [{**post, "title": f"{name} adults " + "word " * 12, "over_18": "True"}, {**post, "title": "too short"}]
        pd.DataFrame(rows).to_csv(tmp_path / "data" / f"{name}.csv", index=False)
    output = tmp_path / "DATA" / "reddit_posts"
    done = subprocess.run(
        [sys.executable, "write_reddit.py", "data", output, "270"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "150 posts of 2 subreddits"
    corpus = load_corpus(DatasetConfig("reddit_posts"), data_dir=output.parent)
    assert set(corpus.source) == {"AskHistorians", "science"} and corpus.domains == ()
    assert len(corpus) == 150 and not any("adults" in text or text == "too short" for text in corpus.text)
    train = corpus.train
    clients = BySource(num_clients=2)(train, np.random.default_rng(0))
    assert [set(train.source[rows]) for rows in clients.rows] == [{"AskHistorians"}, {"science"}]
