"""Vectors of a persona side by side: what trained, averaged and random ones close of the gap that prompting opens."""

import base64
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

COMPARED = tuple(
    f"behaviour.{name}"
    for name in ("allow_other_model", "max_response_tokens", "min_count", "score_gap", "seed")
)
HALF = 0.5  # of the gap, that a trained vector should close
MIN_SEEDS = 3
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


@dg.asset(
    group_name="vectors",
    owners=["team:steering"],
    partitions_def=TRAIT_OR_ROLE,
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags={"steer/stage": "vectors", "steer/device": "gpu"},
    io_manager_key="bundle_io",
    kinds={"pytorch", "parquet"},
    deps=["model_weights", "tokenizer", "chat_template"],
    code_version=made_of("1", *MODEL, "model.chat_template", *COMPARED, "rollouts.random_seeds"),
)
def vector_comparison(
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    trained_vector: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output]:
    """What each vector makes of held-out answers, on one estimator and the same response tokens.

    `rows.parquet`: summed NLL of every test answer under every arm and seed: vanilla, prompted (the instruction
    really in context), trained, averaged at its best block and scale on validation rows, random at the trained
    norm. `table.parquet`: NLL, perplexity and the fraction of the vanilla-to-prompted gap closed, with intervals
    over questions and seeds; `seeds.parquet` the same by seed. `averaged/`: the averaged vector, or MISSING.json
    with the reason. `scales.json`: sites and lengths. `cosines.parquet`: trained against averaged by block.
    `classifier.parquet`: AUC of projections, the instruction not in context, beside shuffled labels.
    """
    from steer_pipeline.lab.likelihood.comparing import compare_vectors
    from steer_pipeline.lab.vectors.vector import load_vector

    now = settings()
    with _plain_failures(), tempfile.TemporaryDirectory(prefix="vector_comparison-") as folder:
        seeds = {int(one.name): load_vector(one) for one in sorted((trained_vector / "seeds").iterdir())}
        compare_vectors(
            language_model.load(), behaviour_set.collect(), seeds, persona_spec, now.profile, Path(folder)
        )
        yield dg.Output(Path(folder), metadata=_numbers(Path(folder)))


@contextmanager
def _plain_failures() -> Iterator[None]:
    """What the user must mend becomes a failure that is not tried again, with its sentence as description."""
    try:
        yield
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _numbers(folder: Path) -> dict[str, Any]:
    from steer_pipeline.lab.likelihood import tables

    found = tables.summary(folder)
    table, classifier = (pl.read_parquet(folder / name) for name in (tables.TABLE, tables.CLASSIFIER))
    numbers: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    numbers |= {
        "comparison": show.markdown_table(table),
        "by_seed": show.markdown_table(pl.read_parquet(folder / tables.SEEDS)),
        "vector_as_classifier": show.markdown_table(classifier),
    }
    cosines = pl.read_parquet(folder / tables.COSINES)
    if cosines.height:
        numbers["cosines"] = show.markdown_table(cosines)
    for name in (tables.GAP_PLOT, tables.COSINE_PLOT):
        if (folder / name).is_file():
            picture = base64.b64encode((folder / name).read_bytes()).decode()
            numbers[f"plot_{Path(name).stem}"] = dg.MetadataValue.md(
                f"![{Path(name).stem}](data:image/png;base64,{picture})"
            )
    return numbers


# ----------------------------------------------------------------------------------------- checks


def _spec(name: str, claim: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset="vector_comparison", description=claim, blocking=blocking, partitions_def=TRAIT_OR_ROLE
    )


@dg.multi_asset_check(
    name="vector_comparison_checks",
    specs=[
        _spec(
            "same_tokens_in_every_arm",
            "Every arm, seed and dose is measured once on each of vanilla's rows, on the same response tokens.",
            blocking=True,
        ),
        _spec(
            "prompting_has_an_effect",
            "The instruction in context makes held-out answers likelier: the interval of its gain is above 0.",
        ),
        _spec(
            "trained_closes_half_of_the_gap",
            f"The trained vector closes at least {HALF:g} of what prompting gains.",
        ),
        _spec(
            "random_closes_none",
            "Random directions of the trained norm at its site close nothing: their interval includes 0 or is "
            "below it.",
        ),
        _spec(
            "averaged_exists", "There were enough rows for an averaged vector; if not, how many there were."
        ),
        _spec("at_least_three_seeds", f"Trained and random vectors are of at least {MIN_SEEDS} seeds each."),
    ],
)
def vector_comparison_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the comparison is fair, and what it says."""
    from steer_pipeline.lab.likelihood import claims

    version = store.store().current("vector_comparison", context.partition_key)
    if version is None:
        raise dg.Failure(
            f"vector_comparison[{context.partition_key}] is not in the store: materialise it first",
            allow_retries=False,
        )
    for verdict in claims.judge(version.path, half=HALF, min_seeds=MIN_SEEDS):
        yield dg.AssetCheckResult(
            asset_key=key("vector_comparison"),
            check_name=verdict.claim,
            passed=verdict.passed,
            severity=ERROR if verdict.claim == "same_tokens_in_every_arm" else WARN,
            description=verdict.message,
            metadata=dict(verdict.numbers),
        )


ASSETS = [vector_comparison]
CHECKS = [vector_comparison_checks]
