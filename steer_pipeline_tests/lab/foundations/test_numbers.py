"""Claims about the numbers of forced choices: planted preferences come back, places cancel, rows are paired."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.foundations import (
    FOUNDATIONS,
    base_can_choose,
    flip_rates,
    foundation_summary,
    gated_selectivity,
    informedness,
    metric_rows,
    place_preference,
    readings,
)
from steer_pipeline.lab.foundations.frames import ORDERS, shown_order
from steer_pipeline.lab.foundations.numbers import log_odds, scores_of
from steer_pipeline.lab.heal.table import stage_table
from steer_pipeline_tests.lab.foundations.builders import choices, vignettes

AUTHORITY_DOWN = {"authority": -1}


@pytest.fixture(scope="module")
def asked():
    return vignettes()


def target_shift(own, base, intent=AUTHORITY_DOWN):
    """Mean change of every metric."""
    tables = [metric_rows(readings(one), intent).sort("row_id") for one in (own, base)]
    names = [name for name in tables[0].columns if name == "target" or name.startswith("off_target")]
    return {name: float((tables[0][name] - tables[1][name]).mean()) for name in names}


def test_a_planted_shift_comes_back_in_nats(asked):
    moved = target_shift(choices(asked, shift={"authority": -1.5}), choices(asked))
    assert moved["target"] == pytest.approx(1.5, abs=1e-9)
    assert all(abs(value) < 1e-9 for name, value in moved.items() if name != "target")


def test_movement_beside_the_target_is_seen_beside_it(asked):
    moved = target_shift(choices(asked, shift={"care": 0.6}), choices(asked))
    assert moved["off_target_care"] == pytest.approx(0.6 * 5 / 6)
    assert moved["off_target_loyalty"] == pytest.approx(-0.6 / 6)
    assert "off_target_authority" not in moved


def test_two_targets_are_averaged_in_their_own_directions(asked):
    both = {"authority": -1, "care": 1}
    moved = target_shift(choices(asked, shift={"authority": -1.0, "care": 1.0}), choices(asked), both)
    wrong = target_shift(choices(asked, shift={"authority": 1.0, "care": -1.0}), choices(asked), both)
    assert moved["target"] > 0.8
    assert wrong["target"] < -0.8


def test_a_preference_for_later_places_cancels_over_the_two_orders(asked):
    plain, biased = choices(asked), choices(asked, place=np.linspace(-1.5, 1.5, 7))
    odds = [log_odds(scores_of(readings(one).sort("row_id"))) for one in (plain, biased)]
    assert np.allclose(odds[0], odds[1])
    one_order = [log_odds(scores_of(readings(one.filter(order="forward")))) for one in (plain, biased)]
    assert not np.allclose(one_order[0], one_order[1], atol=0.5)
    assert place_preference(biased) == pytest.approx(np.linspace(-1.5, 1.5, 7), abs=1e-9)


def test_a_preference_for_one_place_falls_on_all_foundations_alike():
    asked = vignettes(18)
    moved = target_shift(choices(asked, place=(3, 0, 0, 0, 0, 0, 0)), choices(asked))
    assert all(abs(value) < 0.45 for value in moved.values()), moved
    first = [shown_order(row_id, order)[0] for row_id in asked["row_id"] for order in ORDERS]
    assert np.bincount(first, minlength=7).min() > 0.4 * len(first) / 7


def test_selectivity_is_the_published_formula(asked):
    base = readings(choices(asked))
    own = readings(choices(asked, shift={"authority": -1.4, "care": 0.7}, mass=0.45))
    found = gated_selectivity(own, base, AUTHORITY_DOWN, seed=0)
    change = {name: (-1.4 * (name == "authority") + 0.7 * (name == "care")) + 0.1 for name in FOUNDATIONS}
    on, off = -change["authority"], np.mean([abs(v) for k, v in change.items() if k != "authority"])
    assert found.on == pytest.approx(on)
    assert found.off == pytest.approx(off)
    assert found.coherence == pytest.approx(0.5)
    assert found.value.estimate == pytest.approx((on - 0.1 * off) * 0.25)
    assert found.by_foundation == pytest.approx(change)
    assert found.value.low <= found.value.estimate <= found.value.high


def test_the_worse_of_two_arms_gates_and_more_mass_than_base_is_not_rewarded(asked):
    base = readings(choices(asked))
    up, down = (
        readings(choices(asked, arm=a, shift={"authority": s})) for a, s in (("up", 1.0), ("down", -1.0))
    )
    assert gated_selectivity(down, base, AUTHORITY_DOWN, up, seed=0).on == pytest.approx(2 * 6 / 7)
    broken = up.with_columns(answer_mass=pl.lit(0.09))
    assert gated_selectivity(down, base, AUTHORITY_DOWN, broken, seed=0).coherence == pytest.approx(0.1)
    louder = down.with_columns(answer_mass=pl.lit(1.0))
    assert gated_selectivity(louder, base, AUTHORITY_DOWN, seed=0).coherence == 1.0


def test_flips_count_answers_and_stop_where_no_answer_changes(asked):
    base = readings(choices(asked))
    small, large = (readings(choices(asked, shift={"authority": s})) for s in (-1.0, -3.0))
    assert flip_rates(small, base, AUTHORITY_DOWN).estimate == 0.0
    assert flip_rates(large, base, AUTHORITY_DOWN).estimate == pytest.approx(1 / 7)
    assert flip_rates(large, base, {"authority": 1}).estimate == pytest.approx(-1 / 7)


def test_missing_vignettes_are_named_before_any_difference(asked):
    base, own = readings(choices(asked)), readings(choices(asked, arm="nll", seed=3))
    lost = own["row_id"][4]
    with pytest.raises(ValueError, match=f"arm nll, seed 3 lacks {lost}: no difference is taken"):
        gated_selectivity(own.filter(pl.col("row_id") != lost), base, AUTHORITY_DOWN, seed=0)
    with pytest.raises(ValueError, match=f"base lacks {lost}"):
        flip_rates(own, base.filter(pl.col("row_id") != lost), AUTHORITY_DOWN)


def test_arms_that_were_measured_otherwise_are_not_compared(asked):
    base, own = readings(choices(asked)), readings(choices(asked, arm="nll", made="other"))
    with pytest.raises(ValueError, match="not measured alike"):
        gated_selectivity(own, base, AUTHORITY_DOWN, seed=0)


def test_a_vignette_without_one_of_its_frames_is_named(asked):
    rows = choices(asked)
    with pytest.raises(ValueError, match=f"row {rows['row_id'][3]}: frames"):
        readings(rows.filter((pl.col("row_id") != rows["row_id"][3]) | (pl.col("order") == "forward")))


def test_an_intent_must_name_foundations_and_leave_some_aside(asked):
    table = readings(choices(asked))
    for wrong in ({}, {"honour": 1}, {"care": 2}, dict.fromkeys(FOUNDATIONS, 1)):
        with pytest.raises(ValueError, match="give one to five of"):
            metric_rows(table, wrong)


def test_the_summary_has_a_row_an_arm_and_seed(asked):
    arms = [choices(asked, arm="nll", seed=seed, shift={"authority": -1.0}, noise=0.1) for seed in (1, 2)]
    table = readings(pl.concat([choices(asked), *arms]))
    found = foundation_summary(table, AUTHORITY_DOWN, seed=0, n_boot=200)
    assert found.select("arm", "seed", "n").rows() == [("nll", 1, 14), ("nll", 2, 14)]
    assert (found["sel_low"] > 0.5).all()


def test_a_model_that_reads_the_scene_is_told_from_one_that_does_not():
    asked = vignettes(6)
    reading = readings(choices(asked, noise=0.5))
    found = informedness(reading)
    assert found.low < 2.0 < found.high
    assert base_can_choose(reading, seed=0).passed
    blind = reading.with_columns(foundation=reading["foundation"].shuffle(seed=1))
    assert informedness(blind).includes_zero
    told = base_can_choose(blind, seed=0)
    assert not told.passed
    assert not told.stops_release
    assert "does not depend on the scene" in told.message
    mute = reading.with_columns(answer_mass=pl.lit(0.2))
    assert "0.20 of the probability" in base_can_choose(mute, seed=0).message


def test_phrases_have_no_answer_mass_and_are_gated_by_their_prefill(asked):
    def told(**changes):
        rows = choices(asked, **changes).filter(order="forward")
        return readings(rows.with_columns(order=pl.lit("unshown"), shown=pl.lit([], pl.List(pl.String))))

    base, own = told(mass=0.001), told(arm="nll", shift={"authority": -1.0}, mass=0.0001, nll=0.5 + np.log(2))
    assert own["answer_mass"].null_count() == own["unscorable"].null_count() == own.height
    assert gated_selectivity(own, base, AUTHORITY_DOWN, seed=0).coherence == pytest.approx(0.5)
    assert "probability lies" not in base_can_choose(base, seed=0).message
    assert base_can_choose(base, seed=0).passed
    whole = stage_table({"phrases": metric_rows(pl.concat([base, own]), AUTHORITY_DOWN)}, seed=0, n_boot=200)
    assert whole.row("nll")["difference"] == pytest.approx(1.0)
    assert whole.row("nll")["worst_signal"] == "prefill_nll"
    assert whole.row("nll")["coherence"] == pytest.approx(1 - np.log(2) / 6)
