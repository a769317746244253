"""Rows of a rewrite pack.

No torch here: stages and checks import it. `RewriteRow` is a superset of a Janus rewrite record;
`REWRITE_SCHEMA` is the same as a polars schema, in column order.
"""

from typing import Literal

import polars as pl
from pydantic import Field

from steer_pipeline.catalogue.specs import Name, Strict
from steer_pipeline.lab.generation.jobs import FinishReason


class PersonaDose(Strict):
    """One steering term as it was applied."""

    name: str
    version: str | None = Field(default=None, description="Content hash of the vector artefact.")
    block: int = Field(ge=0, description="0-based block whose output was steered, or whose vector it is.")
    alpha: float = Field(description="Length added to the residual stream; negative: the other pole.")
    dose_fraction: float | None = Field(default=None, description="alpha over the mean residual norm there.")
    site: Literal["logits"] | None = Field(
        default=None, description="None: the block's output; `logits`: a bias on the logits."
    )


class RewriteRow(Strict):
    """One row of a rewrite pack: a news item in one variant."""

    row_id: str = Field(min_length=1)
    source_index: int = Field(ge=0)
    model: str
    domain: str
    date: str
    url: str
    variant: Name
    personas: list[PersonaDose] = Field(default_factory=list)
    prompt: str
    output: str
    seed: int
    stream: str
    decoding_hash: str
    n_prompt_tokens: int = Field(ge=1)
    n_new_tokens: int = Field(ge=1)
    finish_reason: FinishReason
    truncated: bool
    profile: str
    size: Literal["pilot", "full"]
    made_with: str = Field(description="JSON of what all variants that are compared must share.")
    nll: float | None = Field(
        default=None, description="Nats a token under the unsteered model, given the neutral prompt."
    )


REWRITE_SCHEMA = pl.Schema(
    {
        "row_id": pl.String(),
        "source_index": pl.Int64(),
        "model": pl.String(),
        "domain": pl.String(),
        "date": pl.String(),
        "url": pl.String(),
        "variant": pl.String(),
        "personas": pl.List(
            pl.Struct(
                {
                    "name": pl.String(),
                    "version": pl.String(),
                    "block": pl.Int64(),
                    "alpha": pl.Float64(),
                    "dose_fraction": pl.Float64(),
                    "site": pl.String(),
                }
            )
        ),
        "prompt": pl.String(),
        "output": pl.String(),
        "seed": pl.Int64(),
        "stream": pl.String(),
        "decoding_hash": pl.String(),
        "n_prompt_tokens": pl.Int64(),
        "n_new_tokens": pl.Int64(),
        "finish_reason": pl.String(),
        "truncated": pl.Boolean(),
        "profile": pl.String(),
        "size": pl.String(),
        "made_with": pl.String(),
        "nll": pl.Float64(),
    }
)
# Rewrites under random directions: rows of a pack, one direction a variant, and what was drawn.
BAND_SCHEMA = pl.Schema({**REWRITE_SCHEMA, "token_ids": pl.List(pl.Int64())})
ADDED_LATER = ("nll",)  # packs from before it was measured are read without it
