"""Statistics over paired seeds, and hypotheses that are tested automatically. This package does not need torch.

- The unit of replication is the seed, never the client or the round.
- Every p-value carries the smallest p-value that its number of seeds can produce.
- Diverged runs are not dropped: they receive the worst rank.
- An inconclusive result reports the minimum detectable effect.
"""

from .boundary import Bracket, find_boundaries, find_boundary, geometric_mean_ratio
from .effects import (
    EquivalenceResult,
    PairedComparison,
    compare_paired,
    detectable_margin,
    hedges_g,
    min_detectable_effect,
    min_equivalence_margin,
    power,
    required_seeds,
    tost,
)
from .hypothesis_base import Hypothesis
from .intervals import bootstrap_items, difference_in_differences, mean_ci, median_ci, paired_differences, paired_t_test, ratio_ci
from .mixed_model import MixedModel, bootstrap_term_p, fit_mixed_model
from .selection import compare_to_reference, default_worst_end, failure_rates, outcome_values, select_runs, summarize_conditions
from .significance import (
    ALPHA,
    Interval,
    MonotoneTrend,
    PValue,
    assign_worst_rank,
    benjamini_hochberg,
    cliffs_delta,
    clopper_pearson,
    fisher_exact,
    holm,
    mcnemar,
    min_p,
    min_seeds,
    page_trend_test,
    rank_biserial,
    sign_flip_test,
    spearman_within_blocks,
    wilcoxon,
)
from .verdicts import Verdict, evaluate_hypotheses, verdict_table

__all__ = [
    "ALPHA",
    "Bracket",
    "EquivalenceResult",
    "Hypothesis",
    "Interval",
    "MixedModel",
    "MonotoneTrend",
    "PValue",
    "PairedComparison",
    "Verdict",
    "assign_worst_rank",
    "benjamini_hochberg",
    "bootstrap_items",
    "bootstrap_term_p",
    "cliffs_delta",
    "clopper_pearson",
    "compare_paired",
    "compare_to_reference",
    "default_worst_end",
    "detectable_margin",
    "difference_in_differences",
    "evaluate_hypotheses",
    "failure_rates",
    "find_boundaries",
    "find_boundary",
    "fisher_exact",
    "fit_mixed_model",
    "geometric_mean_ratio",
    "hedges_g",
    "holm",
    "mcnemar",
    "mean_ci",
    "median_ci",
    "min_detectable_effect",
    "min_equivalence_margin",
    "min_p",
    "min_seeds",
    "outcome_values",
    "page_trend_test",
    "paired_differences",
    "paired_t_test",
    "power",
    "rank_biserial",
    "ratio_ci",
    "required_seeds",
    "select_runs",
    "sign_flip_test",
    "spearman_within_blocks",
    "summarize_conditions",
    "tost",
    "verdict_table",
    "wilcoxon",
]
