"""What a variant costs, where it stands among random directions, and what else it moved: known effects are found."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue import load_variants
from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.controls import moved_controls
from steer_pipeline.lab.evaluation import ExamplesError
from steer_pipeline.lab.rewrites.aims import aims_of, headline_scales
from steer_pipeline.lab.rewrites.comparison import ComparisonTables, compare_variants
from steer_pipeline.lab.rewrites.evidence import Sources, with_evidence
from steer_pipeline.lab.rewrites.headline import missed_targets, pilot_numbers
from steer_pipeline_tests.lab.rewrites.compared_packs import REMARKS, ROLES, SCORERS, make_packs

DIRECTIONS, BAND_ROWS = 10, 16
AXES = ("coach", "paranoid", "sailor")


class Words:
    """Scores how often a letter stands in a text: a scale on which all texts differ."""

    def __init__(self, letter: str) -> None:
        self.letter = letter

    def score_many(self, texts) -> np.ndarray:
        return np.array([text.count(self.letter) / max(len(text), 1) for text in texts])


class Silent:
    """Says the same of every text."""

    def score_many(self, texts) -> np.ndarray:
        return np.zeros(len(texts))


def packs_with_nll() -> tuple[dict[str, pl.DataFrame], dict[str, list[str]]]:
    """Packs in which `trusting` costs 0.9 nats a token, `paranoid` 0.2, and others nothing."""
    packs, facts = make_packs(n=40)
    extra = {"trusting": 0.9, "paranoid": 0.2}
    noise = np.random.default_rng(0).normal(1.0, 0.05, 40)
    return {
        name: pack.with_columns(nll=pl.Series(noise + extra.get(name, 0.0))) for name, pack in packs.items()
    }, facts


def band_of(pack: pl.DataFrame, remarks: int) -> pl.DataFrame:
    """Ten directions on the first rows of a pack; the first `remarks` of them make the paranoid remark in each row."""
    rows = pack.head(BAND_ROWS)
    return pl.concat(
        rows.select(
            "row_id",
            variant=pl.lit(f"random_{index:02d}"),
            output=pl.col("output") + (f" {REMARKS['paranoid']}" if index < remarks else ""),
        )
        for index in range(DIRECTIONS)
    )


def evidence(
    packs, facts, *, band: pl.DataFrame | None = None, axes=None, limits=CoherenceSpec()
) -> ComparisonTables:
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    axes = {name: {"minilm": lambda name=name: Words(name[0])} for name in AXES} if axes is None else axes
    return with_evidence(tables, Sources(load_variants(), SCORERS, axes, band, limits), seed=5)[0]


@pytest.fixture(scope="module")
def tables() -> ComparisonTables:
    packs, facts = packs_with_nll()
    return evidence(packs, facts, band=band_of(packs["base"], remarks=1))


def cost(tables: ComparisonTables, variant: str, name: str) -> dict:
    return tables.costs.filter(variant=variant, cost=name).row(0, named=True)


def test_costs_are_paired_differences_to_base_held_against_the_profile_s_limits(tables):
    assert set(tables.costs["variant"]) == set(ROLES) - {"base"}
    dear, cheap = (cost(tables, name, "nll") for name in ("trusting", "paranoid"))
    assert (dear["n"], dear["limit"], dear["within"]) == (40, 0.6, False)
    assert dear["difference"] == pytest.approx(0.9)
    assert dear["low"] > 0.78, "the same noise on both sides is no uncertainty; 40 rows alike leave some"
    assert cheap["within"]
    assert cheap["difference"] == pytest.approx(0.2)
    assert cost(tables, "base_resample", "facts_lost")["difference"] == 0.0


def test_what_was_not_measured_is_not_judged():
    packs, facts = make_packs(n=12)
    tables = evidence(packs, facts)
    unknown = cost(tables, "paranoid", "nll")
    assert (unknown["n"], unknown["difference"], unknown["within"]) == (0, None, None)
    assert tables.combined["score"].is_null().all(), "fluency is a part of it"
    assert tables.band.is_empty()
    assert tables.matrix["beyond_band"].is_null().all(), "without a band nothing lies beyond it"


def test_a_limit_that_is_off_judges_nothing():
    packs, facts = packs_with_nll()
    tables = evidence(packs, facts, limits=CoherenceSpec(max_extra_nll=None))
    assert cost(tables, "trusting", "nll")["within"] is None


def test_the_combined_score_stands_beside_that_of_prompting(tables):
    rows = {row["variant"]: row for row in tables.combined.iter_rows(named=True)}
    assert list(rows) == [
        "paranoid",
        "rule_defiant",
        "paranoid_rule_defiant",
        "trusting",
        "prompted_paranoid",
    ]
    paranoid = rows["paranoid"]
    assert paranoid["prompted"] == "prompted_paranoid"
    assert paranoid["prompted_score"] == rows["prompted_paranoid"]["score"]
    assert paranoid["base"] < paranoid["low"] < paranoid["score"] < paranoid["high"] < 2
    assert rows["prompted_paranoid"]["prompted"] is None, "not beside itself"
    assert rows["trusting"]["prompted"] is None, "nobody is prompted to trust"
    assert rows["trusting"]["wanted"] == "down"


def test_a_shift_is_ranked_among_random_directions_on_the_same_rows(tables):
    """One of ten directions says the remark in every row, more often than any variant."""
    row = tables.band.filter(variant="paranoid").row(0, named=True)
    assert (row["directions"], row["n"]) == (DIRECTIONS, BAND_ROWS)
    assert row["band_low"] == 0.0 < row["shift"] < row["band_high"]
    assert row["band_mean"] == pytest.approx(row["band_high"] / DIRECTIONS)
    assert row["random_rank_p"] == pytest.approx(2 / 11)
    down = tables.band.filter(variant="trusting").row(0, named=True)
    assert down["shift"] < 0
    assert down["random_rank_p"] == pytest.approx(1 / 11), "the other way no direction goes"
    own = tables.rows.filter(pl.col("row_id") < f"{BAND_ROWS:016x}")
    means = {name: own.filter(variant=name)["trait_paranoid_lexicon"].mean() for name in ("base", "paranoid")}
    assert row["shift"] == pytest.approx(means["paranoid"] - means["base"])


def test_a_target_within_the_band_is_missed(tables):
    targets = {name: spec.targets for name, spec in load_variants().items()}
    assert missed_targets(tables.summary, targets) == []
    missed = missed_targets(tables.summary, targets, tables.band)
    assert [sentence.split()[0] for sentence in missed] == ["paranoid", "paranoid_rule_defiant"]
    assert "beyond all random directions and their spread: 10 random directions" in missed[0]
    assert tables.band.filter(variant="trusting")["beyond"][0]


def test_the_pilot_s_line_says_costs_score_and_rank(tables):
    numbers = pilot_numbers(tables.summary, costs=tables.costs, combined=tables.combined, band=tables.band)
    paranoid = numbers["paranoid"]
    assert list(paranoid["coherence"]) == [
        "extra_suspects", "lost_facts", "extra_loops", "length_ratio", "extra_nll"
    ]  # fmt: skip
    assert paranoid["coherence"]["length_ratio"]["ratio"] > 1, "a remark makes it longer"
    assert paranoid["coherence"]["extra_nll"]["within"] is True
    assert numbers["trusting"]["coherence"]["extra_nll"]["within"] is False
    assert paranoid["combined"]["low"] < paranoid["combined"]["score"] < paranoid["combined"]["high"]
    assert paranoid["trait"]["paranoid"]["random_rank_p"] == pytest.approx(2 / 11)
    assert "random_rank_p" not in paranoid["trait"]["rule_defiant"], "it does not aim at that"
    assert "coherence" not in numbers["base"]


def test_side_effects_are_told_on_every_axis_and_random_directions_set_the_floor(tables):
    assert set(tables.matrix["axis"]) == set(AXES)
    assert set(tables.matrix["variant"]) == set(ROLES) - {"base"}, "the directions are the floor, no variants"
    row = tables.matrix.filter(variant="trusting", axis="paranoid").row(0, named=True)
    assert (row["aimed"], row["scale"]) == (-1, "minilm")
    assert row["band_low"] <= row["band_high"]
    assert tables.aims.filter(variant="base_resample")["aim"][0] is None


def test_an_axis_takes_the_first_scale_on_which_base_varies_and_says_why_it_has_none():
    def broken():
        raise ExamplesError("persona sailor: its scale does not tell the poles apart")

    packs, facts = packs_with_nll()
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    axes = {
        "coach": {"lexicon": Silent, "minilm": lambda: Words("e")},
        "sailor": {"lexicon": Silent, "minilm": broken},
        "gardener": {},
    }
    filled, left_out = with_evidence(
        tables, Sources(load_variants(), SCORERS, axes, None, CoherenceSpec()), seed=5
    )
    assert dict(filled.matrix.select("axis", "scale").iter_rows()) == {"coach": "minilm"}
    assert left_out == {
        "sailor": "base scores the same on 100% of the rows by its lexicon scale; persona sailor: its scale does not "
        "tell the poles apart",
        "gardener": "it has neither a lexicon nor examples",
    }


def test_a_scale_that_says_the_same_of_every_text_fails_the_comparison():
    """A lexicon whose phrases this model never says gave zeros in every cell, and nobody was told."""
    packs, facts = packs_with_nll()
    scorers = SCORERS | {"paranoid": {"lexicon": Silent()}}
    tables = compare_variants(packs, facts, scorers, ROLES, seed=5)
    sources = Sources(load_variants(), scorers, {}, None, CoherenceSpec())
    with pytest.raises(ValueError, match=r"persona paranoid.* lexicon.* all 320 texts"):
        with_evidence(tables, sources, seed=5)


def test_a_persona_is_told_on_its_lexicon_where_it_has_one_and_else_on_minilm():
    metrics = ["trait_paranoid_minilm", "trait_paranoid_lexicon", "n_words", "trait_rule_defiant_minilm"]
    scales = headline_scales(metrics)
    assert scales == {"paranoid": "lexicon", "rule_defiant": "minilm"}
    aims = aims_of(load_variants(), scales)
    assert [aim.column for aim in aims["paranoid_rule_defiant"]] == [
        "trait_paranoid_lexicon",
        "trait_rule_defiant_minilm",
    ]
    assert [aim.wanted for aim in aims["prompted_paranoid"]] == ["up"]
    assert "base" not in aims
    assert "prompted_paranoid" not in aims_of(load_variants(), scales, prompted=False)


def test_without_a_lexicon_the_pilot_tells_minilm_s_shifts():
    packs, facts = make_packs(n=24)
    only = {name: {"minilm": scales["lexicon"]} for name, scales in SCORERS.items()}
    tables = compare_variants(packs, facts, only, ROLES, seed=5)
    numbers = pilot_numbers(tables.summary)
    assert numbers["paranoid"]["trait"]["paranoid"]["low"] > 0
    assert moved_controls(tables.control_shifts) == []
    assert missed_targets(tables.summary, {"trusting": {"paranoid": "up"}}) != []
