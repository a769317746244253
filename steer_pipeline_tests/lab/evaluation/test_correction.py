"""What a noisy judge says, corrected by gold scores: intervals that hold where the judge's own do not."""

import hashlib
import re

import numpy as np
import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import JudgeSpec
from steer_pipeline.lab.evaluation import judge_texts
from steer_pipeline.lab.evaluation.correction import (
    CorrectionError,
    corrected_mean,
    corrected_share,
    judge_quality,
)
from steer_pipeline.lab.stats import mean_interval
from steer_pipeline_tests.lab.evaluation.judge_server import Request, ScriptedJudge, Step

TRAIT = load_personas()["creative"]
SPEC = JudgeSpec(requests_per_second=5000, concurrency=8, timeout_s=5, max_retries=2)
POOL, SHARE = 240, 0.3  # answers, and how many of them show the trait
FINDS, SPARES = 0.8, 0.75  # of the noisy judge
RUNS = 200


def noisy(request: Request) -> Step:
    """Finds the trait in four answers of five that show it, and in one of four that do not: 90 or 10 of 100."""
    number, shows = re.search(r"answer (\d+), (vivid|plain)", request.prompt).groups()
    luck = int(hashlib.sha256(number.encode()).hexdigest()[:8], 16) / 2**32
    says = luck < (FINDS if shows == "vivid" else 1 - SPARES)
    return Step("90" if says else "10")


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> tuple[np.ndarray, np.ndarray]:
    """Scores (shares of the scale) that the judge on loopback gave, and the gold: whether the answer is vivid."""
    gold = np.arange(POOL) < SHARE * POOL
    asked = [
        (f"question {i}?", f"answer {i}, {'vivid' if shows else 'plain'}") for i, shows in enumerate(gold)
    ]
    with ScriptedJudge(noisy) as server:
        answers = judge_texts(TRAIT, asked, SPEC, server.url, tmp_path_factory.mktemp("answers"))
    assert {one.status for one in answers} == {"scored"}
    return np.array([TRAIT.scale.share(one.score) for one in answers]), gold.astype(float)


def drawn(pool: tuple[np.ndarray, np.ndarray], run: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(run).integers(0, POOL, n)
    return pool[0][rows], pool[1][rows]


def test_corrected_means_hold_the_truth_and_the_judge_s_own_do_not(pool):
    held = own = narrower = 0
    for run in range(RUNS):
        judged, gold = drawn(pool, run, 240)
        one = corrected_mean(judged[60:], judged[:60], gold[:60])
        held += one.low <= SHARE <= one.high
        alone = mean_interval(judged)
        own += alone.low <= SHARE <= alone.high
        few = mean_interval(gold[:60], bounds=(0.0, 1.0))
        narrower += one.high - one.low < few.high - few.low
    assert 0.92 <= held / RUNS <= 0.99
    assert own / RUNS < 0.1
    assert narrower / RUNS > 0.8  # what the judge knows is worth something


def test_sensitivity_and_specificity_correct_shares_where_the_trait_is_rarer_than_in_the_gold(pool):
    judged, gold = pool
    rare = np.r_[np.flatnonzero(gold == 1)[:24], np.flatnonzero(gold == 0)]  # 1 in 8
    truth, held, told = float(gold[rare].mean()), 0, 0
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        known, others = rng.integers(0, POOL, 120), rng.choice(rare, 240)
        quality = judge_quality(judged[known] >= 0.5, gold[known] == 1)
        one = corrected_share(judged[others] >= 0.5, quality)
        held += one.low <= truth <= one.high
        mean = corrected_mean(judged[others] >= 0.5, judged[known] >= 0.5, gold[known], bounds=(0.0, 1.0))
        told += mean.low <= truth <= mean.high
    assert held / RUNS >= 0.92
    assert told / RUNS < held / RUNS - 0.2  # gold of other rows does not stand for these


def test_a_judge_that_tosses_coins_gets_no_weight_and_no_correction():
    rng = np.random.default_rng(1)
    gold, said = rng.random(200) < 0.4, rng.random(200) < 0.5
    one = corrected_mean(rng.random(2000) < 0.5, said[:60], gold[:60])
    assert one.high - one.low >= 0.9 * (lambda few: few.high - few.low)(
        mean_interval(gold[:60].astype(float))
    )
    blind = judge_quality(np.zeros(40, dtype=bool), np.arange(40) < 20)
    with pytest.raises(CorrectionError, match="those of chance"):
        corrected_share(said, blind)


def test_a_perfect_judge_leaves_the_share_as_it_is():
    gold = np.arange(300) < 90
    one = corrected_share(gold, judge_quality(gold, gold))
    assert one.estimate == pytest.approx(0.3)
    assert one.low < 0.3 < one.high


def test_differences_to_a_base_are_corrected_too(pool):
    held = 0
    for run in range(RUNS):
        judged, gold = drawn(pool, run, 200)
        other, base = drawn(pool, 1000 + run, 200)
        one = corrected_mean((judged - other)[50:], (judged - other)[:50], (gold - base)[:50])
        held += one.includes_zero
    assert held / RUNS >= 0.92


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge_quality([True] * 9, [True] * 9), "0 gold rows without the trait"),
        (lambda: judge_quality([True], [True, False]), "of one length"),
        (lambda: corrected_mean([0.5], [0.5] * 4, [1.0] * 4), "4 gold rows, 5 are needed"),
    ],
)
def test_too_little_gold_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
