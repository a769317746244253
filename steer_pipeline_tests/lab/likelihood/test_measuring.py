"""Claims about the likelihood of held-out answers: transformers' own numbers, really prompted, matched controls."""

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.lab.arms import Arm
from steer_pipeline.lab.dialogues.requests import encode_rows
from steer_pipeline.lab.likelihood.measuring import (
    choose_scale,
    measure,
    site_of,
    swept_blocks,
    trained_and_random,
)
from steer_pipeline.lab.likelihood.tables import selection_table, unequal_tokens
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.vectors.averaged import averaged_vector
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.generation.reference import hooks, loaded
from steer_pipeline_tests.lab.likelihood.builders import (
    behaviour_rows,
    changed,
    persona,
    profile,
    row,
    trained,
)

NORMS = [10.0] * 4


def reference_nll(model, one, *, system=None, plan=None):
    """Summed NLL of a row's response and its number of tokens, from transformers with hooks on the blocks."""
    prompt = encode_prompt(model.tokenizer, user=one["messages"][0]["content"], system=system)
    answer = encode_completion(model.tokenizer, one["messages"][1]["content"], end_of_turn=True)
    with hooks(model.module, plan or SteeringPlan("none")), torch.inference_mode():
        logits = model.module(torch.tensor([prompt + answer])).logits[0].double()
    losses = -logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
    return float(losses.sum()), len(answer)


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma"])
def test_every_arm_is_transformers_own_likelihood_of_the_same_tokens(tmp_path, arch):
    model, rows = loaded(tmp_path, arch), behaviour_rows().filter(label="pos", split="test")
    arms = [Arm("vanilla"), Arm("prompted"), *trained_and_random(trained(model), [51, 52, 53])]
    found = measure(model, rows, arms, profile(model), NORMS)
    assert unequal_tokens(found).is_empty()
    for arm in arms:
        plan = None if arm.term is None else SteeringPlan("x", (arm.term,))
        own = found.filter(
            pl.col("arm") == arm.arm, pl.col("seed").eq_missing(pl.lit(arm.seed, dtype=pl.Int64))
        )
        for one, got in zip(rows.head(2).iter_rows(named=True), own.iter_rows(named=True), strict=False):
            system = one["instruction"] if arm.arm == "prompted" else None
            nll, tokens = reference_nll(model, one, system=system, plan=plan)
            assert got["row_id"] == one["row_id"]
            assert got["nll_sum"] == pytest.approx(nll, rel=2e-4)
            assert got["n_tokens"] == tokens


@pytest.mark.parametrize("arch", ["qwen3", "gemma"])
def test_prompted_has_each_rows_own_instruction_in_context_and_vanilla_none(tmp_path, arch):
    model, rows = loaded(tmp_path, arch), behaviour_rows().filter(label="pos")
    bare, asked = (encode_rows(model, rows, profile(model), instructed=way) for way in (False, True))
    for one, plain, prompted in zip(rows.iter_rows(named=True), bare, asked, strict=True):
        assert one["instruction"] in model.tokenizer.decode(prompted.ids[: prompted.start])
        assert one["instruction"] not in model.tokenizer.decode(plain.ids)
        assert plain.ids[plain.start :] == prompted.ids[prompted.start :]


def test_long_answers_are_cut_alike_in_every_arm(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows().filter(label="pos", split="test")
    found = measure(
        model, rows, [Arm("vanilla"), Arm("prompted")], profile(model, max_response_tokens=7), NORMS
    )
    assert set(found["n_tokens"]) == {7}
    assert unequal_tokens(found).is_empty()


def test_a_prompted_arm_without_instruction_is_refused(tmp_path):
    rows = behaviour_rows().filter(label="pos", split="test")
    rows = changed(rows, pl.col("row_id") == "pos-1-3", instruction="")
    model = loaded(tmp_path)
    with pytest.raises(
        VectorError, match="row pos-1-3: no instruction, so the prompted arm would be unprompted"
    ):
        measure(model, rows, [Arm("vanilla"), Arm("prompted")], profile(model), NORMS)
    assert measure(model, rows, [Arm("vanilla")], profile(model), NORMS).height == rows.height


def test_a_dialogue_beyond_the_models_positions_is_refused(tmp_path):
    model = loaded(tmp_path)
    rows = pl.DataFrame([row("pos", 0, 3, instruction="Be " * 900)], schema=behaviour_rows().schema)
    with pytest.raises(
        VectorError, match=r"row pos-0-3: \d+ tokens with its instruction, the model has 1024"
    ):
        measure(model, rows, [Arm("prompted")], profile(model), NORMS)


def test_random_directions_have_the_trained_norms_and_site(tmp_path):
    vectors = trained(loaded(tmp_path))
    vectors[42] = type(vectors[42])("analytical", vectors[42].raw * 3, vectors[42].metadata, (2,))
    arms = trained_and_random(dict(reversed(vectors.items())), [51, 52, 60])
    assert [arm.arm for arm in arms] == ["trained"] * 3 + ["random"] * 8
    assert [arm.seed for arm in arms] == [41, 42, 43, 51, 52, 60, 61, 62, 63, 64, 65]
    lengths = [arm.term.alpha for arm in arms]
    assert lengths == pytest.approx([2, 6, 2, 2, 6, 2, 2, 6, 2, 2, 6], rel=1e-5)
    assert {arm.term.site.block for arm in arms} == {2}
    units = np.stack([arm.term.unit for arm in arms[2:]])
    assert np.abs(units @ units.T - np.eye(9)).max() < 0.6  # 64 wide: standard deviation of a cosine 0.125


def test_seeds_at_different_blocks_are_refused(tmp_path):
    model = loaded(tmp_path)
    mixed = {**trained(model, (41,)), **trained(model, (42,), block=3)}
    with pytest.raises(VectorError, match="one block, the same for all, is needed"):
        site_of(mixed)
    with pytest.raises(VectorError, match="one block"):
        site_of({})


def test_block_and_scale_are_chosen_on_validation_rows(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    vector = averaged_vector(model, rows, persona(), profile(model)).vector
    validation = rows.filter("counts", pl.col("split") == "validation")
    found = choose_scale(model, validation, vector, 2, profile(model), NORMS)
    assert set(found["split"]) == {"validation"}
    assert unequal_tokens(found).is_empty()
    table = selection_table(found)
    assert set(table["block"]) == {0, 1, 2, 3}
    best = table.row(0, named=True)
    refined = table.filter(pl.col("block") == best["block"])["scale"].to_list()
    assert len(refined) == 6  # four coarse, two around the best of them
    assert best["alpha"] == pytest.approx(best["scale"] * np.linalg.norm(vector.at(best["block"])), rel=1e-5)
    plan = SteeringPlan("x", (trained_and_random({0: at(vector, best)}, [51])[0].term,))
    total = sum(reference_nll(model, one, plan=plan)[0] for one in validation.iter_rows(named=True))
    assert best["nll"] == pytest.approx(total / found.filter(arm="vanilla")["n_tokens"].sum(), rel=1e-3)


def at(vector, best):
    """The vector of one block, `scale` times as long."""
    raw = (best["scale"] * vector.at(best["block"]))[None].astype(np.float32)
    return type(vector)(vector.persona, raw, vector.metadata, (best["block"],))


def test_deep_models_are_swept_at_an_even_spread_and_the_trained_block():
    assert swept_blocks(6, 2) == [0, 1, 2, 3, 4, 5]
    deep = swept_blocks(64, 31)
    assert len(deep) == 9
    assert 31 in deep
    assert max(np.diff(deep)) <= 8
