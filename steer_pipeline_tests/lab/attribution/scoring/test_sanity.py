"""Claims about the sanity tests: each passes what is sound and tells what is not."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from steer_pipeline.lab.attribution.scoring.methods import score
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError, ranking
from steer_pipeline.lab.attribution.scoring.sanity import (
    duplicates_apart,
    mislabelled_late,
    randomised_model,
    same_as_randomised,
)
from steer_pipeline_tests.lab.finetune.rows import spec_of

NAMES = [f"r{i:02d}" for i in range(40)]


def made(scores):
    return ranking("it", NAMES, dict(zip(NAMES, scores, strict=True)))


def test_a_ranking_that_reads_no_model_is_the_same_under_random_weights(scoring, base, tmp_path):
    other = randomised_model(base, tmp_path / "random", seed=1)
    assert not torch.equal(
        *(AutoModelForCausalLM.from_pretrained(one).lm_head.weight for one in (base, other))
    )
    methods = {"length": {"kind": "length"}, "loss": {"kind": "loss"}}
    found = {}
    for name in methods:
        ranked = [
            score(name, scoring(methods, tuned=spec_of(folder)), tmp_path / folder.name)
            for folder in (base, other)
        ]
        found[name] = same_as_randomised(*ranked).estimate
    assert found["length"] == pytest.approx(1.0)
    assert found["loss"] < 0.9


def test_mislabelled_rows_come_late():
    sound = made([float(i) for i in range(40)])
    found = mislabelled_late(sound, NAMES[:5])
    assert found.estimate == 1.0
    assert found.low > 0.5
    assert mislabelled_late(sound, NAMES[-5:]).estimate == 0.0
    with pytest.raises(ScoringError, match="0 of 40 scored rows are mislabelled"):
        mislabelled_late(sound, ["elsewhere"])


def test_copies_that_share_their_score_lie_nearer_than_random_pairs():
    copies = {NAMES[i]: NAMES[i + 20] for i in range(20)}
    shared = made([float(i % 20) for i in range(40)])
    assert duplicates_apart(shared, copies).high < 0
    apart = made([float(i if i < 20 else 59 - i + 20) for i in range(40)])
    assert duplicates_apart(apart, copies).high > 0
    with pytest.raises(ScoringError, match="no pair of duplicates"):
        duplicates_apart(shared, {"elsewhere": NAMES[0]})
