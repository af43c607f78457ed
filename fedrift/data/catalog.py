"""Which documents the model ``pocket`` has read, so that studies can keep to those it has not.

``pocket`` is pretrained on one half, by document hash, of the train splits of six corpora. The rule goes by
the exact text and by the corpus's name, so it is exact for the copies it was pretrained from (the local
folders). The same corpora from the hub are halved by the same rule, but a copy that was cleaned otherwise
hashes otherwise, and files and data sets of other names cannot be told at all: they are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

POCKET_PRETRAINING_DATASETS = frozenset({"wikitext2", "dbpedia", "reddit_posts", "stackexchange", "medquad", "newsgroups20"})


def is_in_pretraining_half(text: str) -> bool:
    """Whether a document belongs to the half that ``pocket`` is pretrained on."""
    return sha256(text.strip().encode()).digest()[0] % 2 == 0


# The corpora that have a name: where each comes from, which columns it has and on what terms.
#
# A folder of that name in the folder that ``FEDRIFT_DATA`` names comes first (columns text, label, source);
# then the hub. Those without a sure hub id are read from the local folder only.


@dataclass(frozen=True)
class NamedDataset:
    """One row of the table."""

    description: str
    license_terms: str
    hub_id: str = ""  # a Hugging Face data set id; "" where none is sure
    configs: tuple[str, ...] = ()  # of several, each is read and its name is the label
    text_column: str = "text"  # columns on the hub
    label_column: str = "label"
    skip_headings: bool = False  # WikiText's form: blank lines and headings are no documents
    base_name: str = ""  # a selection from this other named corpus
    parts: tuple[tuple[str, str], ...] = ()  # domain -> another named corpus: several as one
    label_domains: tuple[tuple[str, str], ...] = ()  # label -> domain; documents of other labels are left out


def make_variant(base_name: str, named: NamedDataset, description: str, **domains: str) -> NamedDataset:
    """A named selection: for each domain the labels it is made of, separated by blanks."""
    pairs = tuple((label, domain) for domain, labels in domains.items() for label in labels.split())
    return replace(named, base_name=base_name, description=description, label_domains=pairs)


NAMED_DATASETS = {
    "bbc": NamedDataset("news articles of 2004-2005 in 5 topics", "the BBC's articles, for research"),
    "ag_news": NamedDataset("news headlines with a sentence, 4 topics", "research and other non-commercial use", hub_id="fancyzhx/ag_news"),
    "wikitext2": NamedDataset(
        "Wikipedia paragraphs, no labels",
        "CC BY-SA",
        hub_id="Salesforce/wikitext",
        configs=("wikitext-2-raw-v1",),
        label_column="",
        skip_headings=True,
    ),
    "tweets": NamedDataset(
        "tweets, labelled by the TweetEval task they come from; some hateful",
        "free of restrictions by TweetEval; Twitter's rules and single tasks may restrict",
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
        "GoEmotions: short Reddit comments, 28 emotions (the first named); profanity",
        "Apache-2.0",
        hub_id="google-research-datasets/go_emotions",
        configs=("simplified",),
        label_column="labels",
    ),
    "dbpedia": NamedDataset(
        "encyclopaedia abstracts, 14 classes", "text from Wikipedia (CC BY-SA)", hub_id="fancyzhx/dbpedia_14", text_column="content"
    ),
    "newsgroups20": NamedDataset(
        "Usenet posts of 1993, 20 groups; strong opinions", "not stated", hub_id="SetFit/20_newsgroups", label_column="label_text"
    ),
    "huffpost": NamedDataset("news headlines with a sentence, 29 very unequal categories", "not stated"),
    "reddit_posts": NamedDataset("Reddit posts of 2013, 10 equal topics", "PDDL (public domain)"),
    "stackexchange": NamedDataset("questions and answers of 8 Stack Exchange sites", "CC BY-SA"),
    "stackoverflow_titles": NamedDataset("Stack Overflow question titles, 20 tags, very short", "not stated"),
    "synthetic": NamedDataset("a made-up language of known entropy, 4 domains unless dataset.synthetic says otherwise", "none"),
    "medquad": NamedDataset("medical questions and answers of NIH sites, 15 question types", "CC BY 4.0"),
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
    "newsgroups20 gathered into sports, politics, tech and health",
    sports="rec.sport.baseball rec.sport.hockey",
    politics="talk.politics.guns talk.politics.mideast talk.politics.misc",
    tech="comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x sci.electronics sci.crypt",
    health="sci.med",
)
NAMED_DATASETS["styles"] = NamedDataset(
    "real corpora as styles: encyclopaedia, news, Q&A, Reddit, tweets, equally many documents of each; topics differ too",
    "those of wikitext2, ag_news, stackexchange, reddit_comments and tweets",
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
