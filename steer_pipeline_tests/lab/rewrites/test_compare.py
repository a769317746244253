"""The comparison pairs by row id, shows controls beside variants, and calls a null a null."""

import polars as pl
import pytest

from steer_pipeline.catalogue import load_variants
from steer_pipeline.lab.rewrites.compare import broken_controls, pilot_numbers, score_rows, summarise
from steer_pipeline_tests.lab.rewrites.packs import pack, resample

VOICE = " Somebody surely hides the real story."


def hidden(texts):
    return [1.0 if "hides" in text else 0.0 for text in texts]


@pytest.fixture(scope="module")
def variants():
    return load_variants()


def compared(packs, variants):
    n = {name: [[] for _ in range(frame.height)] for name, frame in packs.items()}
    facts = {name: [1.0] * frame.height for name, frame in packs.items()}
    scores = score_rows(packs, n, facts, {"lexicon_paranoid": hidden, "minilm_paranoid": hidden})
    return scores, summarise(scores, variants, seed=3)


def one(summary, variant, measure):
    return summary.row(
        by_predicate=(pl.col("variant") == variant) & (pl.col("measure") == measure), named=True
    )


def test_a_voice_shows_as_a_paired_shift_and_controls_as_zero(variants):
    packs = {
        "base": pack("base"),
        "paranoid": pack("paranoid", tail=VOICE).reverse(),  # order does not pair, row ids do
        "base_resample": resample(),
        "random_direction": pack("random_direction"),
    }
    scores, summary = compared(packs, variants)
    assert scores.height == 4 * 24
    shift = one(summary, "paranoid", "lexicon_paranoid")
    assert (shift["shift"], shift["low"], shift["wanted"]) == (1.0, 1.0, "up")
    control = one(summary, "base_resample", "lexicon_paranoid")
    assert (control["low"], control["high"], control["interval"]) == (0.0, 0.0, "simultaneous")
    assert one(summary, "paranoid", "exact_match")["reference"] == "base_resample"
    assert one(summary, "paranoid", "exact_match")["shift"] == pytest.approx(-16 / 24)
    assert broken_controls(summary, variants) == []


def test_a_control_that_moves_is_reported_and_a_prompted_one_is_not(variants):
    packs = {
        "base": pack("base"),
        "base_resample": resample(),
        "random_direction": pack("random_direction", tail=VOICE),
        "prompted_paranoid": pack("prompted_paranoid", tail=VOICE),
    }
    _, summary = compared(packs, variants)
    (sentence,) = broken_controls(summary, variants)
    assert sentence.startswith("control random_direction moves paranoid by +1.000")


def test_the_pilot_line_has_every_variant_with_its_numbers(variants):
    _, summary = compared({"base": pack("base"), "paranoid": pack("paranoid", tail=VOICE)}, variants)
    assert pilot_numbers(summary) == {
        "base": {
            "rows": 24,
            "suspect_rate": 0.0,
            "facts_kept": 1.0,
            "trait": {"paranoid": {"shift": 0.0, "low": 0.0, "high": 0.0}},
        },
        "paranoid": {
            "rows": 24,
            "suspect_rate": 0.0,
            "facts_kept": 1.0,
            "trait": {"paranoid": {"shift": 1.0, "low": 1.0, "high": 1.0}},
        },
    }


def test_rows_that_base_lacks_are_left_out_of_the_pairs(variants):
    packs = {"base": pack("base", n=10), "paranoid": pack("paranoid", tail=VOICE)}
    _, summary = compared(packs, variants)
    row = one(summary, "paranoid", "lexicon_paranoid")
    assert (row["n"], row["shift"]) == (10, 1.0)


def test_without_base_there_is_nothing_to_compare_with(variants):
    with pytest.raises(ValueError, match="materialise rewrite_pack, partition base"):
        compared({"paranoid": pack("paranoid")}, variants)
