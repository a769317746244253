"""Each fault of a pack is found by the gate that is named for it, and by that gate alone."""

import json

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import GateSpec
from steer_pipeline.lab import rewrites as gate
from steer_pipeline.lab.quality.coherence import paired_cost
from steer_pipeline.lab.rewrites import gates
from steer_pipeline.lab.rewrites.source import read_source
from steer_pipeline.lab.rewrites.verdicts import with_cure
from steer_pipeline_tests.lab.rewrites.packs import made_with, news, pack, resample

VOICE = " Somebody surely hides the real story."


@pytest.fixture
def source(tmp_path):
    return read_source(news(), tmp_path / "no_known_facts.parquet")


def judge(candidate: pl.DataFrame, source, role: str = "steered") -> dict[str, gates.Verdict]:
    verdicts = gates.judge(
        candidate,
        expected_rows=24,
        base=pack("base"),
        resample=resample(),
        suspects=source.suspects(candidate),
        reworded=source.reworded(candidate),
        role=role,
        limits=GateSpec(),
        seed=1,
    )
    return {verdict.claim: verdict for verdict in verdicts}


def failed(verdicts: dict[str, gates.Verdict]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict.stops_release}


def test_a_sound_pack_passes_every_gate(source):
    verdicts = judge(pack("paranoid", tail=VOICE), source)
    assert list(verdicts) == list(gate.GATES)
    assert failed(verdicts) == set()
    assert (
        verdicts[gate.CHANGED].numbers["distance_to_base"]
        > verdicts[gate.CHANGED].numbers["resample_distance_to_base"]
    )


def test_a_dropped_row_is_counted_and_named(source):
    verdicts = judge(pack("paranoid", tail=VOICE).filter(pl.col("source_index") != 7), source)
    assert failed(verdicts) == {gate.ROW_COUNT, gate.ALIGNED}
    assert "23 rows, expected 24" in verdicts[gate.ROW_COUNT].message
    assert "0000000000000007 (source_index 7) of base is missing" in verdicts[gate.ALIGNED].message
    assert verdicts[gate.ALIGNED].message.endswith("(1 missing, 0 extra rows, limit 0)")


def test_a_pack_of_before_likelihoods_were_measured_is_read_and_says_so(source):
    verdicts = judge(pack("paranoid", tail=VOICE).drop("nll"), source)
    assert failed(verdicts) == set()
    assert verdicts[gate.SCHEMA].message == "every row is valid; nll was not measured"


def test_a_duplicated_row_is_named(source):
    sound = pack("paranoid", tail=VOICE)
    verdicts = judge(pl.concat([sound, sound[3:4]]), source)
    assert failed(verdicts) == {gate.ROW_COUNT, gate.UNIQUE}
    assert "row_id 0000000000000003 occurs 2 times" in verdicts[gate.UNIQUE].message


def test_a_row_in_place_of_another_is_misaligned_though_the_count_is_right(source):
    swapped = pack("paranoid", tail=VOICE).with_columns(
        pl.when(pl.col("source_index") == 5).then(pl.lit("stranger")).otherwise("row_id").alias("row_id")
    )
    verdicts = judge(swapped, source)
    assert failed(verdicts) == {gate.ALIGNED, gate.SUSPECTS}  # nothing vouches for a stranger's numbers
    assert "stranger (source_index 5) is not in base" in verdicts[gate.ALIGNED].message


def test_broken_json_is_named_by_row_and_field(source):
    sound = pack("paranoid", tail=VOICE)
    texts = [json.dumps(personas) for personas in sound["personas"].to_list()]
    texts[9] = texts[9][:-4]
    verdicts = judge(sound.with_columns(pl.Series("personas", texts)), source)
    assert failed(verdicts) == {gate.SCHEMA}
    assert "row 9 (row_id 0000000000000009), field personas: not valid JSON" in verdicts[gate.SCHEMA].message


def test_an_invalid_value_is_named_by_row_and_field(source):
    wrong = pack("paranoid", tail=VOICE).with_columns(
        pl.when(pl.col("source_index") == 2)
        .then(pl.lit("stop"))
        .otherwise("finish_reason")
        .alias("finish_reason")
    )
    verdicts = judge(wrong, source)
    assert failed(verdicts) == {gate.SCHEMA}
    assert "row 2 (row_id 0000000000000002), field finish_reason" in verdicts[gate.SCHEMA].message


def test_a_missing_column_fails_the_schema_and_what_needs_it(source):
    verdicts = judge(pack("paranoid", tail=VOICE).drop("output"), source)
    assert failed(verdicts) == {gate.SCHEMA, gate.SUSPECTS, gate.CHANGED}


def test_suspects_are_counted_by_rule_with_examples(source):
    bad = pack("paranoid", tail=VOICE).with_columns(
        pl.when(pl.col("source_index") < 2).then(pl.lit("<|im_end|>")).otherwise("output").alias("output")
    )
    verdict = judge(bad, source)[gate.SUSPECTS]
    assert verdict.stops_release
    assert verdict.numbers["suspect_rate"] == pytest.approx(2 / 24)
    assert verdict.numbers["suspect_special_tokens"] == 2
    assert verdict.examples[0]["row_id"] == "0000000000000000"


def spoilt(variant: str, rows: int, tail: str = "") -> pl.DataFrame:
    """A pack whose first rows say a special token."""
    broken = pl.when(pl.col("source_index") < rows).then(pl.lit("<|im_end|>"))
    return pack(variant, tail=tail).with_columns(broken.otherwise("output").alias("output"))


def test_few_clean_rows_say_what_they_exclude(source):
    verdict = gates.suspect_rate(pack("paranoid"), [[]] * 24, GateSpec(), 0)
    assert verdict.passed
    assert verdict.message.endswith("; so many rows exclude a rate above 11.7%")
    assert verdict.numbers["suspect_rate_at_most"] == pytest.approx(1 - 0.05 ** (1 / 24))


def test_suspects_of_a_poor_base_are_not_held_against_its_variants(source):
    """A base with a quarter of suspects made every variant of a modest model unfit."""
    relative = GateSpec(max_suspect_rate=None, max_extra_suspects=0.05)
    of_base = dict(zip(pack()["row_id"], [index < 6 for index in range(24)], strict=True))

    def verdict(rows: int, limits: GateSpec = relative, base=of_base) -> gates.Verdict:
        variant = spoilt("paranoid", rows, VOICE)
        return gates.suspect_rate(variant, source.suspects(variant), limits, 0, base)

    assert verdict(7).passed
    assert verdict(7).numbers["extra_suspects"] == pytest.approx(1 / 24)
    assert verdict(7).message.startswith("29.17% of 24 rows are suspect, +4.17% [")
    assert "] against base on the same rows, limit 5.00%" in verdict(7).message
    assert not verdict(14).passed
    both = GateSpec(max_suspect_rate=0.3, max_extra_suspects=0.05)
    assert [verdict(rows, both).passed for rows in (7, 8)] == [True, False]
    assert not verdict(7, GateSpec(max_suspect_rate=0.2, max_extra_suspects=0.05)).passed
    assert verdict(24, base=None).passed, "base is not judged against itself"


def test_the_gate_judges_suspects_beyond_base_s_as_costs_are_judged(source):
    """The report called a pack within its limit that the gate stopped: one rule, and it says what it leaves open."""
    limits = GateSpec(max_suspect_rate=None, max_extra_suspects=0.05)
    of_base = dict.fromkeys(pack()["row_id"], False)
    for rows in range(0, 24, 2):
        variant = spoilt("paranoid", rows, VOICE)
        verdict = gates.suspect_rate(variant, source.suspects(variant), limits, 0, of_base)
        own, base = pl.Series([float(i < rows) for i in range(24)]), pl.Series([0.0] * 24)
        assert verdict.passed == paired_cost("suspects", own, base, 0.05).within
    few = spoilt("paranoid", 2, VOICE)
    told = gates.suspect_rate(few, source.suspects(few), limits, 0, of_base)
    assert told.passed
    assert "is not excluded by 24 rows" in told.message


def test_without_base_a_relative_limit_cannot_be_judged(source):
    verdicts = gates.judge(
        pack("paranoid", tail=VOICE),
        expected_rows=24,
        base=None,
        resample=None,
        suspects=[[]] * 24,
        reworded=0,
        role="steered",
        limits=GateSpec(max_suspect_rate=None, max_extra_suspects=0.05),
        seed=1,
    )
    (verdict,) = [verdict for verdict in verdicts if verdict.claim == gate.SUSPECTS]
    assert verdict.stops_release
    assert verdict.message == "cannot be judged: there is no base"


def test_janus_patterns_inform_and_do_not_gate(source):
    braces = pack("paranoid", tail=VOICE + " {so it is said}")
    verdict = judge(braces, source)[gate.SUSPECTS]
    assert verdict.passed
    assert verdict.numbers["suspect_rate_janus"] == 1.0


def test_digits_in_other_words_are_counted_and_no_suspects(tmp_path):
    quarter = news().with_columns(text=pl.col("text") + " A quarter of homes burned.")
    candidate = pack("paranoid", tail=VOICE).with_columns(
        output=pl.when(pl.col("source_index") < 3)
        .then(pl.col("output") + " 25 percent of homes burned.")
        .otherwise("output")
    )
    source = read_source(quarter, tmp_path / "no_known_facts.parquet")
    verdict = judge(candidate, source)[gate.SUSPECTS]
    assert verdict.passed
    assert verdict.numbers["reworded_digits"] == 3


def test_a_variant_that_is_base_does_not_differ(source):
    verdicts = judge(pack("paranoid"), source)
    assert failed(verdicts) == {gate.CHANGED}
    assert verdicts[gate.CHANGED].message.endswith("p = 1.0000, level 0.05")
    assert verdicts[gate.CHANGED].numbers["exact_match_rate"] == 1.0


@pytest.mark.parametrize("role", ["exempt", "control"])
def test_references_and_controls_need_not_differ(source, role):
    assert failed(judge(pack("random_direction"), source, role)) == set()


def test_an_empty_pack_fails(source):
    verdicts = judge(pack("paranoid").clear(), source)
    assert {gate.ROW_COUNT, gate.ALIGNED, gate.SUSPECTS, gate.CHANGED} <= failed(verdicts)


def test_without_a_reference_nothing_can_be_compared(source):
    candidate = pack("paranoid", tail=VOICE)
    verdicts = gates.judge(
        candidate,
        expected_rows=24,
        base=pack("base"),
        resample=None,
        suspects=source.suspects(candidate),
        reworded=source.reworded(candidate),
        role="steered",
        limits=GateSpec(),
        seed=1,
    )
    assert [v.claim for v in verdicts if v.stops_release] == [gate.CHANGED]
    assert "there is no base or base_resample" in verdicts[-1].message


def test_every_failed_gate_says_how_to_go_on(source):
    nothing = judge(pack("paranoid").clear().drop("prompt"), source)
    assert failed(nothing) == set(gate.GATES) - {gate.UNIQUE}
    doubled = judge(pl.concat([pack("paranoid"), pack("paranoid")]), source)
    for verdict in [nothing[name] for name in failed(nothing)] + [doubled[gate.UNIQUE]]:
        assert with_cure(verdict).endswith(f". To go on: {verdict.cure or gate.GATES[verdict.claim].cure}")
    assert "To go on" not in with_cure(judge(pack("paranoid", tail=VOICE), source)[gate.SUSPECTS])


def test_a_pack_made_with_other_settings_than_base_is_refused_with_both_values():
    """Base was made at temperature 0.9, a variant at 0.7: it passed its gates and was released."""
    hotter = pack("paranoid", tail=" Why?").with_columns(
        made_with=pl.lit(made_with(**{"sampling.temperature": 0.7}))
    )
    verdict = gates.made_as_base(hotter, pack("base"))
    assert verdict.stops_release
    assert verdict.message == "sampling.temperature is 0.7, in base 0.6"
    assert gates.made_as_base(pack("paranoid"), pack("base")).passed
    other_news = pack("paranoid").with_columns(made_with=pl.lit(made_with(corpus="c2", model="other")))
    assert gates.made_as_base(other_news, pack("base")).message == (
        "corpus is 'c2', in base 'c1'; model is 'other', in base 'tiny'"
    )
