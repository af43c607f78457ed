"""Callbacks for ``fedrift.run(config, callbacks=[...])``: the base class, early stopping, and tasks of lm-evaluation-harness."""

from .engine.callbacks import Callback, EarlyStopping, LmEval, RoundEnd, RunBegin

__all__ = ["Callback", "EarlyStopping", "LmEval", "RoundEnd", "RunBegin"]
