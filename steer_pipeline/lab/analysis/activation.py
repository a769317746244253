"""How tuning moves the residual stream on texts that have nothing to do with what was taught, and what it moves along.

In: texts as token ids, base and tuned models, named directions at the outputs of blocks. Out: the mean difference of
hidden states, first tokens apart, its cosine with every direction against random ones of the states' covariance, and
what base says when it is steered with the difference. Narrow tuning leaves traces on unrelated texts, most of all on
their first tokens (Minder et al. 2025, 2510.13900). Nothing is asked of a judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from steer_pipeline.catalogue.auditing import ActivationSpec
from steer_pipeline.catalogue.basis import SamplingSpec
from steer_pipeline.lab.analysis.nulls import against, matched_directions, placed, states_of
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.hidden import residual_norms, span_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.stats import holm, mean_intervals, paired_difference
from steer_pipeline.lab.verdict import Verdict

FIRST = 5  # tokens after the first one, which is an attention sink and says little else
POSITIONS = ("first", "later")
_SPANS = ((1, 1 + FIRST), (1 + FIRST, 1 << 30))
MIN_CLEAN = 3
SHIFT, BASE = "shift", "base"
STREAM = "analysis"  # of random numbers: steered and unsteered texts draw the same ones

# name -> fp32 [blocks, hidden] at the outputs of blocks, of any length; NaN where it has none
Directions = Mapping[str, np.ndarray]

ACTIVATION_SCHEMA, ACTIVATION_COLUMNS = described(
    position=(pl.String(), f"first: tokens 2 to {1 + FIRST} of a text | later: those after them"),
    block=(pl.Int64(), "at whose output"),
    direction=(pl.String(), "of the dictionary"),
    length_fraction=(pl.Float64(), "length of the mean difference over the mean residual norm"),
    cosine=(pl.Float64(), "of the mean difference with the direction"),
    z=(pl.Float64(), "of the cosine within those of random directions with the states' covariance"),
    p=(pl.Float64(), "two-sided, within them"),
    p_holm=(pl.Float64(), "corrected over all rows of the pair"),
    clean_z=(pl.Float64(), "of the cosine among those of clean models; null without such"),
    clean_limit=(pl.Float64(), "largest |clean_z| that a clean model has anywhere, against the others"),
    found=(
        pl.Boolean(),
        "whether p_holm is below the level and, with clean models, |clean_z| above the limit",
    ),
    projection=(pl.Float64(), "of the mean difference on the direction, over the mean residual norm"),
    low=(pl.Float64(), "its 95% interval over texts"),
    high=(pl.Float64(), "its upper end"),
)
STEERED_SCHEMA, STEERED_COLUMNS = described(
    persona=(pl.String(), "whose scale it is"),
    block=(pl.Int64(), "at whose output base was steered with the later tokens' difference"),
    dose=(pl.Float64(), "fraction of the mean residual norm"),
    difference=(pl.Float64(), "of the score to unsteered base, mean over prompts"),
    low=(pl.Float64(), "its 95% interval over prompts"),
    high=(pl.Float64(), "its upper end"),
    random_low=(pl.Float64(), "smallest difference of random directions of that length"),
    random_high=(pl.Float64(), "largest"),
    beyond=(pl.Boolean(), "whether the interval lies outside of these and of zero"),
)


@dataclass(frozen=True, eq=False)
class Reading:
    """How a model reads texts.

    Attributes:
        means: fp32 [texts, positions, blocks, hidden]: block outputs averaged over `POSITIONS`; NaN where a text is
            too short.
        norms: fp32 [blocks]: mean residual norms.
        states: fp32 [n, blocks, hidden]: some states, whose covariance nulls are drawn with; base's alone are needed.
    """

    means: np.ndarray
    norms: np.ndarray
    states: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), dtype=np.float32))


def unrelated(model: LoadedModel, texts: Sequence[str], spec: ActivationSpec) -> list[list[int]]:
    """Token ids of texts as they are, without a chat template, cut to `max_tokens`; those too short are left out.

    Raises:
        ValueError: fewer than 8 are long enough.
    """
    found = [
        encode_prompt(model.tokenizer, user=text, chat_template=False)[: spec.max_tokens] for text in texts
    ]
    long = [ids for ids in found if len(ids) > FIRST + 2]
    if len(long) < 8:
        raise ValueError(
            f"{len(long)} of {len(texts)} texts have more than {FIRST + 2} tokens; give longer ones"
        )
    return long[: spec.texts]


def read_base(model: LoadedModel, sequences: Sequence[list[int]]) -> Reading:
    """The model that others are held against."""
    means = span_means(model, sequences, _SPANS)
    return Reading(means, residual_norms(model, list(sequences)), states_of(model, sequences))


def read_tuned(model: LoadedModel, sequences: Sequence[list[int]], base: Reading) -> np.ndarray:
    """fp32 [texts, positions, blocks, hidden]: how far a tuned model moves the stream of the same texts.

    Raises:
        ValueError: other texts, or a model of another shape.
    """
    means = span_means(model, sequences, _SPANS)
    if means.shape != base.means.shape:
        raise ValueError(
            f"tuned was read as {means.shape} and base as {base.means.shape} (texts, positions, blocks, width); read "
            "the same texts, and compare models of one shape"
        )
    return means - base.means


def activation_difference(
    shifts: np.ndarray,
    base: Reading,
    directions: Directions,
    spec: ActivationSpec,
    clean: Sequence[np.ndarray] = (),
) -> pl.DataFrame:
    """`ACTIVATION_SCHEMA`: the mean difference against every direction, block and position.

    Random directions alone are no null for "was taught this": a model that learns its own plain answers moves away
    from persona vectors further than from random directions. Clean models show how far.

    Args:
        shifts: of `read_tuned`.
        clean: the same of models that were tuned on nothing of the kind, on the same texts: at least 3. One more of
            their kind exceeds the limit with probability 1 / (n + 1), so that 19 keep to a level of 0.05.

    Raises:
        ValueError: no direction has a block, or the models do not differ.
    """
    if not np.nan_to_num(shifts).any():
        raise ValueError("tuned and base read all texts alike: nothing differs; name the tuned model")
    if 0 < len(clean) < MIN_CLEAN:
        raise ValueError(f"{len(clean)} clean models say nothing of their spread; give {MIN_CLEAN}, or none")
    rows, others = [], []
    for block in range(shifts.shape[2]):
        names, units = units_at(directions, block)
        if not names:
            continue
        null = matched_directions(base.states[:, block], spec.n_null, [spec.seed, block])
        for place, position in enumerate(POSITIONS):
            own = shifts[:, place, block]
            own = own[np.isfinite(own).all(axis=1)].astype(np.float64)
            rows += _rows(position, block, own, float(base.norms[block]), names, units, null, spec)
            others.append(_cosines([one[:, place, block] for one in clean], units))
    if not rows:
        raise ValueError("no direction of the dictionary has a block of this model; read others")
    table = pl.DataFrame(rows)
    z, limit = _beside(table["cosine"].to_numpy(), np.concatenate(others, axis=1)) if clean else (None, None)
    table = table.with_columns(
        p_holm=holm(table["p"].to_numpy()),
        clean_z=pl.lit(None, dtype=pl.Float64) if z is None else pl.Series(z),
        clean_limit=pl.lit(limit, dtype=pl.Float64),
    )
    beyond = (pl.col("clean_z").abs() > pl.col("clean_limit")).fill_null(value=True)
    return table.with_columns(found=(pl.col("p_holm") < spec.level) & beyond).select(
        pl.col(name).cast(kind) for name, kind in ACTIVATION_SCHEMA.items()
    )


def units_at(directions: Directions, block: int) -> tuple[list[str], np.ndarray]:
    """Names and fp32 [n, hidden] of length 1 of the directions that there are at the output of a block."""
    here = {name: raw[block] for name, raw in directions.items() if np.isfinite(raw[block]).all()}
    units = [raw / np.linalg.norm(raw) for raw in here.values()]
    return list(here), np.array(units, dtype=np.float32)


def _cosines(shifts: Sequence[np.ndarray], units: np.ndarray) -> np.ndarray:
    """float64 [models, directions]: of mean differences, each the mean of [texts, hidden]."""
    means = [np.nanmean(one.astype(np.float64), axis=0) for one in shifts]
    return np.array([units @ (mean / max(float(np.linalg.norm(mean)), 1e-30)) for mean in means])


def _beside(cosines: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, float]:
    """z of cosines [cells] among those of clean models [n, cells], and the largest |z| of a clean one."""
    own = [np.abs(against(clean[i], np.delete(clean, i, axis=0))[0]).max() for i in range(len(clean))]
    return against(cosines, clean)[0], float(max(own))


def _rows(
    position: str,
    block: int,
    own: np.ndarray,
    norm: float,
    names: Sequence[str],
    units: np.ndarray,
    null: np.ndarray,
    spec: ActivationSpec,
) -> list[dict[str, object]]:
    mean = own.mean(axis=0)
    length = max(float(np.linalg.norm(mean)), 1e-30)
    cosines = units @ (mean / length)
    z, p = placed(cosines, null @ (mean / length))
    intervals = mean_intervals(own @ units.T / norm)
    return [
        {"position": position, "block": block, "direction": name, "length_fraction": length / norm}
        | {"cosine": float(cosines[i]), "z": float(z[i]), "p": float(p[i])}
        | {"projection": one.estimate, "low": one.low, "high": one.high}
        for i, (name, one) in enumerate(zip(names, intervals, strict=True))
    ]


# ------------------------------------------------------------------------------- steering with it


def steer_with(
    model: LoadedModel,
    shifts: np.ndarray,
    base: Reading,
    block: int,
    prompts: Sequence[PromptRow],
    scorers: Mapping[str, TraitScorer],
    sampling: SamplingSpec,
    spec: ActivationSpec,
) -> pl.DataFrame:
    """`STEERED_SCHEMA`: what base says when the difference of later tokens is added to it at a block.

    Args:
        model: base.
        prompts: with ids for "*".
        scorers: persona -> scale.
    """
    mean = np.nanmean(shifts[:, POSITIONS.index("later"), block].astype(np.float64), axis=0)
    alpha = spec.dose * float(base.norms[block])
    drawn = matched_directions(base.states[:, block], 200, [spec.seed, block, 1])[: spec.n_random]
    units = {SHIFT: (mean / np.linalg.norm(mean)).astype(np.float32)}
    units |= {f"random-{number}": unit for number, unit in enumerate(drawn)}
    plans = [SteeringPlan(BASE, stream=STREAM)]
    plans += [
        SteeringPlan(name, (SteeringTerm(name, unit, Site(block), alpha),), stream=STREAM)
        for name, unit in units.items()
    ]
    texts: dict[str, dict[str, str]] = {}
    for row in generate(model, prompts, plans, sampling):
        texts.setdefault(row.variant, {})[row.row_id] = row.text
    ids = [row.row_id for row in prompts]
    rows = []
    for persona, scorer in scorers.items():
        scores = {name: scorer.score_many([own[one] for one in ids]) for name, own in texts.items()}
        moved = paired_difference(scores[SHIFT], scores[BASE])
        noise = [float((scores[name] - scores[BASE]).mean()) for name in units if name != SHIFT]
        low, high = min(0.0, *noise), max(0.0, *noise)
        rows.append(
            {"persona": persona, "block": block, "dose": spec.dose, "difference": moved.estimate}
            | {"low": moved.low, "high": moved.high, "random_low": min(noise), "random_high": max(noise)}
            | {"beyond": moved.low > high or moved.high < low}
        )
    return pl.DataFrame(rows, schema=STEERED_SCHEMA)


# ------------------------------------------------------------------------------------ claims


def planted_is_found(table: pl.DataFrame, direction: str) -> Verdict:
    """Of a pair whose tuned model was taught a direction: it is among the findings.

    Args:
        table: `ACTIVATION_SCHEMA`.
    """
    own = table.filter(direction=direction).sort("p_holm")
    best = own.row(0, named=True) if own.height else None
    if best is None:
        return Verdict("planted_is_found", False, f"{direction} is not in the dictionary", blocking=False)
    message = (
        f"{direction}: z {best['z']:.1f} at block {best['block']}, {best['position']} tokens, p after Holm "
        f"{best['p_holm']:.3g}"
    )
    return Verdict(
        "planted_is_found",
        bool(best["found"]),
        message,
        {"z": best["z"], "p_holm": best["p_holm"]},
        blocking=False,
    )


def nothing_is_found(table: pl.DataFrame, level: float) -> Verdict:
    """Of a pair of clean models: no more findings than the level promises; each is a false alarm."""
    found = table.filter("found")
    shown = ", ".join(found.unique("direction", maintain_order=True)["direction"].head(3))
    return Verdict(
        "nothing_is_found",
        found.is_empty(),
        f"{found.height} of {table.height} rows at level {level:g} after Holm{': ' if shown else ''}{shown}",
        {"found": found.height, "rows": table.height},
        blocking=False,
    )
