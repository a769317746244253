"""Claims about the stage table: known movements give known numbers, and the gates stop arms in their order."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.foundations import metric_rows, readings
from steer_pipeline.lab.heal.pairs import StageError
from steer_pipeline.lab.heal.signals import SIGNALS, text_rows, text_signals
from steer_pipeline.lab.heal.table import (
    SEED_SCHEMA,
    SIGNAL_SCHEMA,
    STAGE_SCHEMA,
    read_stage_table,
    stage_table,
    write_stage_table,
)
from steer_pipeline.lab.heal.table_report import pareto, stage_blocks
from steer_pipeline.lab.heal.verdicts import (
    CONTROL_MOVES,
    COSTLY,
    GOOD,
    INCOHERENT,
    INCONCLUSIVE,
    NO_EFFECT,
    NOT_FINITE,
    NOT_SURGICAL,
    WITHIN,
    WRONG_WAY,
    claims,
)
from steer_pipeline.lab.report.document import to_html
from steer_pipeline.lab.stats.power import minimum_detectable
from steer_pipeline_tests.lab.foundations.builders import choices, vignettes

N = 40
SEEDS = (71, 72, 73)


def rows(arm, seed=None, *, target=0.0, off=0.0, mass=0.9, nll=1.0, noise=0.05, n=N, made="m"):
    """Per-row metrics: the row's own level, and the arm's movement with noise of its own for each seed."""
    level = np.random.default_rng(0).standard_normal(n)
    rng = np.random.default_rng([sum(map(ord, arm)), seed or 0])
    noises = noise * rng.standard_normal((2, n)) * (arm != "base")
    return pl.DataFrame(
        {
            "arm": [arm] * n,
            "seed": pl.Series([seed] * n, dtype=pl.Int64),
            "row_id": [f"v{i:02d}" for i in range(n)],
            "made_with": [made] * n,
            "target": level + target + noises[0],
            "off_target_care": level / 2 + off + noises[1],
            "off_target_social": level / 3,
            "answer_mass": np.full(n, mass),
            "nll": np.full(n, nll),
        }
    )


def seeded(arm, **changes):
    return pl.concat([rows(arm, seed, **changes) for seed in SEEDS])


def table(*frames, **options):
    whole = pl.concat([rows("base"), rows("steered", target=1.0, off=0.2, nll=1.4), *frames])
    return stage_table({"choices": whole}, seed=0, n_boot=500, **options)


def test_known_movements_give_known_numbers():
    found = table(seeded("nll", target=0.8, off=0.1, mass=0.891), seeded("random_direction"))
    row = found.row("nll")
    assert row["difference"] == pytest.approx(0.8, abs=0.03)
    assert row["low"] < 0.8 < row["high"]
    assert row["off_target"] == pytest.approx(0.1, abs=0.03)
    assert row["off_name"] == "care"
    assert row["coherence"] == pytest.approx(0.99)
    assert row["worst_signal"] == "answer_mass"
    assert row["retain"] == pytest.approx(0.8, abs=0.03)
    assert row["retain_low"] < row["retain"] < row["retain_high"]
    assert row["coherence_cost"] == pytest.approx(0.01 / row["difference"])
    assert (row["n_rows"], row["n_seeds"], row["verdict"]) == (N, 3, GOOD)
    assert row["mean"] - row["base"] == pytest.approx(row["difference"])
    assert found.table.schema == STAGE_SCHEMA
    assert found.seeds.schema == SEED_SCHEMA
    assert found.signals.schema == SIGNAL_SCHEMA
    assert found.seeds.filter(arm="nll")["seed"].to_list() == list(SEEDS)
    assert found.row("steered")["worst_signal"] == "nll"
    assert found.row("steered")["coherence"] == pytest.approx(1 - 0.4 / 6)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"target": 0.9}, GOOD),
        ({"target": 0.9, "mass": 0.85}, COSTLY),
        ({"target": 0.9, "off": -1.2}, NOT_SURGICAL),
        ({"target": 0.9, "off": -1.2, "mass": 0.5}, INCOHERENT),
        ({"target": -0.9}, WRONG_WAY),
        ({"target": 0.0}, NO_EFFECT),
        ({"target": 0.0, "mass": 0.5}, INCOHERENT),
        ({"target": 0.1, "noise": 2.0}, INCONCLUSIVE),
        ({"target": float("nan"), "mass": 0.5}, NOT_FINITE),
        ({"target": 0.32, "off": 0.05}, WITHIN),
    ],
)
def test_gates_stop_arms_in_their_order(changes, verdict):
    found = table(seeded("nll", **changes), seeded("random_direction", target=0.4))
    assert found.row("nll")["verdict"] == verdict, found.row("nll")["reason"]


def test_one_odd_text_does_not_make_an_arm_costly():
    loops = pl.Series("loops", [1.0] + [0.0] * (N - 1))
    whole = [rows("base").with_columns(loops=0.0), rows("steered", target=1.0).with_columns(loops=0.0)]
    whole += [rows("nll", seed, target=0.9).with_columns(loops) for seed in SEEDS]
    row = stage_table({"texts": pl.concat(whole)}, seed=0, n_boot=500).row("nll")
    assert row["coherence"] == pytest.approx(1 - 1 / N)
    assert row["verdict"] == INCONCLUSIVE
    assert "within the limit" in row["reason"]


def test_a_healed_arm_with_one_seed_says_so():
    row = table(rows("nll", 71, target=0.9)).row("nll")
    assert row["verdict"] == GOOD
    assert "1 of 3 seeds" in row["reason"]
    assert row["seed_sd"] is None


def test_seeds_that_disagree_widen_the_interval():
    together = table(seeded("nll", target=0.8)).row("nll")
    apart = table(*(rows("nll", seed, target=t) for seed, t in zip(SEEDS, (0.2, 0.8, 1.4), strict=True))).row(
        "nll"
    )
    assert apart["difference"] == pytest.approx(together["difference"], abs=0.05)
    assert apart["high"] - apart["low"] > 5 * (together["high"] - together["low"])
    assert apart["seed_sd"] == pytest.approx(0.6, abs=0.05)
    assert apart["verdict"] == INCONCLUSIVE


def test_no_share_is_taken_of_a_steered_arm_that_did_not_move():
    whole = pl.concat([rows("base"), rows("steered", noise=1.0), seeded("nll", target=0.5)])
    found = stage_table({"choices": whole}, seed=0, n_boot=500)
    assert found.row("nll")["retain"] is None
    assert found.row("steered")["verdict"] == INCONCLUSIVE


def test_missing_rows_are_named_and_refused():
    whole = pl.concat([rows("base"), seeded("nll")])
    lost = whole.filter(~(pl.col("seed").eq_missing(72) & pl.col("row_id").is_in(["v03", "v11"])))
    with pytest.raises(StageError, match="choices: arm nll, seed 72 lacks v03, v11: no difference is taken"):
        stage_table({"choices": lost}, seed=0)
    with pytest.raises(StageError, match="row v00 occurs 2 times"):
        stage_table({"choices": pl.concat([whole, whole.filter(arm="nll", seed=72).head(1)])}, seed=0)
    with pytest.raises(StageError, match="no rows of arm 'base'"):
        stage_table({"choices": seeded("nll")}, seed=0)


def test_arms_that_were_measured_otherwise_are_refused():
    with pytest.raises(StageError, match="not measured alike"):
        table(rows("nll", 71, made="4-bit"))


def test_a_base_with_seeds_stands_beside_the_same_seed():
    base = pl.concat([rows("base", seed).with_columns(pl.col("target") + seed) for seed in SEEDS])
    own = pl.concat([rows("nll", seed, noise=0).with_columns(pl.col("target") + seed + 1) for seed in SEEDS])
    found = stage_table({"texts": pl.concat([base, own])}, seed=0, n_boot=200)
    assert found.row("nll")["difference"] == pytest.approx(1.0)
    assert found.row("nll")["seed_sd"] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(StageError, match="arm nll has seed 73; measure base with it"):
        stage_table({"texts": pl.concat([base.filter(pl.col("seed") != 73), own])}, seed=0)


def test_coherence_is_the_worst_over_all_readings():
    chosen = pl.concat([rows("base"), rows("steered", target=1.0)])
    texts = {
        "base": ["A quiet day in the harbour town, as the ferry came in."] * 12,
        "steered": ["and then " * 40] * 12,
    }
    ids = [str(number) for number in range(12)]
    told = [
        text_rows(ids, text_signals(own, [2.0] * 12), arm=arm, seed=None, made_with="texts")
        for arm, own in texts.items()
    ]
    found = stage_table({"choices": chosen, "texts": pl.concat(told)}, seed=0, n_boot=200)
    row = found.row("steered")
    assert row["coherence"] == 0.0
    assert row["worst_signal"] == "loops"
    assert row["verdict"] == INCOHERENT
    assert found.table["reading"].to_list() == ["choices"]
    assert set(found.signals["reading"]) == {"choices", "texts"}


def test_texts_that_are_all_empty_lose_their_perplexity_altogether():
    whole = pl.concat([rows("base"), rows("steered", target=1.0).with_columns(nll=pl.lit(None, pl.Float64))])
    found = stage_table({"texts": whole}, seed=0, n_boot=200)
    assert found.row("steered")["coherence"] == 0.0
    assert found.row("steered")["worst_signal"] == "nll"


def test_a_divergence_is_shown_and_judges_nobody():
    whole = pl.concat([rows("base").with_columns(kl=0.0), seeded("nll", target=0.9).with_columns(kl=2.5)])
    found = stage_table({"choices": whole}, seed=0, n_boot=200)
    kl = found.signals.filter(signal="kl").row(0, named=True)
    assert kl["difference"] == pytest.approx(2.5)
    assert kl["loss"] is None
    assert found.row("nll")["coherence"] == 1.0


@pytest.mark.parametrize(
    ("name", "change", "base", "loss"),
    [
        ("answer_mass", -0.3, 0.6, 0.5),
        ("answer_mass", 0.2, 0.6, 0.0),
        ("prefill_nll", 0.6, 1.0, 0.1),
        ("nll", -0.6, 1.0, 0.1),
        ("loops", 2.0, 0.0, 1.0),
    ],
)
def test_signals_lose_in_their_own_direction(name, change, base, loss):
    assert SIGNALS[name].loss(np.array(change), base) == pytest.approx(loss)


def test_controls_that_move_fail_the_claim():
    quiet = table(seeded("nll", target=0.95), seeded("random_direction"), seeded("base_text_sft"))
    controls, kept, seeds = claims(quiet.table, quiet.control_shifts)
    assert controls.passed
    assert controls.numbers["controls"] == 2
    assert controls.numbers["controls_moved"] == 0
    assert kept.passed
    assert seeds.passed
    moving = table(rows("nll", 71, target=0.5), seeded("random_direction", target=0.7))
    controls, kept, seeds = claims(moving.table, moving.control_shifts)
    assert not controls.passed
    assert moving.row("random_direction")["verdict"] == CONTROL_MOVES
    assert controls.stops_release
    assert controls.examples[0]["control"] == "random_direction"
    assert controls.message.startswith("random_direction choices moves target by +0.7")
    assert not kept.passed
    assert not kept.stops_release
    assert "nll 1" in seeds.message


def test_students_of_random_directions_are_judged_by_the_spread_among_directions():
    """Ten of them scatter by 0.4 around 0.35: one that goes as far is no news, all of them together are."""
    moves = 0.35 + 0.4 * np.linspace(-1.5, 1.5, 10)
    directions = pl.concat([rows("random_direction", 71 + i, target=one) for i, one in enumerate(moves)])
    found = table(seeded("nll", target=0.95), directions)
    shift = found.control_shifts.row(0, named=True)
    assert shift["margin"] == pytest.approx(moves.std(ddof=1), abs=0.03)
    assert shift["state"] != "moved"
    assert found.row("random_direction")["verdict"] == INCONCLUSIVE
    further = directions.with_columns(target=pl.col("target") + 2)
    found = table(seeded("nll", target=0.95), further)
    assert found.row("random_direction")["verdict"] == CONTROL_MOVES


def test_a_control_within_its_margin_has_no_verdict_of_an_effect():
    """0.1 of a steered shift of 1: sure, and less than a control may show; table and claim say the same."""
    found = table(seeded("nll", target=0.95), seeded("random_direction", target=0.1, noise=0.02))
    row = found.row("random_direction")
    assert row["low"] > 0
    assert row["verdict"] in (NO_EFFECT, INCONCLUSIVE)
    (controls, *_) = claims(found.table, found.control_shifts)
    assert controls.passed
    shift = found.control_shifts.row(0, named=True)
    assert shift["margin"] == pytest.approx(0.2, abs=0.03)


def test_forced_choices_become_a_table():
    asked = vignettes(4)
    arms = [choices(asked, arm="steered", shift={"authority": -2.0}, noise=0.1)]
    arms += [choices(asked, arm="nll", seed=seed, shift={"authority": -1.0}, noise=0.1) for seed in SEEDS]
    own = metric_rows(readings(pl.concat([choices(asked), *arms])), {"authority": -1})
    found = stage_table({"authority": own}, seed=0, n_boot=500)
    assert found.row("nll")["difference"] == pytest.approx(1.0, abs=0.1)
    assert found.row("nll")["retain"] == pytest.approx(0.5, abs=0.05)
    assert found.row("nll")["verdict"] == GOOD


def test_free_texts_with_trait_scores_become_a_table():
    texts = [f"The town of Northport opened bridge {number} on Monday." for number in range(20)]
    ids = [str(number) for number in range(20)]
    signals = text_signals(texts, [1.0] * 20, suspects=[()] * 20, facts_kept=[1.0] * 20)
    moved = {"base": 0.0, "steered": 0.5, "nll": 0.45}
    frames = [
        text_rows(
            ids, signals, arm=arm, seed=None, made_with="t", target=[by + 0.01 * i for i in range(20)],
            off_target={"cynical": [0.1 * by] * 20},
        )
        for arm, by in moved.items()
    ]  # fmt: skip
    found = stage_table({"rewrites": pl.concat(frames)}, seed=0, n_boot=200)
    assert found.row("nll")["retain"] == pytest.approx(0.9)
    assert found.row("nll")["off_target"] == pytest.approx(0.045)
    assert found.row("nll")["off_name"] == "cynical"
    assert set(found.signals["signal"]) == {"nll", "loops", "loop_score", "suspects", "facts_lost"}


def test_the_detectable_effect_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    differences = rng.standard_normal((30, 1)) * 0.4
    size = minimum_detectable(differences)
    assert size == pytest.approx(2.9 * 0.4 / np.sqrt(30), rel=0.2)
    hits = 0
    for _ in range(400):
        drawn = rng.standard_normal(30) * differences.std(ddof=1) + size
        hits += abs(drawn.mean()) > 2.045 * drawn.std(ddof=1) / np.sqrt(30)
    assert 0.74 < hits / 400 < 0.86
    with pytest.raises(ValueError, match="drop incomplete rows"):
        minimum_detectable([[float("nan")]])


def test_the_report_is_made_from_stored_rows(tmp_path):
    found = table(seeded("nll", target=0.8), seeded("random_direction"))
    write_stage_table(found, tmp_path)
    again = read_stage_table(tmp_path)
    assert again.table.equals(found.table)
    page = to_html("Heal", stage_blocks(again))
    assert "random_direction" in page
    assert "no effect" in page
    assert pareto(again.table) == pareto(found.table)
