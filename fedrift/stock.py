"""What runs share: corpora, models and tokens are loaded once and lent to every run that needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .corpus import Corpus, Source, Tokens, load_corpus, tokenise
from .models.gathered import Gathered, Meeting
from .models.load import LanguageModel, load_model
from .models.presets import PRESETS
from .models.stacked import StackedModel
from .models.tune import Tune
from .runtime import Runtime


@dataclass(frozen=True)
class Stock:
    """Loaded things by name. One network can wear one kind of trained parts; another kind has a network of its own, whose
    parameters are the same tensors: the frozen weights are in memory once, whatever is trained.

    ``meeting``: where the runs that share this stock train together, each in a thread of its own.
    """

    runtime: Runtime = field(default_factory=Runtime)
    kept: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    meeting: Meeting | None = None

    def corpus(self, source: Source, model: str) -> Corpus:
        """The documents; for ``pocket`` without those that it was pretrained on."""
        half = "unseen" if model == PRESETS["pocket"].name else "all"
        return self._keep(("corpus", source, half), lambda: load_corpus(
            source, data=self.runtime.data, half=half, cache=self.runtime.cache / "vectors"))

    @property
    def engine(self) -> dict[str, Any]:
        """The runtime's choices of arithmetic; made once, as some are made by trying."""
        return self._keep(("engine",), self.runtime.engine)  # type: ignore[no-any-return]

    @property
    def zero_shot(self) -> dict[Any, Any]:
        """Losses of pretrained models on texts that some run has asked for (``probes.zero_shot``)."""
        return self._keep(("zero-shot",), dict)  # type: ignore[no-any-return]

    def language_model(self, name: str, tune: Tune) -> LanguageModel:
        """The model for one kind of trained parts; its parameters are those of every other kind on the same base."""
        def load() -> LanguageModel:
            loaded = load_model(name, cache=self.runtime.cache, dtype=self.engine.get("dtype", "float32"), base=tune.base,
                                say=self.runtime.say)
            device = self.runtime.torch_device()
            if tune.base != "nf4" or device.type != "cpu":  # four-bit weights are packed on the CPU: there they stay as they are
                loaded.network.to(device)  # type: ignore[arg-type]  # before it is shared: a move may make new parameters
            return loaded
        return self._keep(("model", name, tune), lambda: self._keep(("base", name, tune.base), load).sharing())

    def stacked(self, name: str, tune: Tune) -> StackedModel:
        """The model, ready to be worn by many clients."""
        def make() -> StackedModel:
            compiled = self.runtime.compiled  # the compiler fuses plain modules itself
            model = StackedModel(self.language_model(name, tune).network, tune, lean=not compiled,
                                 prefix=False if compiled else None)
            if self.runtime.compiled:
                model.compile()
            return model
        model = self._keep(("stacked", name, tune), make)
        return Gathered(model, self.meeting) if self.meeting else model

    def tokens(self, corpus: Corpus, name: str, tune: Tune) -> Tokens:
        """The corpus in the model's tokens."""
        tokenizer = self.language_model(name, tune).tokenizer
        cache: Path = self.runtime.cache / "tokens"
        return self._keep(("tokens", corpus.content, name), lambda: tokenise(corpus, tokenizer, cache=cache))

    def _keep(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


__all__ = ["Meeting", "Stock"]
