"""The dose gate names what a dose does, judges by the noise of random directions and holds on the planted model."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import CoherenceSpec, HealGateSpec, SamplingSpec
from steer_pipeline.lab.evaluation import LexiconScorer
from steer_pipeline.lab.generation.jobs import BrokenLogits
from steer_pipeline.lab.heal import gate
from steer_pipeline.lab.heal.gate import GATE_SCHEMA, ROW_SCHEMA, gate_claim, gate_rows, gate_table
from steer_pipeline.lab.heal.teacher import HealError, make_teacher
from steer_pipeline.lab.quality.coherence import COSTS
from steer_pipeline_tests.lab.heal.builders import PROFILE, newsroom, planted, prompts
from steer_pipeline_tests.planted import PLANTED

SPEC = HealGateSpec(doses=[0.05, 1.0, 40.0], n_prompts=6, n_random=4)
ANY = CoherenceSpec()


@pytest.fixture(scope="module")
def rows():
    scorer = LexiconScorer(PLANTED["paranoid"])
    off = {name: LexiconScorer(PLANTED[name]) for name in ("rule_defiant", "sailor")}
    sampling = SamplingSpec(temperature=0.6, top_p=0.9, max_new_tokens=40)
    return gate_rows(newsroom(), make_teacher(planted()), prompts(8), SPEC, scorer, off, sampling)


@pytest.fixture(scope="module")
def table(rows):
    return gate_table(rows, SPEC, PROFILE.coherence)


def test_every_arm_answers_the_same_prompts(rows):
    assert dict(ROW_SCHEMA).items() <= dict(rows.schema).items()
    assert {"off_rule_defiant", "off_sailor"} < set(rows.columns)
    arms = rows.group_by("direction", "draw", "dose").agg(n=pl.len(), prompts=pl.col("prompt_id").sort())
    assert arms.height == 1 + 3 + 3 * 4
    assert arms["n"].to_list() == [6] * arms.height
    assert arms["prompts"].n_unique() == 1
    told = (
        rows.filter(pl.col("direction") != "base")
        .group_by("dose")
        .agg(least=pl.col("alpha").min(), most=pl.col("alpha").max())
    )
    assert np.allclose(told["least"], told["most"], rtol=1e-6), "random directions have the dose's length"
    assert rows.filter(pl.col("direction") == "teacher")["kl"].null_count() == 0
    assert rows.filter(pl.col("direction") == "random")["kl"].null_count() == 6 * 3 * 4


def test_on_the_planted_model_the_natural_dose_is_good_a_small_one_weak_and_a_huge_one_is_not(table):
    assert table.schema == GATE_SCHEMA
    found = dict(table.select("dose", "verdict").iter_rows())
    assert found[0.05] == "too weak"
    assert found[1.0] == "good"
    assert found[40.0] in ("collapsed", "too strong")
    good = table.filter(dose=1.0).row(0, named=True)
    assert good["shift"] > good["noise_bound"]
    assert good["shift_low"] > 0
    assert table["kl_p95"].is_sorted(), "nats grow with the dose"
    assert "random directions reach" in good["why"]
    verdict = gate_claim(table)
    assert verdict.passed
    assert verdict.numbers["largest_good_dose"] == 1.0
    assert "nats a token at the 95th percentile" in verdict.message


def test_a_random_teacher_is_never_good():
    teacher, spec = make_teacher(planted()).randomised(9), HealGateSpec(doses=[1.0], n_prompts=4, n_random=4)
    scorer, sampling = LexiconScorer(PLANTED["paranoid"]), SamplingSpec(temperature=0.0, max_new_tokens=30)
    made = gate_rows(newsroom(), teacher, prompts(4), spec, scorer, {}, sampling)
    table = gate_table(made, spec, PROFILE.coherence)
    assert table["verdict"].to_list() == ["too weak"]
    assert table["off_scale"].to_list() == [None]
    verdict = gate_claim(table)
    assert not verdict.passed
    assert verdict.cure == "try larger doses"


def test_held_out_prompts_do_not_choose_doses():
    with pytest.raises(HealError, match="held out"):
        gate_rows(newsroom(), make_teacher(planted()), prompts(6, held_out=2), SPEC, None, {}, SamplingSpec())


def test_a_dose_whose_logits_break_has_empty_texts_and_collapses(monkeypatch):
    real = gate.generate

    def broken(model, rows, plans, sampling):
        if any(plan.variant == "teacher_dose+40" for plan in plans):
            raise BrokenLogits("row 'p00', variant 'teacher_dose+40': NaN")
        return real(model, rows, plans, sampling)

    monkeypatch.setattr(gate, "generate", broken)
    spec = HealGateSpec(doses=[40.0], n_prompts=4, n_random=3)
    scorer, sampling = LexiconScorer(PLANTED["paranoid"]), SamplingSpec(temperature=0.0, max_new_tokens=8)
    made = gate_rows(newsroom(), make_teacher(planted()), prompts(4), spec, scorer, {}, sampling)
    row = gate_table(made, spec, PROFILE.coherence).row(0, named=True)
    assert row["verdict"] == "collapsed"
    assert row["kl_p95"] is None
    assert row["why"] == "100% of the texts are loops or empty"


# ------------------------------------------------------------------------- verdicts of made-up rows


def made_up(trait=0.5, off=0.0, nll=0.0, loops=0.0, noise=0.05, random_mean=0.0, dose=1.0, n=20, draws=10):
    """Rows in which base scores 0 everywhere, a dose what is said, and random directions scatter by `noise`."""
    rng = np.random.default_rng(1)
    # the same wobble of single texts everywhere, so that means are what is asked for
    wobble = rng.permutation(np.linspace(-0.1, 0.1, n))

    def arm(direction, draw, at, trait, off, nll, loops):
        looping = np.arange(n) < loops * n
        return pl.DataFrame(
            {
                "prompt_id": [f"p{i:02d}" for i in range(n)],
                "direction": direction,
                "draw": pl.Series([draw] * n, dtype=pl.Int32),
                "dose": at,
                "alpha": at * 3,
                "text": "Words.",
                "n_tokens": pl.Series([5] * n, dtype=pl.Int32),
                "truncated": False,
                "collapsed": looping,
                "trait": trait + (wobble if direction != "base" else 0 * wobble),
                "kl": pl.Series(
                    [[0.1, 0.3]] * n if direction == "teacher" else [None] * n, dtype=pl.List(pl.Float32)
                ),
                **{f"cost_{name}": [0.0] * n for name in COSTS},
                "off_other": off + (wobble if direction != "base" else 0 * wobble),
            }
        ).with_columns(cost_nll=pl.lit(nll), cost_loops=pl.Series(looping, dtype=pl.Float64))

    spread = noise * np.linspace(-1, 1, draws)
    random = [
        arm("random", i, dose, random_mean + spread[i], spread[::-1][i], 0.1 + 0.02 * spread[i], 0.0)
        for i in range(draws)
    ]
    return pl.concat(
        [
            arm("base", None, 0.0, 0.0, 0.0, 0.0, 0.0),
            arm("teacher", None, dose, trait, off, nll, loops),
            *random,
        ]
    )


def verdict_of(spec=ANY, **numbers):
    row = gate_table(made_up(**numbers), HealGateSpec(), spec).row(0, named=True)
    return row["verdict"], row


def test_the_bound_of_the_trait_is_the_spread_of_random_directions_and_no_constant():
    assert verdict_of(trait=0.1, noise=0.02)[0] == "good"
    assert verdict_of(trait=0.1, noise=0.2)[0] == "too weak"
    assert verdict_of(trait=0.1, noise=0.02, random_mean=0.09)[0] == "too weak", (
        "disturbance alone does as much"
    )
    row = verdict_of(trait=0.1, noise=0.2)[1]
    spread = (0.2 * np.linspace(-1, 1, 10)).std(ddof=1)
    assert row["noise_bound"] == pytest.approx(1.8331 * spread * np.sqrt(1.1), rel=1e-3)


def test_one_random_direction_in_twenty_passes_the_bound():
    rng, passed = np.random.default_rng(0), 0
    for _ in range(2000):
        values = rng.normal(0.3, 0.1, 11)
        noise = gate._Noise(values[:10], 0.95)
        passed += values[10] > noise.mean + noise.spread
    assert passed / 2000 == pytest.approx(0.05, abs=0.015)


def test_a_negative_dose_must_move_the_other_way():
    assert verdict_of(trait=-0.5, dose=-1.0)[0] == "good"
    assert verdict_of(trait=0.5, dose=-1.0)[0] == "too weak"
    assert verdict_of(trait=-0.5, dose=1.0)[0] == "too weak"


def test_moving_another_scale_as_far_is_the_wrong_target():
    assert verdict_of(trait=0.3, off=0.35)[0] == "wrong target"
    assert verdict_of(trait=0.3, off=-0.35)[0] == "wrong target"
    assert verdict_of(trait=0.3, off=0.2)[0] == "good", "it moves, less than the trait"
    assert verdict_of(trait=0.01, off=0.2)[0] == "wrong target", "before too weak: larger doses are no cure"
    assert verdict_of(trait=0.02, off=0.03, noise=0.2)[0] == "too weak", "within the noise of both"


def test_coherence_is_judged_against_base_and_noise_widens_its_limits():
    assert verdict_of(trait=0.5, nll=0.5)[0] == "good"
    strong, row = verdict_of(trait=0.5, nll=0.9)
    assert strong == "too strong"
    assert "nll +0.9 nats a token" in row["why"]
    assert row["limit_nll"] == 0.6
    assert verdict_of(CoherenceSpec(max_extra_nll=None), nll=0.9)[0] == "good", "not judged"
    alone = CoherenceSpec(max_extra_nll=1e-9)
    quiet, noisy = verdict_of(alone, nll=0.05)[1], verdict_of(alone, nll=0.05, noise=5)[1]
    assert quiet["verdict"] == "too strong"
    assert noisy["limit_nll"] > 0.05
    assert "nll" not in noisy["why"]


def test_most_texts_in_loops_is_a_collapse_and_some_are_too_strong():
    assert verdict_of(loops=0.7)[0] == "collapsed"
    assert verdict_of(loops=0.3)[0] == "too strong"
    assert verdict_of(loops=0.3, trait=0.0)[0] == "too strong", "coherence is asked first"


def test_rows_that_do_not_belong_together_are_refused():
    rows = made_up()
    with pytest.raises(HealError, match="no rows of base"):
        gate_table(rows.filter(pl.col("direction") != "base"), HealGateSpec(), ANY)
    with pytest.raises(HealError, match="dose 1 has 2 random directions"):
        gate_table(rows.filter(pl.col("draw").is_null() | (pl.col("draw") < 2)), HealGateSpec(), ANY)
    with pytest.raises(HealError, match="dose 1 and base answer different prompts"):
        gate_table(
            rows.filter((pl.col("direction") != "teacher") | (pl.col("prompt_id") != "p03")),
            HealGateSpec(),
            ANY,
        )


def test_the_claim_says_how_to_go_on():
    def claimed(*verdicts):
        rows = pl.concat([gate_table(made_up(), HealGateSpec(), ANY)] * len(verdicts))
        return gate_claim(rows.with_columns(verdict=pl.Series(verdicts)))

    assert claimed("too weak", "good", "collapsed").passed
    assert "between those that are too weak" in claimed("too weak", "too strong").cure
    assert claimed("too strong", "collapsed").cure == "try smaller doses"
    assert "contrast pairs" in claimed("wrong target", "too weak").cure
