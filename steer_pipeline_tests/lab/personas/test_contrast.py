"""Contrast sets hold the same contexts on both sides, drawn with the same random numbers."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import ContrastSpec, ModelSpec
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.personas.contexts import general_contexts, split_contexts
from steer_pipeline.lab.personas.contrast import (
    CONTRAST_SCHEMA,
    ContrastError,
    build_contrast_prompts,
    complete_contrast,
    dropped_pairs,
    measure_contrast,
    mismatched_contexts,
    require_matched_sides,
    score_sides,
)
from steer_pipeline_tests.lab.personas.builders import persona
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = ContrastSpec(n_contexts=16, max_new_tokens=6)
CONTEXTS = split_contexts(general_contexts(16, seed=1), 0.25, seed=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder))), folder)


@pytest.fixture(scope="module")
def prompts():
    return build_contrast_prompts(persona(), SPEC, CONTEXTS)


@pytest.fixture(scope="module")
def contrast(model, prompts):
    return complete_contrast(model, prompts, SPEC)


def test_both_sides_hold_the_same_contexts_and_differ_by_their_instruction_alone(prompts):
    sides = {
        side: prompts.filter(pl.col("side") == side).drop("side", "system")
        for side in ("positive", "negative")
    }
    assert sides["positive"].equals(sides["negative"])
    assert prompts.height == 32
    by_pole = {"positive": persona().positive.instructions, "negative": persona().negative.instructions}
    for row in prompts.iter_rows(named=True):
        assert row["system"] == by_pole[row["side"]][row["instruction_index"]]


def test_instructions_take_turns_within_each_split(prompts):
    counts = prompts.group_by("split", "instruction_index", "side").len()
    for split in ("train", "held_out"):
        used = counts.filter(pl.col("split") == split).get_column("len")
        assert used.max() - used.min() <= 1


def test_poles_with_different_numbers_of_instructions_start_the_shorter_list_over():
    few = persona(n_instructions=1)
    mixed = persona().model_copy(update={"negative": few.negative})
    prompts = build_contrast_prompts(mixed, SPEC, CONTEXTS)
    negative = prompts.filter(pl.col("side") == "negative")
    assert set(negative.get_column("system")) == set(few.negative.instructions)
    assert prompts.filter(pl.col("side") == "positive").get_column("system").n_unique() == 3
    require_matched_sides(prompts)


def test_too_few_contexts_and_a_missing_split_are_errors():
    with pytest.raises(ContrastError, match="n_contexts is 64, but there are 16"):
        build_contrast_prompts(persona(), ContrastSpec(n_contexts=64), CONTEXTS)
    with pytest.raises(ContrastError, match="'held_out': 0"):
        build_contrast_prompts(persona(), SPEC, general_contexts(16, seed=1))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda rows: rows.slice(1), r"sides are \[negative\]"),
        (lambda rows: pl.concat([rows, rows.head(1)]), r"\[negative positive positive\]"),
        (lambda rows: _change(rows, user="other"), "field user differs"),
        (lambda rows: _change(rows, split="held_out"), "field split differs"),
        (lambda rows: _change(rows, instruction_index=9), "field instruction_index differs"),
    ],
)
def test_sides_that_do_not_match_are_named_with_context_and_field(prompts, damage, told):
    rows = damage(prompts.filter(pl.col("split") == "train"))
    with pytest.raises(ContrastError, match=told):
        require_matched_sides(rows)
    assert mismatched_contexts(rows).height == 1
    assert mismatched_contexts(prompts).is_empty()


def _change(rows, **values):
    first = pl.int_range(pl.len()) == 0
    return rows.with_columns(
        pl.when(first).then(pl.lit(value, dtype=rows.schema[name])).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )


def test_completions_carry_the_token_ids_that_were_generated(model, contrast):
    assert dict(contrast.schema) == CONTRAST_SCHEMA
    for row in contrast.iter_rows(named=True):
        assert row["prompt_ids"] == encode_prompt(model.tokenizer, user=row["user"], system=row["system"])
        assert model.tokenizer.decode(row["completion_ids"], skip_special_tokens=True) == row["completion"]
        assert row["n_tokens"] == len(row["completion_ids"]) <= SPEC.max_new_tokens
        assert not set(row["completion_ids"]) & model.eos_ids


def test_completions_are_keyed_by_context_and_not_by_the_company_they_keep(model, prompts, contrast):
    some = prompts.filter(pl.col("context_id").is_in([CONTEXTS[3].context_id, CONTEXTS[7].context_id]))
    again = complete_contrast(model, some.reverse(), SPEC)
    expected = contrast.join(again.select("context_id", "side"), on=["context_id", "side"], how="semi")
    key = ["context_id", "side"]
    assert again.sort(key).equals(expected.sort(key))


def test_sides_with_the_same_instruction_say_the_same(model, prompts):
    same = complete_contrast(model, prompts.head(4).with_columns(system=pl.lit("You write.")), SPEC)
    texts = same.get_column("completion").to_list()
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


def test_an_empty_completion_drops_the_whole_pair_and_is_counted(model, prompts, contrast, monkeypatch):
    from steer_pipeline.lab.generation import engine

    empty = CONTEXTS[5].context_id
    generate = engine.generate

    def with_one_empty(*args, **kwargs):
        for row in generate(*args, **kwargs):
            gone = row.row_id == empty and row.variant == "negative"
            yield type(row)(**{**vars(row), "text": " \n", "token_ids": [5]}) if gone else row

    monkeypatch.setattr(engine, "generate", with_one_empty)
    kept = complete_contrast(model, prompts, SPEC)
    assert empty not in kept.get_column("context_id")
    assert dropped_pairs(prompts, kept) == 1
    assert dropped_pairs(prompts, contrast) == 0
    require_matched_sides(kept)


def test_scores_are_paired_by_context(contrast):
    scores = [float(row == "positive") for row in contrast.get_column("side")]
    paired = score_sides(contrast, scores)
    assert paired.height == 16
    assert (paired.get_column("positive") == 1).all()
    assert (paired.get_column("negative") == 0).all()


def test_the_contrast_is_measured_on_pairs_with_an_interval_and_an_auc(contrast):
    class Told:
        """Scores the positive side 0.5 higher, whatever it says."""

        def score_many(self, texts):
            return np.array([0.5 * (side == "positive") for side in contrast.get_column("side")])

    found = measure_contrast(contrast, Told())
    assert (found["positive"], found["negative"], found["auc"]) == (0.5, 0.0, 1.0)
    assert 0.3 < found["difference_low"] < found["difference"] == 0.5
    blind = measure_contrast(contrast, type("Blind", (), {"score_many": lambda self, t: np.zeros(len(t))})())
    assert (blind["auc"], blind["difference"]) == (0.5, 0.0)
    assert blind["difference_low"] < 0 < blind["difference_high"]
