"""Trained vectors: which learning rate, and what it learns with every seed.

One partition a trait or role. The steps of several personas in one process share one model load, and a bad
persona fails alone.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.catalogue import Persona
from steer_pipeline.execution import GPU_POOL, GPU_TAGS
from steer_pipeline.keys import key
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings

GPU: dict[str, Any] = {
    "group_name": "vectors",
    "owners": ["team:steering"],
    "partitions_def": TRAIT_OR_ROLE,
    "pool": GPU_POOL,
    "op_tags": GPU_TAGS,
    "tags": {"steer/stage": "vectors", "steer/device": "gpu"},
    "io_manager_key": "bundle_io",
    "kinds": {"pytorch", "parquet"},
    "deps": ["model_weights", "tokenizer", "chat_template"],
    # 2: rows of a question come two by two
    "code_version": made_of(
        "2",
        *MODEL,
        "model.chat_template",
        "training",
        "behaviour.max_response_tokens",
        "behaviour.allow_other_model",
    ),
}
MIN_SEEDS = 3
MIN_SEED_COSINE = 0.5
MAX_NORM_FRACTION = 1.0
WARN = dg.AssetCheckSeverity.WARN


@dg.asset(**GPU)
def lr_sweep(
    persona_spec: Persona, behaviour_set: pl.LazyFrame, language_model: LanguageModelResource
) -> Iterator[dg.Output]:
    """Every learning rate of the profile, trained side by side in one batched pass.

    `history.parquet`: the curve of each rate. `sweep.parquet`: one row a rate: best validation NLL, norm, why it
    stopped. `choice.json`: the rate that is best on validation. Rates that fall behind leave early
    (`training.prune`) and say so.
    """
    from steer_pipeline.lab.vectors.learned.sweep import make_sweep

    now, persona = settings(), persona_spec
    with _plain_failures(persona.name), tempfile.TemporaryDirectory(prefix="lr_sweep-") as folder:
        choice = make_sweep(
            language_model.load(), behaviour_set.collect(), persona, now.profile, Path(folder)
        )
        yield dg.Output(Path(folder), metadata=_sweep_numbers(choice, Path(folder)))


@dg.asset(**GPU)
def trained_vector(
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    lr_sweep: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output]:
    """A vector learned at one block, everything else frozen: it makes the persona's answers likely unprompted.

    Trained at the sweep's rate with every seed. `vector.safetensors` and `vector.json`: the seed that is best on
    validation, in natural magnitude (fp32). `seeds/` and `last/`: the best and the last vector of each seed.
    `validation.parquet`: NLL of each validation row without a vector and with it.
    """
    from steer_pipeline.lab.vectors.learned.sweep import make_trained

    now, persona = settings(), persona_spec
    with _plain_failures(persona.name), tempfile.TemporaryDirectory(prefix="trained_vector-") as folder:
        make_trained(
            language_model.load(), behaviour_set.collect(), persona, now.profile, lr_sweep, Path(folder)
        )
        yield dg.Output(Path(folder), metadata=_trained_numbers(Path(folder)))


@contextmanager
def _plain_failures(persona: str) -> Iterator[None]:
    """What the user must mend becomes a failure that is not tried again and names the persona."""
    try:
        yield
    except ValueError as error:
        told = str(error)
        raise dg.Failure(
            told if told.startswith(persona) else f"{persona}: {told}", allow_retries=False
        ) from error


def _sweep_numbers(choice: dict[str, Any], folder: Path) -> dict[str, Any]:
    from steer_pipeline.lab.vectors.learned.sweep import HISTORY, SWEEP

    sweep = pl.read_parquet(folder / SWEEP)
    return {
        "learning_rate": choice["learning_rate"],
        "validation_nll": choice["validation_nll"],
        "vanilla_nll": choice["vanilla_nll"],
        "rates": sweep.height,
        "outpaced_rates": int((sweep["stopped"] == "outpaced").sum()),
        "lane_epochs": choice["lane_epochs"],
        "train_tokens": choice["train_tokens"],
        "residual_norm": choice["residual_norm"],
        "sweep": show.markdown_table(sweep.drop("seed"), digits=4),
        "curves": _curves(pl.read_parquet(folder / HISTORY), "learning_rate"),
    }


def _trained_numbers(folder: Path) -> dict[str, Any]:
    from steer_pipeline.lab.vectors.learned.sweep import HISTORY, REPORT, SEEDS

    report = json.loads((folder / REPORT).read_text())
    numbers = {
        name: report[name]
        for name in (
            "learning_rate",
            "seed",
            "validation_nll",
            "vanilla_nll",
            "best_step",
            "norm",
            "norm_fraction",
            "residual_norm",
            "block",
            "train_rows",
            "train_tokens",
        )
    }
    if report["seed_cosine"] is not None:
        numbers["seed_cosine"] = report["seed_cosine"]
    return numbers | {
        "seeds": show.markdown_table(pl.read_parquet(folder / SEEDS), digits=4),
        "curves": _curves(pl.read_parquet(folder / HISTORY), "seed"),
    }


def _curves(history: pl.DataFrame, name: str) -> dg.MarkdownMetadataValue:
    """Validation NLL over steps, a line a lane; the training NLL of a lane that left before its first validation."""
    series = {}
    for lane in history.partition_by("lane", maintain_order=True):
        points = lane.with_columns(nll=pl.coalesce("validation_nll", "train_nll")).drop_nulls("nll")
        series[f"{lane[name][0]:g}"] = list(points.select("step", "nll").iter_rows())
    return show.curves(series, "optimizer step", "NLL, nats a token")


# ------------------------------------------------------------------------------------------ checks


def _spec(name: str, asset: str, claim: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset=asset, description=claim, blocking=blocking, partitions_def=TRAIT_OR_ROLE
    )


def _folder(context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource, asset: str) -> Path:
    version = store.store().current(asset, context.partition_key)
    if version is None:
        raise dg.Failure(
            f"{asset}[{context.partition_key}] is not in the store: materialise it first", allow_retries=False
        )
    return version.path


def _result(
    asset: str, check: str, passed: bool, told: str, metadata: dict[str, Any], *, warn: bool = True
) -> dg.AssetCheckResult:
    severity = WARN if warn else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        asset_key=key(asset),
        check_name=check,
        passed=passed,
        severity=severity,
        description=told,
        metadata=metadata,
    )


@dg.multi_asset_check(
    name="lr_sweep_checks",
    specs=[
        _spec(
            "chosen_rate_is_inside_the_sweep",
            "lr_sweep",
            "The best learning rate is neither the smallest nor the largest of the sweep, where a better one may "
            "lie outside.",
        ),
        _spec(
            "no_rate_diverges", "lr_sweep", "Every learning rate of the sweep kept a finite loss to its end."
        ),
    ],
)
def lr_sweep_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the sweep was wide enough and none of its rates too large."""
    from steer_pipeline.lab.vectors.learned.sweep import CHOICE, SWEEP

    folder = _folder(context, store, "lr_sweep")
    choice, sweep = json.loads((folder / CHOICE).read_text()), pl.read_parquet(folder / SWEEP)
    edge, rate = choice["edge"], choice["learning_rate"]
    where = {None: "inside the sweep", "low": "the smallest of the sweep", "high": "the largest of the sweep"}
    advice = (
        "" if edge is None else f"; extend training.learning_rates {'down' if edge == 'low' else 'up'}wards"
    )
    yield _result(
        "lr_sweep",
        "chosen_rate_is_inside_the_sweep",
        edge is None,
        f"{rate:g} is {where[edge]}{advice}",
        {"learning_rate": rate},
    )
    diverged = sweep.filter(pl.col("stopped") == "not finite")["learning_rate"].to_list()
    yield _result(
        "lr_sweep",
        "no_rate_diverges",
        not diverged,
        f"not finite at {', '.join(f'{one:g}' for one in diverged)}" if diverged else "all losses are finite",
        {"diverged_rates": len(diverged)},
    )


@dg.multi_asset_check(
    name="trained_vector_checks",
    specs=[
        _spec(
            "vector_is_sound",
            "trained_vector",
            "The vector and those of all seeds are finite, not zero, as wide as the model, at one block, and their "
            "files belong together.",
            blocking=True,
        ),
        _spec(
            "validation_improves",
            "trained_vector",
            "The vector makes the persona's held-out answers likelier: NLL below the model's without it, with a "
            "paired interval over questions above zero.",
        ),
        _spec(
            "training_settled",
            "trained_vector",
            "Validation NLL was no longer falling when training ended: the last quarter of the steps brought less "
            "than a tenth of the whole gain.",
        ),
        _spec(
            "seeds_agree",
            "trained_vector",
            f"At least {MIN_SEEDS} seeds, and their vectors point the same way: mean cosine of at least "
            f"{MIN_SEED_COSINE}.",
        ),
        _spec(
            "norm_is_moderate",
            "trained_vector",
            "The vector is no longer than the residual stream that it is added to.",
        ),
    ],
)
def trained_vector_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a trained vector is whole, of use, and trained long enough."""
    from steer_pipeline.lab.vectors.learned.sweep import HISTORY, REPORT, VALIDATION
    from steer_pipeline.lab.vectors.vector import VectorError, load_vector

    folder = _folder(context, store, "trained_vector")
    report = json.loads((folder / REPORT).read_text())
    found = [folder, *sorted((folder / "seeds").iterdir()), *sorted((folder / "last").iterdir())]
    try:
        vectors = [load_vector(one) for one in found]
        blocks = {vector.present_blocks for vector in vectors}
        sound, told = blocks == {(report["block"],)}, f"{len(vectors)} vectors at blocks {sorted(blocks)}"
    except VectorError as error:
        sound, told = False, str(error)
    yield _result("trained_vector", "vector_is_sound", sound, told, {"norm": report["norm"]}, warn=False)
    yield _improvement(pl.read_parquet(folder / VALIDATION))
    yield _settled(pl.read_parquet(folder / HISTORY), report)
    cosine = report["seed_cosine"]
    yield _result(
        "trained_vector",
        "seeds_agree",
        report["seeds"] >= MIN_SEEDS and cosine is not None and cosine >= MIN_SEED_COSINE,
        f"{report['seeds']} seeds" + ("" if cosine is None else f", mean cosine {cosine:.3f}"),
        {"seeds": report["seeds"], **({} if cosine is None else {"seed_cosine": cosine})},
    )
    fraction = report["norm_fraction"]
    yield _result(
        "trained_vector",
        "norm_is_moderate",
        fraction <= MAX_NORM_FRACTION,
        f"{fraction:.2f} of the mean residual norm at block {report['block']}",
        {"norm_fraction": fraction},
    )


def _improvement(rows: pl.DataFrame) -> dg.AssetCheckResult:
    """Nats a token that the vector saves; whole questions are drawn."""
    from steer_pipeline.lab.stats import cluster_bootstrap

    if rows["question_index"].n_unique() < 2:
        told = (
            "validation rows of one question alone: there is no interval; raise behaviour.validation_tokens"
        )
        return _result("trained_vector", "validation_improves", False, told, {"questions": 1})
    saved = (rows["vanilla_nll"] - rows["trained_nll"]).to_numpy()
    tokens, questions = rows["n_tokens"].to_numpy(), rows["question_index"].to_numpy()
    gain = cluster_bootstrap(lambda at: float(saved[at].sum() / tokens[at].sum()), questions, seed=0)
    return _result(
        "trained_vector",
        "validation_improves",
        gain.low > 0,
        f"{gain.estimate:+.4f} nats a token [{gain.low:+.4f}, {gain.high:+.4f}], {gain.n} questions",
        {"nll_gain": gain.estimate, "nll_gain_low": gain.low, "nll_gain_high": gain.high},
    )


def _settled(history: pl.DataFrame, report: dict[str, Any]) -> dg.AssetCheckResult:
    curve = history.filter(pl.col("seed") == report["seed"]).drop_nulls("validation_nll")
    early = curve.filter(pl.col("step") <= 0.75 * report["total_steps"])["validation_nll"].to_list()
    before, best = min(early, default=report["vanilla_nll"]), report["validation_nll"]
    gain, late = report["vanilla_nll"] - best, before - best
    share = max(0.0, late) / gain if gain > 0 else 0.0
    return _result(
        "trained_vector",
        "training_settled",
        share < 0.1,
        f"the last quarter of {report['total_steps']} steps brought {share:.1%} of the gain"
        + ("" if share < 0.1 else "; raise training.epochs or the learning rates"),
        {"late_share": share, "best_step": report["best_step"], "steps": report["steps"]},
    )


ASSETS = [lr_sweep, trained_vector]
CHECKS = [lr_sweep_checks, trained_vector_checks]
