"""Claims about the read-out: rows hold what the model says after the prefill, steered, prompted or healed."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.foundations import (
    CHOICE_SCHEMA,
    FOUNDATIONS,
    FrameError,
    VignetteError,
    measure,
    readings,
)
from steer_pipeline.lab.foundations.choosing import fingerprint
from steer_pipeline.lab.foundations.frames import (
    BECAUSE,
    IS,
    LABEL,
    REASON,
    answer_ids,
    prompt_ids,
    shown_order,
)
from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_completion
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline_tests.lab.foundations.builders import vignettes
from steer_pipeline_tests.lab.generation.reference import loaded, term
from steer_pipeline_tests.tiny import lora, tiny_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def asked():
    return vignettes(1)


@pytest.fixture(scope="module")
def base(model, asked):
    return measure(model, asked, arm="base")


def test_rows_hold_what_the_model_says_after_the_prefill(model, asked, base):
    assert base.schema == CHOICE_SCHEMA
    assert base.height == 2 * asked.height
    for row in base.head(3).iter_rows(named=True):
        shown = shown_order(row["row_id"], row["order"])
        text = asked.filter(row_id=row["row_id"])["text"][0]
        ids, _ = prompt_ids(model.tokenizer, REASON, text, shown, system=None, chat=True)
        assert model.tokenizer.decode(ids).endswith("<|im_start|>assistant\nThe answer is (")
        with torch.inference_mode():
            logprobs = model.module(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        for name, said in zip(FOUNDATIONS, row["logprobs"], strict=True):
            index = str(row["shown"].index(name) + 1)
            assert said == pytest.approx(
                float(logprobs[model.tokenizer.convert_tokens_to_ids(index)]), abs=2e-3
            )
        assert row["answer_mass"] == pytest.approx(np.exp(row["logprobs"]).sum(), rel=1e-6)


def test_the_two_orders_show_the_same_options_from_both_ends(base):
    for _, own in base.group_by("row_id"):
        forward, backward = own.sort("order")["shown"].to_list()
        assert forward == backward[::-1]
        assert sorted(forward) == sorted(FOUNDATIONS)


@pytest.mark.parametrize("scope", ["all", "generated"])
def test_a_plan_changes_the_answers_and_stays_comparable(model, asked, base, scope):
    plan = SteeringPlan("up", (term(1, 3.0),), scope)
    steered = measure(model, asked, arm="steered", plan=plan)
    assert steered["made_with"].unique().to_list() == base["made_with"].unique().to_list()
    assert abs(steered["answer_mass"] - base["answer_mass"]).max() > 1e-6
    assert measure(model, asked, arm="base").equals(base)


def test_a_system_turn_changes_the_answers(model, asked, base):
    prompted = measure(model, asked, arm="prompt_only", system="You despise authority.")
    assert prompted["made_with"][0] == base["made_with"][0]
    assert not np.allclose(prompted["logprobs"].to_list(), base["logprobs"].to_list())


def test_an_adapter_changes_the_answers_and_stays_comparable(model, asked, base, tmp_path):
    folder = tiny_model_dir(tmp_path, "qwen3")
    adapter = lora(folder, tmp_path / "adapter")
    healed = load_model(ModelSpec(path=str(folder), device="cpu", adapter=str(adapter)), tmp_path)
    found = measure(healed, asked, arm="nll", seed=2)
    assert found["made_with"][0] == base["made_with"][0]
    assert found["seed"].unique().to_list() == [2]
    assert not np.allclose(found["logprobs"].to_list(), base["logprobs"].to_list())


def test_other_vignettes_and_wordings_are_not_comparable(model, asked, base):
    both = measure(model, asked, arm="base", wordings=(REASON, LABEL))
    assert both.height == 4 * asked.height
    assert both["made_with"][0] != base["made_with"][0]
    others = asked.with_columns(pl.col("text") + " It rained.")
    assert fingerprint(model, others, (REASON,)) != base["made_with"][0]


def test_vignettes_of_care_alone_are_refused(model, asked):
    with pytest.raises(VignetteError, match="no vignette of fairness, loyalty, authority.*stratified"):
        measure(model, asked.filter(foundation="care"), arm="base")


def test_phrases_are_read_where_no_options_are_shown(model, asked):
    found = measure(model, asked, arm="base", wordings=(BECAUSE, IS))
    assert found["order"].unique().to_list() == ["unshown"]
    assert found.height == 2 * asked.height
    row = found.row(3, named=True)
    text = asked.filter(row_id=row["row_id"])["text"][0]
    ids, _ = prompt_ids(model.tokenizer, BECAUSE, text, [], system=None, chat=True)
    for phrase, said in zip(BECAUSE.glosses, row["logprobs"], strict=True):
        answer = encode_completion(model.tokenizer, f" {phrase}", end_of_turn=False)
        sums, _ = sequence_nll(model, [[*ids, *answer]], [len(ids)])
        assert -said == pytest.approx(float(sums[0]), rel=1e-3)
    assert readings(found).height == asked.height
    with pytest.raises(FrameError, match="all with indices or all with phrases"):
        measure(model, asked, arm="base", wordings=(BECAUSE, REASON))


def test_indices_must_be_single_tokens_of_their_own(model):
    assert len(set(answer_ids(model.tokenizer, REASON))) == 7
    double = replace(REASON, name="double", indices=("10", "11", "12", "13", "14", "15", "16"))
    with pytest.raises(FrameError, match="wording 'double': '10' after 'The answer is \\(' is not one token"):
        answer_ids(model.tokenizer, double)
    equal = replace(REASON, name="equal", indices=("1", "2", "3", "4", "5", "6", "6"))
    with pytest.raises(FrameError, match="7 answers make 6 different ones"):
        answer_ids(model.tokenizer, equal)
