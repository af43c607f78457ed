"""List the named datasets and decide which documents the model ``pocket`` saw during pretraining.

``pocket`` was pretrained on one half (by document hash) of the train splits of six datasets. The rule uses the exact text
and the name of the dataset. It is therefore exact only for the local copies from which ``pocket`` was pretrained. Copies
from the hub are divided by the same rule, but a differently cleaned text has a different hash. For files and datasets
with other names the origin is unknown, so that they are not divided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

POCKET_PRETRAINING_DATASETS = frozenset({"wikitext2", "dbpedia", "reddit_posts", "stackexchange", "medquad", "newsgroups20"})


def is_in_pretraining_half(text: str) -> bool:
    """Return whether a document belongs to the half of the text on which ``pocket`` was pretrained."""
    return sha256(text.strip().encode()).digest()[0] % 2 == 0


# A folder with the name of the dataset below the folder ``FEDRIFT_DATA`` (columns text, label, source) takes precedence over
# the hub. Datasets without a verified hub id are read from the local folder only.


@dataclass(frozen=True)
class NamedDataset:
    """Describe the origin, the columns and the license of one named dataset."""

    description: str
    license_terms: str
    hub_id: str = ""  # a Hugging Face dataset id, "" if none is verified
    published_at: str = ""  # where the text can be found, for datasets without a hub id; docs/corpora.md says how to get it
    configs: tuple[str, ...] = ()  # hub configurations; if there are several, the name of the configuration is the label
    text_column: str = "text"  # column names on the hub
    label_column: str = "label"
    skip_headings: bool = False  # leave out headings, as in WikiText
    base_name: str = ""  # the named dataset of which this one is a selection
    parts: tuple[tuple[str, str], ...] = ()  # (domain, named dataset): this dataset combines several others
    label_domains: tuple[tuple[str, str], ...] = ()  # (label, domain): documents with other labels are left out


def make_variant(base_name: str, named: NamedDataset, description: str, **domains: str) -> NamedDataset:
    """Describe a selection of labels from a named dataset, grouped into domains.

    Args:
        base_name: The name of the original dataset.
        named: The description of the original dataset.
        description: The description of the selection.
        **domains: For each domain its labels in the original dataset, separated by spaces.
    """
    pairs = tuple((label, domain) for domain, labels in domains.items() for label in labels.split())
    return replace(named, base_name=base_name, description=description, label_domains=pairs)


NAMED_DATASETS = {
    "bbc": NamedDataset("news articles of 2004-2005 in 5 topics", "BBC articles, for research use"),
    "ag_news": NamedDataset(
        "news headlines with one sentence, 4 topics", "research and other non-commercial use", hub_id="fancyzhx/ag_news"
    ),
    "wikitext2": NamedDataset(
        "Wikipedia paragraphs, no labels",
        "CC BY-SA",
        hub_id="Salesforce/wikitext",
        configs=("wikitext-2-raw-v1",),
        label_column="",
        skip_headings=True,
    ),
    "tweets": NamedDataset(
        "tweets, labeled by their TweetEval task; some are hateful",
        "no restrictions by TweetEval, but possibly by Twitter's rules and by single tasks",
        hub_id="cardiffnlp/tweet_eval",
        configs=(
            "emoji",
            "emotion",
            "hate",
            "irony",
            "offensive",
            "sentiment",
            "stance_abortion",
            "stance_atheism",
            "stance_climate",
            "stance_feminist",
            "stance_hillary",
        ),
    ),
    "reddit_comments": NamedDataset(
        "GoEmotions: short Reddit comments, labeled by the first of their 28 emotions; profanity",
        "Apache-2.0",
        hub_id="google-research-datasets/go_emotions",
        configs=("simplified",),
        label_column="labels",
    ),
    "dbpedia": NamedDataset(
        "encyclopedia abstracts, 14 classes", "text from Wikipedia (CC BY-SA)", hub_id="fancyzhx/dbpedia_14", text_column="content"
    ),
    "newsgroups20": NamedDataset(
        "Usenet posts of 1993, 20 groups; strong opinions", "not stated", hub_id="SetFit/20_newsgroups", label_column="label_text"
    ),
    "huffpost": NamedDataset(
        "news headlines with one sentence, 29 categories of very different sizes",
        "not stated",
        published_at="News Category Dataset (Misra, arXiv:2209.11429)",
    ),
    "reddit_posts": NamedDataset(
        "Reddit posts of 2013, 10 topics of equal size", "PDDL (public domain)", published_at="github.com/umbrae/reddit-top-2.5-million"
    ),
    "stackexchange": NamedDataset(
        "questions and answers of 8 Stack Exchange sites", "CC BY-SA", published_at="archive.org/details/stackexchange"
    ),
    "stackoverflow_titles": NamedDataset(
        "Stack Overflow question titles, 20 tags, very short", "not stated", published_at="github.com/jacoxu/StackOverflow"
    ),
    "synthetic": NamedDataset("a synthetic language of known entropy, 4 domains by default (see dataset.synthetic)", "none"),
    "medquad": NamedDataset(
        "medical questions and answers of NIH sites, 15 question types", "CC BY 4.0", published_at="github.com/abachaa/MedQuAD"
    ),
}
NAMED_DATASETS["reddit_topics"] = make_variant(
    "reddit_posts",
    NAMED_DATASETS["reddit_posts"],
    "reddit_posts limited to sports, politics, technology and health",
    sports="sports",
    politics="politics",
    technology="technology",
    health="health",
)
NAMED_DATASETS["newsgroups_topics"] = make_variant(
    "newsgroups20",
    NAMED_DATASETS["newsgroups20"],
    "newsgroups20 grouped into sports, politics, tech and health",
    sports="rec.sport.baseball rec.sport.hockey",
    politics="talk.politics.guns talk.politics.mideast talk.politics.misc",
    tech="comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x sci.electronics sci.crypt",
    health="sci.med",
)
NAMED_DATASETS["styles"] = NamedDataset(
    "five datasets as styles (encyclopedia, news, Q&A, Reddit, tweets), equally many documents of each; topics differ too",
    "the licenses of wikitext2, ag_news, stackexchange, reddit_comments and tweets",
    parts=(
        ("encyclopaedia", "wikitext2"),
        ("news", "ag_news"),
        ("questions", "stackexchange"),
        ("reddit", "reddit_comments"),
        ("tweets", "tweets"),
    ),
)
NAMED_DATASETS["unread_styles"] = NamedDataset(
    "five corpora that pocket has not read: articles, news, headlines, tweets, questions; topics differ too",
    "those of bbc, ag_news, huffpost, tweets and stackoverflow_titles",
    parts=(
        ("articles", "bbc"),
        ("news", "ag_news"),
        ("headlines", "huffpost"),
        ("tweets", "tweets"),
        ("questions", "stackoverflow_titles"),
    ),
)
