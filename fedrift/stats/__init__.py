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
    bootstrap_items,
    compare_paired,
    detectable_margin,
    hedges_g,
    mean_ci,
    median_ci,
    min_detectable_effect,
    paired_differences,
    power,
    ratio_ci,
    tost,
)
from .hypotheses import Hypothesis
from .mixed_model import MixedModel, bootstrap_term_p, fit_mixed_model
from .selection import compare_to_reference, default_worst_end, outcome_values, select_runs
from .significance import (
    ALPHA,
    Interval,
    MonotoneTrend,
    PValue,
    assign_worst_rank,
    clopper_pearson,
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
from .verdicts import HypothesisVerdict, evaluate_hypotheses, verdict_table

__all__ = [
    "ALPHA",
    "Bracket",
    "EquivalenceResult",
    "Hypothesis",
    "HypothesisVerdict",
    "Interval",
    "MixedModel",
    "MonotoneTrend",
    "PValue",
    "PairedComparison",
    "assign_worst_rank",
    "bootstrap_items",
    "bootstrap_term_p",
    "clopper_pearson",
    "compare_paired",
    "compare_to_reference",
    "default_worst_end",
    "detectable_margin",
    "evaluate_hypotheses",
    "find_boundaries",
    "find_boundary",
    "fit_mixed_model",
    "geometric_mean_ratio",
    "hedges_g",
    "holm",
    "mcnemar",
    "mean_ci",
    "median_ci",
    "min_detectable_effect",
    "min_p",
    "min_seeds",
    "outcome_values",
    "page_trend_test",
    "paired_differences",
    "power",
    "rank_biserial",
    "ratio_ci",
    "select_runs",
    "sign_flip_test",
    "spearman_within_blocks",
    "tost",
    "verdict_table",
    "wilcoxon",
]
