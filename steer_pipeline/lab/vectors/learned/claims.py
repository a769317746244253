"""What must hold of learning rate sweeps and of trained vectors. In: their folders. Out: verdicts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.limits import MAX_LATE_SHARE, MAX_NORM_FRACTION, MIN_SEED_COSINE, MIN_SEEDS
from steer_pipeline.lab.stats import cluster_bootstrap
from steer_pipeline.lab.vectors.learned.sweep import CHOICE, HISTORY, REPORT, SWEEP, VALIDATION
from steer_pipeline.lab.vectors.vector import VectorError, load_vector
from steer_pipeline.lab.verdict import Verdict

_PLACES = {
    None: "inside the sweep",
    "low": "the smallest of the sweep (extend training.learning_rates downwards)",
    "high": "the largest of the sweep (extend training.learning_rates upwards)",
}


# ------------------------------------------------------------------------------------------ lr_sweep


def sweep_verdicts(folder: Path) -> Iterator[Verdict]:
    """Whether the sweep was wide enough, and none of its rates too large."""
    choice, sweep = json.loads((folder / CHOICE).read_text()), pl.read_parquet(folder / SWEEP)
    edge, rate, rates = choice["edge"], choice["learning_rate"], sorted(sweep["learning_rate"].to_list())
    yield Verdict(
        "chosen_rate_is_inside_the_sweep",
        edge is None,
        f"{rate:g} is {_PLACES[edge]}; rates from {rates[0]:g} to {rates[-1]:g} were tried",
        {"learning_rate": rate},
    )
    diverged = sweep.filter(pl.col("stopped") == "not finite")["learning_rate"].to_list()
    yield Verdict(
        "no_rate_diverges",
        not diverged,
        f"not finite at {', '.join(f'{one:g}' for one in diverged)}" if diverged else "all losses are finite",
        {"diverged_rates": len(diverged)},
    )


# ------------------------------------------------------------------------------------ trained_vector


def trained_verdicts(folder: Path) -> Iterator[Verdict]:
    """Whether a trained vector is whole, of use, and trained long enough."""
    report = json.loads((folder / REPORT).read_text())
    yield sound(folder, report)
    yield improves(pl.read_parquet(folder / VALIDATION))
    yield settled(pl.read_parquet(folder / HISTORY), report)
    yield seeds_agree(report)
    fraction = report["norm_fraction"]
    yield Verdict(
        "norm_is_moderate",
        fraction <= MAX_NORM_FRACTION,
        f"{fraction:.2f} of the mean residual norm at block {report['block']}, at most {MAX_NORM_FRACTION:g} is wanted",
        {"norm_fraction": fraction},
    )


def sound(folder: Path, report: Mapping[str, Any]) -> Verdict:
    """The vector and those of all seeds can be loaded and sit at one block."""
    folders = [folder, *sorted((folder / "seeds").iterdir()), *sorted((folder / "last").iterdir())]
    try:
        vectors = [load_vector(one) for one in folders]
        blocks = {vector.present_blocks for vector in vectors}
        holds, message = blocks == {(report["block"],)}, f"{len(vectors)} vectors at blocks {sorted(blocks)}"
    except VectorError as error:
        holds, message = False, str(error)
    return Verdict("vector_is_sound", holds, message, {"norm": report["norm"]})


def improves(rows: pl.DataFrame) -> Verdict:
    """Nats a token that the vector saves on validation rows; whole questions are drawn."""
    claim = "validation_improves"
    if rows["question_index"].n_unique() < 2:
        why = "validation rows of one question alone: there is no interval; raise behaviour.validation_tokens"
        return Verdict(claim, False, why, {"questions": 1})
    saved = (rows["vanilla_nll"] - rows["trained_nll"]).to_numpy()
    tokens, questions = rows["n_tokens"].to_numpy(), rows["question_index"].to_numpy()
    gain = cluster_bootstrap(lambda at: float(saved[at].sum() / tokens[at].sum()), questions, seed=0)
    return Verdict(
        claim,
        gain.low > 0,
        f"{gain.estimate:+.4f} nats a token [{gain.low:+.4f}, {gain.high:+.4f}] over {gain.n} questions; the interval "
        "must lie above 0",
        {"nll_gain": gain.estimate, "nll_gain_low": gain.low, "nll_gain_high": gain.high},
    )


def settled(history: pl.DataFrame, report: Mapping[str, Any]) -> Verdict:
    """The last quarter of the steps brought little."""
    curve = history.filter(pl.col("seed") == report["seed"]).drop_nulls("validation_nll")
    early = curve.filter(pl.col("step") <= 0.75 * report["total_steps"])["validation_nll"].to_list()
    before, best = min(early, default=report["vanilla_nll"]), report["validation_nll"]
    gain, late = report["vanilla_nll"] - best, before - best
    share = max(0.0, late) / gain if gain > 0 else 0.0
    return Verdict(
        "training_settled",
        share < MAX_LATE_SHARE,
        f"the last quarter of {report['total_steps']} steps brought {share:.1%} of the gain, less than "
        f"{MAX_LATE_SHARE:.0%} is wanted",
        {"late_share": share, "best_step": report["best_step"], "steps": report["steps"]},
    )


def seeds_agree(report: Mapping[str, Any]) -> Verdict:
    """Vectors of several seeds point the same way."""
    seeds, cosine = report["seeds"], report["seed_cosine"]
    message = f"{seeds} seeds, at least {MIN_SEEDS} are wanted"
    if cosine is not None:
        message += f"; mean cosine {cosine:.3f}, at least {MIN_SEED_COSINE}"
    return Verdict(
        "seeds_agree",
        seeds >= MIN_SEEDS and cosine is not None and cosine >= MIN_SEED_COSINE,
        message,
        {"seeds": seeds} if cosine is None else {"seeds": seeds, "seed_cosine": cosine},
    )
