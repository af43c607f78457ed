"""The closed classes of English words: what a text needs for its grammar and hardly for its topic."""

from __future__ import annotations

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
MASKS = frozenset("user http https url name religion www com org html amp".split())
SHORTEST = 4  # letters of a content word


def is_content(word: str) -> bool:
    """Whether a word (in small letters) may tell a topic: letters only, four or more, no function word, no mask."""
    return len(word) >= SHORTEST and word.isalpha() and word not in FUNCTION_WORDS and word not in MASKS
