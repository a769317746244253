"""The table reads what is stored, refuses what does not go together, and its checks name personas."""

import re

import dagster as dg
import numpy as np
import polars as pl
import pytest

from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline_tests.lab.behaviour.builders import ARMS, stored_rollouts, stored_scores
from steer_pipeline_tests.stages.behaviour.test_rollouts import Project

FEW = [arm for arm in ARMS if arm[0] in ("vanilla", "prompted_0", "random") or arm[:2] == ("trained", 1.0)]
WORKS = {"prompted": 0.8, "trained": 0.7}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Project(ArtifactStore(str(tmp_path / "store")), instance)


def put(project, persona: str, shifts: dict[str, float]) -> pl.DataFrame:
    """Stored rollouts and scores of 0.1 plus the arm's shift; truth follows the scores."""
    rng, rows = np.random.default_rng(7), stored_rollouts(persona, arms=FEW)
    scores = [0.1 + shifts.get(arm.partition("_")[0], 0.0) for arm in rows["arm"]] + rng.uniform(
        0, 0.09, rows.height
    )
    rows = rows.with_columns(trait_truth=pl.Series(np.where(scores > 0.4, 0.6, 0.0)))
    project.put("rollouts", rows, persona)
    project.put("minilm_scores", stored_scores(rows, scores), persona)
    return rows


def test_all_personas_that_work_pass_every_check(project):
    for persona in TRAIT_OR_ROLE.get_partition_keys():
        put(project, persona, WORKS)
    outcome = project.driver.materialize(["behaviour_table"])
    assert outcome.success, outcome
    verdicts = project.verdicts("behaviour_table")
    assert len(verdicts) == 4
    assert all(passed for passed, _ in verdicts.values()), verdicts
    folder = project.store.current("behaviour_table", None).path
    page = (folder / "behaviour.html").read_text()
    assert page.count("data:image/png;base64,") == 2, "the page loads nothing"
    event = project.instance.get_latest_materialization_event(dg.AssetKey("behaviour_table"))
    shown = event.asset_materialization.metadata
    assert list(shown)[:3] == ["dose_response", "trait_against_coherence", "summary"]
    n = len(TRAIT_OR_ROLE.get_partition_keys())
    assert f"{n} of {n} personas move up" in shown["summary"].value


def test_what_does_not_work_is_named_persona_by_persona(project):
    put(project, "sailor", WORKS | {"random": 0.3})
    put(project, "coach", {"prompted": 0.8})
    assert project.driver.materialize(["behaviour_table"]).success
    verdicts = project.verdicts("behaviour_table")
    assert not verdicts["every_persona_is_in_the_table"][0]
    passed, told = verdicts["random_moves_nothing"]
    assert not passed
    assert "random sailor moves minilm by +0." in told
    assert "coach" not in told
    passed, told = verdicts["steering_moves_the_trait"]
    assert not passed
    assert re.search(r"do not move up: coach \([+-]0\.\d{3} \[.*\], p .*\). To go on: look at the dose", told)


def test_a_scorer_that_contradicts_the_lexicon_is_told(project):
    rows = put(project, "sailor", WORKS)
    project.put("rollouts", rows.with_columns(trait_truth=0.6 - pl.col("trait_truth")))
    project.driver.materialize(["behaviour_table"])
    passed, told = project.verdicts("behaviour_table")["scales_agree"]
    assert not passed
    assert "sailor (0.00)" in told


def test_scores_of_other_rollouts_fail_with_the_cure(project):
    rows = put(project, "sailor", WORKS)
    project.put("rollouts", rows.with_columns(row_id=pl.lit("other-") + pl.col("row_id")))
    outcome = project.driver.materialize(["behaviour_table"])
    assert "materialise minilm_scores again" in outcome.errors[0]


def test_an_empty_store_says_what_to_materialise(project):
    outcome = project.driver.materialize(["behaviour_table"])
    assert "materialise rollouts and minilm_scores first" in outcome.errors[0]
