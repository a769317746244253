"""How far training rows lie along persona vectors from what base itself would have answered.

In: prompts with completions, base's own completions of the same prompts, named directions. Out: one row a training row
and direction. The mean state over the completion's tokens, less that of base's own completion (Chen et al. 2025,
projection difference): base's answer takes out what the prompt alone does. The difference is decomposed on all
directions at once by least squares: persona vectors overlap, and a plain projection would count one trait for several.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from steer_pipeline.lab.analysis.activation import Directions, units_at
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import TextRow, encode_examples
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loaded import LoadedModel

PROJECTION_SCHEMA, PROJECTION_COLUMNS = described(
    source=(pl.String(), "who wrote the completion"),
    row_id=(pl.String(), "of the prompt"),
    direction=(pl.String(), "of the dictionary"),
    projection=(
        pl.Float64(),
        "coefficient of the completion's mean state, less that of base's own, over the mean residual norm",
    ),
)


def project_rows(
    model: LoadedModel,
    texts: pl.DataFrame,
    reference: str,
    directions: Directions,
    block: int,
    system: str | None,
) -> pl.DataFrame:
    """`PROJECTION_SCHEMA` of all rows but the reference's own; rows without text are left out.

    Args:
        model: base; it reads all rows.
        texts: source, row_id, prompt, output, truncated; one row a source and prompt.
        reference: source of base's own completions; it has every prompt.
        directions: name -> fp32 [blocks, hidden].
        block: at whose output.

    Raises:
        ValueError: the reference lacks a prompt, or no direction is there at the block.
    """
    names, units = units_at(directions, block)
    if not names:
        raise ValueError(f"no direction has block {block}; choose another (auditing.screening.block)")
    spoken = texts.filter(pl.col("output").str.strip_chars().str.len_chars() > 0)
    dual = np.linalg.pinv(units.T.astype(np.float64))  # [k, hidden]
    states = _states(model, spoken, block, system)
    own = dict(zip(spoken.select("source", "row_id").iter_rows(), states, strict=True))
    norm = _norm(model, spoken.filter(source=reference), block, system)
    rows = []
    for (source, row_id), state in own.items():
        if source == reference:
            continue
        if (reference, row_id) not in own:
            raise ValueError(
                f"row {row_id!r}: {reference} has no completion of its prompt; let base answer every prompt of the rows"
            )
        moved = dual @ (state - own[reference, row_id]) / norm
        rows += [
            {"source": source, "row_id": row_id, "direction": name, "projection": float(value)}
            for name, value in zip(names, moved, strict=True)
        ]
    return pl.DataFrame(rows, schema=PROJECTION_SCHEMA)


def _states(model: LoadedModel, rows: pl.DataFrame, block: int, system: str | None) -> np.ndarray:
    """fp32 [rows, hidden]: mean over each completion's tokens."""
    return collect_means(model, _requests(model, rows, system), blocks=[block])[:, 0]


def _norm(model: LoadedModel, rows: pl.DataFrame, block: int, system: str | None) -> float:
    return float(residual_norms(model, [one.ids for one in _requests(model, rows, system)])[block])


def _requests(model: LoadedModel, rows: pl.DataFrame, system: str | None) -> list[HiddenRequest]:
    columns = rows.select("source", "row_id", "prompt", "output", "truncated")
    given = [
        TextRow(f"{source}/{row_id}", prompt, output, system, ended=not truncated)
        for source, row_id, prompt, output, truncated in columns.iter_rows()
    ]
    examples = encode_examples(model.tokenizer, given, chat_template=model.spec.chat_template)
    return [HiddenRequest(list(one.ids), one.start, len(one.ids)) for one in examples]


def predicted_shift(projections: pl.DataFrame, lessons: pl.DataFrame) -> pl.DataFrame:
    """checkpoint, direction, predicted: the mean projection over the rows that each student learns.

    Base's own rows have projection 0. Both frames name rows by `source` and `row_id`.
    """
    learned = lessons.filter("learned").select("checkpoint", "source", "row_id")
    names = projections.select("direction").unique()
    joined = learned.join(names, how="cross").join(
        projections, on=["source", "row_id", "direction"], how="left"
    )
    return (
        joined.group_by("checkpoint", "direction")
        .agg(predicted=pl.col("projection").fill_null(0.0).mean())
        .sort("checkpoint", "direction")
    )


def scores_of(projections: pl.DataFrame, names: Sequence[str] | None = None) -> pl.DataFrame:
    """source, row_id, score, direction: the largest projection of a row in absolute size, and on which direction."""
    own = projections if names is None else projections.filter(pl.col("direction").is_in(list(names)))
    strongest = own.with_columns(score=pl.col("projection").abs()).sort(
        "score", "direction", descending=[True, False]
    )
    found = strongest.unique(["source", "row_id"], keep="first", maintain_order=True)
    return found.select("source", "row_id", "score", "direction", "projection").sort("source", "row_id")
