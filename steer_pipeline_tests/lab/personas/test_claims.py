"""Evidence about vectors and doses is judged at one block, with its limits in the sentence."""

import json

import polars as pl
import pytest

from steer_pipeline.lab.personas.claims import swept_blocks_separate, takes_effect, vector_verdicts
from steer_pipeline_tests.lab.personas.builders import vector

EVIDENCE = {
    "held_out_auc": [1.0, 0.9, 1.0, 0.8],
    "split_half_cosine": [0.7, 0.99, 0.95, 0.9],
    "auc_max_null_95th": 0.7,
    "auc_max_p": 0.005,
}


def judged(**changes):
    return {one.claim: one for one in vector_verdicts(vector(**{**EVIDENCE, **changes}))}


def test_all_claims_are_about_the_same_best_block():
    verdicts = judged()
    assert all(one.passed for one in verdicts.values())
    assert verdicts["halves_agree"].numbers["best_block"] == 2
    assert verdicts["separates_held_out_contexts"].numbers["best_block"] == 2


@pytest.mark.parametrize(
    "change, claim, message",
    [
        (
            {"split_half_cosine": [0.1, 0.2, 0.5, 0.1]},
            "halves_agree",
            "0.500 at block 2, at least 0.8 is wanted",
        ),
        ({"auc_max_null_95th": 1.0}, "separates_held_out_contexts", "must be above 1.000"),
        ({"held_out_auc": [None] * 4}, "halves_agree", "not judged on a contrast set"),
    ],
)
def test_weak_evidence_fails_with_its_numbers_and_limit(change, claim, message):
    verdict = judged(**change)[claim]
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize(
    "tried, cure",
    [
        (["generated", "prefill"], "under contrast.source generated, prefill: set contrast.source: pairs"),
        (["generated", "pairs"], "write more and plainer pairs"),
        ([], ""),
    ],
)
def test_noise_at_every_block_says_what_to_try_next(tried, cure):
    verdict = judged(auc_max_null_95th=1.0, candidates=[{"source": one} for one in tried])[
        "separates_held_out_contexts"
    ]
    assert not verdict.passed
    assert cure in verdict.cure
    assert bool(verdict.cure) == bool(cure)


def test_blocks_at_the_level_of_their_null_are_named_with_better_ones():
    noisy = vector(**EVIDENCE, auc_null_95th=[0.6, 0.9, 0.6, 0.85])
    verdict = swept_blocks_separate(noisy, pl.DataFrame({"block": [None, 1, 2, 3, 3]}))
    assert not verdict.passed
    assert "block 1: AUC 0.900, null 0.900; block 3: AUC 0.800, null 0.850" in verdict.message
    assert verdict.cure == "set dose.blocks: [0, 2]"
    assert verdict.numbers == {"swept_blocks": 3, "blocks_at_null": 2}
    assert swept_blocks_separate(noisy, pl.DataFrame({"block": [0, 2]})).passed
    lost = vector(**EVIDENCE, auc_null_95th=[1.0] * 4, candidates=[{"source": "generated"}])
    cure = swept_blocks_separate(lost, pl.DataFrame({"block": [2]})).cure
    assert cure.startswith("no block is better: ")
    assert "set contrast.source: pairs" in cure
    assert swept_blocks_separate(vector(), pl.DataFrame({"block": [2]})).passed, "imported and not judged"


def test_a_block_whose_largest_dose_does_nothing_fails(tmp_path):
    probes = [{"max_abs_logit_delta": 2.0}, {"max_abs_logit_delta": 1e-6}]
    (tmp_path / "probe.json").write_text(json.dumps(probes))
    verdict = takes_effect(tmp_path)
    assert not verdict.passed
    assert "1e-06, at least 0.001 is needed" in verdict.message
