"""The stage makes rollouts and scores a persona; its checks stop leaks, missing arms and known questions."""

import json

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.behaviour.rollouts import known_questions
from steer_pipeline.lab.models import loading
from steer_pipeline.lab.vectors.vector import save_vector
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.stages.behaviour import assets, checks
from steer_pipeline_tests.lab.behaviour.builders import averaged_vector, behaviour_set, trained_vector
from steer_pipeline_tests.stages.origins import READER, STUDIED
from steer_pipeline_tests.tiny import tiny_model_dir

PROFILE = """
name: newsroom
summary: A small project for tests.
model: {{path: {model}, dtype: float32, device: cpu}}
behaviour: {{allow_other_model: {allow}}}
rollouts: {{n_questions: 3, trained_scales: [0.5], averaged_scales: [1.0], random_seeds: [51],
           sampling: {{temperature: 0.8, max_new_tokens: 6, seed: 50}}, minilm_texts: 25}}
"""
TABLE_IO, BUNDLE_IO = {"dagster/io_manager_key": "parquet_io"}, {"dagster/io_manager_key": "bundle_io"}
MADE = [assets.rollouts, assets.minilm_scores, assets.behaviour_table]
CHECKS = [checks.rollouts_checks, checks.minilm_scores_checks, checks.behaviour_table_checks]
N_ARMS = 1 + 5 + 3 + 2 + 1


class Project:
    """A store with what comes before rollouts, for one persona, and a driver on the stage."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.store, self.instance, self.persona = store, instance, "sailor"
        shelf = ArtifactStoreResource()
        elsewhere = [
            dg.AssetSpec("behaviour_set", partitions_def=TRAIT_OR_ROLE, metadata=TABLE_IO),
            dg.AssetSpec("trained_vector", partitions_def=TRAIT_OR_ROLE, metadata=BUNDLE_IO),
            dg.AssetSpec("vector_comparison", partitions_def=TRAIT_OR_ROLE, metadata=BUNDLE_IO),
            dg.AssetSpec("judge_scores", partitions_def=TRAIT_OR_ROLE, metadata=TABLE_IO),
        ]
        self.driver = Driver(
            dg.Definitions(
                assets=[*STUDIED, *MADE, *elsewhere],
                asset_checks=CHECKS,
                resources={
                    "store": shelf,
                    "language_model": LanguageModelResource(),
                    "parquet_io": ParquetIO(store=shelf),
                    "bundle_io": BundleIO(store=shelf),
                    **READER,
                },
                executor=dg.in_process_executor,
            ),
            instance,
        )

    def put(self, asset, writer, persona="sailor"):
        if isinstance(writer, pl.DataFrame):
            rows = writer
            writer = lambda folder: rows.write_parquet(folder / "data.parquet")  # noqa: E731
        return self.store.write(asset, persona, writer, metadata={}, inputs={}, code_version="1", run_id=None)

    def rows(self, asset, persona="sailor") -> pl.DataFrame:
        return pl.read_parquet(self.store.current(asset, persona).path / "data.parquet")

    def verdicts(self, asset: str) -> dict[str, tuple[bool, str]]:
        """Check -> (passed, description), of the last evaluations."""
        found = {}
        for check in CHECKS:
            for spec in check.check_specs:
                key = dg.AssetCheckKey(dg.AssetKey(asset), spec.name)
                records = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
                if spec.asset_key == dg.AssetKey(asset) and records:
                    evaluation = records[0].event.dagster_event.event_specific_data
                    found[spec.name] = (evaluation.passed, evaluation.description)
        return found

    def put_inputs(self, model, persona: str, kind: str, *, averaged: bool = True) -> None:
        def comparison(folder):
            scales = {"averaged": {"block": 2, "scale": 1.0, "alpha": 5.0} if averaged else None}
            (folder / "scales.json").write_text(json.dumps(scales))
            (folder / "averaged").mkdir()
            if averaged:
                save_vector(averaged_vector(model, persona), folder / "averaged")
            else:
                (folder / "averaged" / "MISSING.json").write_text('{"reason": "7 rows count, 30 are needed"}')

        self.put("behaviour_set", behaviour_set(kind, name=persona), persona)
        self.put(
            "trained_vector", lambda folder: save_vector(trained_vector(model, persona), folder), persona
        )
        self.put("vector_comparison", comparison, persona)


def write_profile(folder, allow="false"):
    (folder / "small.yaml").write_text(PROFILE.format(model=tiny_model_dir(folder), allow=allow))


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_profile(tmp_path)
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "small.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    with dg.DagsterInstance.ephemeral() as instance:
        made = Project(ArtifactStore(str(tmp_path / "store")), instance)
        made.model = loading.load_model(
            ModelSpec(path=str(tiny_model_dir(tmp_path)), dtype="float32", device="cpu"), tmp_path
        )
        made.put_inputs(made.model, "sailor", "role")
        yield made


def test_two_personas_make_rollouts_scores_and_the_table_with_one_model_load(project, monkeypatch):
    project.put_inputs(project.model, "creative", "trait", averaged=False)
    loads, original = [], loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *args: loads.append(1) or original(*args))
    for persona in ("sailor", "creative"):
        outcome = project.driver.materialize(["rollouts", "minilm_scores"], partition=persona)
        assert outcome.success, outcome
    assert len(loads) <= 1

    sailor, creative = project.rows("rollouts"), project.rows("rollouts", "creative")
    assert (sailor.height, creative.height) == (3 * N_ARMS, 3 * (N_ARMS - 2))
    assert set(sailor["question"]) == set(load_personas()["sailor"].questions[:3])
    version = project.store.current("trained_vector", "sailor").sha
    assert sailor.filter(arm="trained")["vector_version"].unique().to_list() == [version]
    assert set(sailor.filter(arm="trained")["scale"]) == {-1.0, 0.5, 1.0}
    scores = project.rows("minilm_scores")
    assert scores["row_id"].to_list() == sailor["row_id"].to_list()
    assert scores["auc"][0] > 0.9
    assert all(passed for passed, _ in project.verdicts("rollouts").values())
    assert "7 rows count, 30 are needed" in project.verdicts("rollouts")["all_arms_present"][1]
    separated = project.verdicts("minilm_scores")
    assert separated["every_rollout_is_scored"][0]
    assert separated["scorer_separates"][0]

    outcome = project.driver.materialize(["behaviour_table"])
    assert outcome.success, outcome
    folder = project.store.current("behaviour_table", None).path
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["rollouts[sailor]"] == project.store.current("rollouts", "sailor").sha
    assert versions["rollouts[sailor]"] in (folder / "behaviour.md").read_text()
    assert project.store.current("behaviour_table", None).manifest["inputs"].items() >= versions.items()
    arms = pl.read_parquet(folder / "arms.parquet")
    assert arms.group_by("persona").len().sort("persona")["len"].to_list() == [N_ARMS, N_ARMS + 2]
    assert set(arms["judge_not_asked"].drop_nulls()) == {3}
    told = project.verdicts("behaviour_table")
    assert "analytical" in told["every_persona_is_in_the_table"][1]
    assert not told["steering_moves_the_trait"][0]  # a tiny model says nothing of ships
    assert told["random_moves_nothing"][0]


def test_the_same_inputs_make_the_same_version_and_a_journal_is_kept(project):
    project.driver.materialize(["rollouts"], partition="sailor")
    first = project.store.current("rollouts", "sailor").sha
    journal = project.store.work("rollouts") / "sailor.jsonl"
    assert journal.read_bytes().count(b'{"row":') == 3 * N_ARMS
    written = journal.read_bytes()
    project.driver.materialize(["rollouts"], partition="sailor")
    assert project.store.current("rollouts", "sailor").sha == first
    assert journal.read_bytes() == written


def test_a_vector_of_another_model_is_refused_unless_the_profile_says_so(project, tmp_path):
    other = trained_vector(project.model, weights_sha="of another model")
    project.put("trained_vector", lambda folder: save_vector(other, folder))
    outcome = project.driver.materialize(["rollouts"], partition="sailor")
    assert not outcome.success
    assert "was made on another model" in outcome.errors[0]
    write_profile(tmp_path, allow="true")
    from steer_pipeline import settings as module

    module._settings.cache_clear()
    assert project.driver.materialize(["rollouts"], partition="sailor").success


def test_a_question_of_the_behaviour_set_is_not_asked(project):
    asked = load_personas()["sailor"].questions[1]
    rows = project.rows("behaviour_set")
    known = rows.with_columns(
        question=pl.when(pl.int_range(pl.len()) == 4).then(pl.lit(asked.upper())).otherwise("question")
    )
    project.put("behaviour_set", known)
    outcome = project.driver.materialize(["rollouts"], partition="sailor")
    assert asked in outcome.errors[0]


def broken(rows: pl.DataFrame, fault: str) -> pl.DataFrame:
    if fault == "leak":
        return rows.with_columns(response=pl.lit("assistant\n") + pl.col("response"))
    if fault == "no vanilla":
        return rows.filter(pl.col("arm") != "vanilla")
    if fault == "a partial file":
        return rows.head(rows.height - 5)
    return rows.with_columns(question=pl.lit("Tell me about the harbour."))


@pytest.mark.parametrize(
    "fault, check",
    [
        ("leak", "prompt_is_not_in_the_response"),
        ("no vanilla", "all_arms_present"),
        ("a partial file", "all_arms_present"),
        ("a known question", "questions_are_held_out"),
    ],
)
def test_broken_rollouts_are_stopped_by_the_check_that_names_the_fault(project, fault, check):
    project.driver.materialize(["rollouts"], partition="sailor")
    project.put("rollouts", broken(project.rows("rollouts"), fault))
    gates = [("rollouts", spec.name) for spec in checks.rollouts_checks.check_specs]
    outcome = project.driver.materialize(["minilm_scores"], partition="sailor", checks=gates)
    failed = {name for name, (passed, _) in project.verdicts("rollouts").items() if not passed}
    assert check in failed
    assert failed <= {check, "all_arms_present"}
    assert "minilm_scores" not in outcome.materialised


def test_scores_of_other_rollouts_and_scorers_that_see_nothing_are_told(project):
    project.driver.materialize(["rollouts", "minilm_scores"], partition="sailor")
    scores = project.rows("minilm_scores")
    blind = scores.head(scores.height - 1).with_columns(
        auc=pl.lit(0.52), auc_low=pl.lit(0.4), length_auc_after=pl.lit(0.9)
    )
    project.put("minilm_scores", blind)
    gates = [("minilm_scores", spec.name) for spec in checks.minilm_scores_checks.check_specs]
    project.driver.materialize([], partition="sailor", checks=gates)
    verdicts = project.verdicts("minilm_scores")
    assert not any(passed for passed, _ in verdicts.values())
    assert "0.520" in verdicts["scorer_separates"][1]


def test_a_set_without_negatives_fails_with_a_sentence(project):
    project.driver.materialize(["rollouts"], partition="sailor")
    project.put("behaviour_set", project.rows("behaviour_set").filter(pl.col("label") == "pos"))
    outcome = project.driver.materialize(["minilm_scores"], partition="sailor")
    assert "0 default rows with text; a scorer needs 20 a side" in outcome.errors[0]


def test_known_questions_are_found_whatever_their_case():
    stored = pl.LazyFrame({"question": ["Tell me  about THE harbour."]})
    assert known_questions(["tell me about the harbour.", "Why?"], stored) == ["tell me about the harbour."]
