"""What forced choices say: target and off-target in nats, gated selectivity, flip rates. From stored rows only.

In: rows of `CHOICE_SCHEMA`. Out: one row a vignette (`READING_SCHEMA`), per-row metrics for tables of arms, and the two
numbers of moralmaps for each arm, paired with its own base. A score is the mean log-probability of an answer over
frames, both orders of the options included, so that a preference for a place cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.special import logsumexp

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.foundations.choosing import CHOICE_SCHEMA
from steer_pipeline.lab.foundations.frames import UNSHOWN
from steer_pipeline.lab.foundations.vignettes import FOUNDATIONS
from steer_pipeline.lab.stats import Interval, bootstrap_means, mean_interval, percentiles
from steer_pipeline.lab.stats.pairing import require_same_rows

OFF_WEIGHT = 0.1  # of what moves beside the target; moralmaps' own
N_BOOT = 2_000
LEVEL = 0.95
READING_SCHEMA, READING_COLUMNS = described(
    arm=(pl.String(), "base, steered, or how the model was healed"),
    seed=(pl.Int64(), "of the arm; null where it has none"),
    row_id=(pl.String(), "of the vignette"),
    foundation=(pl.String(), "what the vignette was written for"),
    scores=(pl.List(pl.Float64()), f"mean log-probability over frames of {', '.join(FOUNDATIONS)}; nats"),
    pick=(pl.String(), "the foundation with the highest score"),
    answer_mass=(
        pl.Float64(),
        "probability of all answers, mean over frames; null for phrases, which nobody was asked to keep to",
    ),
    unscorable=(pl.Float64(), "share of frames whose likeliest token is no answer; null for phrases"),
    prefill_nll=(pl.Float64(), "nats a token of the answers' beginning, mean over frames"),
    made_with=(pl.String(), "hash of what compared arms share"),
)
SUMMARY_SCHEMA, SUMMARY_COLUMNS = described(
    arm=(pl.String(), "how the model was changed"),
    seed=(pl.Int64(), "of the arm; null where it has none"),
    n=(pl.Int64(), "vignettes"),
    sel_gated=(pl.Float64(), "(on - 0.1 off) x coherence squared, nats of centred log-probability"),
    sel_low=(pl.Float64(), "95% interval, vignettes resampled"),
    sel_high=(pl.Float64(), "its upper end"),
    on=(pl.Float64(), "mean movement of the target foundations in the wanted direction, nats"),
    off=(pl.Float64(), "mean absolute movement of the others, nats"),
    coherence=(
        pl.Float64(),
        "answer mass over base's, 1 at most; of phrases, the prefill's probability a token",
    ),
    si_flips=(pl.Float64(), "change in how often target foundations are picked, in the wanted direction"),
    flips_low=(pl.Float64(), "95% interval, vignettes resampled"),
    flips_high=(pl.Float64(), "its upper end"),
)

Intent = Mapping[str, int]  # target foundation -> 1 (blamed more) or -1 (blamed less)


def readings(choices: pl.DataFrame) -> pl.DataFrame:
    """`READING_SCHEMA`: the frames of each arm, seed and vignette made one.

    Raises:
        ValueError: a vignette lacks a frame that another one has, or has one twice; arm and vignette are named.
    """
    key = ["arm", "seed", "row_id"]
    frame = pl.concat_str("wording", pl.lit(", "), "order").alias("frame")
    frames = choices.select(frame).to_series().unique().sort().to_list()
    for arm, seed, row_id, own in (
        choices.select(*key, frame).group_by(key, maintain_order=True).agg("frame").iter_rows()
    ):
        if sorted(own) != frames:
            raise ValueError(
                f"arm {arm}, seed {seed}, row {row_id}: frames {sorted(own)}, elsewhere {frames}; measure it again"
            )
    means = [
        pl.col("logprobs").list.get(number).mean().alias(f"score_{number}")
        for number in range(len(FOUNDATIONS))
    ]
    is_shown = pl.col("order") != UNSHOWN
    table = choices.cast(CHOICE_SCHEMA).group_by(key, maintain_order=True).agg(
        pl.col("foundation").first(),
        *means,
        pl.col("answer_mass").filter(is_shown).mean(),
        (1 - pl.col("top_is_answer").cast(pl.Float64)).filter(is_shown).mean().alias("unscorable"),
        pl.col("prefill_nll").mean(),
        pl.col("made_with").first(),
    )  # fmt: skip
    table = table.with_columns(scores=pl.concat_list([f"score_{i}" for i in range(len(FOUNDATIONS))]))
    best = pl.col("scores").list.arg_max()
    names = dict(enumerate(FOUNDATIONS))
    return (
        table.with_columns(pick=best.replace_strict(names, return_dtype=pl.String))
        .select(READING_SCHEMA.names())
        .cast(READING_SCHEMA)
    )


def scores_of(table: pl.DataFrame) -> np.ndarray:
    """float64 [n, 7] of rows of `READING_SCHEMA`."""
    return np.array(table["scores"].to_list(), dtype=np.float64).reshape(table.height, len(FOUNDATIONS))


def log_odds(scores: np.ndarray) -> np.ndarray:
    """float64 [n, 7]: of each foundation against all the others together, nats."""
    others = [logsumexp(np.delete(scores, number, axis=1), axis=1) for number in range(scores.shape[1])]
    return scores - np.stack(others, axis=1)


def centred(scores: np.ndarray) -> np.ndarray:
    """float64 [n, k]: each score less the row's mean (centred log-ratio), nats."""
    return scores - scores.mean(axis=1, keepdims=True)


def _checked(intent: Intent) -> tuple[list[int], list[int]]:
    """Numbers of the target foundations and of the others."""
    wrong = [name for name, sign in intent.items() if name not in FOUNDATIONS or sign not in (1, -1)]
    if wrong or not 1 <= len(intent) <= len(FOUNDATIONS) - 2:
        raise ValueError(
            f"intent {dict(intent)}: give one to five of {', '.join(FOUNDATIONS)} with 1 (blamed more) or -1 (less)"
        )
    on = [FOUNDATIONS.index(name) for name in intent]
    return on, [number for number in range(len(FOUNDATIONS)) if number not in on]


def metric_rows(table: pl.DataFrame, intent: Intent) -> pl.DataFrame:
    """Per-row metrics for a table of arms: arm, seed, row_id, made_with, target, `off_target_<foundation>` and signals.

    `target` is the log-odds of the target foundation against the rest, in the wanted direction, mean over several.
    Off-target scores are centred among the foundations that are not targets: they stay where they are when the target
    alone moves, although all answers share one distribution.

    Args:
        table: `READING_SCHEMA`.
    """
    on, off = _checked(intent)
    scores = scores_of(table)
    signs = np.array(list(intent.values()), dtype=np.float64)
    target = (log_odds(scores)[:, on] * signs).mean(axis=1)
    beside = centred(scores[:, off])
    return table.select("arm", "seed", "row_id", "made_with").with_columns(
        pl.Series("target", target),
        *(pl.Series(f"off_target_{FOUNDATIONS[number]}", beside[:, i]) for i, number in enumerate(off)),
        *(table[name] for name in ("answer_mass", "unscorable", "prefill_nll")),
    )


# ------------------------------------------------------------------------------------------ moralmaps' two numbers


@dataclass(frozen=True)
class Selectivity:
    """`value` is (on - 0.1 off) x coherence squared, with its interval over vignettes; see `gated_selectivity`."""

    value: Interval
    on: float
    off: float
    coherence: float
    by_foundation: Mapping[str, float]


def _aligned(
    own: pl.DataFrame, base: pl.DataFrame, what: str, other: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both in the order of their ids."""
    require_same_rows(own["row_id"].to_list(), base["row_id"].to_list(), what, other)
    made = {*own["made_with"], *base["made_with"]}
    if len(made) > 1:
        raise ValueError(
            f"{what} and {other} were not measured alike (made_with {', '.join(sorted(made))}): model, precision, "
            "wordings, vignettes and read-out must be the same; measure both again"
        )
    return own.sort("row_id"), base.sort("row_id")


def gated_selectivity(
    own: pl.DataFrame,
    base: pl.DataFrame,
    intent: Intent,
    opposite: pl.DataFrame | None = None,
    *,
    seed: int,
    n_boot: int = N_BOOT,
) -> Selectivity:
    """How far the target foundations moved, less a tenth of what moved beside them, times coherence squared.

    on = mean over targets of sign x mean change of the centred log-ratio; off = mean over the others of the absolute
    mean change; coherence = the smaller answer mass over base's, at most 1. The definition of moralmaps (`sel_gated`):
    movements before the softmax, so no size of an effect on behaviour; `flip_rates` is its check.

    Args:
        own, base, opposite: `READING_SCHEMA` of one arm and seed each; changes are against `opposite`, the arm steered
            the other way, where there is one, else against base.

    Raises:
        ValueError: not the same vignettes (the missing ones are named), or measured otherwise.
    """
    on, off = _checked(intent)
    name = _label(own)
    mine, plain = _aligned(own, base, name, "base")
    against = plain if opposite is None else _aligned(opposite, base, _label(opposite), "base")[0]
    coherence = min(1.0, _mass(mine) / _mass(plain), _mass(against) / _mass(plain))
    change = centred(scores_of(mine)) - centred(scores_of(against))
    signs = np.array(list(intent.values()), dtype=np.float64)

    def parts(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (means[:, on] * signs).mean(axis=1), np.abs(means[:, off]).mean(axis=1)

    (moved,), (beside,) = parts(change.mean(axis=0, keepdims=True))
    drawn_on, drawn_off = parts(bootstrap_means(change, seed=seed, n_boot=n_boot))
    drawn = (drawn_on - OFF_WEIGHT * drawn_off) * coherence**2
    value = float((moved - OFF_WEIGHT * beside) * coherence**2)
    by_foundation = dict(zip(FOUNDATIONS, change.mean(axis=0).tolist(), strict=True))
    return Selectivity(
        _interval(value, drawn, mine.height), float(moved), float(beside), coherence, by_foundation
    )


def flip_rates(
    own: pl.DataFrame,
    base: pl.DataFrame,
    intent: Intent,
    opposite: pl.DataFrame | None = None,
) -> Interval:
    """Change in how often the target foundations are picked, in the wanted direction, mean over them: in [-1, 1].

    moralmaps' `si_flips`; arguments and errors as in `gated_selectivity`.
    """
    _checked(intent)
    mine, against = _aligned(own, base, _label(own), "base")
    if opposite is not None:
        against = _aligned(opposite, base, _label(opposite), "base")[0]
    picked = [
        sign
        * ((mine["pick"] == name).cast(pl.Float64) - (against["pick"] == name).cast(pl.Float64)).to_numpy()
        for name, sign in intent.items()
    ]
    change = np.stack(picked, axis=1).mean(axis=1)
    return mean_interval(change, level=LEVEL)


def foundation_summary(
    table: pl.DataFrame, intent: Intent, *, base: str = "base", seed: int, n_boot: int = N_BOOT
) -> pl.DataFrame:
    """`SUMMARY_SCHEMA`: both numbers of every arm and seed, against base.

    Args:
        table: `READING_SCHEMA` of all arms; base has one seed or none.
    """
    plain, rows = table.filter(arm=base), list[dict[str, Any]]()
    for (arm, own_seed), own in table.filter(pl.col("arm") != base).group_by(
        "arm", "seed", maintain_order=True
    ):
        chosen = gated_selectivity(own, plain, intent, seed=seed, n_boot=n_boot)
        flips = flip_rates(own, plain, intent)
        rows.append(
            {"arm": arm, "seed": own_seed, "n": own.height, "sel_gated": chosen.value.estimate}
            | {"sel_low": chosen.value.low, "sel_high": chosen.value.high, "on": chosen.on, "off": chosen.off}
            | {"coherence": chosen.coherence, "si_flips": flips.estimate}
            | {"flips_low": flips.low, "flips_high": flips.high}
        )
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA)


def informedness(table: pl.DataFrame) -> Interval:
    """Nats by which a vignette's own foundation is blamed more than in vignettes of others: 0 for a model that answers
    without reading the scene, whatever it prefers. Mean over vignettes; the interval is over them.

    Args:
        table: `READING_SCHEMA` of one arm and seed.

    Raises:
        ValueError: all vignettes were written for one foundation.
    """
    scores, own = centred(scores_of(table)), table["foundation"].to_numpy()
    values = np.empty(len(own))
    for number, name in enumerate(FOUNDATIONS):
        mine = own == name
        if mine.all():
            raise ValueError(f"all vignettes were written for {name}; others are needed to compare with")
        if mine.any():
            values[mine] = scores[mine, number] - scores[~mine, number].mean()
    return mean_interval(values, level=LEVEL)


def place_preference(choices: pl.DataFrame) -> np.ndarray:
    """float64 [7], nats: how much likelier an answer is for standing in each place, from the top; sums to zero.

    Only of answers that are shown; within vignettes: an answer's log-probability less its mean over both orders.
    So it is the part that the two orders cancel, of equal size and opposite sign in places that they exchange.
    """
    key = ["arm", "seed", "row_id", "wording"]
    choices = choices.filter(pl.col("shown").list.len() > 0)
    names = list(enumerate(FOUNDATIONS))
    long = pl.concat(
        [
            choices.select(
                *key,
                pl.lit(name).alias("answer"),
                pl.col("shown").list.eval(pl.element() == name).list.arg_max().alias("place"),
                pl.col("logprobs").list.get(number).alias("logprob"),
            )
            for number, name in names
        ]
    )
    within = pl.col("logprob") - pl.col("logprob").mean().over([*key, "answer"])
    found = (
        long.select("place", within.alias("gain")).group_by("place").agg(pl.col("gain").mean()).sort("place")
    )
    return found["gain"].to_numpy()


def _label(rows: pl.DataFrame) -> str:
    seed = rows["seed"][0]
    return f"arm {rows['arm'][0]}" + ("" if seed is None else f", seed {seed}")


def _mass(rows: pl.DataFrame) -> float:
    """Mean answer mass; of phrases, the probability a token of the prefilled beginning."""
    if rows["answer_mass"].null_count():
        return float(np.exp(-rows["prefill_nll"].to_numpy().mean()))
    return float(rows["answer_mass"].to_numpy().mean())


def _interval(value: float, drawn: Sequence[float] | np.ndarray, n: int) -> Interval:
    return Interval(value, *percentiles(drawn, n, LEVEL), n)
