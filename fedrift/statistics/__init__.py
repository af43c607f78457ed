"""Statistics over paired seeds, and hypotheses that a machine can check. Without torch.

The unit of replication is the seed, never the client or the round; a p knows the smallest one that its seeds could have
given; diverged runs are kept, by worst rank; what was not found is told with the smallest effect that would have been.
"""

from .arms import against, failure_rates, summary
from .attribution import difference_in_differences
from .boundary import Bracket, bisect, boundaries, log_ratio
from .comparison import Comparison, compare
from .effect import as_perplexity, hedges_g
from .equivalence import Equivalence, margin_for, smallest_margin, tost
from .evidence import ALPHA, Interval, P, seeds_needed, smallest_p
from .families import benjamini_hochberg, holm
from .hypotheses import Hypothesis
from .items import bootstrap
from .mixed import Mixed, mixed, mixed_p
from .paired import differences, median_interval, paired_t, t_test
from .power import detectable, power, seeds_for
from .ranks import cliffs_delta, rank_biserial, wilcoxon, worst_rank
from .rates import clopper_pearson, fisher, mcnemar
from .selection import bad_end, select, values
from .share import fieller
from .signflip import sign_flip
from .trend import Monotone, page, spearman
from .verdicts import Verdict, judge, table

__all__ = [
    "ALPHA",
    "Bracket",
    "Comparison",
    "Equivalence",
    "Hypothesis",
    "Interval",
    "Mixed",
    "Monotone",
    "P",
    "Verdict",
    "against",
    "as_perplexity",
    "bad_end",
    "benjamini_hochberg",
    "bisect",
    "bootstrap",
    "boundaries",
    "cliffs_delta",
    "clopper_pearson",
    "compare",
    "detectable",
    "difference_in_differences",
    "differences",
    "failure_rates",
    "fieller",
    "fisher",
    "hedges_g",
    "holm",
    "judge",
    "log_ratio",
    "margin_for",
    "mcnemar",
    "median_interval",
    "mixed",
    "mixed_p",
    "page",
    "paired_t",
    "power",
    "rank_biserial",
    "seeds_for",
    "seeds_needed",
    "select",
    "sign_flip",
    "smallest_margin",
    "smallest_p",
    "spearman",
    "summary",
    "t_test",
    "table",
    "tost",
    "values",
    "wilcoxon",
    "worst_rank",
]
