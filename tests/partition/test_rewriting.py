"""Test clients that rewrite their texts by substitution, deletion, truncation and style, and the homogeneous controls."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from fedrift.core.random import numpy_stream
from fedrift.partition import StopwordDrop, Style, Substitute, Truncate
from fedrift.partition.base import document_id
from fedrift.partition.style_skew import CASUAL, FILLERS, FORMAL, STYLES, StyleRewrite
from fedrift.partition.token_skew import pair_words
from fedrift.partition.words import FUNCTION_WORDS, count_words

from .corpora import SCRIPTS, corpus, split_into_words

REWRITING = [StopwordDrop, Style, Substitute, Truncate]
every = pytest.mark.parametrize("kind", REWRITING, ids=lambda kind: kind.__name__)
NOUNS = "doctor market river teacher engine garden window bottle singer village".split()
VERBS = "watched painted carried followed opened visited noticed cleaned".split()


def make_stories(documents=300, seed=0):
    """Return English sentences with function words, contractions, capitals and commas."""
    rng = np.random.default_rng(seed)

    def sentence():
        one, two, three = rng.choice(NOUNS, 3)
        verb, other = rng.choice(VERBS, 2)
        name = rng.choice(["Anna", "Boris", "Clara"])
        return rng.choice(
            [
                f"The {one} {verb} the {two}, and the {three} was going to be {other} by {name}.",
                f"It is clear that {name} {verb} a {one} because they do not want to be {other}.",
                f"But the {one} didn't see {name}, who {verb} very {two} things with the {three}.",
                f"He said the {one} is {other}, but also painting and reading about the {two}.",
            ]
        )

    texts = [" ".join([f"Story {i}."] + [sentence() for _ in range(rng.integers(3, 12))]) for i in range(documents)]
    return corpus(texts, np.arange(documents) % 3)


def make_partition(partitioner, documents, seed=0):
    return partitioner(documents, numpy_stream(seed, "partition"))


def rewritten_texts(partition, documents):
    """Return the texts as each client rewrites them."""
    rewrite = partition.rewrites or (None,) * len(partition)
    return [
        [r(documents.text[d], document_id(documents.text[d])) if r else documents.text[d] for d in rows]
        for r, rows in zip(rewrite, partition.rows, strict=True)
    ]


def changed(one, two):
    """Return which words of a text differ, for rewrites that keep the number of words."""
    return {i for i, (a, b) in enumerate(zip(split_into_words(one), split_into_words(two), strict=True)) if a != b}


@every
def test_severity_0_rewrites_nothing(kind):
    assert make_partition(kind(6, 0.0), make_stories(60)).rewrites == ()


@every
@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("severity", [0.3, 1.0])
def test_a_rewrite_is_pure_accepts_any_text_and_can_be_pickled(kind, homogeneous, severity):
    rewrites = make_partition(kind(6, severity, homogeneous=homogeneous), make_stories(60)).rewrites
    assert len(rewrites) == 6 and any(rewrites)
    for rewrite in filter(None, rewrites):
        again = pickle.loads(pickle.dumps(rewrite))
        for text in ("", " ", "…", "the", "THE of and", "a", *SCRIPTS, *make_stories(5).text):
            said = rewrite(text, document_id(text))
            assert isinstance(said, str) and bool(said.strip()) >= bool(text.strip())
            assert said == rewrite(text, document_id(text)) == again(text, document_id(text))


@pytest.mark.sample(2)
@every
def test_refill_gives_all_clients_equally_many_words_after_rewriting(kind):
    documents = make_stories(900)
    words = [sum(len(t.split()) for t in texts) for texts in rewritten_texts(make_partition(kind(6, 1.0), documents), documents)]
    assert np.ptp(words) < 0.1 * np.mean(words)


@every
def test_without_refill_clients_have_equally_many_words_before_rewriting(kind):
    documents = make_stories(300)
    partition = make_partition(kind(6, 1.0, equalize_words=False), documents)
    assert np.ptp(partition.budgets(documents)) <= 2 * documents.size.max()


@pytest.mark.sample(2)
@every
def test_the_homogeneous_control_rewrites_as_much_and_all_clients_alike(kind):
    documents = make_stories(900)
    same = kind(6, 1.0, equalize_words=False)
    conditions = [
        rewritten_texts(make_partition(kind(6, 1.0, equalize_words=False, homogeneous=e), documents), documents) for e in (False, True)
    ]
    lengths = [np.array([np.mean([len(t.split()) for t in texts]) for texts in condition]) for condition in conditions]
    assert abs(lengths[0].mean() - lengths[1].mean()) < 0.05 * lengths[0].mean()
    same = make_partition(kind(6, 1.0, homogeneous=True), documents)
    assert len({id(r) for r in same.rewrites}) == 1 and np.ptp(lengths[1]) < 0.2 * lengths[1].mean()
    original = set(documents.text)
    for texts in conditions[1]:
        share = np.mean([text not in original for text in texts])
        assert abs(share - (1.0 if kind is Style else 0.5)) < 0.15


@pytest.mark.parametrize("kind", [Substitute], ids=["Substitute"])
def test_a_higher_severity_swaps_all_words_of_a_lower_one(kind):
    documents = make_stories(60)
    low, high, full = (make_partition(kind(2, s), documents).rewrites[1] for s in (0.3, 0.6, 1.0))
    sizes = []
    for text in documents.text:
        sites = [changed(text, rewrite(text, document_id(text))) for rewrite in (low, high, full)]
        assert sites[0] <= sites[1] <= sites[2]
        sizes.append([len(s) for s in sites])
    share = np.sum(sizes, axis=0) / np.sum(sizes, axis=0)[2]
    assert np.allclose(share, [0.3, 0.6, 1.0], atol=0.05)


def test_a_higher_severity_drops_all_words_of_a_lower_one():
    documents = make_stories(60)
    low, high, full = (make_partition(StopwordDrop(2, s), documents).rewrites[1] for s in (0.3, 0.6, 1.0))
    lengths = [
        sum(len(split_into_words(r(t, document_id(t)))) if r else len(split_into_words(t)) for t in documents.text)
        for r in (None, low, high, full)
    ]
    assert np.allclose((lengths[0] - np.array(lengths)) / (lengths[0] - lengths[3]), [0, 0.3, 0.6, 1], atol=0.05)
    for text in documents.text:
        kept = [split_into_words(rewrite(text, document_id(text))) for rewrite in (high, low)]
        remaining = iter(kept[1])
        assert all(word in remaining for word in kept[0])  # a subsequence of it
        assert not set(split_into_words(full(text, document_id(text)))) & FUNCTION_WORDS
        assert [w for w in split_into_words(text) if w not in FUNCTION_WORDS] == split_into_words(full(text, document_id(text)))


def test_a_higher_severity_rewrites_all_matches_of_a_lower_one():
    """Each match of the pattern is rewritten or not by its own random number."""
    text = make_stories(1).text[0]
    for style in STYLES:
        said = [StyleRewrite(style, rate, b"key")(text, "doc") for rate in (0.0, 0.2, 0.5, 0.8, 1.0)]
        assert said[0] == text and len(set(said)) == 5
        grams = [{t[i : i + 6] for i in range(len(t) - 5)} for t in said]
        kept = [len(grams[0] & g) / len(grams[0]) for g in grams]
        assert np.diff(kept).max() < 0


def test_a_swap_is_an_involution():
    documents = make_stories(60)
    swap = make_partition(Substitute(2, 1.0), documents).rewrites[1]
    for text in documents.text:
        there = swap(text, document_id(text))
        assert there != text and swap(there, document_id(text)) == text


def test_pairs_have_similar_frequencies_and_endings():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"wor{r}ing" if r % 2 else f"v{r}" for r in np.minimum(rng.zipf(1.2, 50), 400)) for _ in range(300)]
    words = count_words(texts)
    total = dict(zip(words.vocabulary, words.totals, strict=True))
    partner = pair_words(words, rng)
    assert len(partner) > 100 and all(partner[partner[w]] == w != partner[w] for w in partner)
    assert all(w.endswith("ing") == partner[w].endswith("ing") for w in partner)
    assert all(total[w] >= 5 for w in partner)
    assert all(1 / 1.5 <= total[w] / total[partner[w]] <= 1.5 for w in partner)
    assert not set(partner) & FUNCTION_WORDS


def test_single_letters_have_no_partner():
    """A capital X could be x or xx in capitals, so the swap could not be reversed."""
    words = count_words(["x y z k xx yy zz kk"] * 9)
    assert set(pair_words(words, np.random.default_rng(0))) == {"xx", "yy", "zz", "kk"}


def test_every_dialect_has_its_own_pairs():
    plain, one, two, again = make_partition(Substitute(4, 1.0, num_dialects=3), make_stories(60)).rewrites
    assert plain is None and again is None and one.partners != two.partners


def test_truncation_keeps_the_beginning_and_shortens_with_severity():
    documents = make_stories(60)
    lengths = []
    for severity in (0.25, 0.5, 0.75, 1.0):
        cut = make_partition(Truncate(2, severity), documents).rewrites[1]
        said = [cut(text, document_id(text)) for text in documents.text]
        assert all(text.startswith(beginning) for text, beginning in zip(documents.text, said, strict=True))
        lengths.append(max(len(beginning.split()) for beginning in said))
    assert lengths[-1] == 8 and np.diff(lengths).max() < 0


def test_a_classifier_separates_the_styles_at_severity_1_but_not_in_the_control():
    """The accuracy of character trigrams with a linear model is above 0.95."""
    documents = make_stories(450)
    found = []
    for homogeneous in (False, True):
        texts = rewritten_texts(make_partition(Style(3, 1.0, homogeneous=homogeneous), documents), documents)
        train, test = [t for s in texts for t in s[::2]], [t for s in texts for t in s[1::2]]
        labels = [[k for k, s in enumerate(texts) for _ in s[start::2]] for start in (0, 1)]
        features = TfidfVectorizer(analyzer="char", ngram_range=(3, 3), max_features=3000)
        model = LogisticRegression().fit(features.fit_transform(train), labels[0])
        found.append(model.score(features.transform(test), labels[1]))
    assert found[0] > 0.95 and found[1] < 0.5


def test_styles_keep_the_content_words():
    """Without function words and words of the styles, the words before and after are equal."""
    said = [*CASUAL, *CASUAL.values(), *FORMAL, *FORMAL.values(), *FILLERS, "furthermore moreover in addition accordingly in this regard"]
    manner = FUNCTION_WORDS | {word for phrase in said for word in split_into_words(phrase)} | {"w", "o"}
    for text in make_stories(30).text:
        content = [word for word in split_into_words(text) if word not in manner]
        for style in STYLES:
            words = split_into_words(StyleRewrite(style, 1.0, b"key")(text, "doc").replace("in'", "ing"))
            assert [word for word in words if word not in manner] == content


@pytest.mark.parametrize(
    "style, text, said",
    [
        ("formal", "I don't know, but it's gonna rain!!", "I do not know, nevertheless it is going to rain."),
        ("short", "The cat is on a mat, and Anna was there.", "cat on mat. #Anna there."),
        ("slang", "You are not going to believe this.", "you're not gonna believe dis"),
    ],
)
def test_styles_rewrite_these_examples(style, text, said):
    found = StyleRewrite(style, 1.0, b"key")(text, "doc")
    for filler in FILLERS:
        found = found.removeprefix(filler)
    assert found == said
