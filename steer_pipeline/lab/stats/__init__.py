"""Intervals and tests of means and shares, ranking measures, corrections, power and grouped splits.

In: numpy arrays whose rows are already paired or grouped by key. Out: numbers and intervals. Deterministic, seeded
where something is drawn; memory is bounded because resamples are drawn in chunks. Knows nothing about text or models.

Which one to take: `mean_interval` and `mean_test` for a mean (or paired difference) of rows, `simultaneous_intervals`
for several that are judged together, `crossed_intervals` where there are seeds too, `share_interval` for counts,
`auc_interval` for ranking, `percentiles` of `bootstrap_means` or `cluster_bootstrap` for all else.
"""

from steer_pipeline.lab.stats.corrections import benjamini_hochberg, holm
from steer_pipeline.lab.stats.crossed import crossed_intervals
from steer_pipeline.lab.stats.interval import Interval
from steer_pipeline.lab.stats.means import (
    mean_interval,
    mean_intervals,
    mean_test,
    mean_tests,
    paired_difference,
    simultaneous_intervals,
)
from steer_pipeline.lab.stats.power import detectable, minimum_detectable
from steer_pipeline.lab.stats.ranking import auc, auc_interval
from steer_pipeline.lab.stats.resampling import (
    bootstrap_means,
    cluster_bootstrap,
    expanded,
    percentiles,
    sign_flip_test,
    sign_flip_tests,
)
from steer_pipeline.lab.stats.shares import share_interval
from steer_pipeline.lab.stats.splits import grouped_folds, grouped_split, training_rows

__all__ = [
    "Interval",
    "auc",
    "auc_interval",
    "benjamini_hochberg",
    "bootstrap_means",
    "cluster_bootstrap",
    "crossed_intervals",
    "detectable",
    "expanded",
    "grouped_folds",
    "grouped_split",
    "holm",
    "mean_interval",
    "mean_intervals",
    "mean_test",
    "mean_tests",
    "minimum_detectable",
    "paired_difference",
    "percentiles",
    "share_interval",
    "sign_flip_test",
    "sign_flip_tests",
    "simultaneous_intervals",
    "training_rows",
]
