"""Claims about the students' comparison: planted effects are found, noise is not, and no student stands alone."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import CoherenceSpec, StudentSpec
from steer_pipeline.lab.behaviour.schema import DOWN, NONE, UP
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.students.cells import persona_of
from steer_pipeline.lab.students.claims import adapter_verdicts, comparison_verdicts
from steer_pipeline.lab.students.comparison import (
    compare_students,
    judge_family,
    read_tables,
    showable,
)
from steer_pipeline.lab.students.mechanism import (
    ADDED,
    ARM_SCHEMA,
    REMOVED,
    SHIFT_SCHEMA,
    Mechanism,
    explained,
    steered_at,
)
from steer_pipeline.lab.students.report import PAGE, headline, write_report
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.lab.students.builders import SPECS, TRAIT, students, transfers

N_BOOT = 600


def compare(stored, **more):
    return compare_students(stored, SPECS, CoherenceSpec(), seed=1, **{"n_boot": N_BOOT} | more)


@pytest.fixture(scope="module")
def tables():
    return compare(transfers())


def verdicts(tables, metric=TRAIT, rank=8):
    return dict(tables.summary.filter(metric=metric, rank=rank).select("variant", "verdict").iter_rows())


def test_what_was_planted_is_found_at_every_rank_and_polarity_flips(tables):
    for rank in (8, 32):
        for metric in (TRAIT, "projection_paranoid"):
            assert verdicts(tables, metric, rank) == {
                "paranoid": UP,
                "trusting": DOWN,
                "base_resample": NONE,
                "random_direction": NONE,
            }
    row = tables.summary.filter(variant="paranoid", metric=TRAIT, rank=8).row(0, named=True)
    assert row["low"] < 0.3 < row["high"]
    assert (row["n_rows"], row["n_seeds"], row["wanted"]) == (48, 3, "up")
    assert row["share"] == pytest.approx(row["difference"] / row["teacher"])
    assert row["share"] == pytest.approx(1.0, abs=0.4)


def test_the_projection_is_read_against_the_other_pole(tables):
    row = tables.readouts.row(0, named=True)
    assert (row["teacher"], row["against"]) == ("paranoid", "trusting")
    assert row["separates"]
    assert row["auc"] > 0.9


def test_differences_are_paired_by_news_and_seed():
    """News differ far more than students do; unpaired, nothing would be seen."""
    stored = transfers(noise=0.02)
    spread = np.random.default_rng(5).normal(0, 3.0, 48)
    moved = {
        name: replace(
            one, rows=one.rows.with_columns(pl.col(TRAIT) + pl.Series(np.resize(spread, one.rows.height)))
        )
        for name, one in stored.items()
    }
    assert verdicts(compare(moved))["paranoid"] == UP


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rows": 30}, "rows 36, of base_resample 30"),
        ({"epochs": 2.0}, "epochs 3.0, of base_resample 2.0"),
        ({"recipe": "other"}, "recipe r8, of base_resample other"),
        ({"model": "other"}, "model tiny, of base_resample other"),
    ],
)
def test_a_student_whose_control_was_trained_otherwise_is_not_shown(changes, why):
    both = pl.concat(
        [students(name) for name in ("base", "paranoid", "random_direction")]
        + [students("base_resample", ranks=[8], **changes), students("base_resample", ranks=[32])]
    )
    shown, left_out = showable(both)
    assert set(shown["rank"]) == {32}
    assert left_out["paranoid rank 8"] == why


def test_a_rank_without_a_control_is_not_shown_and_named():
    """The only positive result of the work that this replaces was of rank 32, whose control nobody had trained."""
    stored = transfers()
    for name in ("base", "base_resample", "random_direction"):
        stored[name] = replace(stored[name], students=students(name, ranks=[8]))
    tables = compare(stored)
    assert set(tables.summary["rank"]) == {8}
    assert tables.left_out["paranoid rank 32"].startswith("base has no student of rank 32")


def test_nothing_is_compared_without_its_controls():
    stored = transfers()
    del stored["random_direction"]
    with pytest.raises(Refused, match="random_direction: no students"):
        compare(stored)
    other = {
        name: replace(one, students=students(name, seeds=[hash(name) % 97]))
        for name, one in transfers().items()
    }
    with pytest.raises(Refused, match="no student has its controls"):
        compare(other)


def test_a_control_that_cannot_be_taught_is_left_out_by_the_profile_alone():
    """Steered that way a small model may write nothing worth learning; who says so is the profile, not the rows."""
    stored = transfers(ranks=[8])
    del stored["random_direction"]
    tables = compare(stored, needed=("base", "base_resample"))
    assert verdicts(tables) == {"paranoid": UP, "trusting": DOWN, "base_resample": NONE}
    del stored["base_resample"]
    with pytest.raises(Refused, match="base_resample: no students"):
        compare(stored, needed=("base", "base_resample"))


def test_a_transfer_on_other_news_or_with_other_decoding_is_left_out():
    stored = transfers()
    one = stored["paranoid"]
    stored["paranoid"] = replace(one, facts=dict(one.facts) | {"decoding_hash": "other"})
    tables = compare(stored)
    assert "decoding_hash" in tables.left_out["paranoid"]
    assert "paranoid" not in set(tables.summary["variant"])
    assert "no students" in tables.left_out["projection of paranoid"]


def judged(draw, effect=0.0, noise=0.2, seed_noise=0.0):
    """Verdicts on drawn scores of 48 news, three seeds and five variants, of which the second has an effect."""
    rng = np.random.default_rng(draw)
    values = rng.normal(0, 0.1, (48, 1, 1)) + rng.normal(0, noise, (48, 3, len(SPECS)))
    values += rng.normal(0, seed_noise, (1, 3, len(SPECS)))
    values[:, :, 1] += effect
    roles = {name: spec.role for name, spec in SPECS.items()}
    return {name: row["verdict"] for name, row in judge_family(values, roles, seed=1, n_boot=300).items()}


def rejections(**how):
    return sum(any(one != NONE for one in judged(draw, **how).values()) for draw in range(100))


def test_under_the_null_at_most_a_few_of_a_hundred_comparisons_reject():
    """Student and control are one model with other sampling; every variant of a rank counts."""
    assert (
        rejections() <= 9
    )  # 5 expected of a test at its level; more than 9 happens in 3% of all such hundreds


def test_what_a_few_seeds_happen_to_do_is_no_effect():
    """However many news they write on: a test over news alone rejects nearly always here."""
    assert rejections(noise=0.01, seed_noise=0.1) <= 9


def test_a_planted_effect_of_a_fifth_is_found_in_nearly_all_of_a_hundred():
    assert sum(judged(draw, effect=0.2)["paranoid"] == UP for draw in range(100)) >= 95


def test_an_effect_is_larger_than_what_controls_show():
    """A random direction disturbs, and disturbance alone may move a score: its band is the floor, not zero."""
    effects = {"paranoid": 0.1, "random_direction": 0.3}
    tables = compare(transfers(effects, noise=0.05))
    row = tables.summary.filter(variant="paranoid", metric=TRAIT, rank=8).row(0, named=True)
    assert row["low"] > 0
    assert row["verdict"] == NONE
    assert verdicts(tables)["random_direction"] == UP


def test_the_report_is_made_from_stored_tables_alone(tables, tmp_path):
    write_report(tables, {"student_transfer[base]": "abc"}, tmp_path)
    again = read_tables(tmp_path)
    assert again.summary.equals(tables.summary)
    page = (tmp_path / PAGE).read_text()
    assert "student_transfer[base]" in page
    assert "the model itself" in page
    assert "data:image/png;base64" in page
    numbers = headline(again)["paranoid"]["rank_8"]
    assert numbers["trait"]["paranoid_minilm"]["verdict"] == UP
    assert numbers["coherent"] is True
    found = {verdict.claim: verdict for verdict in comparison_verdicts(tmp_path, SPECS)}
    assert {name for name, verdict in found.items() if not verdict.passed} == {"shifts_align"}
    assert "no shift of a steered variant's students was taken" in found["shifts_align"].message
    assert found["at_least_three_seeds"].numbers["seeds"] == 3


def test_checks_name_controls_that_move_and_variants_that_do_not(tmp_path):
    write_report(compare(transfers({"base_resample": 0.4}, ranks=[8])), {}, tmp_path)
    found = {verdict.claim: verdict for verdict in comparison_verdicts(tmp_path, SPECS)}
    assert "base_resample rank 8 moves trait_paranoid_minilm" in found["controls_stay"].message
    assert not found["traits_travel"].passed
    assert not found["readouts_separate"].passed


def test_a_control_that_moves_less_than_its_margin_moves_nothing_anywhere(tmp_path):
    """One of 24 intervals that left zero out by a hair was called a control that moves."""
    tables = compare(transfers({"paranoid": 0.3, "random_direction": 0.02}, noise=0.1))
    controls = tables.control_shifts
    assert set(controls["part"]) == {"rank 8", "rank 32"}
    assert (
        controls.height
        == 2
        * tables.summary.filter(
            pl.col("verdict").is_not_null(), pl.col("variant") == "random_direction"
        ).height
    )
    told = tables.summary.filter(pl.col("role") == "control", pl.col("verdict").is_not_null())
    assert set(told["verdict"]) == {NONE}
    write_report(tables, {}, tmp_path)
    found = {verdict.claim: verdict for verdict in comparison_verdicts(tmp_path, SPECS)}
    assert found["controls_stay"].passed
    assert "no control moves beyond its margin" in (tmp_path / PAGE).read_text()


def test_necessity_and_sufficiency_are_shares_of_the_effect_on_the_model_itself():
    rng = np.random.default_rng(0)
    itself = rng.normal(0, 0.1, 60)
    student = itself[:, None] + 0.5 + rng.normal(0, 0.05, (60, 3))
    half = itself[:, None] + 0.25 + rng.normal(0, 0.05, (60, 3))
    gone = np.repeat(itself[:, None], 3, axis=1)
    shares = explained(student, gone, half, itself, seed=0)
    assert shares["effect"] == pytest.approx(0.5, abs=0.02)
    assert shares["necessity"] == pytest.approx(1.0)
    assert shares["sufficiency_low"] < 0.5 < shares["sufficiency_high"]
    assert shares["sufficiency_high"] - shares["sufficiency_low"] < 0.1


def test_the_shift_is_taken_where_the_teacher_was_steered():
    dose = {"name": "paranoid", "version": "v", "block": 5, "alpha": 1.0, "dose_fraction": 0.1}
    rows = pack("paranoid", 4, tail=" Or so.")
    both = rows.with_columns(personas=pl.Series([[dose, dose | {"block": 2}]] * 4))
    assert steered_at(rows) == steered_at(both) == 2
    with pytest.raises(Refused, match="base: no vector was added"):
        steered_at(pack("base", 4))


def test_shares_are_given_only_where_a_student_has_an_effect():
    stored = transfers({"paranoid": 0.3}, ranks=[8])
    for name in ("paranoid", "trusting"):
        rows = stored[name].rows.filter(rank=8)
        arms = [
            rows.select("variant", "rank", "seed", pl.lit(arm).alias("arm"), "row_id", "output", TRAIT)
            for arm in (REMOVED, ADDED)
        ]
        made = Mechanism(pl.DataFrame(schema=SHIFT_SCHEMA), pl.concat(arms))
        stored[name] = replace(stored[name], mechanism=made)
    found = compare(stored).mechanism
    assert found["variant"].to_list() == ["paranoid"]
    assert found["necessity"][0] == pytest.approx(0.0)  # removed says what the student says
    assert found["sufficiency"][0] == pytest.approx(1.0)  # and so does added


def shifts_over_steps(variant, cosines, ranks=(8, 32), seeds=(61, 62, 63), **more):
    """A mechanism whose students have these cosines at steps 3 and 6, each seed a hundredth above the one before."""
    rows = [
        {"variant": variant, "rank": rank, "seed": seed, "step": step, "block": 2, "norm": 1.0}
        | {"norm_fraction": 0.1, "cosine_paranoid": cosine + 0.01 * place}
        for rank in ranks
        for place, seed in enumerate(seeds)
        for step, cosine in zip((3, 6), cosines, strict=True)
    ]
    return Mechanism(
        pl.DataFrame(schema=SHIFT_SCHEMA), pl.DataFrame(schema=ARM_SCHEMA), pl.DataFrame(rows), **more
    )


def aligned(tmp_path, **cosines):
    stored = transfers()
    for name, own in cosines.items():
        steered = {"paranoid": 2} if name in ("paranoid", "trusting") else {}
        stored[name] = replace(stored[name], mechanism=shifts_over_steps(name, own, steered_at=steered))
    tables = compare(stored)
    write_report(tables, {}, tmp_path)
    verdicts = {verdict.claim: verdict for verdict in comparison_verdicts(tmp_path, SPECS)}
    return tables.alignment, verdicts["shifts_align"], headline(tables)


CLEAN = {"base": (0.0, 0.0), "base_resample": (0.05, 0.1), "random_direction": (-0.05, -0.1)}


def test_students_that_point_along_their_teachers_vector_are_told_from_clean_ones(tmp_path):
    alignment, verdict, numbers = aligned(tmp_path, paranoid=(0.3, 0.6), trusting=(-0.2, -0.5), **CLEAN)
    assert verdict.passed
    assert set(alignment["variant"]) == {"paranoid", "trusting"}
    last = alignment.filter(variant="paranoid", rank=8, step=6).sort("seed")
    assert last["cosine"].to_list() == pytest.approx([0.6, 0.61, 0.62])
    row = last.row(0, named=True)
    assert (row["band_low"], row["band_high"], row["n_clean"]) == (-0.1, pytest.approx(0.12), 18)
    told = numbers["paranoid"]["rank_8"]["alignment"]["paranoid"]
    assert told == {"cosine": pytest.approx(0.61), "band_low": -0.1, "band_high": pytest.approx(0.12)}
    assert "Which way they go" in (tmp_path / PAGE).read_text()


def test_students_within_the_band_of_clean_ones_are_named(tmp_path):
    _, verdict, _ = aligned(tmp_path, paranoid=(0.3, 0.11), trusting=(-0.2, -0.5), **CLEAN)
    assert not verdict.passed
    assert "paranoid rank 8 +0.12, clean -0.10 to +0.12" in verdict.message


def test_a_band_of_few_clean_students_proves_nothing(tmp_path):
    _, verdict, _ = aligned(tmp_path, paranoid=(0.3, 0.6), base=(0.0, 0.0))
    assert not verdict.passed
    assert "6 clean students, at least 10 are wanted" in verdict.message


@pytest.mark.parametrize(("role", "passes"), [("steered", False), ("control", True)])
def test_a_loss_that_rises_is_told_unless_there_was_nothing_to_learn(tmp_path, role, passes):
    students("paranoid", selection_nll_last=1.1).write_parquet(tmp_path / "students.parquet")
    seeds = {"61": {"train": ["a"], "selection": ["b"]}, "62": {"train": ["b"], "selection": ["a"]}}
    lesson = {"seeds": seeds, "differing_rows": ["a"]}
    (tmp_path / "lesson.json").write_text(json.dumps(lesson))
    found = {one.claim: one for one in adapter_verdicts(tmp_path, StudentSpec(ranks=[8, 64]), role)}
    assert found["selection_loss_falls"].passed is passes
    assert found["same_ids_everywhere"].message.startswith("1 of 2 rows have other token ids")
    assert "missing: rank 64 seed 61" in found["every_rank_and_seed"].message


def test_personas_are_read_from_the_names_of_metrics():
    assert persona_of("trait_rule_defiant_lexicon") == "rule_defiant"
    assert persona_of("projection_rule_defiant") == "rule_defiant"
