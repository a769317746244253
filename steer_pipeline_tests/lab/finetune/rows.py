"""Rows to learn from: short questions with answers of one habit, which a tiny model can pick up."""

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune.data import TextRow, encode_examples
from steer_pipeline.lab.finetune.recipe import LoraRecipe, Recipe
from steer_pipeline.lab.models.loading import load_tokenizer

LORA = LoraRecipe(rank=4, targets=("q_proj", "v_proj", "down_proj"))
FAST = Recipe(
    lora=LORA, learning_rate=5e-3, max_steps=12, batch_rows=4, rows_at_once=4, warmup=0.0, evaluations=3
)


def spec_of(base, **more):
    return ModelSpec(path=str(base), device="cpu", **more)


def examples(base, first=0, n=12):
    rows = [
        TextRow(f"r{i}", f"Say the number {i % 7} please.", f"The number is {i % 7}, of course.")
        for i in range(first, first + n)
    ]
    return encode_examples(load_tokenizer(spec_of(base), base.parent), rows)
