"""A rollout is what the model said and nothing of what it was asked; rows say how they came about."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.catalogue.specs import ModelSpec, RolloutSpec, SamplingSpec
from steer_pipeline.lab.arms import arm_label
from steer_pipeline.lab.behaviour.arms import AveragedDose, build_arms
from steer_pipeline.lab.behaviour.rollouts import (
    ROLLOUT_SCHEMA,
    leaked_prompt,
    leaks,
    make_rollouts,
    missing_answers,
)
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline_tests.lab.behaviour.builders import averaged_vector, persona, trained_vector
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = RolloutSpec(trained_scales=[-1.0, 1.0], averaged_scales=[1.0], random_seeds=[51, 52])
GREEDY = SamplingSpec(temperature=0.0, top_p=1.0, max_new_tokens=8, seed=50)
SAMPLED = SamplingSpec(temperature=0.8, top_p=0.9, max_new_tokens=8, seed=50)


@pytest.fixture(scope="module", params=["qwen3", "llama", "gemma"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    spec = ModelSpec(path=str(tiny_model_dir(folder, request.param)), dtype="float32", device="cpu")
    return load_model(spec, folder)


@pytest.fixture(scope="module")
def arms(model):
    return build_arms(persona(), trained_vector(model), (averaged_vector(model), AveragedDose(2, 5.0)), SPEC)


@pytest.fixture(scope="module")
def greedy(model, arms):
    return make_rollouts(model, persona(), arms, GREEDY, n_questions=4).with_columns(arm_label())


def prompt_of(model, row, who=None) -> list[int]:
    who = who or persona()
    system = None if row["prompt_index"] is None else who.positive.instructions[row["prompt_index"]]
    return encode_prompt(model.tokenizer, user=row["question"], system=system)


def left_padded_reference(model, prompts: list[list[int]], correct: bool) -> list[str]:
    """transformers.generate on one left-padded batch, greedy; sliced at the padded length, or as chatspace did."""
    pad, longest = model.tokenizer.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out = model.module.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=sorted(model.eos_ids), pad_token_id=pad,
        )  # fmt: skip
    starts = [longest if correct else int(row.sum()) for row in mask]
    return [
        model.tokenizer.decode(row[start:], skip_special_tokens=True)
        for row, start in zip(out, starts, strict=True)
    ]


def test_answers_are_those_of_a_correctly_sliced_left_padded_batch(model, greedy):
    """The continuation was cut by the attention mask's sum, so prompts leaked into responses (chatspace 3.4.1)."""
    plain = greedy.filter(pl.col("scale").is_null())
    prompts = [prompt_of(model, row) for row in plain.iter_rows(named=True)]
    assert len(set(map(len, prompts))) > 4  # lengths differ, so left padding matters
    assert plain["response"].to_list() == left_padded_reference(model, prompts, correct=True)
    assert leaks(greedy, model.tokenizer, persona().positive.instructions, True) == []


def test_the_old_slicing_is_found_out(model, greedy):
    plain = greedy.filter(pl.col("scale").is_null())
    prompts = [prompt_of(model, row) for row in plain.iter_rows(named=True)]
    wrong = plain.with_columns(pl.Series("response", left_padded_reference(model, prompts, correct=False)))
    found = leaks(wrong, model.tokenizer, persona().positive.instructions, True)
    longest = max(map(len, prompts))
    # a leak of a newline alone, or of two tokens of the header, has no three letters
    assert len(found) >= sum(len(prompt) < longest - 4 for prompt in prompts) > 0


def test_a_leak_is_the_end_of_the_prompt_at_the_start_of_the_response():
    prompt = "user\nHow is it?\nassistant\n"
    assert leaked_prompt(prompt, "assistant\nFine.") == "assistant\n"
    assert leaked_prompt(prompt, "How is it?\nassistant\nFine.") == "How is it?\nassistant\n"
    assert leaked_prompt(prompt, "How is it? It is fine.") is None  # an echo is the model's own
    assert leaked_prompt(prompt, "\nFine.") is None
    assert leaked_prompt("...<think>\n\n</think>\n\n", "<think>\n\n</think>\n\nFine.") is not None


def test_steered_and_vanilla_arms_see_the_bare_question_and_prompted_ones_their_instruction(model, greedy):
    for row in greedy.filter(question_index=2).iter_rows(named=True):
        assert row["n_prompt_tokens"] == len(prompt_of(model, row))
    lengths = dict(greedy.filter(question_index=2).select("arm_name", "n_prompt_tokens").iter_rows())
    assert lengths["vanilla"] == lengths["trained@1"] == lengths["random@51"]
    assert lengths["prompted_1"] > lengths["prompted_0"] > lengths["vanilla"]


def test_rows_say_how_they_came_about(greedy, arms):
    assert greedy.drop("arm_name").schema == ROLLOUT_SCHEMA
    assert greedy["row_id"].n_unique() == greedy.height == 4 * len(arms)
    assert missing_answers(greedy, [arm.name for arm in arms], 4, 1) == []
    row = greedy.filter(arm_name="trained@-1", question_index=0).row(0, named=True)
    assert (row["scale"], row["seed"], row["block"]) == (-1.0, 41, 1)
    assert (row["alpha"], row["dose_fraction"]) == (pytest.approx(-6.0), pytest.approx(-0.5))
    assert row["sampling_seed"] == 50
    assert row["vector_version"]
    assert set(greedy["finish_reason"]) <= {"eos", "length"}
    assert (greedy["truncated"] == (greedy["finish_reason"] == "length")).all()
    assert greedy["trait_truth"].null_count() == 0
    steered = greedy.filter(arm="trained", scale=1.0)["response"].to_list()
    assert steered != greedy.filter(arm="vanilla")["response"].to_list()


def test_perplexity_is_the_unsteered_model_s_given_the_bare_question(model, greedy):
    row = greedy.filter(pl.col("prompt_index").is_not_null(), pl.col("base_tokens") > 1).row(0, named=True)
    bare = encode_prompt(model.tokenizer, user=row["question"])
    said = greedy_tokens(model, prompt_of(model, row))
    assert len(said) == row["base_tokens"]
    with torch.inference_mode():
        logits = model.module(torch.tensor([bare + said])).logits[0].float().log_softmax(-1)
    nll = -sum(float(logits[len(bare) - 1 + i, token]) for i, token in enumerate(said))
    assert row["base_nll"] == pytest.approx(nll, rel=1e-4)
    assert row["perplexity"] == pytest.approx(np.exp(nll / len(said)), rel=1e-4)


def greedy_tokens(model, prompt: list[int]) -> list[int]:
    """What transformers generates, without the end token."""
    with torch.inference_mode():
        out = model.module.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=sorted(model.eos_ids), pad_token_id=model.tokenizer.pad_token_id,
        )  # fmt: skip
    return [token for token in out[0, len(prompt) :].tolist() if token not in model.eos_ids]


def test_sampling_is_keyed_by_seed_question_sample_and_arm(model, arms):
    """Rollouts had no seed (chatspace 3.4.13)."""
    first = make_rollouts(model, persona(), arms, SAMPLED, n_questions=3, n_samples=2)
    again = make_rollouts(model, persona(), arms, SAMPLED, n_questions=3, n_samples=2)
    assert first.equals(again)
    alone = make_rollouts(model, persona(), arms[:1], SAMPLED, n_questions=2, n_samples=2)
    shared = first.filter(pl.col("arm") == "vanilla", pl.col("question_index") < 2)
    assert alone["response"].to_list() == shared["response"].to_list()
    other = make_rollouts(
        model, persona(), arms, SAMPLED.model_copy(update={"seed": 51}), n_questions=3, n_samples=2
    )
    assert other["response"].to_list() != first["response"].to_list()
    samples = first.filter(arm="vanilla").partition_by("sample")
    assert samples[0]["response"].to_list() != samples[1]["response"].to_list()


def test_a_killed_run_does_what_is_missing_and_a_partial_file_is_not_done(model, arms, tmp_path, monkeypatch):
    """`--skip-existing` took a crashed run's partial file for the whole (chatspace 1.8, 3.4.7)."""
    from steer_pipeline.lab.behaviour import rollouts as module

    model = replace(model, spec=model.spec.model_copy(update={"batch_tokens": 512}))  # several batches
    journal, whole = tmp_path / "journal.jsonl", make_rollouts(model, persona(), arms, SAMPLED, n_questions=4)
    original, killed_at = module.generate, 11

    def killed(*args, **kwargs):
        for count, row in enumerate(original(*args, **kwargs)):
            if count == killed_at:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(module, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        make_rollouts(model, persona(), arms, SAMPLED, n_questions=4, journal=journal)
    with journal.open("ab") as file:
        file.write(b'0000 {"row": {"row_')  # torn by the kill
    monkeypatch.setattr(module, "generate", original)
    done_before = journal.read_bytes().count(b"\n")
    resumed = make_rollouts(model, persona(), arms, SAMPLED, n_questions=4, journal=journal)
    assert resumed.equals(whole)
    assert killed_at <= done_before < whole.height
    assert journal.read_bytes().count(b'"row":') == whole.height  # nothing was made twice


def test_missing_arms_and_answers_are_named(greedy, arms):
    names = [arm.name for arm in arms]
    partial = greedy.filter(~((pl.col("arm_name") == "vanilla") & (pl.col("question_index") == 3)))
    assert missing_answers(partial, names, 4, 1) == ["vanilla: 3 of 4 answers"]
    assert missing_answers(greedy.filter(pl.col("arm") != "averaged"), names, 4, 1)[0].startswith(
        "averaged@-1: 0"
    )
    assert missing_answers(pl.concat([greedy, greedy.head(1)]), names, 4, 1) == [
        "vanilla: 4 of 4 answers, some twice"
    ]


def test_bad_questions_are_refused(model, arms):
    who = persona()
    with pytest.raises(ValueError, match="`questions` is empty"):
        make_rollouts(model, who.model_copy(update={"questions": []}), arms, GREEDY, n_questions=4)
    with pytest.raises(ValueError, match="stands twice"):
        make_rollouts(
            model, who.model_copy(update={"questions": ["Why?", "Why?"]}), arms, GREEDY, n_questions=4
        )
