"""Paired resampling statistics: intervals, tests, ranking measures, corrections and grouped splits.

In: numpy arrays whose rows are already paired or grouped by key. Out: numbers and intervals. Seeded and
deterministic; memory is bounded because resamples are drawn in chunks. Knows nothing about text or models.
"""

from steer_pipeline.lab.stats.corrections import benjamini_hochberg, holm
from steer_pipeline.lab.stats.crossed import crossed_intervals, expanded
from steer_pipeline.lab.stats.ranking import auc, auc_interval
from steer_pipeline.lab.stats.resampling import (
    Interval,
    bootstrap_means,
    cluster_bootstrap,
    mean_interval,
    mean_intervals,
    paired_difference,
    sign_flip_test,
    sign_flip_tests,
    simultaneous_intervals,
)
from steer_pipeline.lab.stats.splits import grouped_folds, grouped_split

__all__ = [
    "Interval",
    "auc",
    "auc_interval",
    "benjamini_hochberg",
    "bootstrap_means",
    "cluster_bootstrap",
    "crossed_intervals",
    "expanded",
    "grouped_folds",
    "grouped_split",
    "holm",
    "mean_interval",
    "mean_intervals",
    "paired_difference",
    "sign_flip_test",
    "sign_flip_tests",
    "simultaneous_intervals",
]
