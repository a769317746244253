"""Samples are keyed, keep their ids and never touch held-out prompts; the controller takes only what it tested."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.healing import HealControllerSpec, HealSampleSpec
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.heal.controller import PROBE_SCHEMA, collect, settle, settled_claim
from steer_pipeline.lab.heal.samples import SAMPLE_SCHEMA, sample_rows
from steer_pipeline.lab.heal.teacher import HealError, make_teacher
from steer_pipeline.lab.models.completions import completion_nll
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline_tests.lab.heal.builders import newsroom, planted, prompts

SPEC = HealSampleSpec(samples_per_prompt=2, max_new_tokens=20)


@pytest.fixture(scope="module")
def rows():
    return sample_rows(newsroom(), make_teacher(planted()), [0.0, 1.0], prompts(4), SPEC)


def test_every_prompt_has_its_samples_at_every_dose_and_ids_are_those_that_were_drawn(rows):
    assert rows.schema == SAMPLE_SCHEMA
    assert rows.height == 2 * 4 * 2
    assert rows["sample_id"].n_unique() == rows.height
    counts = rows.group_by("dose", "prompt_id").len()
    assert counts["len"].to_list() == [2] * 8
    model, row = newsroom(), rows.filter(dose=1.0).row(0, named=True)
    asked = encode_prompt(model.tokenizer, user=row["prompt"], system=row["system"])
    assert row["prompt_ids"] == asked
    assert model.tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["output"]
    assert not set(row["token_ids"]) & set(model.eos_ids), "the end of turn is left out"
    ended = rows.filter(~pl.col("truncated"))["token_ids"].list.len()
    assert (ended < SPEC.max_new_tokens).all()
    told = rows.group_by("dose").agg(pl.col("teacher", "alpha").first()).sort("dose").rows()
    assert told[0] == (0.0, "base", 0.0)
    assert told[1] == (1.0, "paranoid", pytest.approx(float(np.linalg.norm(planted().raw[0])), rel=1e-6))


def test_samples_of_a_prompt_differ_and_do_not_depend_on_what_else_is_made(rows):
    of_prompt = rows.filter((pl.col("dose") == 1.0) & (pl.col("prompt_id") == "p01"))
    assert of_prompt["output"].n_unique() == 2
    alone = sample_rows(newsroom(), make_teacher(planted()), [1.0], prompts(2)[1:], SPEC)
    assert alone.equals(of_prompt)
    other = sample_rows(
        newsroom(), make_teacher(planted()), [1.0], prompts(2)[1:], SPEC.model_copy(update={"seed": 5})
    )
    assert not other["token_ids"].equals(of_prompt["token_ids"])


def test_a_killed_run_resumes_to_the_same_samples(tmp_path, rows):
    teacher = make_teacher(planted())
    made = sample_rows(newsroom(), teacher, [1.0], prompts(2), SPEC, journal=Journal(tmp_path / "j"))
    told = []
    again = sample_rows(
        newsroom(),
        teacher,
        [0.0, 1.0],
        prompts(4),
        SPEC,
        journal=Journal(tmp_path / "j"),
        progress=told.append,
    )
    assert again.equals(rows)
    assert told[-1].sequences_resumed == made.height


def test_held_out_prompts_are_never_sampled_and_doses_stand_once():
    teacher = make_teacher(planted())
    with pytest.raises(HealError, match=r"1 of 4 prompts are held out, such as 'p03'"):
        sample_rows(newsroom(), teacher, [1.0], prompts(4, held_out=1), SPEC)
    with pytest.raises(HealError, match="name each once"):
        sample_rows(newsroom(), teacher, [1.0, 1.0], prompts(4), SPEC)


def test_nothing_at_generation_works_against_repetition():
    sampling = SPEC.sampling()
    assert sampling.repetition_penalty == 1.0
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.no_repeat_ngram) == (0, 0, 0)
    assert not {"repetition_penalty", "no_repeat_ngram"} & set(HealSampleSpec.model_fields)


# --------------------------------------------------------------------------------------- the controller

CONTROL = HealControllerSpec(target_share=0.75, min_dose=0.1, max_dose=1.6, n_prompts=10)


class Fake:
    """Of each dose, texts that survive with a share that falls as the dose grows: 1 - dose / 2."""

    def __init__(self, share=lambda dose: 1 - dose / 2, per_prompt=10):
        self.share, self.per_prompt, self.asked = share, per_prompt, []

    def sample(self, dose, asked):
        self.asked.append((dose, asked["prompt_id"].to_list()))
        n = asked.height * self.per_prompt
        return pl.DataFrame({"dose": [dose] * n, "number": range(n)})

    def keep(self, rows):
        dose = rows["dose"][0]
        return [number < self.share(dose) * rows.height for number in range(rows.height)]


def many(n=40):
    return pl.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(n)],
            "category": ["a", "b", "c", "d"] * (n // 4),
            "prompt": ["?"] * n,
            "held_out": [False] * n,
        }
    )


def test_the_controller_takes_the_largest_dose_that_passes_its_own_test():
    fake = Fake()
    settled = settle(fake.sample, fake.keep, many(), CONTROL)
    assert 0.5 / 1.1 <= settled.dose < 0.52, "one text of a hundred is 0.02 of dose"
    assert settled.probes.schema == PROBE_SCHEMA
    passed = settled.probes.filter("passed")
    assert settled.dose in passed["dose"].to_list(), "never an untested dose"
    assert settled.dose == passed["dose"].max()
    assert settled.failed == settled.probes.filter(~pl.col("passed"))["dose"].min()
    assert settled.failed / settled.dose <= 1.1
    assert settled.share >= 0.75
    assert settled.n == 100


def test_tests_are_on_the_same_prompts_spread_over_categories():
    fake = Fake()
    settle(fake.sample, fake.keep, many(), CONTROL)
    tested = {tuple(ids) for _, ids in fake.asked}
    assert len(tested) == 1
    (ids,) = tested
    categories = many().filter(pl.col("prompt_id").is_in(ids))["category"].value_counts()["count"]
    assert sorted(categories) == [2, 2, 3, 3]


def test_the_largest_allowed_dose_is_taken_at_once_where_it_passes():
    fake = Fake(share=lambda _: 1.0)
    settled = settle(fake.sample, fake.keep, many(), CONTROL)
    assert (settled.dose, settled.failed, settled.probes.height) == (1.6, None, 1)


def test_a_floor_that_fails_is_an_error_with_all_shares():
    fake = Fake(share=lambda dose: 0.4 - dose / 10)
    with pytest.raises(HealError, match=r"75% of its texts must .*; of 1\.6: 25 of 100 \(25%\), 0\.1: 39 of"):
        settle(fake.sample, fake.keep, many(), CONTROL)


def test_data_are_of_the_settled_dose_alone_and_say_so():
    fake = Fake()
    settled = settle(fake.sample, fake.keep, many(), CONTROL)
    rows = collect(fake.sample, fake.keep, many(), settled)
    assert rows["dose"].unique().to_list() == [settled.dose]
    assert rows["purpose"].unique().to_list() == ["data"]
    assert rows.height == 400
    assert settled.rows["purpose"].unique().to_list() == ["probe"]
    assert settled.rows["dose"].n_unique() == settled.probes.height
    assert settled_claim(settled, rows).passed
    mixed = pl.concat([rows, settled.rows])
    verdict = settled_claim(settled, mixed)
    assert not verdict.passed
    assert "the rows are of doses" in verdict.message
    with pytest.raises(HealError, match=r"gave texts of doses \[9\.0\]"):
        collect(lambda _, asked: fake.sample(9.0, asked), fake.keep, many(), settled)
    with pytest.raises(HealError, match="the filter judged 3 of 400 texts"):
        collect(fake.sample, lambda _: [True] * 3, many(), settled)


def test_a_test_that_was_lucky_is_found_out_on_all_texts():
    fake = Fake()
    settled = settle(fake.sample, fake.keep, many(), CONTROL)
    rows = collect(
        fake.sample, lambda rows: [number % 2 == 0 for number in range(rows.height)], many(), settled
    )
    verdict = settled_claim(settled, rows)
    assert not verdict.passed
    assert "50% of all 400 survive" in verdict.message


def test_on_a_model_the_tested_texts_are_those_of_the_data():
    teacher = make_teacher(planted())
    sample = lambda dose, asked: sample_rows(newsroom(), teacher, [dose], asked, SPEC)  # noqa: E731

    def keep(rows):
        prompts_, said = rows["prompt_ids"].to_list(), rows["token_ids"].to_list()
        return [one[0] < 4 for one in completion_nll(newsroom(), prompts_, [[ids] for ids in said])]

    spec = HealControllerSpec(n_prompts=2, max_dose=24.0, max_probes=3, target_share=0.6)
    settled = settle(sample, keep, prompts(4), spec)
    assert settled.dose < 24.0, "at 24 times its length it babbles"
    data = collect(sample, keep, prompts(4), settled)
    tested = settled.rows.filter(pl.col("dose") == settled.dose)
    same = data.join(tested, on="sample_id", how="semi")
    assert same.drop("purpose").equals(tested.drop("purpose"))
