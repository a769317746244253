"""What the students of one variant do on held-out news, row by row: the numbers that every table is made from.

In: adapters, held-out news and scorers. Out: `rows.parquet`, one row a student and news item, the unsteered model
among them as rank 0; `pack.parquet`, what was learned, scored alike; `states.safetensors`, how the unsteered model
reads both. Decoding, prompts and random numbers are those of the packs, the same for all students.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow, decoding_hash
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.models.completions import completion_nll
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan, resolve_site
from steer_pipeline.lab.quality import OUR_RULES, find_loop, scan_suspects, words
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.comparison import trait_column
from steer_pipeline.lab.rewrites.source import Source
from steer_pipeline.lab.rewrites.work import user_turn
from steer_pipeline.lab.students.data import examples_of, overlap, prompt_ids
from steer_pipeline.lab.students.training import STUDENTS, all_rows

ROWS, PACK, STATES, FACTS = "rows.parquet", "pack.parquet", "states.safetensors", "transfer.json"
STREAM = "students"  # of random numbers: all students draw the same ones for one news item
PLAN = SteeringPlan("student", stream=STREAM)
ITSELF, MODEL_ITSELF = "model", 0  # variant and rank of the model without a student
ROW_SCHEMA, ROW_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of its LoRA; 0 for the model itself"),
    seed=(pl.Int64(), "of its training; null for the model itself"),
    row_id=(pl.String(), "of the news item"),
    output=(pl.String(), "the rewrite"),
    n_new_tokens=(pl.Int64(), "tokens drawn, the end token included"),
    truncated=(pl.Boolean(), "whether the token limit cut it"),
    n_words=(pl.Int64(), "its words"),
    suspects=(pl.List(pl.String()), "names of the suspect rules of ours that it trips"),
    facts_kept=(pl.Float64(), "share of the lead's facts that it keeps; null where the lead has none"),
    loop=(pl.Boolean(), "whether it goes round in circles"),
    nll_output=(pl.Float64(), "nats a token of it under the unsteered model; null for an empty rewrite"),
    nll_reference=(pl.Float64(), "nats a token of the unsteered model's rewrite under the student"),
)

Load = Callable[[Path | None], LoadedModel]
Open = Callable[[str], Journal]
Scorers = Mapping[str, Mapping[str, TraitScorer]]


@dataclass(frozen=True)
class Task:
    """What students are judged on.

    Attributes:
        news: held out: row_id, text.
        source: texts and facts of held-out and learned news.
        scorers: persona -> scale -> scorer.
    """

    profile: Profile
    news: pl.DataFrame
    source: Source
    scorers: Scorers


@dataclass(frozen=True)
class Transfer:
    """`rows` (`ROW_SCHEMA` and a column a trait and scale), `pack` alike, and what the unsteered model reads in them.

    Attributes:
        states, pack_states: fp32 [rows, blocks read, hidden], in the order of `rows` and `pack`: means over the
            rewrite's tokens; zeros for an empty one.
        blocks: those that were read.
        facts: what else is told of the run.
    """

    rows: pl.DataFrame
    pack: pl.DataFrame
    states: np.ndarray
    pack_states: np.ndarray
    blocks: list[int]
    facts: dict[str, Any]


def measure_transfer(
    variant: str,
    adapters: Path,
    kept: pl.DataFrame,
    task: Task,
    load: Load,
    *,
    journal: Open | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Transfer:
    """Lets every student of a variant rewrite the held-out news, and measures what comes.

    Args:
        adapters: the folder of `train_students`.
        kept: the keep set that they were trained on.
        load: gives the model with the adapter of a folder on it, or without one.
        journal: opens the journal of a student by name.

    Raises:
        Refused: held-out news were learned, or nearly; or what was learned is no longer among the news.
    """
    learned = all_rows(adapters)
    _refuse_overlap(variant, task, learned)
    writing = Writing(task, load, journal, progress)
    parts = [writing.rows(ITSELF, MODEL_ITSELF, None, load(None), ITSELF)]
    for row in pl.read_parquet(adapters / STUDENTS).iter_rows(named=True):
        name = f"{variant}-{row['rank']}-{row['seed']}"
        student = load(adapters / row["folder"])
        parts.append(writing.rows(variant, row["rank"], row["seed"], student, name))
    base = load(None)
    rows = measured(pl.concat(parts), task, base)
    pack = kept.filter(pl.col("row_id").is_in(learned)).sort("row_id")
    pack = pack.select("row_id", "prompt", "output", "truncated", "n_new_tokens", nll_reference=None)
    pack = measured(pack.with_columns(variant=pl.lit(variant), rank=None, seed=None), task, base)
    blocks = read_blocks(task.profile, base)
    return Transfer(
        rows.drop("prompt"),
        pack.drop("prompt"),
        states_of(rows, task.profile, base),
        states_of(pack, task.profile, base),
        blocks,
        {
            "variant": variant,
            "held_out_rows": task.news.height,
            "blocks": blocks,
            "model": str(base.identity),
            "decoding_hash": decoding_hash(task.profile.rewrites.sampling, base),
            "overlap": [],
        },
    )


def write_transfer(made: Transfer, folder: Path) -> None:
    """The tables, states and facts."""
    made.rows.write_parquet(folder / ROWS)
    made.pack.write_parquet(folder / PACK)
    save_file({"rows": made.states, "pack": made.pack_states}, folder / STATES)
    (folder / FACTS).write_text(json.dumps(made.facts, indent=1, sort_keys=True) + "\n")


def _refuse_overlap(variant: str, task: Task, learned: Sequence[str]) -> None:
    if gone := [row for row in learned if row not in task.source.texts]:
        raise Refused(
            f"{variant}: {len(gone)} rows that its students learned are no longer among the news, such as {gone[0]}; "
            "make rewrite_raw and what follows again, then student_adapter"
        )
    threshold = task.profile.corpus.near_duplicate_threshold
    texts = pl.DataFrame({"row_id": learned, "text": [task.source.texts[row] for row in learned]})
    if known := overlap(task.news, learned, texts, threshold):
        raise Refused(
            f"{variant}: {len(known)} held-out news were learned, or nearly: {', '.join(known[:3])}; add news, or "
            "lower rewrites.full_rows or students.held_out_rows, so that enough of the corpus is in no pack"
        )


class Writing:
    """Students that write on the same prompts; what the unsteered model writes there is the neutral reference."""

    def __init__(
        self,
        task: Task,
        load: Load,
        journal: Open | None,
        progress: Callable[[Any], None] | None,
    ) -> None:
        self._task, self._journal, self._progress = task, journal, progress
        base = load(None)
        self._prompts = prompt_ids(base.tokenizer, task.news, task.profile)
        written = self._write(base, ITSELF)
        self._reference = _examples(
            base,
            self._frame(written).filter(pl.col("output").str.strip_chars() != ""),
            task.profile,
        )

    def rows(
        self,
        variant: str,
        rank: int,
        seed: int | None,
        model: LoadedModel,
        name: str,
        *,
        prompts: Mapping[str, list[int]] | None = None,
    ) -> pl.DataFrame:
        """What one student writes, and how likely it finds the neutral reference: one row a news item.

        Args:
            name: of its journal.
            prompts: in place of the neutral ones; no reference is read then.
        """
        frame = self._frame(self._write(model, name, prompts))
        nll = _nll(model, self._reference) if prompts is None else {}
        return frame.with_columns(
            pl.Series("nll_reference", [nll.get(row) for row in frame["row_id"]], dtype=pl.Float64),
            variant=pl.lit(variant),
            rank=pl.lit(rank, dtype=pl.Int64),
            seed=pl.lit(seed, dtype=pl.Int64),
        )

    def none(self) -> pl.DataFrame:
        """No rows, with the columns of `rows`."""
        seen = {"row_id": "", "prompt": "", "output": "", "variant": "", "truncated": False}
        whole = {"n_new_tokens": 0, "rank": 0, "seed": 0, "nll_reference": 0.0}
        return pl.DataFrame([seen | whole]).clear()

    def _write(
        self, model: LoadedModel, name: str, prompts: Mapping[str, list[int]] | None = None
    ) -> list[FinishedRow]:
        rows = [PromptRow(row_id, {"*": ids}) for row_id, ids in (prompts or self._prompts).items()]
        sampling = self._task.profile.rewrites.sampling
        journal = None if self._journal is None else self._journal(name)
        return list(generate(model, rows, [PLAN], sampling, journal=journal, progress=self._progress))

    def _frame(self, finished: Sequence[FinishedRow]) -> pl.DataFrame:
        """In the order of the news, with the user turn of each."""
        by_row = {row.row_id: row for row in finished}
        ordered = [by_row[row_id] for row_id in self._prompts]
        return pl.DataFrame(
            {
                "row_id": [row.row_id for row in ordered],
                "prompt": [user_turn(self._task.profile, text) for text in self._task.news["text"]],
                "output": [row.text for row in ordered],
                "n_new_tokens": [row.n_new_tokens for row in ordered],
                "truncated": [row.truncated for row in ordered],
            }
        )


# ------------------------------------------------------------------------------------ what is measured


def _examples(model: LoadedModel, rows: pl.DataFrame, profile: Profile) -> dict[str, Example]:
    """row_id -> ids of prompt and rewrite, as training would see them."""
    return {one.row_id: one for one in examples_of(model.tokenizer, rows, profile)}


def _nll(model: LoadedModel, examples: Mapping[str, Example]) -> dict[str, float]:
    """Nats a token of each rewrite under a model, given its prompt; rewrites of one prompt are read in one pass."""
    of_prompt: dict[tuple[int, ...], list[str]] = {}
    for name, one in examples.items():
        of_prompt.setdefault(one.ids[: one.start], []).append(name)
    completions = [
        [examples[name].ids[examples[name].start :] for name in names] for names in of_prompt.values()
    ]
    found = completion_nll(model, list(of_prompt), completions)
    return {
        name: value
        for names, values in zip(of_prompt.values(), found, strict=True)
        for name, value in zip(names, values, strict=True)
    }


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that have a text, each under a name of its own: a news item comes once a student."""
    named = rows.with_row_index("number").filter(pl.col("output").str.strip_chars() != "")
    return named.with_columns(row_id=pl.col("number").cast(pl.String))


def read_blocks(profile: Profile, base: LoadedModel) -> list[int]:
    """Blocks at whose output rewrites are read."""
    return sorted({resolve_site(block, base.n_blocks).block for block in profile.students.read_blocks})


def measured(rows: pl.DataFrame, task: Task, base: LoadedModel) -> pl.DataFrame:
    """`rows` with costs and traits; columns of `ROW_SCHEMA`, `prompt`, and one a trait and scale."""
    outputs, ids = rows["output"].to_list(), rows["row_id"].to_list()
    special = base.tokenizer.all_special_tokens
    suspects = [
        [
            rule
            for rule in scan_suspects(text, task.source.texts[row], special_tokens=special)
            if rule in OUR_RULES
        ]
        for row, text in zip(ids, outputs, strict=True)
    ]
    nll = _nll(base, _examples(base, _numbered(rows), task.profile))
    known: dict[str, Any] = {
        "n_words": [len(words(text)) for text in outputs],
        "suspects": suspects,
        "facts_kept": task.source.facts_kept(rows),
        "loop": [find_loop(text) is not None for text in outputs],
        "nll_output": [nll.get(str(number)) for number in range(rows.height)],
    }
    added = [pl.Series(name, values, dtype=ROW_SCHEMA[name]) for name, values in known.items()]
    rows = rows.with_columns(added).cast(
        {name: ROW_SCHEMA[name] for name in ("rank", "seed", "nll_reference")}
    )
    return with_traits(rows.select("prompt", *ROW_SCHEMA.names()), task.scorers)


def with_traits(rows: pl.DataFrame, scorers: Scorers) -> pl.DataFrame:
    """`rows` with a column a trait and scale."""
    outputs = rows["output"].to_list()
    return rows.with_columns(
        pl.Series(
            trait_column(persona, scale),
            np.asarray(scorer.score_many(outputs) if outputs else [], dtype=np.float64),
        )
        for persona, scales in scorers.items()
        for scale, scorer in scales.items()
    )


def states_of(rows: pl.DataFrame, profile: Profile, base: LoadedModel) -> np.ndarray:
    """fp32 [rows, blocks read, hidden]: what the unsteered model makes of each rewrite, given its prompt."""
    blocks = read_blocks(profile, base)
    examples = _examples(base, _numbered(rows), profile)
    found = np.zeros((rows.height, len(blocks), base.hidden_size), dtype=np.float32)
    requests = [HiddenRequest(list(one.ids), one.start, len(one.ids)) for one in examples.values()]
    if requests:
        found[[int(name) for name in examples]] = collect_means(base, requests, blocks=blocks)
    return found
