"""Callbacks for ``fedrift.run(config, callbacks=[...])``: the base class, early stopping, and tasks of lm-evaluation-harness."""

from .engine.callbacks import Callback, EarlyStopping, RoundEnd, RunBegin
from .engine.lm_eval import LmEval

__all__ = ["Callback", "EarlyStopping", "LmEval", "RoundEnd", "RunBegin"]
