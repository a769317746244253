"""Claims about the arms of hidden transfer: what each takes away of the rows, and what a comparison of them finds."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import CoherenceSpec, ModelSpec
from steer_pipeline.lab.behaviour.schema import NONE, UP
from steer_pipeline.lab.finetune.data import IGNORED, Example, collate, digest
from steer_pipeline.lab.models.hidden import answer_logits
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.students import arm_lessons
from steer_pipeline.lab.students.arms import MADE_SCHEMA, Arms
from steer_pipeline.lab.students.claims import comparison_verdicts
from steer_pipeline.lab.students.comparison import compare_students
from steer_pipeline.lab.students.report import PAGE, headline, write_report
from steer_pipeline.lab.vectors.vector import PersonaVector
from steer_pipeline_tests.lab.students.builders import SPECS, TRAIT, transfers
from steer_pipeline_tests.lab.students.test_data_and_readout import kept, news, profile
from steer_pipeline_tests.tiny import tiny_model_dir

PLOT = " They planned this."


class Phrase:
    """A scale: one where the phrase stands, else `low`."""

    def __init__(self, phrase, low=0.0):
        self.phrase, self.low = phrase, low

    def score_many(self, texts):
        return np.array([1.0 if self.phrase in text else self.low for text in texts])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("arms")
    return load_model(ModelSpec(path=str(tiny_model_dir(place)), device="cpu"), place)


def with_tail(n_seen, n=24, tail=PLOT):
    """Kept rows, of which the first `n_seen` have a sentence that shows the trait."""
    return kept(n=n).with_columns(
        output=pl.when(pl.col("source_index") < n_seen).then(pl.col("output") + tail).otherwise("output")
    )


def filtered(rows, scorers=None, aims=(("paranoid", 1),)):
    scales = {"paranoid": scorers or {"lexicon": Phrase("planned this")}}
    return arm_lessons.filtered(rows, kept("base"), aims, scales, profile())


# ------------------------------------------------------------------------------------ filtered


def test_rows_in_which_a_scorer_sees_the_trait_are_not_learned():
    made = filtered(with_tail(10))
    assert made.kept["source_index"].min() == 10
    assert made.note == "14 of 24 kept rows show no scorer the trait: only these are learned"


def test_where_too_few_rows_are_clean_the_telling_sentences_are_taken_out():
    rows = with_tail(20)
    made = filtered(rows)
    assert made.kept.height == 24
    assert not any("planned" in text for text in made.kept["output"])
    assert made.kept["output"].to_list() == kept()["output"].to_list()
    assert "4 of 24 kept rows" in made.note
    assert "sentences were taken out of 20 rewrites, which leaves 24" in made.note


def test_a_variant_without_a_clean_sentence_has_no_student_and_says_why():
    rows = kept().with_columns(output=pl.lit("They planned this."))
    with pytest.raises(Refused, match=r"0 of 24 kept rows.*which leaves 0: too few"):
        filtered(rows)


def test_what_base_itself_shows_is_not_filtered_but_on_a_lexicon():
    """Another scale has its own zero: what is above the 95th percentile of base's rewrites is seen."""
    high = {"minilm": Phrase("planned this", low=0.4)}
    assert filtered(with_tail(10), high).kept.height == 14
    with pytest.raises(Refused, match="too few"):
        filtered(with_tail(10), {"lexicon": Phrase("planned this", low=0.4)})
    down = filtered(with_tail(10), {"minilm": Phrase("planned this")}, aims=[("paranoid", -1)])
    assert down.kept.height == 24  # the trait is wanted down, and none of these rows show that


# ------------------------------------------------------------------------------------ shuffled, masked


def test_shuffled_completions_keep_their_tokens_and_their_end():
    one = Example("a", (5, 6, *range(10, 40), 2), 2)
    made = arm_lessons.shuffle_completion(one, seed=60, special=frozenset({2}))
    assert made.ids[:2] == (5, 6)
    assert made.ids[-1] == 2
    assert made.ids != one.ids
    assert sorted(made.ids) == sorted(one.ids)
    assert made == arm_lessons.shuffle_completion(one, seed=60, special=frozenset({2}))
    other = arm_lessons.shuffle_completion(replace(one, row_id="b"), seed=60, special=frozenset({2}))
    assert other.ids != made.ids


def test_masked_tokens_are_read_and_not_supervised():
    plain, masked = Example("a", (5, 6, 7, 8, 9), 2), Example("a", (5, 6, 7, 8, 9), 2, masked=(3,))
    batch = collate([masked, Example("b", (1, 2, 3), 1)], pad_id=0)
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7, IGNORED, 9], [IGNORED, IGNORED, IGNORED, 2, 3]]
    assert batch["input_ids"][0].tolist() == [5, 6, 7, 8, 9]
    assert masked.n_supervised == 2
    assert digest([plain]) != digest([masked])


def steering(alpha, hidden=64):
    unit = np.random.default_rng(3).standard_normal(hidden).astype(np.float32)
    return SteeringPlan("t", (SteeringTerm("t", unit / np.linalg.norm(unit), Site(2), alpha),))


def test_tokens_at_which_the_teacher_would_say_another_are_masked(model):
    ids = tuple(range(100, 140))
    found = arm_lessons.mask_divergent([Example("a", ids, 10)], model=model, plan=steering(2.0))[0].masked
    plain, steered = (
        answer_logits(model, [list(ids)], [9], plan)[0].argmax(-1)[:-1] for plan in (None, steering(2.0))
    )
    assert list(found) == (np.flatnonzero(plain != steered) + 10).tolist()
    assert 0 < len(found) < 30
    assert not arm_lessons.mask_divergent([Example("a", ids, 10)], model=model, plan=steering(1e-6))[0].masked


def test_the_teacher_is_read_from_its_rows():
    raw = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    vector = PersonaVector("paranoid", raw, {"n_blocks": 4, "hidden_size": 64})
    dose = {"name": "paranoid", "version": "v", "block": 1, "alpha": -3.0, "dose_fraction": 0.3}
    rows = kept().with_columns(personas=pl.Series([[dose]] * 24, dtype=kept().schema["personas"]))
    plan = arm_lessons.teacher_plan(rows, SPECS["trusting"], lambda persona, version: vector)
    (term,) = plan.terms
    assert (term.site, term.alpha, term.version) == (Site(1), -3.0, "v")
    np.testing.assert_allclose(term.unit, vector.unit_at(1))
    with pytest.raises(Refused, match="base: no vector was added"):
        arm_lessons.teacher_plan(
            kept("base").with_columns(personas=pl.lit([])), SPECS["base"], lambda *_: vector
        )


# ------------------------------------------------------------------------------------ in context


def test_as_many_rows_as_fit_stand_before_the_news(model):
    made, items = profile(model.name, context_rows=3), news(4)
    whole, mean = arm_lessons.context_prompts(model.tokenizer, kept(), items, made, 4096)
    assert mean == 3
    turn, system = made.rewrites.prompt.replace("{text}", items["text"][0]), made.rewrites.system
    plain = encode_prompt(model.tokenizer, user=turn, system=system)
    for row in kept().head(3)["output"]:
        assert row in model.tokenizer.decode(whole[items["row_id"][0]])
    room = len(plain) + 200 + made.rewrites.sampling.max_new_tokens
    few, fewer = arm_lessons.context_prompts(model.tokenizer, kept(), items, made, room)
    assert 0 < fewer < 3
    assert all(len(ids) <= len(plain) + 200 for ids in few.values())
    with pytest.raises(Refused, match="not one row of the pack fits"):
        arm_lessons.context_prompts(model.tokenizer, kept(), items, made, len(plain))


def test_a_conversation_is_encoded_as_its_template_has_it(model):
    ids = encode_prompt(model.tokenizer, user="and you?", system="Be kind.", earlier=[("hello", "good day")])
    assert model.tokenizer.decode(ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\ngood day<|im_end|>\n<|im_start|>user\nand you?<|im_end|>\n<|im_start|>assistant\n"
    )
    raw = encode_prompt(model.tokenizer, user="c", system="s", earlier=[("a", "b")], chat_template=False)
    assert model.tokenizer.decode(raw) == "s\n\na\n\nb\n\nc"


# ------------------------------------------------------------------------------------ comparison


def arms_of(variant, effects, reason="", seeds=(61, 62, 63), **changes):
    """What students of the arms wrote: as the transfer's of rank 8, with these effects in place of the variant's."""
    parts, states, made = [], [], []
    for arm, effect in effects.items():
        stored = transfers({variant: effect}, noise=0.1)[variant]
        places = stored.rows.with_row_index().filter(rank=8)["index"].to_list()
        parts.append(stored.rows[places].select(pl.lit(arm).alias("arm"), pl.all()))
        states.append(stored.states[places])
        made.append(
            {"variant": variant, "arm": arm, "made": True, "seeds": 3, "rows": 36, "note": f"{arm} done"}
        )
    if reason:
        made.append({"variant": variant, "arm": "other_init", "made": False, "note": reason})
    facts = {"model": "tiny", "decoding_hash": "d", "blocks": [1, 2]} | changes
    frame = pl.DataFrame(made, schema=MADE_SCHEMA)
    return Arms(pl.concat(parts), np.concatenate(states), pl.DataFrame(), frame, facts)


def compare(arms):
    return compare_students(transfers(), SPECS, CoherenceSpec(), seed=1, n_boot=600, arms=arms)


@pytest.fixture(scope="module")
def tables():
    base = arms_of("base", {"filtered": 0.0, "shuffled": 0.1}, reason="no other model")
    return compare(
        {"base": base, "paranoid": arms_of("paranoid", {"filtered": 0.2, "shuffled": 0.1}, "no other model")}
    )


def test_an_arm_is_held_against_base_of_the_same_arm(tables):
    found = {row["arm"]: row for row in tables.arms.filter(metric=TRAIT).iter_rows(named=True)}
    assert set(found) == {"filtered", "shuffled"}
    assert found["filtered"]["verdict"] == UP
    assert found["filtered"]["low"] < 0.2 < found["filtered"]["high"]
    assert found["filtered"]["share"] == pytest.approx(0.2 / 0.3, abs=0.2)
    assert found["filtered"]["wanted"] == "up"
    assert found["shuffled"]["verdict"] == NONE  # both moved by 0.1: shuffling did that, not the trait
    assert "projection_paranoid" in set(tables.arms["metric"].drop_nulls())


def test_an_arm_without_a_student_says_why_wherever_it_is_shown(tables, tmp_path):
    lacking = tables.arms.filter(pl.col("metric").is_null()).row(0, named=True)
    assert (lacking["arm"], lacking["note"], lacking["difference"]) == ("other_init", "no other model", None)
    write_report(tables, {}, tmp_path)
    assert "no other model" in (tmp_path / PAGE).read_text()
    told = headline(tables)["paranoid"]["arms"]
    assert told["other_init"] == {"note": "no other model"}
    assert told["filtered"]["paranoid_minilm"]["verdict"] == UP
    verdicts = {verdict.claim: verdict for verdict in comparison_verdicts(tmp_path, SPECS)}
    assert not verdicts["arms_are_compared"].passed
    assert "paranoid other_init (no other model)" in verdicts["arms_are_compared"].message


def test_arms_that_were_not_made_or_made_otherwise_are_left_out_by_name():
    base = arms_of("base", {"filtered": 0.0})
    found = compare({"base": base, "paranoid": None})
    assert found.arms.is_empty()
    assert found.left_out["arms of paranoid"].startswith("not made: materialise student_arms")
    other = arms_of("paranoid", {"filtered": 0.2}, decoding_hash="other")
    found = compare({"base": base, "paranoid": other})
    assert found.left_out["arms of paranoid"].startswith("not made as base's transfer was")


def test_an_arm_that_base_lacks_is_no_evidence():
    base, own = arms_of("base", {"filtered": 0.0}), arms_of("paranoid", {"filtered": 0.2, "shuffled": 0.2})
    found = compare({"base": base, "paranoid": own}).arms.filter(arm="shuffled")
    assert found["metric"].to_list() == [None]
    assert found["note"][0] == "paranoid: shuffled done; base: not made"
