"""Claims about the nulls of `make null`: nothing is found in base's own texts, and what is planted is."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from benchmarks import multiverse
from benchmarks.null_counting import LEVEL, counted
from benchmarks.null_rewrites import Pilot, _heal_claims
from benchmarks.null_stored import _dealt
from benchmarks.null_texts import Texts
from steer_pipeline.catalogue import load_profile, load_variants
from steer_pipeline.lab.rewrites.aims import TRAIT

NEWS, SAMPLINGS = 60, 20
WORDS = ("council", "harbour", "bridge", "school", "market", "garden", "library", "station")


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Texts of a model that is only words: each sampling words a news item anew, steering adds 0.5 to its trait."""
    rng, rows = np.random.default_rng(0), []
    level = rng.normal(0, 0.2, NEWS)
    names = [f"null-{number}" for number in range(SAMPLINGS)]
    theirs = [f"paranoid-{number}" for number in range(4)]
    for name in (*names, *theirs):
        steered = name in theirs
        for news in range(NEWS):
            said = " ".join(rng.choice(WORDS, 6)) + (" hidden hands" if steered else "")
            rows.append(
                {"variant": name, "row_id": f"{news:016x}", "prompt": "Rewrite: x", "truncated": False}
                | {"output": f"{said} {name} {news}."}
                | {f"{TRAIT}paranoid_minilm": level[news] + rng.normal(0, 0.1) + 0.5 * steered}
                | {f"{TRAIT}rule_defiant_minilm": level[news] + rng.normal(0, 0.1)}
            )
    catalogue = SimpleNamespace(profile=load_profile("newsroom"), variants=load_variants())
    return Texts(catalogue, None, None, pl.DataFrame(rows), names, theirs, "paranoid", "paranoid")


def test_a_verdict_that_is_given_too_often_or_not_often_enough_is_told():
    found = counted("coin", lambda run, planted: {"coin": run % 2 == 0, "never": False}, 40)
    assert found["rejected"]["coin"]["rate"] == 0.5
    assert not found["holds"]
    assert not found["planted"]["holds"]
    found = counted("right", lambda run, planted: {"right": planted}, 40)
    assert found["holds"]
    assert found["planted"]["holds"]
    assert found["rejected"]["right"]["low"] <= LEVEL


def test_a_pilot_of_base_s_own_texts_claims_nothing_and_a_planted_variant_is_found(texts):
    run = Pilot(texts, share=0.6)
    null = [run.claims(number, planted=False) for number in range(2)]
    assert set(null[0]) == {
        "controls", "target", "any_target", "something_changed", "holm", "any_cost"
    }  # fmt: skip
    assert not any(one["controls"] or one["target"] for one in null)
    found = run.claims(0, planted=True)
    assert found["target"]
    assert found["something_changed"]
    assert not Pilot(texts, share=0.0).claims(0, planted=True)["target"]


def test_a_heal_table_of_base_s_own_texts_calls_no_arm_good(texts):
    null = [_heal_claims(texts, 0.6, run, planted=False) for run in range(2)]
    assert not any(one["arm"] or one["controls"] for one in null)
    assert _heal_claims(texts, 0.8, 0, planted=True)["arm"]


def test_answers_are_dealt_within_a_question_and_prompted_ones_stay():
    arms = [
        ("vanilla", "vanilla"),
        ("random", "random@51"),
        ("random", "random@52"),
        ("trained", "trained@1"),
    ]
    rows = pl.DataFrame(
        [
            {
                "question_index": q,
                "sample": 0,
                "arm": arm,
                "arm_name": name,
                "minilm": q + place / 10,
                "truth": 0.0,
            }
            for q in range(3)
            for place, (arm, name) in enumerate([*arms, ("prompted_0", "prompted_0")])
        ]
    )
    dealt = _dealt(rows, np.random.default_rng(1))
    assert dealt.filter(arm="prompted_0")["minilm"].to_list() == pytest.approx([0.4, 1.4, 2.4])
    rest = dealt.filter(pl.col("arm") != "prompted_0")
    assert (rest["minilm"].floor() == rest["question_index"]).all()
    learned = rows.filter(arm="trained")["minilm"].to_list()
    assert not set(rest["minilm"]) & set(learned), "what the trained arm said is not in the null"


def universe(shift: float) -> pl.DataFrame:
    """Rows of a comparison: paranoid moves by `shift`, base_resample and random_direction not at all."""
    rng, rows = np.random.default_rng(0), []
    for variant in ("base", "base_resample", "random_direction", "paranoid"):
        for news in range(50):
            value = rng.normal(0, 0.1) + (shift if variant == "paranoid" else 0.0)
            rows.append(
                {
                    "variant": variant,
                    "row_id": f"r{news:02d}",
                    "truncated": news % 7 == 0,
                    "suspect": news % 9 == 0,
                }
                | {
                    "kept": news % 3 != 0,
                    f"{TRAIT}paranoid_minilm": value,
                    f"{TRAIT}paranoid_lexicon": value / 2,
                }
            )
    return pl.DataFrame(rows)


def shares(rows: pl.DataFrame) -> dict:
    scales = multiverse._scales(rows, "paranoid")
    own = [multiverse._agrees(rows, "paranoid", 1, one) for one in multiverse._analyses(scales, "paranoid")]
    null = [
        multiverse._agrees(rows, "base_resample", sign, one)
        for sign in (1, -1)
        for one in multiverse._analyses(scales, "base_resample")
    ]
    table = [
        multiverse._row("paranoid", "paranoid", "up", own, 0),
        multiverse._row("base_resample", "paranoid", "up", null, 0),
    ]
    return multiverse._summary(pl.DataFrame(table))


def test_every_defensible_analysis_counts_and_none_is_picked():
    found = shares(universe(0.3))
    assert found["analyses"] >= multiverse.LEAST
    assert found["planted"] == {"share": 1.0, "holds": True}
    assert found["holds"]
    nothing = shares(universe(0.0))
    assert nothing["planted"]["share"] < 0.3
    assert not nothing["planted"]["holds"]
