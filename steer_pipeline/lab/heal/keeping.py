"""Gate 2 over all sources: which samples students may learn from, as a folder.

In: the samples of every source with losses, and a task. Out: all rows with scores, reasons, the persona's trait and
whether they are kept; the limits that were applied; texts at the limits. Runs no language model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealFilterSpec
from steer_pipeline.lab.heal.dosing import BASE, NEGATIVE, PERSONA, Sampled
from steer_pipeline.lab.heal.filtering import (
    Criterion,
    Filtered,
    differs_from_base,
    enough_kept,
    filter_samples,
)
from steer_pipeline.lab.heal.scores import Expected, score_samples
from steer_pipeline.lab.heal.task import Task
from steer_pipeline.lab.quality.leaks import Told
from steer_pipeline.lab.verdict import Verdict

ROWS, BORDERLINE, CRITERIA = "rows.parquet", "borderline.parquet", "criteria.json"


@dataclass(frozen=True, eq=False)
class KeepSet:
    """Judged samples.

    Attributes:
        filtered: source -> its samples, judged; those of base are not among them.
        base: base's samples with scores and `trait`.
    """

    filtered: Mapping[str, Filtered]
    base: pl.DataFrame

    def kept(self, source: str) -> pl.DataFrame:
        """Samples of a source that may be learned; of base all that say something."""
        if source == BASE:
            return self.base.filter(pl.col("token_ids").list.len() > 0)
        return self.filtered[source].kept


def make_keep_set(sampled: Sampled, task: Task, special_tokens: list[str], folder: Path) -> KeepSet:
    """Judges every source against base's samples of the same prompts, and writes the result.

    Raises:
        Refused: base has too few sound texts to set limits by.
    """
    spec, told = task.heal.filter, {PERSONA: task.told[0], NEGATIVE: task.told[1]}
    of = sampled.rows.partition_by("source", as_dict=True, maintain_order=True)
    rows = {str(source): own for (source,), own in of.items()}
    scored = {
        source: own.with_columns(
            trait=pl.Series(np.asarray(task.scorer.score_many(own["output"].to_list()), dtype=np.float64))
        )
        for source, own in rows.items()
    }
    filtered = {
        source: filter_samples(
            own, scored[BASE], spec, told=told.get(source, Told()), special_tokens=special_tokens
        )
        for source, own in scored.items()
        if source != BASE
    }
    base = score_samples(scored[BASE], spec, special_tokens=special_tokens)
    made = KeepSet(filtered, base)
    _write(made, folder)
    return made


def _write(made: KeepSet, folder: Path) -> None:
    parts = [made.base, *(one.rows for one in made.filtered.values())]
    pl.concat(parts, how="diagonal").drop("losses").write_parquet(folder / ROWS)
    shown = [
        one.borderline().select(pl.lit(source).alias("source"), pl.all())
        for source, one in made.filtered.items()
    ]
    pl.concat(shown).write_parquet(folder / BORDERLINE)
    criteria = {
        source: {"limits": [asdict(one) for one in own.criteria], "expected": asdict(own.expected)}
        for source, own in made.filtered.items()
    }
    (folder / CRITERIA).write_text(json.dumps(criteria, indent=1, sort_keys=True) + "\n")


def read_keep_set(folder: Path) -> KeepSet:
    """What `make_keep_set` wrote."""
    criteria: dict[str, dict[str, Any]] = json.loads((folder / CRITERIA).read_text())
    rows = pl.read_parquet(folder / ROWS)
    filtered = {
        source: Filtered(
            rows.filter(source=source),
            tuple(Criterion(**one) for one in own["limits"]),
            Expected(**own["expected"]),
        )
        for source, own in criteria.items()
    }
    return KeepSet(filtered, rows.filter(source=BASE))


def keep_verdicts(made: KeepSet, spec: HealFilterSpec) -> list[Verdict]:
    """Whether the persona's kept samples are enough, and something else than base's."""
    own = made.filtered[PERSONA]
    enough = enough_kept(own, spec)
    if own.kept.is_empty():
        nothing = Verdict("differs_from_base", False, "nothing is kept to compare with base")
        return [enough, nothing]
    return [enough, differs_from_base(own.kept, made.base, spec)]
