"""What a study's hypotheses come to, from the runs that there are."""

from __future__ import annotations

import pandas as pd

from ..statistics import Verdict, judge
from ..statistics.hypotheses import Hypothesis
from .book import Book
from .study import parse_study
from .table import PLACE, table


def judged(book: Book) -> tuple[pd.DataFrame, tuple[Verdict, ...]]:
    """The study's tidy frame and the verdict on each of its hypotheses; outcomes that only these name are columns too."""
    said = book.read()
    study = parse_study(said["study"])
    named = [metric for hypothesis in study.hypotheses for metric in metrics(hypothesis)]
    frame = table(book, tuple(dict.fromkeys([*study.outcomes, *named])))
    return frame, judge(study.hypotheses, frame, said["factors"]) if study.hypotheses else ()


def metrics(hypothesis: Hypothesis) -> list[str]:
    """The outcomes that a hypothesis and its parts are about, those aside that every run has."""
    parts = [metric for part in getattr(hypothesis, "parts", ()) for metric in metrics(part)]
    return [metric for metric in (hypothesis.metric, *parts) if metric and metric not in PLACE]
