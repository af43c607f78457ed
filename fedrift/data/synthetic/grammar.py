"""Sample from probabilistic context-free grammars and compute their entropy and other expectations exactly.

A grammar maps each symbol to its productions. A production is a probability and the symbols that replace the symbol; a symbol
without productions is a word. All choices of a derivation are independent. Quantities that add up over a derivation (nats,
words) therefore solve a linear system over the symbols (Grenander 1967; Soule, "Entropies of probabilistic grammars",
Information and Control 25, 1974). The entropy of derivations equals that of sentences if no sentence has two derivations. The
tests verify this for the synthetic language.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import log, prod

import numpy as np

Production = tuple[float, tuple[str, ...]]
UNIFORM_BATCH = 256  # random numbers per draw
MAX_ITERATIONS = 100_000  # of the fixed-point iteration


class Grammar:
    """A probabilistic context-free grammar; productions with probability zero are dropped.

    Args:
        rules: The productions of each symbol. Their probabilities must sum to one.

    Raises:
        ValueError: The probabilities of a symbol do not sum to one.

    Example:
        >>> grammar = Grammar({"S": [(0.5, ("a", "S")), (0.5, ("b",))]})
        >>> grammar.sample("S", np.random.default_rng(0)), grammar.entropy("S")
    """

    def __init__(self, rules: Mapping[str, Sequence[Production]]) -> None:
        self.rules: dict[str, list[Production]] = {
            symbol: [(p, parts) for p, parts in choices if p > 0] for symbol, choices in rules.items()
        }
        for symbol, choices in self.rules.items():
            total = sum(p for p, _ in choices)
            if abs(total - 1) > 1e-9:
                raise ValueError(f"the probabilities of symbol {symbol!r} must sum to 1, but their sum is {total}")

    @cached_property
    def _cumulative(self) -> dict[str, list[float]]:
        return {symbol: list(accumulate(p for p, _ in choices)) for symbol, choices in self.rules.items()}

    @cached_property
    def _symbol_index(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.rules)}

    @cached_property
    def _system(self) -> np.ndarray:
        """Return I - M, where M[A, B] is the expected number of symbols B in one production of A."""
        system = np.eye(len(self.rules))
        for symbol, choices in self.rules.items():
            for p, parts in choices:
                for part in parts:
                    if part in self._symbol_index:
                        system[self._symbol_index[symbol], self._symbol_index[part]] -= p
        return system

    def sample(self, start: str, rng: np.random.Generator) -> list[str]:
        """Sample the words of one sentence."""
        words: list[str] = []
        stack, numbers = [start], iter(list[float]())
        while stack:
            symbol = stack.pop()
            choices = self.rules.get(symbol)
            if choices is None:
                words.append(symbol)
                continue
            if len(choices) == 1:
                stack.extend(reversed(choices[0][1]))
                continue
            number = next(numbers, -1.0)
            if number < 0:
                numbers = iter(rng.random(UNIFORM_BATCH).tolist())
                number = next(numbers)
            chosen = min(bisect(self._cumulative[symbol], number), len(choices) - 1)
            stack.extend(reversed(choices[chosen][1]))
        return words

    def entropy(self, start: str) -> float:
        """Return the entropy of the derivations from ``start`` in nats."""
        return self._expected_total(start, {symbol: -sum(p * log(p) for p, _ in choices) for symbol, choices in self.rules.items()})

    def mean_words(self, start: str) -> float:
        """Return the expected number of words in a sentence, including its end mark."""
        return self._expected_total(
            start,
            {
                symbol: sum(p * sum(part not in self.rules for part in parts) for p, parts in choices)
                for symbol, choices in self.rules.items()
            },
        )

    def probability_without(self, start: str, symbols: Collection[str]) -> float:
        """Return the probability of a derivation in which none of ``symbols`` occurs."""
        terminal: dict[str, float] = {}  # probability of productions with words only
        nonterminal: dict[str, list[Production]] = {}
        for symbol, choices in self.rules.items():
            nonterminal[symbol] = [choice for choice in choices if any(part in self.rules for part in choice[1])]
            terminal[symbol] = sum(p for p, parts in choices if not any(part in self.rules or part in symbols for part in parts))
        probs = dict.fromkeys(self.rules, 0.0)
        for _ in range(MAX_ITERATIONS):
            new_probs = {
                symbol: 0.0
                if symbol in symbols
                else terminal[symbol]
                + sum(p * prod(probs.get(part, float(part not in symbols)) for part in parts) for p, parts in nonterminal[symbol])
                for symbol in self.rules
            }
            if all(abs(new_probs[symbol] - probs[symbol]) < 1e-16 for symbol in probs):
                break
            probs = new_probs
        return probs[start]

    def _expected_total(self, start: str, own: Mapping[str, float]) -> float:
        """Return the expected total over a derivation of a quantity that each symbol adds (``own``)."""
        values = np.linalg.solve(self._system, np.array([own[symbol] for symbol in self.rules]))
        return float(values[self._symbol_index[start]])


def sentence_probability(grammar: Grammar, start: str, words: Sequence[str]) -> float:
    """Return P(words) under the grammar, summed over all derivations; 0 if there is none.

    This is the inside probability (Baker 1979). It is computed top down from the positions at which a symbol that starts at a
    given word can end. The grammar must not be left-recursive.
    """
    return _inside_ends(grammar, start, tuple(words), 0, {}).get(len(words), 0.0)


def _inside_ends(
    grammar: Grammar, symbol: str, words: tuple[str, ...], begin: int, memo: dict[tuple[str, int], dict[int, float]]
) -> dict[int, float]:
    """Map each position at which ``symbol`` can end if it starts at ``begin`` to its probability."""
    choices = grammar.rules.get(symbol)
    if choices is None:
        return {begin + 1: 1.0} if begin < len(words) and words[begin] == symbol else {}
    if (symbol, begin) in memo:
        return memo[symbol, begin]
    ends: dict[int, float] = {}
    word = words[begin] if begin < len(words) else None
    for p, parts in choices:
        if parts and parts[0] not in grammar.rules and parts[0] != word:
            continue
        reached = {begin: p}
        for part in parts:
            extended: dict[int, float] = {}
            for middle, prob in reached.items():
                for end, part_prob in _inside_ends(grammar, part, words, middle, memo).items():
                    extended[end] = extended.get(end, 0.0) + prob * part_prob
            reached = extended
        for end, prob in reached.items():
            ends[end] = ends.get(end, 0.0) + prob
    memo[symbol, begin] = ends
    return ends
