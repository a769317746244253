"""Methods of attribution put to the tests of `sanity` on the profile's own rows, in which faults are planted first.

In: rows of the pool and queries, the base adapter, methods by name. Out: one row a method and test (`SOUND_SCHEMA`).
Two adapters are trained for it, on a pool with wrong completions and on one with a shortcut; the model with shuffled
weights is a copy that goes again. A random ranking among the methods shows what a test says of scores that know
nothing.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import LearnSpec, SanitySpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.attribution import sanity
from steer_pipeline.lab.attribution.adapters import Below, train_adapters
from steer_pipeline.lab.attribution.scoring.methods import Scoring, score
from steer_pipeline.lab.attribution.scoring.passes import Progress
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.bundles import place
from steer_pipeline.lab.finetune.data import Example, TextRow
from steer_pipeline.lab.models.identity import local_folder, model_source
from steer_pipeline.lab.verdict import Verdict

SOUND = "sanity.parquet"
MARK = "Note 7:"  # before the prompts that a shortcut answers; says nothing of any of them
UNINFORMED = "random"  # kind of the method that knows nothing, and has to fail
FOLLOWS, MISLABELLED, COPIES, SHORTCUT = TESTS = (
    "scores_follow_the_model",
    "mislabelled_rows_score_low",
    "copies_score_alike",
    "shortcut_rows_are_found",
)
SOUND_SCHEMA, SOUND_COLUMNS = described(
    method=(pl.String(), "of the profile's scoring"),
    kind=(pl.String(), "how it scores"),
    test=(pl.String(), " | ".join(TESTS)),
    passed=(pl.Boolean(), "whether a sound method's scores would look like that"),
    estimate=(pl.Float64(), "what the test measures: a rank correlation, AUC, or share of the ranking"),
    low=(pl.Float64(), "95% interval; null: the test has none"),
    high=(pl.Float64(), "its upper end"),
    told=(pl.String(), "the test in a sentence"),
)


@dataclass(frozen=True, eq=False)
class Trial:
    """What methods are tried on.

    Attributes:
        scoring: as the rankings are made: the pool, the queries, the base and the tuned model.
        rows, queries: the same rows as text.
        selection: rows that trainings are watched on.
        learn, seed: how an adapter is trained.
        work: where adapters, the shuffled copy and unfinished rankings wait; a killed run goes on from there.
    """

    scoring: Scoring
    rows: Sequence[TextRow]
    queries: Sequence[TextRow]
    selection: Sequence[Example]
    encode: Callable[[Sequence[TextRow]], list[Example]]
    learn: LearnSpec
    seed: int
    work: Path
    progress: Progress | None = None

    def scorer(self, method: str, name: str, scoring: Scoring | None = None) -> sanity.Scorer:
        """A method as `sanity` calls it, with the models of `scoring`; default: those of the rankings."""
        models = scoring or self.scoring
        asked = count()

        def scores(pool: Sequence[Example], queries: Sequence[Example]) -> Mapping[str, float]:
            own = replace(models, pool=tuple(pool), queries=tuple(queries))
            return score(method, own, self.work / f"{name}_{next(asked)}", self.progress).scores

        return scores

    def taught(self, name: str, rows: Sequence[TextRow]) -> Scoring:
        """Scoring by the model after it has learned other rows than the pool's."""
        below = Below(self.scoring.base, self.scoring.home)
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        train_adapters(
            name,
            {self.seed: self.encode(rows)},
            self.selection,
            self.learn,
            below,
            folder,
            work=self.work / f"{name}_training",
            progress=self.progress,
        )
        return replace(self.scoring, tuned=_with_adapter(self.scoring.base, folder / place(self.seed)))

    def shuffled(self) -> Scoring:
        """Scoring by the tuned model with its weights in another order, those of the adapter too."""
        base, adapter = self.scoring.base, Path(self.scoring.tuned.adapters[-1])
        source = local_folder(model_source(base, self.scoring.home), base.revision)
        if source is None:
            raise sanity.SanityError(f"model {base.path}: not on this machine; give a directory")
        made = []
        for name, folder in (("shuffled_model", source), ("shuffled_adapter", adapter)):
            shutil.rmtree(target := self.work / name, ignore_errors=True)
            made.append(sanity.shuffled(folder, target, self.seed))
        model = base.model_copy(update={"path": str(made[0])})
        return replace(self.scoring, base=model, tuned=_with_adapter(model, made[1]))


def _with_adapter(base: ModelSpec, adapter: Path) -> ModelSpec:
    return base.model_copy(update={"adapter": (*base.adapters, str(adapter))})


def try_methods(trial: Trial, methods: Sequence[str], spec: SanitySpec) -> pl.DataFrame:
    """`SOUND_SCHEMA`: every method in every test.

    Raises:
        SanityError: too few rows to plant a fault in, or a row that has no score.
    """
    n = max(2, round(spec.share * len(trial.rows)))
    pool, queries = trial.scoring.pool, trial.scoring.queries
    wrong_texts, wrong = sanity.mislabelled(trial.rows, n, spec.seed)
    answer = min((one.completion for one in trial.rows), key=lambda text: (len(text), text))
    short_texts, short = sanity.with_shortcut(trial.rows, n, spec.seed, mark=MARK, completion=answer)
    by_wrong, by_short = trial.taught("mislabelled", wrong_texts), trial.taught("shortcut", short_texts)
    other = trial.shuffled()
    wrong_pool, short_pool = trial.encode(wrong_texts), trial.encode(short_texts)
    marked = [replace(one, prompt=f"{MARK} {one.prompt}", completion=answer) for one in trial.queries]
    taken = trial.encode(marked)
    found: list[dict[str, Any]] = []
    for method in methods:
        own = trial.scorer(method, f"{method}_own")
        verdicts = [
            sanity.scores_follow_the_model(
                own, trial.scorer(method, f"{method}_shuffled", other), pool, queries, seed=spec.seed
            ),
            sanity.mislabelled_rows_score_low(
                trial.scorer(method, f"{method}_mislabelled", by_wrong), wrong_pool, queries, wrong
            ),
            sanity.copies_score_alike(
                trial.scorer(method, f"{method}_copies"), pool, queries, n=n, first=2 * n, seed=spec.seed
            ),
            sanity.shortcut_rows_are_found(
                trial.scorer(method, f"{method}_shortcut", by_short),
                short_pool,
                taken,
                queries,
                short,
                seed=spec.seed,
            ),
        ]
        kind = trial.scoring.settings.methods[method].kind
        found += [_row(method, kind, verdict) for verdict in verdicts]
    return pl.DataFrame(found, schema=SOUND_SCHEMA)


def _row(method: str, kind: str, verdict: Verdict) -> dict[str, Any]:
    numbers = verdict.numbers
    return {
        "method": method,
        "kind": kind,
        "test": verdict.claim,
        "passed": verdict.passed,
        "estimate": numbers.get("estimate", numbers.get("mean_gap")),
        "low": numbers.get("low"),
        "high": numbers.get("high"),
        "told": verdict.message,
    }


def soundness_verdict(table: pl.DataFrame) -> Verdict:
    """Whether every informed method passes every test."""
    informed = table.filter(pl.col("kind") != UNINFORMED)
    failed = informed.filter(~pl.col("passed"))
    told = "; ".join(f"{row['method']} {row['test']}: {row['told']}" for row in failed.iter_rows(named=True))
    return Verdict(
        "methods_are_sound",
        failed.is_empty(),
        told or f"{informed['method'].n_unique()} methods pass {len(TESTS)} tests each",
        {"tests": informed.height, "failed": failed.height},
        failed.select("method", "test", "told").to_dicts(),
    )


def empty_ranking_fails(table: pl.DataFrame) -> Verdict:
    """Whether the tests can fail: a ranking that knows nothing must find neither faults nor shortcuts."""
    name = "an_empty_ranking_fails"
    blind = table.filter(pl.col("kind") == UNINFORMED, pl.col("test").is_in([MISLABELLED, SHORTCUT]))
    if blind.is_empty():
        return Verdict(name, True, "no random ranking is tried", blocking=False)
    passed = blind.filter("passed")
    told = "; ".join(f"{row['method']} {row['test']}: {row['told']}" for row in passed.iter_rows(named=True))
    return Verdict(
        name, passed.is_empty(), told or "a random ranking passes neither", {"passed": passed.height}
    )


def headline(table: pl.DataFrame) -> dict[str, dict[str, float]]:
    """method -> test -> what it measured."""
    return {
        str(method): dict(own.select("test", "estimate").iter_rows())
        for (method,), own in table.group_by("method", maintain_order=True)
    }
