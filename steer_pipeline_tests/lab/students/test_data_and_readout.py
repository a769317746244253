"""Claims about what students learn and are judged on, and about read-outs."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.students import data
from steer_pipeline.lab.students.readout import fit_readout
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.tiny import tiny_model_dir

WORDS = "harbour bridge council market school river storm trial vaccine office museum ferry"


def news(n=40):
    """Items that are unlike each other."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation([f"{word}{i}" for word in WORDS.split()])) + "." for i in range(n)]
    return pl.DataFrame({"row_id": [f"{i:016x}" for i in range(n)], "source_index": range(n), "text": texts})


def profile(model="no_model", **students):
    sizes = {"rows": 8, "selection_rows": 2, "held_out_rows": 6} | students
    return Profile.model_validate(
        {
            "name": "newsroom",
            "summary": "for tests",
            "model": {"path": str(model), "device": "cpu"},
            "dose": {"n_rows": 4},
            "rewrites": {"system": "You are a news editor.", "pilot_rows": 12, "full_rows": 20},
            "students": sizes,
        }
    )


def kept(variant="paranoid", n=24, dropped=()):
    rows = pack(variant, n)
    return rows.with_columns(keep=~pl.col("source_index").is_in(list(dropped)))


def test_all_variants_learn_equally_many_rows_and_the_same_but_for_what_was_not_kept():
    base, _ = data.lesson_rows(kept("base"), profile(), "base", 61)
    other, watched = data.lesson_rows(kept(dropped=[3, 4]), profile(), "paranoid", 61)
    assert base.height == other.height == 8
    assert len(set(base["row_id"]) & set(other["row_id"])) >= 6
    assert not set(other["row_id"]) & set(watched["row_id"])
    assert not {f"{3:016x}", f"{4:016x}"} & set(other["row_id"])


def test_students_of_another_seed_learn_other_rows():
    """Else intervals over seeds would say nothing of the draw of rows, and a control moves by its luck alone."""
    drawn = [set(data.lesson_rows(kept(), profile(), "base", seed)[0]["row_id"]) for seed in (61, 62, 63)]
    assert len({frozenset(rows) for rows in drawn}) == 3
    assert all(len(rows) == 8 for rows in drawn)


def test_too_few_kept_rows_are_refused_with_the_cure():
    with pytest.raises(Refused, match=r"paranoid: 4 of 24 rows are kept.*students\.rows"):
        data.lesson_rows(kept(dropped=range(20)), profile(), "paranoid", 61)


def test_truncated_rewrites_are_not_taught_to_end(tmp_path):
    made = profile(tiny_model_dir(tmp_path))
    tokenizer = load_tokenizer(made.model, tmp_path)
    whole, cut = (
        data.examples_of(tokenizer, kept().head(1).with_columns(truncated=pl.lit(flag)), made)[0]
        for flag in (False, True)
    )
    assert whole.ids[:-1] == cut.ids
    assert whole.ids[-1] in tokenizer.all_special_ids


def test_a_prompt_that_training_sees_otherwise_than_generation_is_named(tmp_path):
    """A blank line stripped in one place and not in the other spoilt every student of the system before."""
    made = profile(tiny_model_dir(tmp_path))
    tokenizer = load_tokenizer(made.model, tmp_path)
    items = news(24).with_columns(text=pl.col("text") + "\n")
    rows = kept().with_columns(prompt=pl.Series([f"Rewrite: {text}" for text in items["text"]]))
    assert data.rows_that_differ(tokenizer, data.examples_of(tokenizer, rows, made), rows, items, made) == []
    stripped = rows.with_columns(
        prompt=pl.when(pl.col("source_index") == 5)
        .then(pl.col("prompt").str.strip_chars())
        .otherwise("prompt")
    )
    examples = data.examples_of(tokenizer, stripped, made)
    assert data.rows_that_differ(tokenizer, examples, stripped, items, made) == [f"{5:016x}"]


def test_held_out_news_are_in_no_pack_and_like_none_in_it():
    items = news(40)
    copied = items["text"][2] + " Soon."
    items = items.with_columns(
        text=pl.when(pl.col("source_index") >= 34).then(pl.lit(copied)).otherwise(pl.col("text"))
    )
    held = data.held_out_news(items, profile())
    assert held.height == 6
    assert held["source_index"].min() >= 20
    assert not set(held["source_index"]) & set(range(34, 40))
    again = data.held_out_news(items.sample(fraction=1.0, shuffle=True, seed=3), profile())
    assert again["row_id"].to_list() == held["row_id"].to_list()
    with pytest.raises(Refused, match=r"20 rows, and \d+ of them can be held out.*students\.held_out_rows"):
        data.held_out_news(items.head(20), profile(held_out_rows=9))


def test_what_was_learned_or_nearly_is_found_among_held_out_news():
    items = news(12)
    near = items.filter(pl.col("source_index") == 1).with_columns(row_id=pl.lit("f" * 16))
    held = pl.concat([items.tail(3), near])
    assert data.overlap(held, items.head(4)["row_id"], items, 0.8) == ["f" * 16]
    assert (
        data.overlap(items.tail(3), items.tail(2)["row_id"], items, 0.8) == items.tail(2)["row_id"].to_list()
    )


# ------------------------------------------------------------------------------------ read-outs


def states(shift, n=40, seed=0):
    """[n, 2 blocks, 12]: the second block holds `shift` in its first coordinate, the first block noise alone."""
    found = np.random.default_rng(seed).normal(0, 1, (n, 2, 12)).astype(np.float32)
    found[:, 1, 0] += shift
    return found


def fitted(up, down, seed=3):
    packs = {"paranoid": states(up, seed=1), "trusting": states(down, seed=2), "base": states(0.0, seed=3)}
    return fit_readout("paranoid", "trusting", packs, "base", [4, 7], seed=seed)


def test_a_readout_finds_the_block_and_both_poles_lie_apart_on_rows_it_has_not_seen():
    readout = fitted(2.0, -2.0)
    assert (readout.block, readout.at, readout.n_pairs) == (7, 1, 40)
    assert readout.separates
    new = [readout.project(states(shift, seed=9)).mean() for shift in (2.0, 0.0, -2.0)]
    assert new[0] > 1 > abs(new[1]) + 0.5
    assert new[2] < -1
    assert readout.teacher_shift == pytest.approx(new[0], abs=0.7)


def test_a_readout_of_noise_does_not_separate():
    """Fitted and scored on the same rows it would: that is how an AUC without an effect came about."""
    found = [fitted(0.0, 0.0, seed) for seed in range(5)]
    assert not any(readout.separates for readout in found)


def test_equal_or_too_few_packs_have_no_readout():
    same = {name: states(0.0) for name in ("paranoid", "trusting", "base")}
    with pytest.raises(Refused, match="rewrites of paranoid and trusting are the same"):
        fit_readout("paranoid", "trusting", same, "base", [4, 7], seed=1)
    few = {name: states(0.0, n=3, seed=seed) for seed, name in enumerate(same)}
    with pytest.raises(Refused, match=r"3 news items.*students\.rows"):
        fit_readout("paranoid", "trusting", few, "base", [4, 7], seed=1)
