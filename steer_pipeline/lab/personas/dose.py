"""How much of a vector to add, and where: rewrites at every block and dose, beside random directions, scored.

In: a persona vector, held-out news rows, the rewrite prompt and the persona's scales. Out: one row a news item and
cell. `dose_table` makes a table and a recommendation of the rows, without a model; `dose_plot` draws them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import CoherenceSpec, DoseSpec, RewriteSpec
from steer_pipeline.lab.corpus.identity import digest64
from steer_pipeline.lab.evaluation import Scales, require_telling
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.models.completions import completion_nll
from steer_pipeline.lab.models.hidden import mean_kl
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, resolve_site
from steer_pipeline.lab.personas.dose_table import COST, band_place, best_cells, sweep_table
from steer_pipeline.lab.quality import facts_kept, scan_suspects
from steer_pipeline.lab.quality.coherence import COSTS, text_costs
from steer_pipeline.lab.vectors.doses import make_term, random_like
from steer_pipeline.lab.vectors.vector import PersonaVector, require_same_model

ROW_SCHEMA: dict[str, Any] = {
    "row_id": pl.String,
    "variant": pl.String,
    "direction": pl.String,
    "draw": pl.Int32,  # number of a random direction, else null
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
    **{f"{COST}{name}": pl.Float64 for name in COSTS},
}


@dataclass(frozen=True)
class Cell:
    """One plan of the sweep. The variant's name tells direction, block and fraction."""

    direction: str  # "base", "persona" or "random"
    block: int | None
    fraction: float
    plan: SteeringPlan
    draw: int | None = None

    @property
    def alpha(self) -> float:
        return self.plan.terms[0].alpha if self.plan.terms else 0.0


def base_cell() -> Cell:
    return Cell("base", None, 0.0, SteeringPlan("base", stream="dose"))


def steered_cells(
    vector: PersonaVector, blocks: Sequence[int], fractions: Sequence[float], scope: str
) -> list[Cell]:
    """A cell for every block and non-zero fraction of the mean residual norm there."""
    return [_cell(vector, block, fraction, scope) for block in blocks for fraction in fractions if fraction]


def random_cells(
    vector: PersonaVector, block: int, fraction: float, scope: str, *, n: int, seed: int
) -> list[Cell]:
    """`n` random directions at `block` with the norm of the dose: what disturbance alone does.

    Those of two personas differ: chance must not favour, or harm, all of them together.
    """
    seeds = [digest64(f"{seed}\x1f{vector.persona}\x1f{draw}") for draw in range(n)]
    return [_cell(vector, block, fraction, scope, draw, own) for draw, own in enumerate(seeds)]


def _cell(
    vector: PersonaVector,
    block: int,
    fraction: float,
    scope: str,
    draw: int | None = None,
    random_seed: int = 0,
) -> Cell:
    term = make_term(vector, Site(block, vector.site), fraction * vector.residual_norm(block))
    direction, number = "persona", ""
    if draw is not None:
        term, direction, number = random_like(term, random_seed), "random", f"{draw:02d}"
    name = f"{direction}{number}_block{block:02d}_dose{fraction:+.3f}"
    return Cell(direction, block, fraction, SteeringPlan(name, (term,), scope, stream="dose"), draw)


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
    scales: Scales,
    *,
    limits: CoherenceSpec,
    chat_template: bool = True,
    both_poles: bool = False,
) -> pl.DataFrame:
    """Rewrites of every row in every cell, scored.

    Base and all persona cells first, and with `spec.refine` only the best of these on all rows. Then, in one call and
    on all rows, random directions at the block and norm that are recommended, or where the trait moved most.

    Args:
        model: LoadedModel on which the vector was made.
        rows: columns `row_id`, `text` and `facts` (list of str: what a rewrite should keep).
        rewrite: prompt, neutral system turn, scope and decoding settings, as the packs will have them; all cells draw
            the same random numbers.
        scales: the persona's; texts are scored on the headline's.
        limits: of what a coherent text may lose.
        chat_template: as in the profile's model.
        both_poles: passed to `recommend_dose`.

    Returns:
        Rows of `ROW_SCHEMA`; base once, with block null. `kl` is the mean over the completion's positions of
        KL(steered || base) in nats, measured on `spec.kl_rows` rows, the same in every persona's cell; else null.

    Raises:
        VectorError: the vector was made on another model.
        ScaleError: the scale says the same of all texts.
    """
    require_same_model(vector, model)
    grid = steered_cells(vector, sweep_blocks(vector, spec), spec.fractions, rewrite.scope)
    sweep = _Sweep(model, rows, spec, rewrite, scales, chat_template)
    coarse = spec.coarse_rows if spec.refine else rows.height
    found = sweep.run([base_cell(), *grid], sweep.order[:coarse])
    if coarse < rows.height:
        best = best_cells(sweep_table(found, spec, limits), both_poles=both_poles)
        chosen = [cell for cell in grid if (cell.block, cell.fraction) in best]
        found = pl.concat([found, sweep.run([base_cell(), *chosen], sweep.order[coarse:])])
    require_telling(scales.persona, scales.headline, found.get_column("trait"))
    block, fraction = band_place(sweep_table(found, spec, limits), vector.persona, both_poles=both_poles)
    if fraction <= 0:
        return found
    band = random_cells(vector, block, fraction, rewrite.scope, n=spec.n_random, seed=spec.seed)
    return pl.concat([found, sweep.run(band, sweep.order)])


def run_cells(
    model: LoadedModel,
    rows: pl.DataFrame,
    cells: Sequence[Cell],
    spec: DoseSpec,
    rewrite: RewriteSpec,
    scales: Scales,
    *,
    chat_template: bool = True,
) -> pl.DataFrame:
    """Every row in every cell, written and scored as in a sweep: rows of `ROW_SCHEMA`, by cell and row id.

    Args: as `sweep_rows`.
    """
    return _Sweep(model, rows, spec, rewrite, scales, chat_template).run(cells, list(rows["row_id"]))


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
    """Runs cells over prompts. `order`: all row ids as `spec.seed` shuffles them; any first part is a fair sample."""

    def __init__(
        self,
        model: LoadedModel,
        rows: pl.DataFrame,
        spec: DoseSpec,
        rewrite: RewriteSpec,
        scales: Scales,
        chat_template: bool,
    ) -> None:
        self.model, self.scorer = model, scales.scorer
        self.texts = dict(rows.select("row_id", "text").iter_rows())
        self.facts = dict(rows.select("row_id", "facts").iter_rows())
        self.prompts = {row.row_id: row for row in prompt_rows(model, rows, rewrite, chat_template)}
        self.sampling = rewrite.sampling  # a dose holds for the decoding that it was found with
        shuffled = np.random.default_rng(spec.seed).permutation(len(self.prompts))
        self.order = [sorted(self.prompts)[i] for i in shuffled]
        self.measured = set(self.order[: spec.kl_rows])

    def run(self, cells: Sequence[Cell], row_ids: Sequence[str]) -> pl.DataFrame:
        """The named rows in each cell: rows of `ROW_SCHEMA`, by cell and row id."""
        prompts = [self.prompts[row_id] for row_id in sorted(row_ids)]
        made = {
            (row.variant, row.row_id): row
            for row in generate(self.model, prompts, [cell.plan for cell in cells], self.sampling)
        }
        by_cell = [[made[cell.plan.variant, prompt.row_id] for prompt in prompts] for cell in cells]
        nll = completion_nll(
            self.model,
            [prompt.ids["*"] for prompt in prompts],
            [[rows[place].token_ids for rows in by_cell] for place in range(len(prompts))],
        )
        scored = [
            row
            for number, (cell, rows) in enumerate(zip(cells, by_cell, strict=True))
            for row in self._scored(cell, rows, [of_prompt[number] for of_prompt in nll])
        ]
        return pl.DataFrame(scored, schema=ROW_SCHEMA)

    def _scored(self, cell: Cell, rows: Sequence[FinishedRow], nll: Sequence[float]) -> list[dict[str, Any]]:
        texts = [row.text for row in rows]
        special = self.model.tokenizer.all_special_tokens
        suspects = [scan_suspects(row.text, self.texts[row.row_id], special_tokens=special) for row in rows]
        kept = [_known(facts_kept(self.facts[row.row_id], row.text)) for row in rows]
        costs = text_costs(texts, suspects, kept, [_known(value) for value in nll])
        traits, divergence = self.scorer.score_many(texts), self._divergence(cell, rows)
        return [
            {
                "row_id": row.row_id,
                "variant": cell.plan.variant,
                "direction": cell.direction,
                "draw": cell.draw,
                "block": cell.block,
                "fraction": cell.fraction,
                "alpha": cell.alpha,
                "text": row.text,
                "n_tokens": row.n_new_tokens,
                "truncated": row.truncated,
                "trait": float(traits[i]),
                "shown": self.scorer.shows(row.text),
                "opposite_shown": self.scorer.shows_opposite(row.text),
                "suspects": suspects[i],
                "facts_kept": kept[i],
                "kl": divergence[i],
                **{f"{COST}{name}": value for name, value in costs.row(i, named=True).items()},
            }
            for i, row in enumerate(rows)
        ]

    def _divergence(self, cell: Cell, rows: Sequence[FinishedRow]) -> list[float | None]:
        """KL(steered || base) a token over each completion."""
        if cell.direction == "base":
            return [0.0 if row.row_id in self.measured else None for row in rows]
        read = [row for row in rows if row.token_ids and row.row_id in self.measured]
        if cell.direction == "random" or not read:
            return [None] * len(rows)
        prompts = [self.prompts[row.row_id].ids["*"] for row in read]
        ids = [prompt + row.token_ids for prompt, row in zip(prompts, read, strict=True)]
        values = mean_kl(self.model, ids, [len(prompt) for prompt in prompts], cell.plan)
        measured = {row.row_id: float(value) for row, value in zip(read, values, strict=True)}
        return [measured.get(row.row_id) for row in rows]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
