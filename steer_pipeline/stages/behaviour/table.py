"""The behaviour table: all personas' answers side by side, from what is stored. Runs no model.

`behaviour_table` reads every persona that has rollouts and scores; a judge's scores and likelihood tables come in
where there are some.
"""

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.io.store import ArtifactStore, Version, label
from steer_pipeline.io.versioned import note_input
from steer_pipeline.keys import key
from steer_pipeline.lineage import made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings

WARN = dg.AssetCheckSeverity.WARN
MIN_AGREEMENT = 0.8  # AUC of MiniLM for answers in which the lexicon finds the persona


@dg.asset(
    group_name="behaviour",
    owners=["team:steering"],
    deps=["rollouts", "minilm_scores", "judge_scores", "vector_comparison"],
    tags={"steer/stage": "behaviour", "steer/device": "cpu"},
    kinds={"polars", "markdown"},
    code_version=made_of("1", "rollouts.sampling.seed"),
    io_manager_key="bundle_io",
)
def behaviour_table(context: dg.AssetExecutionContext, store: ArtifactStoreResource) -> Iterator[dg.Output]:
    """What every arm did to trait and text, persona by persona, with intervals, tests and gaps closed.

    `arms.parquet`: one row a persona and arm. `summary.parquet`: one row a persona, metric and arm. `rows`,
    `agreement` (MiniLM, judge, ground truth), `judged` (refusals, invalid and missing apart), `scorers`;
    `behaviour.md` with two plots; `versions.json` names what was read. Personas without rollouts are left out.
    """
    from steer_pipeline.lab.behaviour.report import headline_rows, write_behaviour
    from steer_pipeline.lab.behaviour.table import TableError, make_tables

    read = Stored(store.store(), lambda version: note_input(context, version))
    with tempfile.TemporaryDirectory(prefix="behaviour_table-") as folder:
        try:
            tables = make_tables(read.personas(), seed=settings().profile.rollouts.sampling.seed)
        except TableError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        likelihood, missing = read.comparisons(tables.personas)
        written = write_behaviour(tables, read.versions, Path(folder), likelihood=likelihood, missing=missing)
        arms = pl.read_parquet(Path(folder) / "arms.parquet")
        metadata = _numbers(arms) | {
            "personas": len(tables.personas),
            "answers": tables.rows.height,
            "learned_scale": show.markdown_table(headline_rows(arms)),
            **{path.stem: _picture(path) for path in written.plots},
        }
        yield dg.Output(Path(folder), metadata=metadata)


class Stored:
    """Current versions of the behaviour lab's assets; `versions` lists what was read."""

    def __init__(self, shelf: ArtifactStore, note: Any = lambda version: None) -> None:
        self._read, self.versions = Reader(shelf, note), dict[str, str]()

    def current(self, asset: str, persona: str) -> Version | None:
        version = self._read.current(asset, persona)
        if version is not None:
            self.versions[label(asset, persona)] = version.sha
        return version

    def rows(self, asset: str, persona: str) -> pl.DataFrame | None:
        version = self.current(asset, persona)
        return None if version is None else read_rows(version.path)

    def personas(self) -> dict[str, Any]:
        """persona -> PersonaRows, of those that have both rollouts and MiniLM scores."""
        from steer_pipeline.lab.behaviour.table import PersonaRows

        found = {}
        for persona in TRAIT_OR_ROLE.get_partition_keys():
            rollouts = self.rows("rollouts", persona)
            scores = None if rollouts is None else self.rows("minilm_scores", persona)
            if rollouts is not None and scores is not None:
                found[persona] = PersonaRows(rollouts, scores, self.rows("judge_scores", persona))
        return found

    def comparisons(self, personas: list[str]) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
        """persona -> likelihood table, and persona -> why it has no averaged vector."""
        tables, missing = {}, {}
        for persona in personas:
            version = self.current("vector_comparison", persona)
            if version is None:
                continue
            if (table := version.path / "table.parquet").is_file():
                tables[persona] = pl.read_parquet(table)
            if (reason := version.path / "averaged" / "MISSING.json").is_file():
                missing[persona] = json.loads(reason.read_text())["reason"]
        return tables, missing


def minilm_headline(shelf: ArtifactStore) -> dict[str, float]:
    """persona -> held-out AUC of its MiniLM scorer, of every persona that has scores."""
    from steer_pipeline.lab.behaviour.table import minilm_headline as of_rows

    read = Stored(shelf)
    scores = {name: read.rows("minilm_scores", name) for name in TRAIT_OR_ROLE.get_partition_keys()}
    return of_rows({name: rows for name, rows in scores.items() if rows is not None})


def _picture(path: Path) -> dg.MarkdownMetadataValue:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{data})")


def _numbers(arms: pl.DataFrame) -> dict[str, float]:
    """Shift and gap at the learned scale, a persona each: what the UI plots over time."""
    plotted = {}
    for row in arms.filter(arm_name="trained@1").iter_rows(named=True):
        plotted[f"trait_shift_{row['persona']}"] = row["difference"]
        if row["gap_closed"] is not None:
            plotted[f"gap_closed_{row['persona']}"] = row["gap_closed"]
    return plotted


# ------------------------------------------------------------------------------------------ checks


@dg.multi_asset_check(
    name="behaviour_table_checks",
    specs=[
        dg.AssetCheckSpec(
            "every_persona_is_in_the_table",
            asset="behaviour_table",
            description="Every trait and role of the catalogue has rollouts and scores.",
        ),
        dg.AssetCheckSpec(
            "steering_moves_the_trait",
            asset="behaviour_table",
            description="At its learned scale the trained vector raises the trait score of every persona.",
        ),
        dg.AssetCheckSpec(
            "random_moves_nothing",
            asset="behaviour_table",
            description="No random direction of the trained vector's length moves a trait score of any persona.",
        ),
        dg.AssetCheckSpec(
            "scales_agree",
            asset="behaviour_table",
            description="MiniLM tells answers in which the lexicon finds the persona from the others: AUC of at "
            f"least {MIN_AGREEMENT} wherever there are both.",
        ),
    ],
)
def behaviour_table_checks(store: ArtifactStoreResource) -> Iterator[dg.AssetCheckResult]:
    """Whether what should move the trait does, and what should not does not; persona by persona."""
    version = store.store().current("behaviour_table", None)
    if version is None:
        raise dg.Failure("behaviour_table is not in the store: materialise it first", allow_retries=False)
    arms = pl.read_parquet(version.path / "arms.parquet")
    present = set(arms["persona"])
    absent = [name for name in TRAIT_OR_ROLE.get_partition_keys() if name not in present]
    yield _result("every_persona_is_in_the_table", absent, f"{len(present)} personas", "no rollouts: ")
    learned = {row["persona"]: row for row in arms.filter(arm_name="trained@1").iter_rows(named=True)}
    still = [name for name in sorted(present) if learned.get(name, {}).get("verdict") != "effect up"]
    yield _result(
        "steering_moves_the_trait",
        still,
        f"all {len(present)} personas move",
        "do not move up: ",
        {f"shift_{name}": row["difference"] for name, row in learned.items()},
    )
    random = arms.filter(pl.col("arm") == "random", ~pl.col("pooled"))
    moved = random.filter(
        pl.any_horizontal(
            pl.col(name).is_in(["effect up", "effect down"])
            for name in ("verdict", "truth_verdict", "judge_verdict")
        )
    )
    yield _result(
        "random_moves_nothing",
        [
            f"{row['persona']} {row['arm_name']} ({row['difference']:+.3f})"
            for row in moved.iter_rows(named=True)
        ],
        f"{random.height} random arms, none moves a trait",
        "moved: ",
    )
    agreed = pl.read_parquet(version.path / "agreement.parquet").filter(first="minilm", second="truth")
    areas = dict(agreed.drop_nulls("auc").select("persona", "auc").iter_rows())
    low = [f"{name} ({area:.2f})" for name, area in areas.items() if area < MIN_AGREEMENT]
    yield _result(
        "scales_agree",
        low,
        f"{len(areas)} personas compared with the lexicon",
        f"AUC below {MIN_AGREEMENT}: ",
        {f"auc_{name}": area for name, area in areas.items()},
    )


def _result(
    check: str, wrong: list[str], told: str, else_told: str, metadata: dict[str, Any] | None = None
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key("behaviour_table"),
        check_name=check,
        passed=not wrong,
        severity=WARN,
        description=else_told + ", ".join(wrong) if wrong else told,
        metadata=metadata,
    )


ASSETS = [behaviour_table]
CHECKS = [behaviour_table_checks]
