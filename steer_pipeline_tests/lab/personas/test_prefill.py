"""Prefilled texts: the same words on both sides under other instructions, and read where the model goes on."""

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import ContrastSpec, ModelSpec, VectorSpec
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_completion
from steer_pipeline.lab.personas.contrast import require_matched_sides
from steer_pipeline.lab.personas.prefill import TEXTS, prefill_rows
from steer_pipeline.lab.personas.schema import CONTRAST_SCHEMA
from steer_pipeline.lab.vectors.extracted import extract_vector
from steer_pipeline_tests.lab.personas.builders import persona
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder))), folder)


@pytest.fixture(scope="module")
def rows(model):
    return prefill_rows(model, persona(), ContrastSpec(source="prefill"), VectorSpec())


def test_both_sides_share_the_cut_text_and_differ_by_their_instruction(rows):
    require_matched_sides(rows)
    assert dict(rows.schema) == CONTRAST_SCHEMA
    sides = [rows.filter(side=side) for side in ("positive", "negative")]
    same = ["context_id", "user", "completion", "completion_ids", "pair_id", "split"]
    assert sides[0].select(same).equals(sides[1].select(same))
    assert not (sides[0]["system"] == sides[1]["system"]).any()
    assert rows["context_id"].n_unique() == rows.height // 2 == 3 * len(TEXTS)


def test_a_text_is_cut_at_as_many_places_as_asked_and_stays_in_one_split(model, rows):
    for _, cuts in rows.filter(side="positive").group_by("pair_id"):
        whole = cuts.sort("n_tokens")["completion_ids"][-1].to_list()
        assert whole in [encode_completion(model.tokenizer, text, end_of_turn=False) for text in TEXTS]
        assert cuts.sort("n_tokens")["n_tokens"].to_list() == [-(-len(whole) * cut // 3) for cut in (1, 2, 3)]
        assert all(one.to_list() == whole[: len(one)] for one in cuts["completion_ids"])
        assert cuts["split"].n_unique() == 1
    pairs = rows.unique("pair_id")
    assert pairs.filter(pl.col("split") == "held_out").height == round(0.25 * len(TEXTS))
    more = prefill_rows(model, persona(), ContrastSpec(source="prefill", prefill_cuts=5), VectorSpec())
    assert more.height == 2 * 5 * len(TEXTS)


def test_prefilled_texts_are_read_at_their_last_token_whatever_is_asked(model, rows):
    vector = extract_vector(model, rows, "paranoid", VectorSpec(readout="response_tokens"))
    assert (vector.metadata["contrast_source"], vector.metadata["readout"]) == ("prefill", "last_token")
    assert vector.metadata["n_train"] + vector.metadata["n_held_out"] == len(TEXTS)
