"""Known effects are found with the right sign, controls show nothing, rows are paired by id."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.rewrites.comparison import compare_variants, difference_from_base
from steer_pipeline_tests.lab.rewrites.compared_packs import CONTROLS, EFFECTS, ROLES, SCORERS, make_packs


@pytest.fixture(scope="module")
def compared():
    packs, facts = make_packs()
    return compare_variants(packs, facts, SCORERS, ROLES, seed=5)


def test_known_effects_are_found_with_their_sign(compared):
    for variant, persona, sign in [
        ("paranoid", "paranoid", 1),
        ("trusting", "paranoid", -1),
        ("rule_defiant", "rule_defiant", 1),
        ("paranoid_rule_defiant", "paranoid", 1),
        ("paranoid_rule_defiant", "rule_defiant", 1),
        ("prompted_paranoid", "paranoid", 1),
    ]:
        row = compared.of(variant, f"trait_{persona}_lexicon")
        assert row["low"] * sign > 0
        assert row["high"] * sign > 0
        assert row["p_holm"] < 0.05
    assert compared.of("paranoid", "trait_rule_defiant_lexicon")["difference"] == 0.0


def test_controls_show_nothing_and_stand_beside_every_difference(compared):
    for control in CONTROLS:
        for persona in SCORERS:
            row = compared.of(control, f"trait_{persona}_lexicon")
            assert row["low"] <= 0 <= row["high"]
            assert row["simultaneous"]
            assert row["p_holm"] is None
    differing = compared.summary.filter(pl.col("difference").is_not_null(), pl.col("reference") == "base")
    assert differing["resample_difference"].null_count() == 0
    assert differing["random_low"].null_count() == 0


def test_every_variant_has_every_metric(compared):
    metrics = compared.summary["metric"].unique(maintain_order=True).to_list()
    assert metrics[:4] == ["exact_match", "overlap", "n_words", "length_ratio"]
    assert compared.summary.height == len(EFFECTS) * len(metrics)
    assert compared.variants == list(EFFECTS)
    assert compared.of("base", "overlap")["mean"] == 1.0
    assert compared.of("base", "overlap")["difference"] is None
    assert compared.of("paranoid", "facts_kept")["mean"] == 1.0


def test_controls_of_a_family_have_wider_intervals_than_alone(compared):
    def flips(variant: str, row_id: str, text: str) -> str:
        extra = " Hidden hands." if variant in CONTROLS and int(row_id, 16) % 3 == 0 else ""
        return text + extra

    packs, facts = make_packs(change=flips)
    two = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    one = compare_variants(packs, facts, {"paranoid": SCORERS["paranoid"]}, ROLES, seed=5)
    wide, narrow = (t.of("random_direction", "trait_paranoid_lexicon") for t in (two, one))
    assert wide["high"] - wide["low"] >= (narrow["high"] - narrow["low"]) * 0.999


def test_a_variant_that_is_only_another_sample_is_no_further_than_the_resample():
    """Exact match and overlap against base alone were taken as evidence of steering (janus 0.7)."""
    packs, facts = make_packs(n=120)
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    far = {row["variant"]: row for row in tables.distances.iter_rows(named=True)}
    assert far["random_direction"]["p"] > 0.05
    assert far["paranoid"]["p_holm"] < 0.01
    assert far["paranoid"]["low"] > 0
    assert set(far) == set(EFFECTS) - {"base", "base_resample"}
    likeness = tables.of("random_direction", "overlap")
    assert likeness["reference"] == "base_resample"
    assert likeness["low"] <= 0 <= likeness["high"]


def test_the_distance_test_stands_alone():
    packs, _ = make_packs()
    found = difference_from_base(packs["paranoid"], packs["base"], packs["base_resample"], seed=5)
    assert found["p"] < 0.01
    assert found["n"] == 60
    same = difference_from_base(packs["base"], packs["base"], packs["base_resample"], seed=5)
    assert same["distance"] == 0
    assert same["p"] == 1.0
    with pytest.raises(ValueError, match="share no row_id"):
        difference_from_base(packs["base"].head(1), packs["base"].tail(1), packs["base"], seed=5)


def test_rows_are_paired_by_id_and_not_by_position(compared):
    """Pairs were zipped by line order (janus 5.1)."""
    packs, facts = make_packs()
    shuffled = {
        name: pack.sample(fraction=1.0, shuffle=True, seed=i) for i, (name, pack) in enumerate(packs.items())
    }
    again = compare_variants(shuffled | {"base": packs["base"]}, facts, SCORERS, ROLES, seed=5)
    keys = ["variant", "metric"]
    left, right = (t.summary.sort(keys).select("mean", "difference", "p") for t in (compared, again))
    assert np.allclose(left.to_numpy(), right.to_numpy(), equal_nan=True)


def test_the_same_packs_and_seed_give_the_same_tables(compared):
    packs, facts = make_packs()
    again = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    assert again.summary.equals(compared.summary)
    assert again.rows.equals(compared.rows)


def test_a_missing_row_is_reported_and_the_others_compared():
    packs, facts = make_packs()
    packs["paranoid"] = packs["paranoid"].tail(59)
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    assert tables.alignment.filter(variant="paranoid").row(0) == ("paranoid", 59, 1, 0, 0)
    assert tables.of("paranoid", "n_words")["n"] == 59


def test_agreement_counts_rows_where_all_variants_differ():
    packs, facts = make_packs(
        change=lambda variant, row_id, text: "The same." if row_id.endswith("0") else text + variant
    )
    agreement = compare_variants(packs, facts, SCORERS, ROLES, seed=5).agreement
    same = agreement["row_id"].str.ends_with("0")
    assert agreement.filter(same)["n_distinct"].unique().to_list() == [1]
    assert agreement.filter(~same)["all_differ"].all()
    assert agreement["n_variants"].unique().to_list() == [5]  # base and four steered


def test_keyword_hits_and_suspects_are_stored_per_row():
    packs, facts = make_packs(change=lambda v, row_id, text: text + " {x}" if v == "paranoid" else text)
    rows = compare_variants(packs, facts, SCORERS, ROLES, seed=5).rows
    steered = rows.filter(variant="paranoid")
    assert steered["hits_paranoid_positive"].max() == 2
    assert steered["suspects"].list.contains("janus_latex").all()
    assert not steered["suspect"].any()  # Janus's patterns are for comparison


def test_rows_without_facts_are_left_out_of_facts_kept():
    packs, facts = make_packs()
    some = {row_id: found if i % 2 else [] for i, (row_id, found) in enumerate(facts.items())}
    tables = compare_variants(packs, some, SCORERS, ROLES, seed=5)
    assert tables.of("paranoid", "facts_kept")["n"] == 30


def test_bad_packs_are_named():
    packs, facts = make_packs(n=8)
    with pytest.raises(ValueError, match="pack base_resample is missing"):
        compare_variants(
            {k: v for k, v in packs.items() if k != "base_resample"}, facts, SCORERS, ROLES, seed=1
        )
    doubled = packs | {"trusting": pl.concat([packs["trusting"], packs["trusting"].head(1)])}
    with pytest.raises(ValueError, match="pack trusting: row_id 0000000000000000 occurs twice"):
        compare_variants(doubled, facts, SCORERS, ROLES, seed=1)
    with pytest.raises(ValueError, match="pack paranoid has no column 'truncated'"):
        compare_variants(
            packs | {"paranoid": packs["paranoid"].drop("truncated")}, facts, SCORERS, ROLES, seed=1
        )
    other = packs["trusting"].with_columns(row_id=pl.col("row_id") + "x")
    with pytest.raises(ValueError, match="shares no row_id with base"):
        compare_variants(packs | {"trusting": other}, facts, SCORERS, ROLES, seed=1)


def test_a_control_with_a_new_name_is_judged_as_one():
    """Roles were guessed from names: such a control was shown as a steered variant."""
    packs, facts = make_packs()
    packs["placebo"] = packs["random_direction"].with_columns(variant=pl.lit("placebo"))
    tables = compare_variants(packs, facts, SCORERS, ROLES | {"placebo": "control"}, seed=5)
    row = tables.of("placebo", "trait_paranoid_lexicon")
    assert (row["role"], row["simultaneous"], row["p_holm"]) == ("control", True, None)
    assert tables.controls == [*CONTROLS, "placebo"]
    assert tables.agreement["n_variants"].unique().to_list() == [5]
