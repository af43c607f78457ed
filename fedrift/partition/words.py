"""The closed classes of English words: what a text needs for its grammar and hardly for its topic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those each every either neither some any no all both half such another
    other i me my mine myself you your yours yourself yourselves he him his himself she her hers herself
    it its itself we us our ours ourselves they them their theirs themselves who whom whose which what
    anyone anybody anything everyone everybody everything someone somebody something nobody nothing none
    am is are was were be been being do does did doing done have has had having can could may might must
    shall should will would ought and or but nor so yet for if unless until while because since although
    though whereas whether than as when where why how once about above across after against along among
    around at before behind below beneath beside besides between beyond by despite down during except
    from in inside into like near of off on onto out outside over past per through throughout to toward
    towards under underneath up upon via with within without not never ever also too very just only
    even still again then there here now i'm you're he's she's it's we're they're i've you've we've
    they've i'd you'd he'd she'd we'd they'd i'll you'll he'll she'll we'll they'll isn't aren't wasn't
    weren't don't doesn't didn't haven't hasn't hadn't can't couldn't won't wouldn't shan't shouldn't
    mustn't mightn't that's there's what's who's
    """.split()
)

# What corpora put in place of names and addresses: a mark of the corpus, and no word of its texts.
PLACEHOLDER_WORDS = frozenset("user http https url name religion www com org html amp".split())
MIN_CONTENT_LENGTH = 4  # letters of a content word


def is_content_word(word: str) -> bool:
    """Whether a word (in small letters) may tell a topic: letters only, four or more, no function word, no mask."""
    return len(word) >= MIN_CONTENT_LENGTH and word.isalpha() and word not in FUNCTION_WORDS and word not in PLACEHOLDER_WORDS


# Words of documents, counted: what tilts, substitutions and measures of heterogeneity look at.

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

ASCII_TABLE = bytes(ord(chr(code).lower()) if chr(code).isalnum() or chr(code) == "'" else 32 for code in range(128)) + bytes(128)
TRAILING_APOSTROPHE = re.compile(rb"'(?![a-z0-9])")


@dataclass(frozen=True, eq=False)
class WordCounts:
    """How often each of V words stands in each of D documents; small letters."""

    counts: csr_array  # [D, V] float64
    vocabulary: tuple[str, ...]  # [V]

    @property
    def totals(self) -> np.ndarray:
        """Occurrences of each word in all documents, [V]."""
        return np.bincount(self.counts.indices, self.counts.data, len(self.vocabulary))


def split_into_words(text: str) -> list[str]:
    """The words of a text in small letters; runs of letters and digits, with apostrophes inside."""
    return normalize_words(text).decode().split()


def normalize_words(text: str) -> bytes:
    """The words of a text in small letters with blanks between them, in UTF-8."""
    if not text.isascii():
        return " ".join(WORD.findall(text.lower())).encode()
    # The same without the pattern, many times as fast: what is no word becomes a blank, as do apostrophes at word ends.
    plain = text.encode().translate(ASCII_TABLE)
    if b"'" in plain:
        plain = TRAILING_APOSTROPHE.sub(b" ", plain).replace(b" '", b" ").removeprefix(b"'")
    return plain


def count_words(texts: Iterable[str]) -> WordCounts:
    """Count the words of each text. Words are numbered as they first come."""
    listed = pa.array([normalize_words(text).strip() for text in texts], pa.large_binary()).cast(pa.large_string())
    found = pc.ascii_split_whitespace(listed)
    flat = found.flatten()
    empty = pc.equal(listed, "").to_numpy(zero_copy_only=False)  # split into one word of no letters
    words = (flat.filter(pc.not_equal(flat, "")) if empty.any() else flat).dictionary_encode()
    lengths = np.where(empty, 0, pc.list_value_length(found).to_numpy())
    vocabulary, number = tuple(words.dictionary.to_pylist()), words.indices.to_numpy()
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    counts = csr_array((np.ones(len(number)), number, offset), shape=(len(listed), len(vocabulary)))
    counts.sum_duplicates()
    return WordCounts(counts, vocabulary)


# The words that tell a client from the others: log-odds ratios with an informative Dirichlet prior.
#
# Monroe, Colaresi & Quinn, "Fightin' Words: Lexical Feature Selection and Evaluation for Identifying the Content
# of Political Conflict", Political Analysis 16(4), 2008, equations 16, 20 and 22. For word w of client k against
# all others j, with prior counts a_w = A p(w), p the pool's frequencies:
#
# delta = log((y_kw + a_w) / (n_k + A - y_kw - a_w)) - log((y_jw + a_w) / (n_j + A - y_jw - a_w)),
# variance ~ 1 / (y_kw + a_w) + 1 / (y_jw + a_w), and z = delta / its root.

PRIOR_WORDS = 1000.0  # A: prior words; rare words are shrunk towards what the pool says of them
NUM_DISTINCTIVE_WORDS = 10


def log_odds(
    client_counts: np.ndarray, pool_counts: np.ndarray, client_total: float, pool_total: float, prior: float = PRIOR_WORDS
) -> np.ndarray:
    """z of some words, [V]: ``client_counts`` [V] occurrences at the client of ``client_total`` words, ``pool_counts`` [V] in all
    of ``pool_total``; 0 where the client holds all there is."""
    rest, others = pool_counts - client_counts, pool_total - client_total
    if others <= 0:
        return np.zeros(len(client_counts))
    expected = prior * pool_counts / pool_total
    mine, theirs = client_counts + expected, rest + expected
    delta = np.log(mine / (client_total + prior - mine)) - np.log(theirs / (others + prior - theirs))
    return np.asarray(delta / np.sqrt(1 / mine + 1 / theirs))


def distinctive_words(
    counts: csr_array, vocabulary: tuple[str, ...], num_words: int = NUM_DISTINCTIVE_WORDS
) -> list[list[tuple[str, float]]]:
    """The ``num_words`` words of each client with the largest z above 0, from counts [N, V]; N lists of (word, z)."""
    pool = np.asarray(counts.sum(axis=0), dtype=np.float64)
    everything, found = float(pool.sum()), []
    for client in range(counts.shape[0]):
        start, end = counts.indptr[client : client + 2]
        held, own = counts.indices[start:end], counts.data[start:end]
        z = log_odds(own, pool[held], float(own.sum()), everything)
        best = np.lexsort((held, -z))[:num_words]
        found.append([(vocabulary[held[v]], float(z[v])) for v in best if z[v] > 0])
    return found
