"""The random band: ten directions of the strongest variant's lengths, made and resumed as packs are."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue import load_variants
from steer_pipeline.lab.generation.schema import BAND_SCHEMA
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.rewrites.random_band import random_plans, strongest
from steer_pipeline_tests.stages.rewrites.conftest import small_profile, stage_project
from steer_pipeline_tests.stages.rewrites.test_raw import STEERED, put_vectors
from steer_pipeline_tests.tiny import tiny_model_dir

SIZES = "{pilot_rows: 24, band_directions: 3, band_rows: 5, sampling: {max_new_tokens: 12, seed: 20}}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    profile = small_profile(
        tmp_path, model=str(tiny_model_dir(tmp_path)), rewrites=SIZES, variants=STEERED.replace("\n", " ")
    )
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STEER_PROFILE", str(profile))
    with stage_project(tmp_path / "store") as made:
        yield made


def made_band(project) -> pl.DataFrame:
    outcome = project.driver.materialize(["random_band"])
    assert outcome.success, outcome
    return pl.read_parquet(project.store.current("random_band", None).path / "data.parquet")


def test_every_direction_rewrites_the_first_items_with_the_strongest_variant_s_lengths(project):
    put_vectors(project)
    rows = made_band(project)
    assert rows.schema == BAND_SCHEMA
    assert rows["variant"].unique().sort().to_list() == ["random_00", "random_01", "random_02"]
    assert rows.filter(variant="random_01")["source_index"].to_list() == [0, 1, 2, 3, 4]
    doses = rows["personas"].to_list()
    assert {tuple((one["block"], one["alpha"]) for one in own) for own in doses} == {((2, 4.0), (1, 4.0))}
    assert len({one["version"] for own in doses for one in own}) == 6, "two terms in each of three directions"
    assert rows.filter(pl.col("output").str.strip_chars() != "")["nll"].null_count() == 0
    assert (rows["token_ids"].list.len() <= rows["n_new_tokens"]).all()
    told = project.store.current("random_band", None).manifest["metadata"]
    assert (told["strongest"], told["directions"]) == ("paranoid_rule_defiant", 3)
    assert told["norms"] == {"paranoid@2": 4.0, "rule_defiant@1": 4.0}


def test_a_band_that_is_made_again_takes_its_rows_from_the_journal_and_stays_the_same(project):
    put_vectors(project)
    made_band(project)
    before = project.store.current("random_band", None)
    made_band(project)
    again = project.store.current("random_band", None)
    assert again.sha == before.sha
    journal = project.store.work("random_band") / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:7]))
    made_band(project)
    assert project.store.current("random_band", None).sha == before.sha


def test_without_a_vector_it_says_what_is_missing(project):
    outcome = project.driver.materialize(["random_band"])
    assert not outcome.success
    assert "materialise persona_vector" in outcome.errors[0]


def plan_of(*fractions: float, block: int = 2) -> SteeringPlan:
    unit = np.eye(8, dtype=np.float32)[0]
    terms = (SteeringTerm(f"t{i}", unit, Site(block), 10 * f, f) for i, f in enumerate(fractions))
    return SteeringPlan("v", tuple(terms))


def test_the_strongest_variant_is_longest_over_all_its_terms():
    plans = {"one": plan_of(0.3), "two": plan_of(0.25, -0.25), "down": plan_of(-0.1)}
    assert strongest(plans) == "two"


def test_two_terms_at_one_block_get_different_directions():
    """Drawn with one seed they would be one direction, twice as long."""
    like = plan_of(0.3, 0.3)
    band = random_plans(load_variants()["paranoid"], like, 4, seed=20)
    units = [term.unit for plan in band.plans.values() for term in plan.terms]
    cosines = np.array(units) @ np.array(units).T
    assert len(units) == 8
    assert np.abs(cosines - np.eye(8)).max() < 0.99
    assert all(term.alpha == 3.0 for plan in band.plans.values() for term in plan.terms)
    assert {spec.role for spec in band.variants.values()} == {"control"}
