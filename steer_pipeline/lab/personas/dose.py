"""How much of a vector to add, and where: a sweep over blocks and doses, and the dose it recommends.

In: a persona vector, held-out news rows, the rewrite prompt and a trait scorer. Out: one row a news item and
cell, a table with one row a cell (trait, coherence, KL, intervals), a `Recommendation` and a plot. Every
number of the table is computed from the rows, so that it can be rendered again without a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import DoseSpec, RewriteSpec
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.models.hidden import mean_kl
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, resolve_site
from steer_pipeline.lab.quality import facts_kept, scan_suspects
from steer_pipeline.lab.stats import Interval, mean_intervals
from steer_pipeline.lab.vectors.doses import Recommendation, make_term, random_like
from steer_pipeline.lab.vectors.vector import PersonaVector, require_same_model

REACH = 0.9  # share of the best coherent shift that a recommended dose must reach
KL_ROWS = 4  # rows whose KL is measured, those with the shortest prompts: it costs two passes a row and cell

ROW_SCHEMA: dict[str, Any] = {
    "row_id": pl.String,
    "variant": pl.String,
    "direction": pl.String,
    "block": pl.Int32,
    "fraction": pl.Float64,
    "alpha": pl.Float64,
    "text": pl.String,
    "n_tokens": pl.Int32,
    "truncated": pl.Boolean,
    "trait": pl.Float64,
    "shown": pl.Boolean,
    "opposite_shown": pl.Boolean,
    "suspects": pl.List(pl.String),
    "facts_kept": pl.Float64,
    "kl": pl.Float64,
}


@dataclass(frozen=True)
class Cell:
    """One plan of the sweep. The variant's name tells direction, block and fraction."""

    direction: str  # "base", "persona" or "random"
    block: int | None
    fraction: float
    plan: SteeringPlan

    @property
    def alpha(self) -> float:
        return self.plan.terms[0].alpha if self.plan.terms else 0.0


def base_cell() -> Cell:
    return Cell("base", None, 0.0, SteeringPlan("base", stream="dose"))


def steered_cells(vector: PersonaVector, blocks: Sequence[int], fractions: Sequence[float]) -> list[Cell]:
    """A cell for every block and non-zero fraction of the mean residual norm there."""
    return [_cell(vector, block, fraction, None) for block in blocks for fraction in fractions if fraction]


def random_cells(vector: PersonaVector, block: int, fractions: Sequence[float], seed: int) -> list[Cell]:
    """One random direction at `block` with the norms of the positive doses: what disturbance alone does."""
    return [_cell(vector, block, fraction, seed) for fraction in fractions if fraction > 0]


def _cell(vector: PersonaVector, block: int, fraction: float, random_seed: int | None) -> Cell:
    term = make_term(vector, Site(block, vector.site), fraction * vector.residual_norm(block))
    direction = "persona"
    if random_seed is not None:
        term, direction = random_like(term, random_seed), "random"
    name = f"{direction}_block{block:02d}_dose{fraction:+.3f}"
    return Cell(direction, block, fraction, SteeringPlan(name, (term,), stream="dose"))


def sweep_blocks(vector: PersonaVector, spec: DoseSpec) -> list[int]:
    """The spec's blocks as indices, each once and ascending; of an imported vector those that it has.

    Raises:
        ValueError: the vector has none of them; the message lists those it has.
    """
    wanted = sorted({resolve_site(block, vector.n_blocks).block for block in spec.blocks})
    present = [block for block in wanted if block in vector.present_blocks]
    if not present:
        raise ValueError(
            f"vector {vector.persona!r} has no direction at blocks {wanted} of dose.blocks; "
            f"it has {list(vector.present_blocks)}: name one of these in the profile"
        )
    return present


def sweep_rows(
    model: LoadedModel,
    vector: PersonaVector,
    spec: DoseSpec,
    rows: pl.DataFrame,
    rewrite: RewriteSpec,
    scorer: TraitScorer,
    *,
    chat_template: bool = True,
    both_poles: bool = False,
) -> pl.DataFrame:
    """Rewrites of every row in every cell, scored.

    Two generation passes: base and all persona cells, then a random direction with the same norms at the
    block that the first pass recommends (or, when it recommends none, where the trait moved most).

    Args:
        model: LoadedModel on which the vector was made.
        rows: columns `row_id`, `text` and `facts` (list of str: what a rewrite should keep).
        rewrite: prompt, neutral system turn and decoding settings, as the packs will have them; all cells draw
            the same random numbers.
        chat_template: as in the profile's model.
        both_poles: passed to `recommend_dose`.

    Returns:
        Rows of `ROW_SCHEMA`; base once, with block null. `kl` is the mean over the completion's positions of
        KL(steered || base) in nats, measured on `KL_ROWS` rows, the same in every cell; else null.

    Raises:
        VectorError: the vector was made on another model.
    """
    require_same_model(vector, model)
    blocks = sweep_blocks(vector, spec)
    sweep = _Sweep(model, rows, rewrite, scorer, chat_template)
    first = sweep.run([base_cell(), *steered_cells(vector, blocks, spec.fractions)])
    table = sweep_table(first, spec)
    control = recommend_dose(table, vector.persona, both_poles=both_poles).block
    if control is None:
        control = int(table.sort("shift", descending=True).get_column("block")[0])
    return pl.concat([first, sweep.run(random_cells(vector, control, spec.fractions, spec.seed))])


def prompt_rows(
    model: LoadedModel, rows: pl.DataFrame, rewrite: RewriteSpec, chat_template: bool
) -> list[PromptRow]:
    """The neutral rewrite prompt of each row (columns `row_id`, `text`), tokenised."""
    return [
        PromptRow(
            row_id,
            {
                "*": encode_prompt(
                    model.tokenizer,
                    user=rewrite.prompt.replace("{text}", text),
                    system=rewrite.system,
                    chat_template=chat_template,
                )
            },
        )
        for row_id, text in rows.select("row_id", "text").iter_rows()
    ]


class _Sweep:
    """Runs cells over one set of prompts."""

    def __init__(
        self,
        model: LoadedModel,
        rows: pl.DataFrame,
        rewrite: RewriteSpec,
        scorer: TraitScorer,
        chat_template: bool,
    ) -> None:
        self.model, self.scorer = model, scorer
        self.texts = dict(rows.select("row_id", "text").iter_rows())
        self.facts = dict(rows.select("row_id", "facts").iter_rows())
        self.prompts = prompt_rows(model, rows, rewrite, chat_template)
        self.sampling = rewrite.sampling  # a dose holds for the decoding that it was found with
        shortest = sorted(self.prompts, key=lambda row: (len(row.ids["*"]), row.row_id))
        self.measured = {row.row_id: row.ids["*"] for row in shortest[:KL_ROWS]}

    def run(self, cells: Sequence[Cell]) -> pl.DataFrame:
        finished = list(generate(self.model, self.prompts, [cell.plan for cell in cells], self.sampling))
        by_cell: dict[str, list[FinishedRow]] = {cell.plan.variant: [] for cell in cells}
        for row in sorted(finished, key=lambda row: row.row_id):
            by_cell[row.variant].append(row)
        scored = [row for cell in cells for row in self._scored(cell, by_cell[cell.plan.variant])]
        return pl.DataFrame(scored, schema=ROW_SCHEMA)

    def _scored(self, cell: Cell, rows: Sequence[FinishedRow]) -> list[dict[str, Any]]:
        divergence = self._divergence(cell, rows)
        traits = self.scorer.score_many([row.text for row in rows])
        return [
            {
                "row_id": row.row_id,
                "variant": cell.plan.variant,
                "direction": cell.direction,
                "block": cell.block,
                "fraction": cell.fraction,
                "alpha": cell.alpha,
                "text": row.text,
                "n_tokens": row.n_new_tokens,
                "truncated": row.truncated,
                "trait": float(trait),
                "shown": self.scorer.shows(row.text),
                "opposite_shown": self.scorer.shows_opposite(row.text),
                "suspects": scan_suspects(
                    row.text, self.texts[row.row_id], special_tokens=self.model.tokenizer.all_special_tokens
                ),
                "facts_kept": _known(facts_kept(self.facts[row.row_id], row.text)),
                "kl": kl,
            }
            for row, trait, kl in zip(rows, traits, divergence, strict=True)
        ]

    def _divergence(self, cell: Cell, rows: Sequence[FinishedRow]) -> list[float | None]:
        """KL(steered || base) a token over each completion."""
        if cell.direction == "base":
            return [0.0] * len(rows)
        read = [row for row in rows if row.token_ids and row.row_id in self.measured]
        prompts = [self.measured[row.row_id] for row in read]
        ids = [prompt + row.token_ids for prompt, row in zip(prompts, read, strict=True)]
        if not read:
            return [None] * len(rows)
        values = mean_kl(self.model, ids, [len(prompt) for prompt in prompts], cell.plan)
        measured = {row.row_id: float(value) for row, value in zip(read, values, strict=True)}
        return [measured.get(row.row_id) for row in rows]


def _known(share: float) -> float | None:
    return None if np.isnan(share) else share


# ------------------------------------------------------------------------------------- the table


def sweep_table(rows: pl.DataFrame, spec: DoseSpec) -> pl.DataFrame:
    """One row a cell, from the scored rows.

    Columns: direction, block, fraction, alpha, n; trait, trait_low, trait_high (mean score and 95% bootstrap
    interval); shift, shift_low, shift_high (paired difference to base); shown_rate, opposite_rate,
    suspect_rate, truncated_rate, changed_rate (texts unlike base's), facts_kept, kl (nats a token); coherent:
    KL, suspects and facts within the spec's limits. Base appears as fraction 0 of every block.
    """
    base = rows.filter(pl.col("direction") == "base").sort("row_id")
    names = [name for name in rows.get_column("variant").unique(maintain_order=True) if name != "base"]
    cells = {name: rows.filter(pl.col("variant") == name).sort("row_id") for name in names}
    blocks = sorted({int(cell.get_column("block")[0]) for cell in cells.values()})
    traits = np.stack(
        [base.get_column("trait").to_numpy(), *(c.get_column("trait").to_numpy() for c in cells.values())]
    )
    trait = mean_intervals(traits.T, seed=spec.seed)
    shift = mean_intervals((traits - traits[0]).T, seed=spec.seed)
    table = [_summary(cell, base, spec, trait[i], shift[i]) for i, cell in enumerate(cells.values(), start=1)]
    unsteered = _summary(base, base, spec, trait[0], shift[0]) | {"direction": "persona"}
    table += [unsteered | {"block": block} for block in blocks]
    return pl.DataFrame(table, schema_overrides={"block": pl.Int32}).sort("direction", "block", "fraction")


def _summary(
    cell: pl.DataFrame, base: pl.DataFrame, spec: DoseSpec, trait: Interval, shift: Interval
) -> dict[str, Any]:
    """One row of the table; `cell` and `base` hold the same news rows in the same order."""
    summary = cell.select(
        pl.col("direction", "block", "fraction", "alpha").first(),
        n=pl.len(),
        shown_rate=pl.col("shown").mean(),
        opposite_rate=pl.col("opposite_shown").mean(),
        suspect_rate=(pl.col("suspects").list.len() > 0).mean(),
        truncated_rate=pl.col("truncated").mean(),
        changed_rate=(pl.col("text") != base.get_column("text")).mean(),
        facts_kept=pl.col("facts_kept").mean(),
        kl=pl.col("kl").mean(),
    ).row(0, named=True)
    for name, interval in (("trait", trait), ("shift", shift)):
        summary |= {
            name: interval.estimate,
            f"{name}_low": interval.low,
            f"{name}_high": interval.high,
        }
    kl, kept = summary["kl"], summary["facts_kept"]
    return summary | {
        "coherent": kl is not None
        and kl <= spec.max_kl_nats
        and summary["suspect_rate"] <= spec.max_suspect_rate
        and (kept is None or kept >= spec.min_facts_kept)
    }


# ------------------------------------------------------------------------------------- the recommendation


def recommend_dose(table: pl.DataFrame, persona: str, *, both_poles: bool = False) -> Recommendation:
    """The smallest coherent positive dose with at least 90% of the best coherent trait shift.

    A candidate is a coherent cell of the persona's direction with a positive fraction whose shift's interval
    lies above zero. With `both_poles` (personas of kind axis, whose vector is also used with its sign turned)
    the same block must also be coherent at the negative dose of that size or, where it was not swept, at the
    next larger one. The best candidate sets the mark; among those that reach `REACH` of it, the smallest
    fraction wins, and between blocks the larger shift.

    Args:
        table: what `sweep_table` returns.

    Returns:
        A recommendation whose block is None, and whose reason says what failed, when there is no candidate.
    """
    steered = table.filter((pl.col("direction") == "persona") & (pl.col("fraction") != 0))
    positive = steered.filter(pl.col("fraction") > 0)
    coherent = positive.filter("coherent")
    moving = coherent.filter(pl.col("shift_low") > 0)
    candidates = [
        row
        for row in moving.iter_rows(named=True)
        if not both_poles or _negative_is_coherent(steered, row["block"], row["fraction"])
    ]
    if not candidates:
        return Recommendation(persona, None, None, None, _why_none(positive, coherent, moving))
    best = max(row["shift"] for row in candidates)
    chosen = min(
        (row for row in candidates if row["shift"] >= REACH * best),
        key=lambda row: (row["fraction"], -row["shift"]),
    )
    reason = (
        f"smallest coherent dose with at least {REACH:.0%} of the best coherent shift: "
        f"{chosen['shift']:+.3f} [{chosen['shift_low']:+.3f}, {chosen['shift_high']:+.3f}] of {best:+.3f}, "
        f"KL {chosen['kl']:.2f} nats a token, suspects {chosen['suspect_rate']:.1%}, n {chosen['n']}"
    )
    return Recommendation(persona, int(chosen["block"]), chosen["fraction"], chosen["alpha"], reason)


def _negative_is_coherent(steered: pl.DataFrame, block: int, fraction: float) -> bool:
    """Coherence of the swept negative dose next in size to `fraction`; False when none is that large."""
    covering = steered.filter((pl.col("block") == block) & (pl.col("fraction") <= -fraction + 1e-9))
    return not covering.is_empty() and bool(covering.sort("fraction").get_column("coherent")[-1])


def _why_none(positive: pl.DataFrame, coherent: pl.DataFrame, moving: pl.DataFrame) -> str:
    if positive.is_empty():
        return "dose.fractions has no positive dose; add some"
    if coherent.is_empty():
        mildest = positive.sort("kl", nulls_last=True).row(0, named=True)
        return (
            f"no positive dose is coherent: the mildest, {mildest['fraction']:+g} at block "
            f"{mildest['block']}, "
            f"has KL {_shown(mildest['kl'])} nats a token, suspects {mildest['suspect_rate']:.1%}, "
            f"facts kept {_shown(mildest['facts_kept'])}; sweep smaller fractions"
        )
    if moving.is_empty():
        best = coherent.sort("shift", descending=True).row(0, named=True)
        return (
            f"no coherent dose moves the trait: the best, {best['fraction']:+g} at block {best['block']}, "
            f"shifts it by {best['shift']:+.3f} [{best['shift_low']:+.3f}, {best['shift_high']:+.3f}] over "
            f"{best['n']} rows; sweep other blocks or larger fractions, or look at the contrast set"
        )
    return (
        f"{moving.height} positive doses are coherent and move the trait, but at none is the negative dose "
        "of that size coherent; sweep the same fractions with both signs, or smaller ones"
    )


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


# ------------------------------------------------------------------------------------- the plot


def plot_sweep(table: pl.DataFrame, recommendation: Recommendation, path: Path) -> None:
    """Trait and KL against dose, a line a block, the random direction dashed; PNG or SVG by suffix."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    trait_axes, kl_axes = figure.subplots(1, 2)
    lines = table.partition_by("direction", "block", maintain_order=True)
    shades = iter(colormaps["viridis"](np.linspace(0.1, 0.85, len(lines))))
    for line in lines:
        block, direction = line.get_column("block")[0], line.get_column("direction")[0]
        style: dict[str, Any] = {"marker": ".", "label": f"block {block}", "color": next(shades)}
        if direction == "random":
            style |= {"color": "grey", "linestyle": "--", "label": f"random, block {block}"}
        dose, trait, low, high = (
            line.get_column(name) for name in ("fraction", "trait", "trait_low", "trait_high")
        )
        trait_axes.plot(dose, trait, **style)
        trait_axes.fill_between(dose, low, high, color=style["color"], alpha=0.15, linewidth=0)
        kl_axes.plot(dose, line.get_column("kl"), **style)
        broken = line.filter(~pl.col("coherent"))
        for axes, name in ((trait_axes, "trait"), (kl_axes, "kl")):
            axes.plot(broken.get_column("fraction"), broken.get_column(name), "x", color="crimson")
    for axes, label in ((trait_axes, "trait score"), (kl_axes, "KL to base, nats a token")):
        axes.set_xlabel("dose, fraction of the mean residual norm")
        axes.set_ylabel(label)
        axes.axhline(0, color="black", linewidth=0.5)
        if recommendation.fraction is not None:
            axes.axvline(recommendation.fraction, color="black", linestyle=":", linewidth=1)
    advice = (
        f"recommended {recommendation.fraction:+g} at block {recommendation.block}"
        if recommendation.found
        else "no dose will do"
    )
    figure.suptitle(f"{recommendation.persona}: {advice} (red cross: not coherent)", fontsize=10)
    trait_axes.legend(fontsize=7)
    figure.savefig(path, dpi=80)
