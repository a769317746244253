"""What must hold of a sparse autoencoder, of features and of what is predicted from them. In: tables. Out: verdicts."""

from collections.abc import Sequence

import polars as pl

from steer_pipeline.lab.finetune.data import Example, digest
from steer_pipeline.lab.limits import MAX_ACTIVE, MAX_DEAD, MIN_EXPLAINED, MIN_LOSS_RECOVERED
from steer_pipeline.lab.sae.features import STATISTICS
from steer_pipeline.lab.sae.fidelity import Fidelity
from steer_pipeline.lab.sae.predictor import SAE, SHUFFLED, RankPrediction
from steer_pipeline.lab.stats import Interval
from steer_pipeline.lab.verdict import Verdict

_SHOWN = 5


def reconstructs(found: Fidelity) -> Verdict:
    """Whether features keep what the model needs: of the states' variance, and of the model's loss."""
    explained, recovered = found.explained.estimate, found.recovered.estimate
    return Verdict(
        "sae_reconstructs",
        explained >= MIN_EXPLAINED and recovered >= MIN_LOSS_RECOVERED,
        f"{_shown(found.explained)} of the variance of held-out states is explained, {MIN_EXPLAINED} is wanted; "
        f"{_shown(found.recovered)} of the loss is recovered, {MIN_LOSS_RECOVERED} is wanted",
        found.numbers,
    )


def is_sparse(found: Fidelity, n_features: int, *, trained: bool) -> Verdict:
    """Whether few features are active at a token, and, of one that was trained here, few are dead.

    Args:
        trained: a published one has features for texts that these rows are not.
    """
    share, problems = found.l0.estimate / n_features, []
    if share > MAX_ACTIVE:
        problems.append(
            f"{found.l0.estimate:.1f} of {n_features} features are active at a token, {share:.0%}; at most "
            f"{MAX_ACTIVE:.0%} are wanted"
        )
    if trained and found.dead > MAX_DEAD:
        problems.append(
            f"{found.dead:.0%} of the features are active at no token, at most {MAX_DEAD:.0%} is wanted"
        )
    fine = (
        f"{_shown(found.l0, 1)} of {n_features} features are active at a token, {found.dead:.0%} at none of "
        f"{found.dead_tokens}"
    )
    return Verdict("sae_is_sparse", not problems, "; ".join(problems) or fine, found.numbers)


def same_ids(features: pl.DataFrame, examples: Sequence[Example]) -> Verdict:
    """Whether features were read on the very ids that training sees, row by row."""
    theirs = dict(features.select("row_id", "ids").iter_rows())
    mine = {one.row_id: digest([one]) for one in examples}
    differing = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    return Verdict(
        "features_on_training_ids",
        not differing,
        f"{len(differing)} of {len(mine)} rows were read on other ids than training sees, or are missing"
        + (f": {', '.join(differing[:_SHOWN])}" if differing else ""),
        {"mismatches": len(differing), "rows": len(mine)},
        [{"row_id": name} for name in differing[:_SHOWN]],
    )


def every_row_has_features(features: pl.DataFrame) -> Verdict:
    """Whether each row has an active feature, and numbers that are finite."""
    bad = features.filter(
        (pl.col("feature").list.len() == 0)
        | ~pl.all_horizontal(pl.col(name).cast(pl.Float64).is_finite() for name in STATISTICS)
    )
    return Verdict(
        "every_row_has_features",
        not bad.height,
        f"{bad.height} of {features.height} rows have no active feature, or a number that is not finite"
        + (f": {', '.join(bad['row_id'].head(_SHOWN))}" if bad.height else ""),
        {"rows": features.height, "without": bad.height},
    )


def groups_stay_whole(found: RankPrediction) -> Verdict:
    """Whether no group was learned from and predicted at once."""
    split = (
        found.predictions.group_by("group")
        .agg(pl.col("fold").n_unique().alias("folds"))
        .filter(pl.col("folds") > 1)
    )
    groups = found.predictions["group"].n_unique()
    return Verdict(
        "groups_stay_whole",
        not split.height,
        f"{split.height} of {groups} groups stand in two parts"
        + (f": {', '.join(split['group'].head(_SHOWN))}" if split.height else ""),
        {"groups": groups, "split": split.height},
    )


def beats_what_costs_nothing(found: RankPrediction) -> Verdict:
    """Whether features tell held-out ranks better than length, loss and metadata do. A tie is told as one."""
    rows = {row["predictor"]: row for row in found.quality.iter_rows(named=True)}
    own, floor = rows[SAE], rows[SHUFFLED]
    parts = [
        f"held-out rank correlation {own['spearman']:.2f} [{own['low']:.2f}, {own['high']:.2f}], shuffled "
        f"{floor['spearman']:.2f} [{floor['low']:.2f}, {floor['high']:.2f}]"
    ]
    ties = []
    for row in found.gains.iter_rows(named=True):
        parts.append(f"{row['gain']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] over {row['over']}")
        if not row["low"] > 0:
            ties.append(row["over"])
    passed = own["low"] > floor["high"] and not ties
    if ties:
        parts.append(f"no better than {', '.join(ties)}")
    numbers = {"spearman": own["spearman"], "low": own["low"], "high": own["high"], "overlap": own["overlap"]}
    return Verdict("features_tell_ranks", passed, "; ".join(parts), numbers, blocking=False)


def _shown(one: Interval, digits: int = 2) -> str:
    return f"{one.estimate:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"
