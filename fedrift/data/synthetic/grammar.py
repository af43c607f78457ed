"""Probabilistic context-free grammars whose entropy is exact: drawing from them, and their expectations.

A grammar maps a symbol to its choices, each a probability and the symbols that take its place; whatever has
no choices is a word. Each choice of a derivation is independent, so what a derivation adds up (nats, words)
solves a linear system over the symbols (Grenander 1967; Soule, "Entropies of probabilistic grammars",
Information and Control 25, 1974). The entropy of derivations is that of sentences if no sentence has two
derivations, which the sandbox's tests check.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import log, prod

import numpy as np

Production = tuple[float, tuple[str, ...]]
UNIFORM_BATCH = 256  # uniform numbers drawn at a time
MAX_ITERATIONS = 100_000  # of the fixed point's iteration


class Grammar:
    """``rules``: for each symbol its choices, with probabilities that sum to one; impossible ones are dropped."""

    def __init__(self, rules: Mapping[str, Sequence[Production]]) -> None:
        self.rules: dict[str, list[Production]] = {symbol: [(p, said) for p, said in choices if p > 0] for symbol, choices in rules.items()}
        for symbol, choices in self.rules.items():
            total = sum(p for p, _ in choices)
            if abs(total - 1) > 1e-9:
                raise ValueError(f"the choices of {symbol!r} must sum to 1, they sum to {total}")

    @cached_property
    def _cumulative(self) -> dict[str, list[float]]:
        return {symbol: list(accumulate(p for p, _ in choices)) for symbol, choices in self.rules.items()}

    @cached_property
    def _symbol_index(self) -> dict[str, int]:
        return {symbol: place for place, symbol in enumerate(self.rules)}

    @cached_property
    def _system(self) -> np.ndarray:
        """I - M, where M[A, B] is how many symbols B one step of A leaves on average."""
        system = np.eye(len(self.rules))
        for symbol, choices in self.rules.items():
            for p, said in choices:
                for part in said:
                    if part in self._symbol_index:
                        system[self._symbol_index[symbol], self._symbol_index[part]] -= p
        return system

    def sample(self, start: str, rng: np.random.Generator) -> list[str]:
        """The words of one sentence."""
        words: list[str] = []
        waiting, numbers = [start], iter(list[float]())
        while waiting:
            symbol = waiting.pop()
            choices = self.rules.get(symbol)
            if choices is None:
                words.append(symbol)
                continue
            if len(choices) == 1:
                waiting.extend(reversed(choices[0][1]))
                continue
            number = next(numbers, -1.0)
            if number < 0:
                numbers = iter(rng.random(UNIFORM_BATCH).tolist())
                number = next(numbers)
            chosen = min(bisect(self._cumulative[symbol], number), len(choices) - 1)
            waiting.extend(reversed(choices[chosen][1]))
        return words

    def entropy(self, start: str) -> float:
        """Nats of one derivation."""
        return self._expected_total(start, {symbol: -sum(p * log(p) for p, _ in choices) for symbol, choices in self.rules.items()})

    def mean_words(self, start: str) -> float:
        """How many words a sentence has on average, full stops included."""
        return self._expected_total(
            start,
            {
                symbol: sum(p * sum(part not in self.rules for part in said) for p, said in choices)
                for symbol, choices in self.rules.items()
            },
        )

    def probability_without(self, start: str, symbols: Collection[str]) -> float:
        """The probability of a derivation in which none of ``symbols`` occurs."""
        ends: dict[str, float] = {}  # by choices of words alone
        goes_on: dict[str, list[Production]] = {}
        for symbol, choices in self.rules.items():
            goes_on[symbol] = [choice for choice in choices if any(part in self.rules for part in choice[1])]
            ends[symbol] = sum(p for p, said in choices if not any(part in self.rules or part in symbols for part in said))
        chance = dict.fromkeys(self.rules, 0.0)
        for _ in range(MAX_ITERATIONS):
            step = {
                symbol: 0.0
                if symbol in symbols
                else ends[symbol]
                + sum(p * prod(chance.get(part, float(part not in symbols)) for part in said) for p, said in goes_on[symbol])
                for symbol in self.rules
            }
            if all(abs(step[symbol] - chance[symbol]) < 1e-16 for symbol in chance):
                break
            chance = step
        return chance[start]

    def _expected_total(self, start: str, own: Mapping[str, float]) -> float:
        values = np.linalg.solve(self._system, np.array([own[symbol] for symbol in self.rules]))
        return float(values[self._symbol_index[start]])


def sentence_probability(grammar: Grammar, start: str, words: Sequence[str]) -> float:
    """P(words) under the grammar: the sum over all derivations, 0 where there is none.

    The inside probability (Baker 1979), top down: where each symbol can end that begins at a word. The
    grammar must not be left-recursive.
    """
    return _inside_ends(grammar, start, tuple(words), 0, {}).get(len(words), 0.0)


def count_derivations(grammar: Grammar, start: str, words: Sequence[str]) -> int:
    """How many derivations the words have."""
    counting = Grammar({})
    counting.rules = {symbol: [(1.0, said) for _, said in choices] for symbol, choices in grammar.rules.items()}
    return round(sentence_probability(counting, start, words))


def _inside_ends(
    grammar: Grammar, symbol: str, words: tuple[str, ...], begin: int, memo: dict[tuple[str, int], dict[int, float]]
) -> dict[int, float]:
    choices = grammar.rules.get(symbol)
    if choices is None:
        return {begin + 1: 1.0} if begin < len(words) and words[begin] == symbol else {}
    if (symbol, begin) in memo:
        return memo[symbol, begin]
    found: dict[int, float] = {}
    word = words[begin] if begin < len(words) else None
    for p, said in choices:
        if said and said[0] not in grammar.rules and said[0] != word:
            continue
        reached = {begin: p}
        for part in said:
            further: dict[int, float] = {}
            for middle, chance in reached.items():
                for end, more in _inside_ends(grammar, part, words, middle, memo).items():
                    further[end] = further.get(end, 0.0) + chance * more
            reached = further
        for end, chance in reached.items():
            found[end] = found.get(end, 0.0) + chance
    memo[symbol, begin] = found
    return found
