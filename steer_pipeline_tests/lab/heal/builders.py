"""The newsroom's model with a direction planted in it as a vector, and prompts for it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from safetensors import safe_open

from steer_pipeline.catalogue import load_profile
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.vectors.vector import PersonaVector, model_fields

HOME = Path(__file__).parents[3]
ROOM = HOME / "assets_data" / "newsroom"
PROFILE = load_profile("newsroom")


@cache
def newsroom() -> LoadedModel:
    return load_model(PROFILE.model, HOME)


@cache
def planted(persona: str = "paranoid") -> PersonaVector:
    """The planted direction, at the block where it was planted; residual norms as they are in that model, roughly."""
    model = newsroom()
    with safe_open(ROOM / "planted_directions.safetensors", "np") as file:
        told, directions = file.metadata(), file.get_tensor("directions")
    names, block = json.loads(told["names"]), int(told["block"])
    raw = float(told["norm"]) * directions[[names.index(persona)]].astype(np.float32)
    metadata = {**model_fields(model), "residual_norms": [5.0] * model.n_blocks}
    return PersonaVector(persona, raw, metadata, (block,))


def prompts(n: int = 8, held_out: int = 0) -> pl.DataFrame:
    """Rewrites of the shipped news, in two categories; the last `held_out` of them are for evaluation."""
    rewrite = PROFILE.rewrites
    news = pl.read_parquet(ROOM / "news.parquet").head(n)
    return pl.DataFrame(
        [
            {
                "prompt_id": f"p{i:02d}",
                "category": "even" if i % 2 == 0 else "odd",
                "prompt": rewrite.prompt.replace("{text}", text),
                "system": rewrite.system,
                "source": text,
                "held_out": i >= n - held_out,
            }
            for i, text in enumerate(news["text"])
        ]
    )
