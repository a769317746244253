"""The forced choice: which foundation a model says that a vignette breaches, as raw log-probabilities.

In: a loaded model, perhaps under a steering plan or a system turn, and vignettes. Out: one row a vignette and frame.
Nothing is averaged here: every number can be made again from the rows.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple

import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.foundations.frames import (
    WORDINGS,
    FrameError,
    Wording,
    answer_ids,
    prompt_ids,
    shown_order,
)
from steer_pipeline.lab.foundations.vignettes import FOUNDATIONS, require_all
from steer_pipeline.lab.models.choices import next_choices, phrase_choices
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan

VERSION = 1  # of prompts and read-out: numbers of different versions are not compared
CHOICE_SCHEMA, CHOICE_COLUMNS = described(
    arm=(pl.String(), "base, steered, or how the model was healed"),
    seed=(pl.Int64(), "of the arm's training or direction; null where it has none"),
    row_id=(pl.String(), "of the vignette"),
    foundation=(pl.String(), "what the vignette was written for"),
    split=(pl.String(), "development | test"),
    wording=(pl.String(), "in which words it was asked"),
    order=(pl.String(), "forward | reversed; unshown: the answers are phrases"),
    shown=(
        pl.List(pl.String()),
        "foundations as the options stood, from the top; empty where none are shown",
    ),
    logprobs=(
        pl.List(pl.Float64()),
        f"nats, of the answers for {', '.join(FOUNDATIONS)}; over the vocabulary",
    ),
    answer_mass=(pl.Float64(), "probability that an answer begins: of the first tokens of all answers"),
    top_is_answer=(pl.Boolean(), "the likeliest token of all begins an answer"),
    prefill_nll=(pl.Float64(), "nats a token of the prefilled beginning of the answer, under this arm"),
    made_with=(pl.String(), "hash of base weights, tokenizer, precision, wordings, vignettes and read-out"),
)


def measure(
    model: LoadedModel,
    vignettes: pl.DataFrame,
    *,
    arm: str,
    seed: int | None = None,
    plan: SteeringPlan | None = None,
    system: str | None = None,
    wordings: Sequence[Wording] = WORDINGS,
) -> pl.DataFrame:
    """`CHOICE_SCHEMA`: every vignette in every wording and both orders.

    Args:
        model: with whatever adapters it has.
        vignettes: `VIGNETTE_SCHEMA`.
        plan: what the model is steered with; None: nothing.
        system: system turn of arms that are only asked, in the persona's words.
        wordings: all with indices, or all with phrases (`frames.PHRASES`, for small models).

    Raises:
        VignetteError: a foundation has no vignette.
        FrameError: an answer of a wording is not made of tokens of its own, or wordings are of both kinds.
    """
    require_all(vignettes)
    if len({bool(one.indices) for one in wordings}) != 1:
        names = ", ".join(one.name for one in wordings)
        raise FrameError(f"wordings {names}: give one or several, all with indices or all with phrases")
    made_with = fingerprint(model, vignettes, wordings)
    frames = [(wording, order) for wording in wordings for order in wording.orders]
    rows = [row for frame in frames for row in _asked(model, vignettes, *frame, plan, system)]
    table = pl.DataFrame(rows, schema_overrides=CHOICE_SCHEMA)
    return table.with_columns(
        arm=pl.lit(arm), seed=pl.lit(seed, pl.Int64), made_with=pl.lit(made_with)
    ).select(CHOICE_SCHEMA.names())


def _asked(
    model: LoadedModel,
    vignettes: pl.DataFrame,
    wording: Wording,
    order: str,
    plan: SteeringPlan | None,
    system: str | None,
) -> list[dict]:
    """Rows of one frame, those with the same options read together: they begin alike."""
    answers = answer_ids(model.tokenizer, wording)
    together: dict[tuple[int, ...], list[dict]] = defaultdict(list)
    for row in vignettes.iter_rows(named=True):
        together[tuple(shown_order(row["row_id"], order))].append(row)
    found: dict[str, dict] = {}
    for shown, rows in together.items():
        asked = [
            prompt_ids(
                model.tokenizer, wording, row["text"], shown, system=system, chat=model.spec.chat_template
            )
            for row in rows
        ]
        ids, starts = [one for one, _ in asked], [start for _, start in asked]
        if wording.indices:
            read = next_choices(model, ids, starts, [index for (index,) in answers], plan)
            places = [shown.index(number) for number in range(len(FOUNDATIONS))]
        else:
            read = phrase_choices(model, ids, starts, answers, plan)
            places = list(range(len(FOUNDATIONS)))
        for i, row in enumerate(rows):
            found[row["row_id"]] = {
                **{name: row[name] for name in ("row_id", "foundation", "split")},
                "wording": wording.name,
                "order": order,
                "shown": [FOUNDATIONS[number] for number in shown],
                "logprobs": read.logprobs[i, places].tolist(),
                "answer_mass": float(read.mass[i]),
                "top_is_answer": bool(read.is_top[i]),
                "prefill_nll": float(read.prefill_nll[i]),
            }
    return [found[row_id] for row_id in vignettes["row_id"]]


def fingerprint(model: LoadedModel, vignettes: pl.DataFrame, wordings: Sequence[Wording]) -> str:
    """16 hex digits of what arms that are compared share: everything but plan, system turn and adapters."""
    shared = {
        "version": VERSION,
        "model": str(model.identity.on_base()),
        "precision": [model.dtype, model.backend],
        "chat_template": model.spec.chat_template,
        "wordings": [astuple(one) for one in wordings],
        "vignettes": vignettes.select("row_id", "text").sort("row_id").rows(),
    }
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]
