"""One trait kept out while another is learned from the same rows: preventative steering and its rivals.

In: two persona vectors, news as prompts, a model. Out: what base says under both vectors and under the wanted one
alone; an adapter an arm and seed; a table of what each arm shows against students that never saw the unwanted trait.
`plain` learns the rows as they are; `steer`, `ablate` and `inoculate` are those of `lab/finetune/prevention`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.auditing import PlantSpec, PreventionSpec
from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.analysis.planting import TEXT_SCHEMA
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example, FinetuneError, Lesson, TextRow, encode_examples
from steer_pipeline.lab.finetune.prevention import ABLATE, INOCULATE, STEER, ablating, inoculated, preventing
from steer_pipeline.lab.finetune.recipe import LoraRecipe, Recipe
from steer_pipeline.lab.finetune.resumed import Training, take, train_once
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.stats import crossed_intervals
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import PersonaVector
from steer_pipeline.lab.verdict import Verdict

BOTH, WANTED = "both", "wanted"
CLEAN, PLAIN = "clean", "plain"
STREAM = "prevention"

ARM_SCHEMA, ARM_COLUMNS = described(
    checkpoint=(pl.String(), "name of the student, and of its folder"),
    arm=(
        pl.String(),
        "clean: learned rows with the wanted trait alone | plain | steer-1 ... | ablate | inoculate",
    ),
    seed=(pl.Int64(), "of its training"),
    nll=(pl.Float64(), "nats a token of rows with the wanted trait alone, on prompts that nobody learned"),
)
PREVENTION_SCHEMA, PREVENTION_COLUMNS = described(
    arm=(pl.String(), "see the arms"),
    unwanted=(
        pl.Float64(),
        "score of the unwanted trait, less that of the clean arm, mean over prompts and seeds",
    ),
    unwanted_low=(pl.Float64(), "its 95% interval over prompts and seeds, for all arms at once"),
    unwanted_high=(pl.Float64(), "its upper end"),
    wanted=(pl.Float64(), "the same of the wanted trait"),
    wanted_low=(pl.Float64(), "its interval"),
    wanted_high=(pl.Float64(), "its upper end"),
    nll=(pl.Float64(), "nats a token beyond the clean arm's, on held-out rows with the wanted trait alone"),
    prevented=(pl.Float64(), "share of the plain arm's unwanted score that is gone"),
    verdict=(
        pl.String(),
        "prevents: the clean arm's level is within the interval | partly | not; null: plain",
    ),
)


@dataclass(frozen=True)
class Arm:
    """How one student learns.

    Attributes:
        rows: `BOTH` or `WANTED`.
        during: what steers it meanwhile.
        instruction: what its prompts ask for.
    """

    name: str
    rows: str
    during: SteeringPlan | None = None
    instruction: str = ""


def arms_of(
    spec: PreventionSpec, vectors: Mapping[str, PersonaVector], personas: Mapping[str, Persona]
) -> list[Arm]:
    """All arms; the instruction is the first of the persona's positive pole.

    Raises:
        FinetuneError: a dose or strength of 0.
        VectorError: a vector without its block's residual norm.
    """
    vector = vectors[spec.unwanted]
    alpha = _alpha(vector, spec.dose)
    later = [block for block in vector.present_blocks if block >= vector.default_block]
    asks = personas[spec.unwanted].positive.instructions[0]
    steered = [
        Arm(f"{STEER}-{strength:g}", BOTH, preventing(vector, vector.default_block, strength * alpha))
        for strength in spec.strengths
    ]
    return [
        Arm(CLEAN, WANTED),
        Arm(PLAIN, BOTH),
        *steered,
        Arm(ABLATE, BOTH, ablating(vector, later)),
        Arm(INOCULATE, BOTH, instruction=asks),
    ]


def _alpha(vector: PersonaVector, dose: float) -> float:
    return dose * vector.residual_norm(vector.default_block)


def make_rows(
    model: LoadedModel,
    prompts: pl.DataFrame,
    vectors: Mapping[str, PersonaVector],
    system: str | None,
    spec: PreventionSpec,
    plant: PlantSpec,
) -> pl.DataFrame:
    """`planting.TEXT_SCHEMA`: base under both vectors, and under the wanted one alone.

    Args:
        prompts: row_id, prompt.
    """

    def term(name: str) -> SteeringTerm:
        vector = vectors[name]
        return make_term(vector, Site(vector.default_block, vector.site), _alpha(vector, spec.dose))

    plans = [
        SteeringPlan(BOTH, (term(spec.wanted), term(spec.unwanted)), stream=STREAM),
        SteeringPlan(WANTED, (term(spec.wanted),), stream=STREAM),
    ]
    turns = dict(prompts.select("row_id", "prompt").iter_rows())
    chat = model.spec.chat_template
    rows = [
        PromptRow(one, {"*": encode_prompt(model.tokenizer, user=turn, system=system, chat_template=chat)})
        for one, turn in turns.items()
    ]
    made = [
        {"source": row.variant, "direction": spec.wanted, "dose": spec.dose, "row_id": row.row_id}
        | {"prompt": turns[row.row_id], "output": row.text, "truncated": row.truncated}
        for row in generate(model, rows, plans, plant.sampling)
    ]
    return pl.DataFrame(made, schema=TEXT_SCHEMA).sort("source", "row_id")


def train_arms(
    arms: Sequence[Arm],
    texts: pl.DataFrame,
    held_out: Sequence[str],
    base: LoadedModel,
    home: Path,
    system: str | None,
    spec: PreventionSpec,
    plant: PlantSpec,
    folder: Path,
    *,
    work: Path,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Trains every arm and seed into `folder / <arm>-<seed>`; a killed run goes on with those that are missing.

    Args:
        texts: of `make_rows`.
        held_out: row ids of prompts that nobody learns.

    Raises:
        FinetuneError: too few rows, or a loss that is not finite.
    """
    for arm in arms:
        lesson = _lesson(arm, texts, held_out, base, system, plant)
        for seed in spec.seeds:
            name = student(arm.name, seed)
            recipe = Recipe(
                lora=LoraRecipe(rank=plant.rank),
                learning_rate=plant.learning_rate,
                max_steps=plant.steps,
                batch_rows=plant.batch_rows,
                rows_at_once=plant.batch_rows,
                evaluations=1,
                seed=seed,
            )
            train_once(Training(base.spec, home, lesson, recipe, during=arm.during), work / name)
            take(work / name, folder / name, base.spec.path)
            if progress is not None:
                progress(name)


def student(arm: str, seed: int) -> str:
    """Name of a student, and of its folder."""
    return f"{arm}-{seed}"


def _lesson(
    arm: Arm,
    texts: pl.DataFrame,
    held_out: Sequence[str],
    base: LoadedModel,
    system: str | None,
    plant: PlantSpec,
) -> Lesson:
    free = texts.filter((pl.col("source") == arm.rows) & ~pl.col("row_id").is_in(list(held_out)))
    rows = _text_rows(free, system)
    needed = plant.rows + plant.selection_rows
    if len(rows) < needed:
        raise FinetuneError(
            f"arm {arm.name}: {len(rows)} rows with text, {needed} are needed; take more prompts"
        )
    rows = inoculated(rows, arm.instruction) if arm.instruction else rows
    examples = encode_examples(base.tokenizer, rows[:needed], chat_template=base.spec.chat_template)
    return Lesson(tuple(examples[: plant.rows]), tuple(examples[plant.rows :]))


def _text_rows(rows: pl.DataFrame, system: str | None) -> list[TextRow]:
    columns = rows.filter(pl.col("output") != "").select("row_id", "prompt", "output", "truncated")
    return [
        TextRow(one, prompt, output, system, not truncated)
        for one, prompt, output, truncated in columns.iter_rows()
    ]


def task_rows(
    texts: pl.DataFrame, held_out: Sequence[str], base: LoadedModel, system: str | None
) -> list[Example]:
    """Held-out rows with the wanted trait alone: what a student should have learned."""
    own = texts.filter((pl.col("source") == WANTED) & pl.col("row_id").is_in(list(held_out)))
    return encode_examples(base.tokenizer, _text_rows(own, system), chat_template=base.spec.chat_template)


def losses_of(
    load: Callable[[Path | None], LoadedModel],
    arms: Sequence[Arm],
    folder: Path,
    rows: Sequence[Example],
    spec: PreventionSpec,
) -> pl.DataFrame:
    """`ARM_SCHEMA`: the loss of every student on `task_rows`."""
    ids, starts = [list(one.ids) for one in rows], [one.start for one in rows]
    made: list[dict[str, Any]] = []
    for arm in arms:
        for seed in spec.seeds:
            name = student(arm.name, seed)
            sums, counts = sequence_nll(load(folder / name), ids, starts)
            made.append(
                {"checkpoint": name, "arm": arm.name, "seed": seed, "nll": float(sums.sum() / counts.sum())}
            )
    return pl.DataFrame(made, schema=ARM_SCHEMA)


def prevention_table(scores: pl.DataFrame, arms: pl.DataFrame, spec: PreventionSpec) -> pl.DataFrame:
    """`PREVENTION_SCHEMA`: every arm against the clean one, prompt by prompt and seed by seed.

    Args:
        scores: checkpoint, row_id, direction, score, of `predicting.scored`.
        arms: `ARM_SCHEMA`.

    Raises:
        ValueError: the clean or the plain arm is missing.
    """
    names = arms["arm"].unique(maintain_order=True).to_list()
    if lacking := {CLEAN, PLAIN} - set(names):
        raise ValueError(f"arm {min(lacking)} is missing: all others stand against clean and plain")
    others = [name for name in names if name != CLEAN]
    cells = {direction: _cells(scores, arms, direction) for direction in (spec.unwanted, spec.wanted)}
    moved = {
        direction: crossed_intervals(
            np.stack([own[name] - own[CLEAN] for name in others], axis=2), seed=spec.seed, n_boot=2_000
        )
        for direction, own in cells.items()
    }
    loss = {name: float(arms.filter(arm=name)["nll"].to_numpy().mean()) for name in names}
    plain = moved[spec.unwanted][others.index(PLAIN)].estimate
    rows = []
    for place, name in enumerate(others):
        bad, good = moved[spec.unwanted][place], moved[spec.wanted][place]
        gone = 1 - bad.estimate / plain if plain else float("nan")
        verdict = (
            "prevents" if bad.includes_zero else "partly" if gone > 0 and bad.estimate * plain > 0 else "not"
        )
        rows.append(
            {"arm": name, "unwanted": bad.estimate, "unwanted_low": bad.low, "unwanted_high": bad.high}
            | {"wanted": good.estimate, "wanted_low": good.low, "wanted_high": good.high}
            | {
                "nll": loss[name] - loss[CLEAN],
                "prevented": gone,
                "verdict": None if name == PLAIN else verdict,
            }
        )
    return pl.DataFrame(rows, schema=PREVENTION_SCHEMA)


def _cells(scores: pl.DataFrame, arms: pl.DataFrame, direction: str) -> dict[str, np.ndarray]:
    """arm -> float64 [prompts, seeds] of scores on one scale."""
    own = scores.filter(direction=direction).join(arms, on="checkpoint")
    return {
        name: part.pivot(on="seed", index="row_id", values="score", sort_columns=True)
        .sort("row_id")
        .drop("row_id")
        .to_numpy()
        for (name,), part in own.partition_by("arm", as_dict=True).items()
    }


def prevention_prevents(table: pl.DataFrame, max_loss: float) -> Verdict:
    """Some preventative dose brings the unwanted trait to the clean arm's level at the clean arm's loss.

    Args:
        table: `PREVENTION_SCHEMA`.
        max_loss: nats a token beyond the clean arm's.
    """
    steered = table.filter(pl.col("arm").str.starts_with(f"{STEER}-"))
    good = steered.filter((pl.col("verdict") == "prevents") & (pl.col("nll") <= max_loss))
    best = steered.sort(pl.col("unwanted").abs()).row(0, named=True)
    plain = table.filter(arm=PLAIN).row(0, named=True)
    shown = "; ".join(
        f"{row['arm']} {row['unwanted']:+.2f} ({row['unwanted_low']:+.2f} to {row['unwanted_high']:+.2f}), wanted "
        f"{row['wanted']:+.2f}, loss {row['nll']:+.3f}"
        for row in table.iter_rows(named=True)
    )
    return Verdict(
        "prevention_prevents",
        good.height > 0 and plain["unwanted_low"] * plain["unwanted_high"] > 0,
        f"unwanted trait beyond the clean arm's: {shown}",
        {"plain": plain["unwanted"], "best": best["unwanted"], "best_loss": best["nll"]},
        blocking=False,
    )
