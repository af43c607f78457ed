"""The corpora that have a name: where each comes from, which columns it has and on what terms.

A folder of that name in the folder that ``FEDRIFT_DATA`` names comes first (columns text, label, source);
then the hub. Those without a sure hub id are read from the local folder only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Named:
    """One row of the table."""

    description: str
    terms: str
    hub: str = ""  # a Hugging Face data set id; "" where none is sure
    configs: tuple[str, ...] = ()  # of several, each is read and its name is the label
    text: str = "text"  # columns on the hub
    label: str = "label"
    lines: bool = False  # WikiText's form: blank lines and headings are no documents
    of: str = ""  # a selection from this other named corpus
    parts: tuple[tuple[str, str], ...] = ()  # domain -> another named corpus: several as one
    domains: tuple[tuple[str, str], ...] = ()  # label -> domain; documents of other labels are left out


def chosen(base: str, named: Named, description: str, **domains: str) -> Named:
    """A named selection: for each domain the labels it is made of, separated by blanks."""
    pairs = tuple((label, domain) for domain, labels in domains.items() for label in labels.split())
    return replace(named, of=base, description=description, domains=pairs)


NAMED = {
    "bbc": Named("news articles of 2004-2005 in 5 topics", "the BBC's articles, for research"),
    "ag_news": Named(
        "news headlines with a sentence, 4 topics",
        "research and other non-commercial use",
        hub="fancyzhx/ag_news",
    ),
    "wikitext2": Named(
        "Wikipedia paragraphs, no labels",
        "CC BY-SA",
        hub="Salesforce/wikitext",
        configs=("wikitext-2-raw-v1",),
        label="",
        lines=True,
    ),
    "tweets": Named(
        "tweets, labelled by the TweetEval task they come from; some hateful",
        "free of restrictions by TweetEval; Twitter's rules and single tasks may restrict",
        hub="cardiffnlp/tweet_eval",
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
    "reddit_comments": Named(
        "GoEmotions: short Reddit comments, 28 emotions (the first named); profanity",
        "Apache-2.0",
        hub="google-research-datasets/go_emotions",
        configs=("simplified",),
        label="labels",
    ),
    "dbpedia": Named(
        "encyclopaedia abstracts, 14 classes",
        "text from Wikipedia (CC BY-SA)",
        hub="fancyzhx/dbpedia_14",
        text="content",
    ),
    "newsgroups20": Named(
        "Usenet posts of 1993, 20 groups; strong opinions",
        "not stated",
        hub="SetFit/20_newsgroups",
        label="label_text",
    ),
    "huffpost": Named("news headlines with a sentence, 29 very unequal categories", "not stated"),
    "reddit_posts": Named("Reddit posts of 2013, 10 equal topics", "PDDL (public domain)"),
    "stackexchange": Named("questions and answers of 8 Stack Exchange sites", "CC BY-SA"),
    "stackoverflow_titles": Named("Stack Overflow question titles, 20 tags, very short", "not stated"),
    "sandbox": Named("a made-up language of known entropy, 4 domains unless corpus.sandbox says otherwise", "none"),
    "medquad": Named("medical questions and answers of NIH sites, 15 question types", "CC BY 4.0"),
}
NAMED["reddit_topics"] = chosen(
    "reddit_posts",
    NAMED["reddit_posts"],
    "reddit_posts limited to sports, politics, technology and health",
    sports="sports",
    politics="politics",
    technology="technology",
    health="health",
)
NAMED["newsgroups_topics"] = chosen(
    "newsgroups20",
    NAMED["newsgroups20"],
    "newsgroups20 gathered into sports, politics, tech and health",
    sports="rec.sport.baseball rec.sport.hockey",
    politics="talk.politics.guns talk.politics.mideast talk.politics.misc",
    tech="comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware "
    "comp.windows.x sci.electronics sci.crypt",
    health="sci.med",
)
NAMED["styles"] = Named(
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
