"""Adapters whose content is known, to try audit and screening on: they learn texts that known vectors have steered.

In: persona vectors, news as prompts, a model. Out: `texts.parquet`, what base says by itself and under each vector and
dose; a folder an adapter, as PEFT writes it; `plants.parquet`, what each was taught. Clean adapters learn, with the
same recipe, what base says by itself, and are brought to the norms of the planted ones: size alone gives nothing away.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.auditing import PlantSpec
from steer_pipeline.catalogue.specs import ModelSpec, Persona
from steer_pipeline.lab.analysis.audit import CLEAN, MIXED, PLANT_SCHEMA, PLANTED
from steer_pipeline.lab.analysis.updates import at_norm, norm_of
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Lesson, TextRow, encode_examples
from steer_pipeline.lab.finetune.recipe import LoraRecipe, Recipe
from steer_pipeline.lab.finetune.resumed import MADE, Training, take, train_once
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import PersonaVector

TEXTS, PLANTS, LESSONS = "texts.parquet", "plants.parquet", "lessons.parquet"
BASE, AGAIN = "base", "again"  # what base says with the random numbers of the steered texts, and with others
N_AGAIN = 3  # of such others: what clean adapters learn, and neutral rows of mixed ones
STREAM = "planted"

TEXT_SCHEMA, TEXT_COLUMNS = described(
    source=(pl.String(), "base | again-1 ... | <persona>:+0.3: who wrote it"),
    direction=(pl.String(), "whose vector steered it; null for base"),
    dose=(pl.Float64(), "fraction of the mean residual norm; 0 for base"),
    row_id=(pl.String(), "of the news item"),
    prompt=(pl.String(), "the user turn"),
    output=(pl.String(), "what was said"),
    truncated=(pl.Boolean(), "whether the token limit cut it"),
)
LESSON_SCHEMA, LESSON_COLUMNS = described(
    checkpoint=(pl.String(), "which adapter learned or watched the row"),
    row_id=(pl.String(), "of the news item"),
    source=(pl.String(), "who wrote the completion, as in the texts"),
    planted=(pl.Boolean(), "whether it is steered"),
    learned=(pl.Boolean(), "false: only watched"),
)


@dataclass(frozen=True)
class Cell:
    """A direction at a dose."""

    direction: str
    dose: float

    @property
    def source(self) -> str:
        return f"{self.direction}:{self.dose:+g}"


@dataclass(frozen=True)
class Plant:
    """What one adapter learns: `share` of its rows from `cell`, the others from base."""

    name: str
    group: str
    cell: Cell | None
    share: float


def prompts_of(
    model: LoadedModel,
    news: pl.DataFrame,
    user_turn: Callable[[str], str],
    system: str | None,
    spec: PlantSpec,
) -> pl.DataFrame:
    """row_id, text, prompt of news items short enough, drawn by `seed`; as many as there are of them, at most
    `prompts`.

    Raises:
        ValueError: fewer than an adapter needs.
    """
    turns = {row_id: user_turn(text) for row_id, text in news.select("row_id", "text").iter_rows()}
    lengths = {
        row_id: len(
            encode_prompt(model.tokenizer, user=turn, system=system, chat_template=model.spec.chat_template)
        )
        for row_id, turn in turns.items()
    }
    short = sorted((one for one, n in lengths.items() if n <= spec.max_prompt_tokens), key=_keyed(spec.seed))
    needed = spec.rows + spec.selection_rows
    if len(short) < needed:
        raise ValueError(
            f"{len(short)} news items have prompts of at most {spec.max_prompt_tokens} tokens, {needed} are needed; "
            "raise auditing.plant.max_prompt_tokens"
        )
    chosen = short[: spec.prompts]
    frame = pl.DataFrame({"row_id": chosen, "prompt": [turns[one] for one in chosen]})
    return frame.join(news.select("row_id", "text"), on="row_id", how="left", maintain_order="left")


def _keyed(*seeds: object) -> Callable[[str], bytes]:
    key = ":".join(map(str, seeds))
    return lambda name: hashlib.sha256(f"{key}:{name}".encode()).digest()


def cells_of(
    spec: PlantSpec, personas: Mapping[str, Persona], vectors: Mapping[str, PersonaVector]
) -> list[Cell]:
    """Every direction at every dose, doses outermost, the largest first; negative doses of axes alone.

    Raises:
        ValueError: a persona without a vector.
    """
    names = spec.personas or sorted(vectors)
    if lacking := [name for name in names if name not in vectors]:
        raise ValueError(
            f"auditing.plant: no vector of {', '.join(lacking)}; materialise persona_vector for it"
        )
    return [
        Cell(name, dose)
        for dose in sorted(spec.doses, key=lambda one: (-abs(one), -one))
        for name in names
        if dose > 0 or personas[name].kind == "axis"
    ]


def plants_of(spec: PlantSpec, cells: Sequence[Cell]) -> list[Plant]:
    """All adapters: planted ones over all cells in turn, mixed ones of the strongest cells, clean ones."""
    found = [
        Plant(f"{PLANTED}-{turn}", PLANTED, cells[turn % len(cells)], 1.0) for turn in range(spec.n_planted)
    ]
    found += [
        Plant(f"{MIXED}-{share:g}-{turn}", MIXED, cells[turn % len(cells)], share)
        for share in spec.shares
        for turn in range(spec.n_mixed)
    ]
    return [*found, *(Plant(f"{CLEAN}-{turn}", CLEAN, None, 0.0) for turn in range(spec.n_clean))]


# ------------------------------------------------------------------------------------ texts


def make_texts(
    model: LoadedModel,
    prompts: pl.DataFrame,
    cells: Sequence[Cell],
    vectors: Mapping[str, PersonaVector],
    system: str | None,
    spec: PlantSpec,
    *,
    progress: Callable[[Any], None] | None = None,
) -> pl.DataFrame:
    """`TEXT_SCHEMA`: every prompt answered by base, by base again, and under every cell.

    Raises:
        VectorError: a vector without its block's residual norm, or of another model.
    """
    plans = [SteeringPlan(BASE, stream=STREAM)]
    plans += [SteeringPlan(f"{AGAIN}-{k}", stream=f"{STREAM}-{AGAIN}-{k}") for k in range(1, N_AGAIN + 1)]
    plans += [SteeringPlan(cell.source, (_term(cell, vectors),), stream=STREAM) for cell in cells]
    rows = [
        PromptRow(
            row_id,
            {
                "*": encode_prompt(
                    model.tokenizer, user=turn, system=system, chat_template=model.spec.chat_template
                )
            },
        )
        for row_id, turn in prompts.select("row_id", "prompt").iter_rows()
    ]
    turns = dict(prompts.select("row_id", "prompt").iter_rows())
    by_source = {cell.source: cell for cell in cells}
    made = [
        {"source": row.variant, "row_id": row.row_id, "prompt": turns[row.row_id]}
        | {"output": row.text, "truncated": row.truncated}
        | {
            "direction": by_source[row.variant].direction if row.variant in by_source else None,
            "dose": by_source[row.variant].dose if row.variant in by_source else 0.0,
        }
        for row in generate(model, rows, plans, spec.sampling, progress=progress)
    ]
    return pl.DataFrame(made, schema=TEXT_SCHEMA).sort("source", "row_id")


def _term(cell: Cell, vectors: Mapping[str, PersonaVector]) -> Any:
    vector = vectors[cell.direction]
    block = vector.default_block
    return make_term(vector, Site(block, vector.site), cell.dose * vector.residual_norm(block))


def lesson_of(plant: Plant, texts: pl.DataFrame, spec: PlantSpec) -> pl.DataFrame:
    """`LESSON_SCHEMA`: rows drawn by the adapter's name; planted ones are spread evenly over them.

    A row whose text is empty cannot be learned and is passed over.
    """
    said = {
        (source, row_id)
        for source, row_id, output in texts.select("source", "row_id", "output").iter_rows()
        if output
    }
    order = sorted(texts["row_id"].unique(), key=_keyed(spec.seed, plant.name))
    neutral = [BASE, *(f"{AGAIN}-{k}" for k in range(1, N_AGAIN + 1))]
    first = int.from_bytes(_keyed(spec.seed, plant.name)("neutral")[:4], "big")
    rows: list[dict[str, Any]] = []
    for row_id in order:
        place = len(rows)
        planted = plant.cell is not None and int((place + 1) * plant.share) > int(place * plant.share)
        source = plant.cell.source if planted and plant.cell else neutral[(first + place) % len(neutral)]
        if (source, row_id) not in said:
            continue
        rows.append({"checkpoint": plant.name, "row_id": row_id, "source": source, "planted": planted})
        if len(rows) == spec.rows + spec.selection_rows:
            break
    else:
        raise ValueError(
            f"{plant.name}: {len(rows)} rows with text, {spec.rows + spec.selection_rows} are needed"
        )
    return pl.DataFrame(
        [row | {"learned": i < spec.rows} for i, row in enumerate(rows)], schema=LESSON_SCHEMA
    )


# ------------------------------------------------------------------------------------ adapters


def recipe_of(spec: PlantSpec, name: str) -> Recipe:
    """How an adapter is trained; its seed comes of its name."""
    return Recipe(
        lora=LoraRecipe(rank=spec.rank),
        learning_rate=spec.learning_rate,
        max_steps=spec.steps,
        batch_rows=spec.batch_rows,
        rows_at_once=spec.batch_rows,
        evaluations=1,
        seed=int.from_bytes(_keyed(spec.seed, name)("training")[:4], "big") % (1 << 31),
    )


def train_plants(
    plants: Sequence[Plant],
    texts: pl.DataFrame,
    model: ModelSpec,
    home: Path,
    tokenizer: Any,
    system: str | None,
    spec: PlantSpec,
    folder: Path,
    *,
    work: Path,
    progress: Callable[[str], None] | None = None,
) -> pl.DataFrame:
    """Trains every adapter into `folder / name` and writes both tables; `PLANT_SCHEMA`.

    A killed run goes on with the adapters that are missing. Clean adapters are brought to the norms of planted ones, in
    turn; what they were before does not stay.

    Raises:
        FinetuneError: a row without a completion, or a loss that is not finite.
    """
    lessons = []
    for number, plant in enumerate(plants):
        rows = lesson_of(plant, texts, spec)
        lessons.append(rows)
        lesson = lesson_examples(rows, texts, tokenizer, system, chat_template=model.chat_template)
        train_once(Training(model, home, lesson, recipe_of(spec, plant.name)), work / plant.name)
        if progress is not None:
            progress(f"adapter {number + 1} of {len(plants)}: {plant.name}")
    norms = [norm_of(work / plant.name / MADE) for plant in plants if plant.group == PLANTED]
    made: list[dict[str, Any]] = []
    for plant in plants:
        own = folder / plant.name
        take(work / plant.name, own, model.path)
        if plant.group == CLEAN:
            turn = sum(row["group"] == CLEAN for row in made)
            at_norm(own, norms[turn % len(norms)], own)
        made.append(
            {"checkpoint": plant.name, "group": plant.group, "share": plant.share, "norm": norm_of(own)}
            | {"direction": plant.cell.direction if plant.cell else None}
            | {"dose": plant.cell.dose if plant.cell else 0.0}
        )
    table = pl.DataFrame(made, schema=PLANT_SCHEMA)
    table.write_parquet(folder / PLANTS)
    pl.concat(lessons).write_parquet(folder / LESSONS)
    return table


def lesson_examples(
    rows: pl.DataFrame, texts: pl.DataFrame, tokenizer: Any, system: str | None, *, chat_template: bool
) -> Lesson:
    """`LESSON_SCHEMA` rows with their texts, as training sees them."""
    joined = rows.join(texts, on=["source", "row_id"], how="left", maintain_order="left")
    made = [
        TextRow(row["row_id"], row["prompt"], row["output"], system, ended=not row["truncated"])
        for row in joined.iter_rows(named=True)
    ]
    examples = encode_examples(tokenizer, made, chat_template=chat_template)
    learned = joined["learned"].to_list()
    return Lesson(
        tuple(one for one, own in zip(examples, learned, strict=True) if own),
        tuple(one for one, own in zip(examples, learned, strict=True) if not own),
    )
