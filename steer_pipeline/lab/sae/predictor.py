"""How far a row's features tell its rank: ridge regression whose every prediction is of rows that it has not seen.

In: rows with scores, lengths, losses, groups and metadata, and their features. Out: a prediction a row, the quality of
features beside what costs nothing (length, loss, metadata, chance), and what the metadata themselves tell. Groups are
never learned and predicted at once; projection and scaling do not look at targets; all numbers are of held-out
predictions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from steer_pipeline.catalogue.sae import RankPredictorSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.sae.dictionary import SaeError
from steer_pipeline.lab.sae.features import STATISTICS, feature_matrix
from steer_pipeline.lab.stats import Interval, cluster_bootstrap, grouped_folds
from steer_pipeline.lab.stats.correlation import spearman
from steer_pipeline.lab.stats.pairing import require_same_rows

SAE, SHUFFLED, LENGTH, LOSS = "sae", "shuffled", "length", "loss"
LENGTH_AND_LOSS, METADATA, METADATA_AND_SAE = "length_and_loss", "metadata", "metadata_and_sae"
PREDICTION_SCHEMA, PREDICTION_COLUMNS = described(
    row_id=(pl.String(), "row of the pool"),
    group=(
        pl.String(),
        "rows of one group, and groups that share a text, are predicted together, from others",
    ),
    fold=(pl.Int64(), "part that was predicted from the others"),
    score=(pl.Float64(), "what the ranking gives the row; the higher, the more it helps"),
    target=(pl.Float64(), "what was learned: share of rows that it outranks, or its score"),
    predicted=(
        pl.Float64(),
        "held-out prediction, as a distance from the mean of the rows that were learned",
    ),
    rank=(pl.Int64(), "by prediction, 1 is the best"),
)
QUALITY_SCHEMA, QUALITY_COLUMNS = described(
    predictor=(pl.String(), "what is known of a row"),
    columns=(pl.Int64(), "numbers a row"),
    spearman=(
        pl.Float64(),
        "of held-out predictions with scores, ties at their mean rank; of shuffles their mean",
    ),
    low=(
        pl.Float64(),
        "end of its 95% interval over groups, given what was learned: another pool is not in it; of shuffles the 2.5th "
        "percentile",
    ),
    high=(pl.Float64(), "the other end"),
    overlap=(pl.Float64(), "share of the top k rows that are in the predicted top k, all held out"),
    overlap_low=(pl.Float64(), "end of its 95% interval, over groups"),
    overlap_high=(pl.Float64(), "the other end"),
    k=(pl.Int64(), "how many rows are the top"),
    overlap_by_chance=(pl.Float64(), "k over the rows"),
    n_rows=(pl.Int64(), "rows"),
    n_groups=(pl.Int64(), "groups that stay together"),
)
GAIN_SCHEMA, GAIN_COLUMNS = described(
    predictor=(pl.String(), "what is known of a row"),
    over=(pl.String(), "what it is compared with, on the same folds"),
    gain=(pl.Float64(), "difference of their held-out rank correlations"),
    low=(pl.Float64(), "end of its 95% interval, over groups"),
    high=(pl.Float64(), "the other end"),
)
METADATA_SCHEMA, METADATA_COLUMNS = described(
    column=(pl.String(), "of the rows"),
    measure=(
        pl.String(),
        "spearman of numbers and ordered levels; eta of names: root of the share of rank variance",
    ),
    n_rows=(pl.Int64(), "rows that have a value"),
    with_score=(pl.Float64(), "with the score"),
    score_low=(pl.Float64(), "end of its 95% interval, over groups"),
    score_high=(pl.Float64(), "the other end"),
    with_predicted=(pl.Float64(), "with the held-out prediction from features"),
    predicted_low=(pl.Float64(), "end of its 95% interval, over groups"),
    predicted_high=(pl.Float64(), "the other end"),
    by_chance=(pl.Float64(), "what eta is, about, where names say nothing; 0 for spearman"),
)
LEVELS: Mapping[str, tuple[str, ...]] = {
    "difficulty": ("very easy", "easy", "medium", "hard", "very hard"),
    "quality": ("very poor", "poor", "average", "good", "excellent"),
}
N_BOOT = 500
_INNER_FOLDS = 3
_DIGITS = 10
_MISSING = "<missing>"

_Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True, eq=False)
class RankPrediction:
    """What features predict, and how well; see the schemas."""

    predictions: pl.DataFrame
    quality: pl.DataFrame
    gains: pl.DataFrame
    metadata: pl.DataFrame

    def top(self, k: int) -> list[str]:
        """Ids of the k rows that are predicted to help most, the best first: a subset to train on."""
        if not 1 <= k <= self.predictions.height:
            raise SaeError(f"k {k} of {self.predictions.height} rows; give 1 to {self.predictions.height}")
        return self.predictions.sort("rank")["row_id"].head(k).to_list()


def predict_ranks(
    rows: pl.DataFrame, features: pl.DataFrame, n_features: int, spec: RankPredictorSpec
) -> RankPrediction:
    """Cross-fitted predictions of a ranking from features, beside those from what costs nothing.

    Args:
        rows: `row_id`, `score`, `loss` (nats a token; may be absent or null), the columns of `spec.group_by`, and as
            many of `spec.metadata` as there are.
        features: `FEATURE_SCHEMA` of the same rows, in any order.

    Raises:
        SaeError: a score that is missing or not finite, a row twice, columns or groups that are too few.
        ValueError: rows of which only one side is there.
    """
    numbers = [name for name in spec.metadata if name in rows.columns and rows[name].dtype.is_float()]
    rows = rows.with_columns(pl.col(numbers).fill_nan(None))
    require_same_rows(features["row_id"].to_list(), rows["row_id"].to_list(), "sae_features", "the ranking")
    features = rows.select("row_id").join(features, on="row_id", maintain_order="left")
    task = _task(rows, features["content"].to_numpy(), spec)
    known = _known(rows, features, n_features, task, spec)
    held_out = {
        name: _cross_fitted(columns, task.target[:, None], task)[:, 0] for name, columns in known.items()
    }
    order = _order(held_out[SAE], task)
    predictions = pl.DataFrame(
        {
            "row_id": rows["row_id"],
            "group": task.groups,
            "fold": task.folds,
            "score": task.score,
            "target": task.target,
            "predicted": held_out[SAE],
            "rank": np.argsort(order) + 1,
        },
        schema=PREDICTION_SCHEMA,
    )
    quality = [_quality(name, known[name].shape[1], predicted, task) for name, predicted in held_out.items()]
    quality.append(_shuffled(known[SAE], task))
    pairs = [(SAE, name) for name in (LENGTH, LOSS, LENGTH_AND_LOSS) if name in held_out]
    pairs += [(METADATA_AND_SAE, METADATA)] if METADATA in held_out else []
    gains = [_gain(first, other, held_out, task) for first, other in pairs]
    metadata = [_metadata_row(rows[name], held_out[SAE], task) for name in _present(rows, spec)]
    return RankPrediction(
        predictions,
        pl.DataFrame(quality, schema=QUALITY_SCHEMA),
        pl.DataFrame(gains, schema=GAIN_SCHEMA),
        pl.DataFrame(metadata, schema=METADATA_SCHEMA),
    )


# ------------------------------------------------------------------------------------- what is learned


@dataclass(frozen=True, eq=False)
class _Task:
    """Scores and targets fp64 [n], groups [n] of names, folds int64 [n]; `k` rows are the top."""

    spec: RankPredictorSpec
    score: np.ndarray
    target: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    k: int
    ties: np.ndarray  # fp64 [n]: who comes first among equals


def _task(rows: pl.DataFrame, content: np.ndarray, spec: RankPredictorSpec) -> _Task:
    score = rows["score"].cast(pl.Float64).to_numpy()
    bad = np.flatnonzero(~np.isfinite(score))
    if bad.size:
        raise SaeError(
            f"row {rows['row_id'][int(bad[0])]!r}: its score is {score[bad[0]]}; rank the pool again, or leave out "
            "rows without a score"
        )
    groups = _with_twins(_group_names(rows, spec), content)
    distinct = len(np.unique(groups))
    if distinct < max(spec.folds, 2 * _INNER_FOLDS):
        raise SaeError(
            f"sae.predictor: {distinct} groups by {', '.join(spec.group_by)}; {max(spec.folds, 2 * _INNER_FOLDS)} are "
            "needed: group by a finer column (sae.predictor.group_by), or rank more rows"
        )
    n = len(score)
    target = (rankdata(score) - 1) / (n - 1) if spec.target == "rank" else score
    k = min(spec.k, n // 2)
    ties = np.random.default_rng(spec.seed).permutation(n).astype(np.float64)
    return _Task(spec, score, target, groups, grouped_folds(groups, spec.folds, spec.seed), k, ties)


def _group_names(rows: pl.DataFrame, spec: RankPredictorSpec) -> np.ndarray:
    missing = [name for name in spec.group_by if name not in rows.columns]
    if missing:
        raise SaeError(
            f"sae.predictor.group_by: the rows have no column {missing[0]} (there: {', '.join(rows.columns)})"
        )
    texts = [pl.col(name).cast(pl.String).fill_null(_MISSING) for name in spec.group_by]
    return rows.select(pl.concat_str(texts, separator="||").alias("group"))["group"].to_numpy()


def _with_twins(groups: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Groups [n] of names; those that hold rows of the same content are one, under the first of their names."""
    names, of_group = np.unique(groups, return_inverse=True)
    texts, of_text = np.unique(content, return_inverse=True)
    size = len(names) + len(texts)
    links = coo_array((np.ones(len(groups)), (of_group, len(names) + of_text)), shape=(size, size))
    _, label = connected_components(links, directed=False)
    label = label[: len(names)]
    first = np.unique(label, return_index=True)[1]  # names are sorted: the first of each label
    return names[first[label[of_group]]]


def _known(
    rows: pl.DataFrame, features: pl.DataFrame, n_features: int, task: _Task, spec: RankPredictorSpec
) -> dict[str, np.ndarray]:
    """By predictor, fp64 [n, columns]: what it knows of each row."""
    matrix = feature_matrix(features, n_features, spec.pooling)
    statistics = features.select(STATISTICS).to_numpy().astype(np.float64)
    of_sae = np.hstack([statistics, _projected(matrix, spec)])
    lengths = (
        features.select("length", "n_tokens").to_numpy().astype(np.float64)
    )  # of the row, and of the span
    known = {SAE: of_sae, LENGTH: np.hstack([lengths, np.log(lengths)])}
    if "loss" in rows.columns and not rows["loss"].null_count():
        loss = rows["loss"].to_numpy().astype(np.float64)
        known[LOSS] = np.column_stack([loss, loss**2])
        known[LENGTH_AND_LOSS] = np.hstack([known[LENGTH], known[LOSS]])
    if present := _present(rows, spec):
        known[METADATA] = np.hstack([_as_numbers(rows[name]) for name in present])
        known[METADATA_AND_SAE] = np.hstack([known[METADATA], of_sae])
    return known


def _projected(matrix: csr_array, spec: RankPredictorSpec) -> np.ndarray:
    """fp64 [n, at most `spec.projection`]: features that some row has, or random mixtures of them.

    The mixtures keep distances between rows (Johnson and Lindenstrauss), and with them what a ridge can tell.
    """
    seen = np.unique(matrix.indices)
    own = matrix[:, seen]
    if len(seen) <= spec.projection:
        return own.toarray().astype(np.float64)
    from sklearn.random_projection import GaussianRandomProjection

    projection = GaussianRandomProjection(n_components=spec.projection, random_state=spec.seed)
    return np.asarray(projection.fit_transform(own.astype(np.float64)))


def _present(rows: pl.DataFrame, spec: RankPredictorSpec) -> list[str]:
    """Metadata with at least two different values."""
    return [name for name in spec.metadata if name in rows.columns and rows[name].drop_nulls().n_unique() > 1]


def _as_numbers(column: pl.Series) -> np.ndarray:
    """fp64 [n, columns]: ranks of numbers, one column a name; one more says where the value is missing."""
    absent = column.is_null().to_numpy()[:, None].astype(np.float64)
    if column.dtype.is_numeric():
        numbers = column.cast(pl.Float64).to_numpy()
        ranks = np.zeros(len(numbers))
        there = np.isfinite(numbers)
        ranks[there] = rankdata(numbers[there]) / there.sum()
        return np.column_stack([ranks, absent])
    names = sorted(column.drop_nulls().cast(pl.String).unique().to_list())
    return np.column_stack(
        [(column.cast(pl.String) == name).fill_null(False).to_numpy() for name in names]
    ).astype(np.float64)


# ------------------------------------------------------------------------------------------ predictions


def _cross_fitted(known: np.ndarray, targets: np.ndarray, task: _Task) -> np.ndarray:
    """Held-out predictions fp64 [n, targets], each as a distance from the mean of the rows that were learned.

    Without that, predictors that know nothing would seem to err: where a part lies high, the mean of the others, which
    is what they then predict for it, lies low.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = np.empty_like(targets)
    for fold in range(task.spec.folds):
        learned, held_out = np.flatnonzero(task.folds != fold), task.folds == fold
        inner = grouped_folds(task.groups[learned], _INNER_FOLDS, task.spec.seed)
        splits = [(np.flatnonzero(inner != one), np.flatnonzero(inner == one)) for one in range(_INNER_FOLDS)]
        ridge = RidgeCV(alphas=task.spec.alphas, cv=splits, scoring="neg_mean_squared_error")
        model = make_pipeline(StandardScaler(), ridge)
        mean = targets[learned].mean(axis=0)
        model.fit(known[learned], targets[learned] - mean)
        out[held_out] = model.predict(known[held_out]).reshape(-1, targets.shape[1])
    return out.round(_DIGITS)  # equal predictions are equal, whatever the last bits say


def _order(predicted: np.ndarray, task: _Task) -> np.ndarray:
    """Row indices from the largest prediction down; a draw decides among equals, never the order of rows."""
    return np.lexsort([task.ties, -predicted])


# --------------------------------------------------------------------------------------------- numbers


def _interval(statistic: _Statistic, task: _Task) -> Interval:
    """Over groups; NaN where the statistic is undefined, as of a constant."""
    whole = statistic(np.arange(len(task.score)))
    if not np.isfinite(whole):
        return Interval(float("nan"), float("nan"), float("nan"), len(np.unique(task.groups)))
    return cluster_bootstrap(statistic, task.groups, seed=task.spec.seed, n_boot=N_BOOT)


def _overlap(predicted: np.ndarray, task: _Task) -> _Statistic:
    """Of the rows of a resample: share of the top by score that is in the top by prediction; copies count each."""
    ties = task.ties

    def share(at: np.ndarray) -> float:
        k = max(1, round(task.k * len(at) / len(ties)))
        best, chosen = (np.lexsort([ties[at], -values[at]])[:k] for values in (task.score, predicted))
        return len(np.intersect1d(best, chosen)) / k

    return share


def _quality(name: str, columns: int, predicted: np.ndarray, task: _Task) -> dict[str, Any]:
    found = _interval(lambda at: spearman(predicted[at], task.score[at]), task)
    overlap = _interval(_overlap(predicted, task), task)
    return {
        "predictor": name,
        "columns": columns,
        "spearman": found.estimate,
        "low": found.low,
        "high": found.high,
        "overlap": overlap.estimate,
        "overlap_low": overlap.low,
        "overlap_high": overlap.high,
        **_sizes(task),
    }


def _sizes(task: _Task) -> dict[str, Any]:
    n = len(task.score)
    return {
        "k": task.k,
        "overlap_by_chance": task.k / n,
        "n_rows": n,
        "n_groups": len(np.unique(task.groups)),
    }


def _shuffled(known: np.ndarray, task: _Task) -> dict[str, Any]:
    """The same features, targets dealt out anew: what the method finds where there is nothing. Groups are dealt whole,
    since rows that are alike tell less than their number.
    """
    rng = np.random.default_rng(task.spec.seed + 1)
    dealt = np.array([_dealt(task.groups, rng) for _ in range(task.spec.shuffles)])
    predicted = _cross_fitted(known, task.target[dealt].T, task)
    every = np.arange(len(task.score))
    found, overlaps = [], []
    for own, order in zip(predicted.T, dealt, strict=True):
        found.append(np.nan_to_num(spearman(own, task.score[order])))  # a constant orders nothing
        again = _Task(
            task.spec, task.score[order], task.target[order], task.groups, task.folds, task.k, task.ties
        )
        overlaps.append(_overlap(own, again)(every))
    low, high = np.quantile(found, [0.025, 0.975])
    overlap_low, overlap_high = np.quantile(overlaps, [0.025, 0.975])
    return {
        "predictor": SHUFFLED,
        "columns": known.shape[1],
        "spearman": float(np.mean(found)),
        "low": float(low),
        "high": float(high),
        "overlap": float(np.mean(overlaps)),
        "overlap_low": float(overlap_low),
        "overlap_high": float(overlap_high),
        **_sizes(task),
    }


def _dealt(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [n]: the row whose target each row gets, where groups change places with the rows in them side by side."""
    by_group = np.argsort(groups, kind="stable")
    members = np.split(
        by_group, np.flatnonzero(np.diff(np.unique(groups, return_inverse=True)[1][by_group])) + 1
    )
    dealt = np.empty(len(groups), dtype=np.int64)
    dealt[by_group] = np.concatenate([members[i] for i in rng.permutation(len(members))])
    return dealt


def _gain(name: str, over: str, held_out: Mapping[str, np.ndarray], task: _Task) -> dict[str, Any]:
    first, other = held_out[name], held_out[over]

    def difference(at: np.ndarray) -> float:
        # a constant prediction orders nothing: its correlation counts as none
        mine, theirs = (spearman(one[at], task.score[at]) for one in (first, other))
        return float(np.nan_to_num(mine) - np.nan_to_num(theirs))

    found = _interval(difference, task)
    return {"predictor": name, "over": over, "gain": found.estimate, "low": found.low, "high": found.high}


def _metadata_row(column: pl.Series, predicted: np.ndarray, task: _Task) -> dict[str, Any]:
    """What one column of metadata has to do with scores and with predictions."""
    there = np.flatnonzero(column.is_not_null().to_numpy())
    values, measure, by_chance = _measured(column)
    sides = {"score": task.score, "predicted": predicted}
    found: dict[str, Any] = {
        "column": column.name,
        "measure": measure,
        "n_rows": len(there),
        "by_chance": by_chance,
    }
    agree = spearman if measure == "spearman" else correlation_ratio
    for name, side in sides.items():
        groups = task.groups[there]

        def statistic(at: np.ndarray, side: np.ndarray = side) -> float:
            return agree(values[there[at]], side[there[at]])

        one = statistic(np.arange(len(there)))
        interval = (
            cluster_bootstrap(statistic, groups, seed=task.spec.seed, n_boot=N_BOOT)
            if np.isfinite(one) and len(np.unique(groups)) > 1
            else Interval(one, float("nan"), float("nan"), len(there))
        )
        found |= {
            f"with_{name}": interval.estimate,
            f"{name}_low": interval.low,
            f"{name}_high": interval.high,
        }
    return found


def _measured(column: pl.Series) -> tuple[np.ndarray, str, float]:
    """A column as numbers, how it is compared, and what that gives by chance. Levels that are not known are names."""
    if column.dtype.is_numeric():
        return column.cast(pl.Float64).to_numpy(), "spearman", 0.0
    texts = column.cast(pl.String)
    levels = LEVELS.get(column.name, ())
    if set(texts.drop_nulls().unique()) <= set(levels):
        places = {name: float(i) for i, name in enumerate(levels)}
        return np.array([places.get(one, np.nan) for one in texts]), "spearman", 0.0
    names = {name: float(i) for i, name in enumerate(sorted(texts.drop_nulls().unique()))}
    n = len(texts) - texts.null_count()
    return (
        np.array([names.get(one, np.nan) for one in texts]),
        "eta",
        float(((len(names) - 1) / (n - 1)) ** 0.5),
    )


def correlation_ratio(names: np.ndarray, values: np.ndarray) -> float:
    """Eta on ranks: root of the share of the rank variance that lies between the names; NaN of constant values."""
    ranks = rankdata(values)
    ranks = ranks - ranks.mean()
    whole = float(ranks @ ranks)
    if not whole > 0:
        return float("nan")
    _, at = np.unique(names, return_inverse=True)
    sums, sizes = np.bincount(at, weights=ranks), np.bincount(at)
    return float(np.sqrt((sums**2 / sizes).sum() / whole))
