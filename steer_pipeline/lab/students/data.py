"""Which rows a student learns, which news it is judged on, and that all consumers see the same token ids.

In: the keep set of a released pack, the truncated news and the profile. Out: rows of prompt and completion for
`lab/finetune`, and held-out news: no row of it, and none nearly like it, is in any pack.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.lab.corpus import mark_duplicates
from steer_pipeline.lab.finetune.data import Example, Lesson, TextRow, differing_rows, encode_examples
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.personas.steps import reserved_for_personas
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.release import released
from steer_pipeline.lab.rewrites.work import user_turn

KEEP = "keep_set"


def released_keep_set(read: Reader, variant: str) -> pl.DataFrame:
    """The keep set of the pack that is released.

    Raises:
        Refused: nothing is released, or the keep set is of another version of the pack.
        StoreError: the pointer is damaged.
    """
    pack, kept = released(read.store, variant), read.current(KEEP, variant)
    if pack is None or kept is None:
        what = "no released pack" if pack is None else "no keep_set"
        raise Refused(f"{variant}: there is {what} to learn from; `steer make pilot` makes and releases it")
    judged = kept.manifest["inputs"].get(f"rewrite_pack[{variant}]")
    if judged != pack:
        raise Refused(
            f"{variant}: version {pack} of its pack is released, and keep_set is of {judged}: release the newest pack "
            f"(`steer release promote {variant}`), or materialise keep_set after a roll-back"
        )
    return read_rows(kept.path)


# ------------------------------------------------------------------------------------ what is learned


def lesson_rows(
    kept: pl.DataFrame, profile: Profile, variant: str, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to learn and rows to watch: as many as the profile says, drawn by row ids and both seeds alone.

    Students of one seed learn from the same news whatever their variant, but for rows that one of them did not keep;
    those of another seed from others, so that an interval over seeds holds for the draw of rows too.

    Args:
        seed: of the student.

    Raises:
        Refused: too few rows are kept.
    """
    spec = profile.students
    good = kept.filter("keep")
    wanted = spec.rows + spec.selection_rows
    if good.height < wanted:
        raise Refused(
            f"{variant}: {good.height} of {kept.height} rows are kept, and {spec.rows} to learn and "
            f"{spec.selection_rows} to watch are wanted; lower students.rows or students.selection_rows, or make the "
            "full pack"
        )
    drawn = in_keyed_order(good, spec.seed, seed).head(wanted)
    return drawn.head(spec.rows), drawn.tail(spec.selection_rows)


def in_keyed_order(rows: pl.DataFrame, *seeds: int) -> pl.DataFrame:
    """Rows sorted by a hash of seeds and `row_id`."""
    key = ":".join(map(str, seeds))
    keys = [hashlib.sha256(f"{key}:{row_id}".encode()).hexdigest() for row_id in rows["row_id"]]
    return rows.with_columns(pl.Series("key", keys, dtype=pl.String)).sort("key").drop("key")


def text_rows(rows: pl.DataFrame, profile: Profile) -> list[TextRow]:
    """Rows with row_id, prompt, output and truncated as rows to learn; the system turn is the neutral one.

    A rewrite that the token limit cut is not taught to end.
    """
    columns = rows.select("row_id", "prompt", "output", "truncated")
    return [
        TextRow(row_id, prompt, output, profile.rewrites.system, ended=not truncated)
        for row_id, prompt, output, truncated in columns.iter_rows()
    ]


def examples_of(tokenizer: Any, rows: pl.DataFrame, profile: Profile) -> list[Example]:
    """`text_rows` as ids, through the one tokenisation."""
    return encode_examples(tokenizer, text_rows(rows, profile), chat_template=profile.model.chat_template)


def make_lesson(tokenizer: Any, kept: pl.DataFrame, profile: Profile, variant: str, seed: int) -> Lesson:
    """What a student of `variant` and `seed` learns.

    Raises:
        Refused: too few rows are kept.
        FinetuneError: a row without a completion.
    """
    train, selection = (
        tuple(examples_of(tokenizer, rows, profile)) for rows in lesson_rows(kept, profile, variant, seed)
    )
    return Lesson(train, selection)


def prompt_ids(tokenizer: Any, news: pl.DataFrame, profile: Profile) -> dict[str, list[int]]:
    """row_id -> ids of the neutral prompt, as the engine is given them: from the news, not from a pack."""
    return {
        row_id: encode_prompt(
            tokenizer,
            user=user_turn(profile, text),
            system=profile.rewrites.system,
            chat_template=profile.model.chat_template,
        )
        for row_id, text in news.select("row_id", "text").iter_rows()
    }


def rows_that_differ(
    tokenizer: Any, examples: Sequence[Example], rows: pl.DataFrame, news: pl.DataFrame, profile: Profile
) -> list[str]:
    """Ids of rows of which training sees other tokens than generation does; none are allowed.

    Training takes the prompt from the pack, generation makes it of the news: bytes that differ by a blank line once
    made a student look worse than it was.
    """
    wanted = {example.row_id for example in examples}
    own = news.filter(pl.col("row_id").is_in(wanted))
    prompts = prompt_ids(tokenizer, own, profile)
    generated = []
    for row_id, output, truncated in rows.select("row_id", "output", "truncated").iter_rows():
        if row_id in wanted and row_id in prompts:
            ids = prompts[row_id] + encode_completion(tokenizer, output, end_of_turn=not truncated)
            generated.append(Example(row_id, tuple(ids), len(prompts[row_id])))
    return differing_rows(list(examples), generated)


# ------------------------------------------------------------------------------------ what is held out


def held_out_news(news: pl.DataFrame, profile: Profile) -> pl.DataFrame:
    """News for the transfer: rows that no pack has, nor vectors and doses, and that are like none that a pack has.

    Where the corpus is too small for that, rows that vectors and doses have seen, then rows that only a full pack
    has; `transfer` refuses those that a student has learned.

    Raises:
        Refused: there are fewer than `students.held_out_rows`.
    """
    spec, rewrites = profile.students, profile.rewrites
    ordered = news.sort("source_index").with_row_index("position")
    reserved = set(reserved_for_personas(profile, news)["row_id"])
    free = in_keyed_order(ordered.filter(pl.col("position") >= rewrites.pilot_rows), spec.seed)
    free = free.with_columns(
        last=pl.col("position") < rewrites.full_rows, seen=pl.col("row_id").is_in(reserved)
    ).sort("last", "seen", maintain_order=True)
    wanted = free.head(2 * spec.held_out_rows)
    learnable = ordered.head(rewrites.full_rows).filter(~pl.col("row_id").is_in(wanted["row_id"].implode()))
    chosen = unlike(wanted, learnable, profile.corpus.near_duplicate_threshold).head(spec.held_out_rows)
    if chosen.height < spec.held_out_rows:
        raise Refused(
            f"the corpus has {news.height} rows, and {chosen.height} of them can be held out from packs; "
            f"{spec.held_out_rows} are wanted: add news, or lower students.held_out_rows"
        )
    return chosen.drop("position", "last", "seen")


def unlike(rows: pl.DataFrame, others: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """Those of `rows` that are no near duplicates of any of `others`, nor of an earlier one of `rows`.

    Args:
        threshold: Jaccard similarity of word 3-shingles, as the corpus has it.
    """
    both = pl.concat([frame.select("row_id", "text") for frame in (others, rows)])
    marked = mark_duplicates(
        both.with_row_index("source_index").with_columns(pl.col("source_index").cast(pl.Int64)), threshold
    )
    new = marked.select(pl.col("duplicate_of").is_null() & pl.col("near_duplicate_of").is_null()).to_series()
    return rows.filter(new.tail(rows.height))


def overlap(
    held_out: pl.DataFrame, learned: Iterable[str], news: pl.DataFrame, threshold: float
) -> list[str]:
    """Ids of held-out rows that a student has learned, or nearly."""
    known = news.filter(pl.col("row_id").is_in(list(learned)))
    alone = set(unlike(held_out, known, threshold)["row_id"])
    return sorted(set(held_out["row_id"]) - alone)
