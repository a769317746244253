"""Claims about averaged vectors: whose states they are means of, where they are read, when there is none."""

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.lab.dialogues.requests import encode_rows, response_requests
from steer_pipeline.lab.likelihood.measuring import natural_term
from steer_pipeline.lab.models.hidden import collect_means
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.vectors.averaged import MissingVector, averaged_vector, contrast_sides
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.likelihood.builders import behaviour_rows, changed, persona, profile, row


def hooked_means(model, rows, instructed=True):
    """[n, n_blocks, hidden]: mean over response tokens, caught by hooks on the blocks of the model itself."""
    found = []
    for request in response_requests(
        model.tokenizer, encode_rows(model, rows, profile(model), instructed=instructed)
    ):
        caught = []
        handles = [
            layer.register_forward_hook(
                lambda _m, _i, out, caught=caught: caught.append(
                    (out[0] if isinstance(out, tuple) else out).clone()
                )
            )
            for layer in model.module.model.layers
        ]
        with torch.inference_mode():
            model.module(torch.tensor([request.ids]))
        for handle in handles:
            handle.remove()
        found.append([one[0, request.start : request.stop].float().mean(0).numpy() for one in caught])
    return np.array(found)


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma"])
def test_the_direction_at_block_k_is_what_a_hook_on_block_k_reads_and_where_a_plan_adds_it(tmp_path, arch):
    model, rows = loaded(tmp_path, arch), behaviour_rows()
    vector = averaged_vector(model, rows, persona(), profile(model)).vector
    train = rows.filter(split="train")
    up, down = (hooked_means(model, train.filter(label=label)).mean(0) for label in ("pos", "neg"))
    assert np.allclose(vector.raw, up - down, atol=5e-4)

    some = response_requests(
        model.tokenizer, encode_rows(model, train.head(3), profile(model), instructed=False)
    )
    for block in range(model.n_blocks):
        plan = SteeringPlan("x", (natural_term(vector, block),))
        moved = collect_means(model, some, plan)[:, block] - collect_means(model, some)[:, block]
        assert np.allclose(moved, vector.at(block), atol=2e-3)


def test_the_state_after_the_template_is_not_read(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows().head(2)
    for request in response_requests(
        model.tokenizer, encode_rows(model, rows, profile(model), instructed=True)
    ):
        text = model.tokenizer.decode(request.ids[request.start : request.stop])
        assert text.startswith(("Three", "First", "It is", "The storm"))
        assert text.endswith(".")
        assert "<|im_end|>" not in text


def test_as_asked_reads_under_the_instruction_and_question_does_not(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    bare = changed(rows, pl.lit(True), instruction="")
    as_asked, question = (
        averaged_vector(model, rows, persona(), profile(model), context=context).vector
        for context in ("as_asked", "question")
    )
    assert not np.allclose(as_asked.raw, question.raw, atol=1e-2)
    assert np.array_equal(question.raw, averaged_vector(model, bare, persona(), profile(model)).vector.raw)
    assert (as_asked.metadata["source"]["context"], question.metadata["source"]["context"]) == (
        "as_asked",
        "question",
    )


def test_only_train_questions_are_read(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    other = rows.with_columns(
        instruction=pl.when(pl.col("split") == "train").then("instruction").otherwise(pl.lit("Shout."))
    )
    one, two = (
        averaged_vector(model, frame, persona(), profile(model)).vector.raw for frame in (rows, other)
    )
    assert np.array_equal(one, two)


def test_trait_pairs_are_matched_and_their_gap_is_above_fifty():
    rows = behaviour_rows()
    rows = changed(rows, pl.col("row_id") == "pos-0-0", score=55)  # gap of exactly 50
    rows = changed(rows, pl.col("row_id") == "neg-1-1", score=None, score_status="refusal")
    rows = rows.filter(pl.col("row_id") != "neg-0-4")
    up, down = contrast_sides(rows, "trait", profile().behaviour)
    key = ["prompt_index", "question_index"]
    assert up.select(key).equals(down.select(key))
    assert set(up["label"]) == {"pos"}
    assert set(down["label"]) == {"neg"}
    assert set(up["split"]) == {"train"}
    left = {f"pos-{p}-{q}" for q in range(16) if q % 4 < 2 for p in (0, 1)}
    assert set(up["row_id"]) == left - {"pos-0-0", "pos-1-1", "pos-0-4"}


def test_roles_hold_full_scores_against_the_defaults():
    rows = changed(behaviour_rows("role"), pl.col("row_id") == "pos-0-0", score=2, counts=False)
    up, down = contrast_sides(rows, "role", profile().behaviour)
    assert up.height == 15
    assert set(up["score"]) == {3}
    assert down.height == 16
    assert set(down["label"]) == {"default"}


@pytest.mark.parametrize(
    ("kind", "rows", "told"),
    [
        ("trait", behaviour_rows("trait", 4), "4 matched pairs of train questions"),
        ("role", behaviour_rows("role", 4), "4 rows with a score of at least 3"),
        ("role", behaviour_rows("role").filter(label="pos"), "0 default rows"),
    ],
)
def test_too_few_rows_are_missing_with_the_numbers_and_never_zeros(tmp_path, kind, rows, told):
    with pytest.raises(MissingVector, match=told) as caught:
        averaged_vector(loaded(tmp_path), rows, persona(kind), profile(min_count=5))
    assert "behaviour.min_count is 5" in str(caught.value)


def test_two_answers_to_one_prompt_and_question_are_refused():
    rows = behaviour_rows()
    again = pl.DataFrame([row("pos", 0, 0, row_id="again")], schema=rows.schema)
    with pytest.raises(VectorError, match="label pos: prompt 0 and question 0 have more than one answer"):
        contrast_sides(pl.concat([rows, again]), "trait", profile().behaviour)


def test_rows_of_another_persona_and_leaking_questions_are_refused(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    with pytest.raises(VectorError, match="are of persona 'analytical', not 'creative'"):
        averaged_vector(model, rows, persona(name="creative"), profile(model))
    leaking = changed(rows, pl.col("row_id") == "pos-0-0", split="test")
    with pytest.raises(VectorError, match="question 0 of 'analytical' is in more than one split"):
        averaged_vector(model, leaking, persona(), profile(model))


def test_a_question_left_out_is_a_contrast_of_the_rest(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    sums = averaged_vector(model, rows, persona(), profile(model)).sums
    rest = averaged_vector(
        model, rows.filter(pl.col("question_index") != sums.questions[2]), persona(), profile(model)
    )
    assert np.allclose(sums.without_each(1)[2], rest.vector.at(1), atol=1e-4)
