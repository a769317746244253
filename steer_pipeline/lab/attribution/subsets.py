"""Which rows of the pool every arm learns: best and worst by a ranking, windows of ranks, and random ones to compare.

In: the pool with outcomes and lengths, and scores of methods. Out: one row an arm, seed and learned row, and budgets.
Arms of a ranking learn the same rows under every seed; random ones are drawn anew, so that an interval over seeds holds
for the draw too.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from steer_pipeline.catalogue.attribution import AttributionSpec, SubsetSpec
from steer_pipeline.lab.attribution.rows import FAILURE, INFORMATIVE, AttributionError
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.verdict import Verdict

SUBSETS, BUDGETS = "subsets.parquet", "budgets.parquet"
SUBSET_SCHEMA, SUBSET_COLUMNS = described(
    arm=(pl.String(), "who learns the row"),
    seed=(pl.Int64(), "of the adapter, and of random draws"),
    row_id=(pl.String(), "of the pool"),
    rank=(pl.Int64(), "by the arm's ranking, 1 is the highest score; null for random arms"),
)
BUDGET_SCHEMA, BUDGET_COLUMNS = described(
    arm=(pl.String(), "which rows are meant"),
    seed=(pl.Int64(), "of the draw"),
    rows=(pl.Int64(), "learned"),
    tokens=(pl.Int64(), "ids of these rows"),
    lost=(pl.Int64(), "games of them that were lost"),
    informative=(pl.Int64(), "of them planted as informative; null where nothing is planted"),
    shared=(pl.Int64(), "rows that the arm in `like` learns too; null for arms that are like none"),
    token_difference=(pl.Float64(), "tokens over those of the arm in `like`, less one; null as before"),
)
QUINTILES = (0.2, 0.4, 0.6, 0.8)


def draw_subsets(
    spec: AttributionSpec, pool: pl.DataFrame, scores: Mapping[str, Mapping[str, float]]
) -> pl.DataFrame:
    """`SUBSET_SCHEMA` of all arms and seeds.

    Args:
        pool: row_id, outcome and n_tokens of every row of the pool.
        scores: method -> row -> score; rows that a method could not score have none.

    Raises:
        AttributionError: too few rows, a ranking is missing, or no draw keeps the token budget.
    """
    pool = pool.sort("row_id")  # the order of the pool must not matter
    found: dict[tuple[str, int], list[tuple[str, int | None]]] = {}
    for seed in spec.seeds:
        for arm in sorted(spec.arms, key=lambda name: spec.arms[name].like is not None):
            like = spec.arms[arm].like
            taken = [] if like is None else [name for name, _ in found[like, seed]]
            found[arm, seed] = _arm(arm, spec, pool, scores, taken, seed)
    return pl.DataFrame(
        [
            {"arm": arm, "seed": seed, "row_id": name, "rank": rank}
            for arm in spec.arms
            for seed in spec.seeds
            for name, rank in found[arm, seed]
        ],
        schema=SUBSET_SCHEMA,
    )


def _arm(
    arm: str,
    spec: AttributionSpec,
    pool: pl.DataFrame,
    scores: Mapping[str, Mapping[str, float]],
    like: Sequence[str],
    seed: int,
) -> list[tuple[str, int | None]]:
    own = spec.arms[arm]
    if own.ranking is not None:
        if own.ranking not in scores:
            raise AttributionError(
                f"arm {arm}: there is no ranking {own.ranking}; make attribution_ranking of it"
            )
        return list(_ranked(arm, own, ranked(pool, scores[own.ranking]), own.k or spec.k))
    free = pool if own.overlap else pool.filter(~pl.col("row_id").is_in(list(like)))
    rng = np.random.default_rng([seed, *arm.encode()])
    if own.pick == "matched":
        names = matched_random(
            free, pool.filter(pl.col("row_id").is_in(list(like))), pool, spec.token_budget, rng, arm
        )
    else:
        names = _any(free, len(like) or own.k or spec.k, rng, arm)
    return [(name, None) for name in names]


def ranked(pool: pl.DataFrame, scores: Mapping[str, float]) -> list[tuple[str, int]]:
    """(row, rank) of every scored row of the pool, from the highest score; ties go by row id."""
    known = [name for name in pool["row_id"] if name in scores]
    return [(name, rank) for rank, name in enumerate(sorted(known, key=lambda one: (-scores[one], one)), 1)]


def _ranked(arm: str, own: SubsetSpec, order: Sequence[tuple[str, int]], k: int) -> Iterator[tuple[str, int]]:
    first, last = own.ranks or (1, k)
    if last > len(order):
        raise AttributionError(
            f"arm {arm}: rank {last} is wanted and {len(order)} rows are ranked; lower k or ranks"
        )
    yield from order[-k:] if own.pick == "bottom" else order[first - 1 : last]


def _any(free: pl.DataFrame, k: int, rng: np.random.Generator, arm: str) -> list[str]:
    if k > free.height:
        raise AttributionError(
            f"arm {arm}: {k} rows are wanted and {free.height} are free; lower k, or allow overlap"
        )
    names = free["row_id"].sort().to_list()
    return [names[index] for index in sorted(rng.choice(len(names), k, replace=False))]


# ------------------------------------------------------------------------------------ matched


def matched_random(
    free: pl.DataFrame,
    like: pl.DataFrame,
    pool: pl.DataFrame,
    budget: float,
    rng: np.random.Generator,
    arm: str,
) -> list[str]:
    """Random rows of the outcomes and lengths of others, whose tokens differ from theirs by `budget` at most.

    Strata are outcome and length quintile of the pool. What a stratum lacks comes from other lengths of its outcome,
    then from anywhere. The token budget is kept by swaps within an outcome.

    Args:
        free: rows that may be drawn.
        like: rows that are matched.

    Raises:
        AttributionError: too few rows are free, or no swap brings the tokens within the budget.
    """
    if like.height > free.height:
        raise AttributionError(
            f"arm {arm}: {like.height} rows are to be matched and {free.height} are free; lower k, or allow overlap"
        )
    edges = np.unique(np.quantile(pool["n_tokens"].to_numpy(), QUINTILES))
    left = {
        name: (outcome or "", int(np.searchsorted(edges, n, side="right")), n)
        for name, outcome, n in _plain(free)
    }
    order = sorted(left)
    rng.shuffle(order)
    chosen: list[str] = []
    wanted = [(outcome or "", int(np.searchsorted(edges, n, side="right"))) for _, outcome, n in _plain(like)]
    for depth in (2, 1, 0):  # outcome and length, outcome, anything
        rest = []
        for stratum in wanted:
            fit = next((name for name in order if left[name][:depth] == stratum[:depth]), None)
            if fit is None:
                rest.append(stratum)
            else:
                chosen.append(fit)
                order.remove(fit)
        wanted = rest
    _balance(chosen, order, left, int(like["n_tokens"].sum()), budget, arm)
    return sorted(chosen)


def _plain(rows: pl.DataFrame) -> list[tuple[str, str | None, int]]:
    return list(rows.select("row_id", "outcome", "n_tokens").iter_rows())


def _balance(
    chosen: list[str],
    others: list[str],
    told: Mapping[str, tuple[str, int, int]],
    target: int,
    budget: float,
    arm: str,
) -> None:
    """Swaps rows of one outcome until the tokens of `chosen` are within the budget; changes both lists."""
    excess = sum(told[name][2] for name in chosen) - target
    while abs(excess) > budget * target:
        best: tuple[int, int, int] | None = None
        for i, mine in enumerate(chosen):
            for j, other in enumerate(others):
                if told[mine][0] == told[other][0]:
                    after = abs(excess - told[mine][2] + told[other][2])
                    if after < abs(excess) and (best is None or after < best[0]):
                        best = (after, i, j)
        if best is None:
            raise AttributionError(
                f"arm {arm}: tokens differ by {excess / target:+.1%} from the rows that it matches, and no swap helps; "
                "raise attribution.token_budget, lower k, or allow overlap"
            )
        _, i, j = best
        excess += told[others[j]][2] - told[chosen[i]][2]
        chosen[i], others[j] = others[j], chosen[i]


# ------------------------------------------------------------------------------------ budgets


def budgets(subsets: pl.DataFrame, pool: pl.DataFrame, arms: Mapping[str, SubsetSpec]) -> pl.DataFrame:
    """`BUDGET_SCHEMA`, one row an arm and seed."""
    told = subsets.join(pool.select("row_id", "n_tokens", "outcome", "truth"), on="row_id", how="left")
    planted = pool["truth"].is_not_null().any()
    own = {
        (arm, seed): frame
        for (arm, seed), frame in told.partition_by("arm", "seed", as_dict=True, maintain_order=True).items()
    }
    rows = []
    for (arm, seed), frame in own.items():
        like = arms[arm].like
        other = None if like is None else own[like, seed]
        tokens = int(frame["n_tokens"].sum())
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "rows": frame.height,
                "tokens": tokens,
                "lost": frame.filter(outcome=FAILURE).height,
                "informative": frame.filter(truth=INFORMATIVE).height if planted else None,
                "shared": None if other is None else len(set(frame["row_id"]) & set(other["row_id"])),
                "token_difference": None if other is None else tokens / int(other["n_tokens"].sum()) - 1,
            }
        )
    return pl.DataFrame(rows, schema=BUDGET_SCHEMA)


def subset_verdicts(table: pl.DataFrame, spec: AttributionSpec) -> list[Verdict]:
    """Whether matched arms keep the token budget, and only arms that may do learn another's rows."""
    matched = [name for name, arm in spec.arms.items() if arm.pick == "matched"]
    rows = table.filter(pl.col("arm").is_in(matched))
    worst = max(map(abs, rows["token_difference"]), default=0.0)
    off = rows.filter(pl.col("token_difference").abs() > spec.token_budget)
    told = off.head(5).to_dicts()
    budget = Verdict(
        "token_budgets_match",
        not off.height,
        f"{rows.height} matched subsets, tokens differ by {worst:.2%} at most (limit {spec.token_budget:.0%})",
        {"worst": worst, "limit": spec.token_budget},
        told,
    )
    apart = [name for name, arm in spec.arms.items() if arm.like is not None and not arm.overlap]
    shared = table.filter(pl.col("arm").is_in(apart) & (pl.col("shared") > 0))
    overlap = Verdict(
        "subsets_are_apart",
        not shared.height,
        f"{shared.height} of {table.filter(pl.col('arm').is_in(apart)).height} subsets share rows with the arm that "
        "they stand beside",
        {"shared": shared.height},
        shared.head(5).to_dicts(),
    )
    return [budget, overlap]
