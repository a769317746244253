"""The stage makes a contrast set, a vector and a dose curve a persona; its checks stop what is broken."""

import json

import dagster as dg
import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import save_file

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import ImportedVector
from steer_pipeline.io import catalogue as reading
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.models import loading
from steer_pipeline.lab.vectors.doses import load_recommendation
from steer_pipeline.lab.vectors.vector import best_block, load_vector, save_vector
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.stages.personas import assets, checks
from steer_pipeline_tests.lab.personas.builders import vector
from steer_pipeline_tests.planted import LEXICONS
from steer_pipeline_tests.stages.origins import ORIGINS, READER
from steer_pipeline_tests.tiny import tiny_model_dir

PROFILE = """
name: newsroom
summary: A small project for tests.
model: {{path: {model}, dtype: float32, device: cpu}}
contrast: {{contexts: news, n_contexts: 16, max_new_tokens: 5, filter: false}}
dose: {{blocks: [1, 2], fractions: [-0.5, 0.0, 0.5], n_rows: 4, n_random: 3, max_kl_nats: 100}}
rewrites: {{pilot_rows: 4, full_rows: 12, sampling: {{max_new_tokens: 5}}}}
"""
STORED = {"dagster/io_manager_key": "parquet_io"}
CHAIN = ["contrast_set", "persona_vector", "dose_curve"]


class Project:
    """A store with news, and a driver on the stage."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.store, self.instance = store, instance
        shelf = ArtifactStoreResource()
        self.driver = Driver(
            dg.Definitions(
                assets=[*ORIGINS, *assets.ASSETS, dg.AssetSpec("truncated_news", metadata=STORED)],
                asset_checks=checks.CHECKS,
                resources={
                    "store": shelf,
                    "language_model": LanguageModelResource(),
                    "judge": JudgeResource(),
                    "parquet_io": ParquetIO(store=shelf),
                    "bundle_io": BundleIO(store=shelf),
                    **READER,
                },
                executor=dg.in_process_executor,
            ),
            instance,
        )

    def put(self, asset, writer, partition="paranoid"):
        return self.store.write(
            asset, partition, writer, metadata={}, inputs={}, code_version="1", run_id=None
        )

    def folder(self, asset, partition="paranoid"):
        return self.store.current(asset, partition).path

    def metadata(self, asset):
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        return event.asset_materialization.metadata

    def checks(self, asset):
        """Check name -> (passed, severity) of the last evaluations of the paranoid partition."""
        found = {}
        for name in (spec.name for check in checks.CHECKS for spec in check.check_specs):
            record = self.instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(dg.AssetKey(asset), name), limit=1
            )
            if record:
                evaluation = record[0].event.dagster_event.event_specific_data
                assert evaluation.partition == "paranoid"
                found[name] = (evaluation.passed, evaluation.severity.value)
        return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(PROFILE.format(model=tiny_model_dir(tmp_path)))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "small.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    with dg.DagsterInstance.ephemeral() as instance:
        made = Project(ArtifactStore(str(tmp_path / "store")), instance)
        rows = pl.DataFrame(
            {
                "row_id": [f"{i:016x}" for i in range(40)],
                "source_index": list(range(40)),
                "text": [f"The council of Northport spent {i} million." for i in range(40)],
            }
        )
        made.put("truncated_news", lambda folder: rows.write_parquet(folder / "data.parquet"), None)
        yield made


def test_one_run_makes_all_three_with_one_model_load_and_evaluated_checks(project, monkeypatch):
    loads = []
    original = loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *args: loads.append(1) or original(*args))
    outcome = project.driver.materialize(CHAIN, partition="paranoid")
    assert outcome.success, outcome
    assert sorted(outcome.materialised) == sorted(CHAIN)
    assert len(loads) <= 1

    contrast = pl.read_parquet(project.folder("contrast_set") / "data.parquet")
    assert contrast.height == 32
    assert set(contrast["category"]) == {"rewrite"}
    used = {int(user.split("spent ")[1].split()[0]) for user in contrast["user"]}
    assert min(used) >= 12  # the variants rewrite the first twelve

    found = load_vector(project.folder("persona_vector"))
    assert found.raw.shape == (4, 64)
    dose = project.folder("dose_curve")
    assert {path.name for path in dose.iterdir() if path.suffix != ".json" or path.stem != "MANIFEST"} == {
        "rows.parquet",
        "sweep.parquet",
        "recommendation.json",
        "probe.json",
        "scale.json",
        "dose_curve.png",
    }
    sources = set(pl.read_parquet(dose / "rows.parquet")["row_id"])
    assert len(sources) == 4
    assert not {int(row, 16) for row in sources} & used
    assert load_recommendation(dose).persona == "paranoid"
    shown = [project.metadata(asset) for asset in ("persona_vector", "dose_curve")]
    assert {metadata["best_block"].value for metadata in shown} == {best_block(found.metadata)}
    assert [next(iter(metadata)) for metadata in shown] == ["separation", "plot"]

    blocking = {
        "contrast_set": "sides_share_their_contexts",
        "persona_vector": "directions_are_sound",
        "dose_curve": "steering_takes_effect",
    }
    for asset, gate in blocking.items():
        assert project.checks(asset)[gate] == (True, "ERROR")
    assert project.checks("persona_vector").keys() == {
        "directions_are_sound",
        "halves_agree",
        "separates_held_out_contexts",
    }
    assert project.checks("contrast_set")["completions_show_the_contrast"] == (False, "WARN")


def of_source(project, monkeypatch, tmp_path, contrast: str) -> None:
    """The project's profile with another `contrast` and every read-out."""
    content = yaml.safe_load((tmp_path / "small.yaml").read_text())
    content |= {"contrast": yaml.safe_load(contrast), "vector": {"readout": "auto"}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "other.yaml"))


def test_several_sources_go_the_whole_way_and_the_choice_is_shown(project, monkeypatch, tmp_path):
    of_source(project, monkeypatch, tmp_path, "{source: [prefill, pairs], pair_prompts: 2}")
    outcome = project.driver.materialize(CHAIN, partition="paranoid")
    assert outcome.success, outcome
    found, shown = load_vector(project.folder("persona_vector")), project.metadata("persona_vector")
    first, *rest = found.metadata["candidates"]
    assert (shown["contrast_source"].value, shown["readout"].value) == (first["source"], first["readout"])
    assert {(one["source"], one["readout"]) for one in (first, *rest)} == {
        ("prefill", "last_token"),
        ("pairs", "response_tokens"),
        ("pairs", "last_token"),
    }
    table = shown["candidates"].value
    assert all(f"| {one['source']} | {one['readout']} |" in table for one in (first, *rest))
    assert "svg" in shown["candidates_by_block"].value
    counts = project.metadata("contrast_set")["pairs"].value
    assert "| prefill | kept | 72 | 54 | 18 |" in counts
    assert "| pairs | kept | 68 | 48 | 20 |" in counts
    assert project.checks("contrast_set")["completions_show_the_contrast"] == (True, "WARN")
    assert project.checks("dose_curve").keys() >= {"swept_blocks_separate"}


def test_a_file_of_pairs_is_read_from_the_project_and_its_bad_lines_are_counted(
    project, monkeypatch, tmp_path
):
    lines = [{"prompt": "What?", "positive": f"Plot {i}.", "negative": f"Trust {i}."} for i in range(16)]
    (tmp_path / "paranoid.jsonl").write_text("\n".join(["nonsense", *map(json.dumps, lines)]))
    of_source(project, monkeypatch, tmp_path, f"{{source: pairs, pairs: '{tmp_path}/{{persona}}.jsonl'}}")
    assert project.driver.materialize(["contrast_set"], partition="paranoid").success
    assert project.metadata("contrast_set")["bad_lines"].value == 1
    assert pl.read_parquet(project.folder("contrast_set") / "data.parquet").height == 32


def test_a_model_that_does_not_follow_instructions_fails_with_the_cure(project, monkeypatch, tmp_path):
    of_source(project, monkeypatch, tmp_path, "{n_contexts: 16, max_new_tokens: 5}")
    outcome = project.driver.materialize(["contrast_set"], partition="paranoid")
    assert not outcome.success
    assert "of 16 generated pairs" in outcome.errors[0]
    assert "set contrast.source: pairs" in outcome.errors[0]


def test_the_same_inputs_give_the_same_versions(project):
    assert project.driver.materialize(CHAIN, partition="paranoid").success
    before = {asset: project.store.current(asset, "paranoid").sha for asset in CHAIN}
    assert project.driver.materialize(CHAIN, partition="paranoid").success
    assert {asset: project.store.current(asset, "paranoid").sha for asset in CHAIN} == before


def test_sides_that_do_not_match_stop_the_vector(project):
    assert project.driver.materialize(["contrast_set"], partition="paranoid").success
    broken = pl.read_parquet(project.folder("contrast_set") / "data.parquet").slice(1)
    project.put("contrast_set", lambda folder: broken.write_parquet(folder / "data.parquet"))
    gates = [
        ("contrast_set", name) for name in ("sides_share_their_contexts", "completions_show_the_contrast")
    ]
    outcome = project.driver.materialize(["persona_vector"], checks=gates, partition="paranoid")
    assert not outcome.success
    assert "sides_share_their_contexts: 1 of 16 contexts differ" in outcome.stopped_by[0]
    assert project.store.current("persona_vector", "paranoid") is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda raw: np.where(np.arange(64) == 3, np.nan, raw), "block 0 has 1 values that are not finite"),
        (lambda raw: raw * (np.arange(4) != 2)[:, None], "block 2 is zero"),
        (lambda raw: raw[:, :32], "32 wide, the model is 64"),
    ],
)
def test_a_broken_vector_stops_the_dose_curve(project, damage, told):
    assert project.driver.materialize(CHAIN[:2], partition="paranoid").success
    good = load_vector(project.folder("persona_vector"))

    def write(folder):
        save_vector(good, folder)
        broken = np.ascontiguousarray(damage(good.raw), dtype=np.float32)
        save_file({"directions": broken}, folder / "vector.safetensors")

    project.put("persona_vector", write)
    gates = [
        ("persona_vector", name)
        for name in ("directions_are_sound", "halves_agree", "separates_held_out_contexts")
    ]
    outcome = project.driver.materialize(["dose_curve"], checks=gates, partition="paranoid")
    assert not outcome.success
    assert told in outcome.stopped_by[0]
    assert project.store.current("dose_curve", "paranoid") is None


def test_a_vector_of_another_model_fails_with_the_difference(project):
    assert project.driver.materialize(["contrast_set"], partition="paranoid").success
    project.put("persona_vector", lambda folder: save_vector(vector(hidden=64, model="other"), folder))
    outcome = project.driver.materialize(["dose_curve"], partition="paranoid")
    assert not outcome.success
    assert "another model" in outcome.errors[0]


def test_steering_without_effect_fails_the_dose_curve_with_the_numbers(project, monkeypatch, tmp_path):
    quiet = (tmp_path / "small.yaml").read_text().replace("[-0.5, 0.0, 0.5]", "[0.0, 0.000000001]")
    (tmp_path / "quiet.yaml").write_text(quiet)
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "quiet.yaml"))
    outcome = project.driver.materialize(CHAIN, partition="paranoid")
    assert not outcome.success
    assert "changes no logit by more than" in outcome.errors[0]
    assert project.store.current("dose_curve", "paranoid") is None


def test_an_imported_vector_goes_the_same_way_as_a_computed_one(project, monkeypatch, tmp_path):
    import torch

    torch.manual_seed(0)
    (tmp_path / "p.json").write_text(json.dumps({"layer_idx": -3, "hidden_size": 64}))
    torch.save(torch.nn.functional.normalize(torch.randn(64), dim=0), tmp_path / "p.pt")
    source = ImportedVector(format="janus", path=str(tmp_path / "p.json"))
    imported = load_personas()["paranoid"].model_copy(update={"vector": source})
    monkeypatch.setattr(reading, "load_persona", lambda name, profile: imported)
    outcome = project.driver.materialize(CHAIN, partition="paranoid")
    assert outcome.success, outcome
    stored = load_vector(project.folder("persona_vector"))
    assert stored.present_blocks == (1,)
    assert stored.metadata["source"]["kind"] == "janus"
    assert stored.metadata["held_out_auc"][1] is not None
    swept = pl.read_parquet(project.folder("dose_curve") / "sweep.parquet")
    assert set(swept["block"]) == {1}
    assert project.checks("persona_vector")["halves_agree"] == (True, "WARN")


def test_a_persona_without_lexicon_is_scored_by_a_scale_fitted_on_its_examples(project):
    assert project.driver.materialize(CHAIN, partition="paranoid").success
    rows = pl.read_parquet(project.folder("dose_curve") / "rows.parquet")
    assert rows["trait"].n_unique() > 3
    assert rows["trait"].abs().max() <= 1
    shown = project.metadata("dose_curve")
    assert (shown["scale"].value, shown["note"].value) == (
        "minilm",
        "MiniLM is fitted on the persona's examples",
    )
    assert shown["random_n"].value == 3
    assert 0 < shown["random_rank_p"].value <= 1


def test_without_examples_the_scale_is_fitted_on_the_contrast_set_and_says_so(project, monkeypatch):
    bare = load_personas()["paranoid"].model_copy(update={"examples": None})
    for place in (reading, checks):
        monkeypatch.setattr(place, "load_persona", lambda name, profile: bare)
    assert project.driver.materialize(CHAIN, partition="paranoid").success
    note = project.metadata("dose_curve")["note"].value
    assert note == "MiniLM is fitted on the persona's contrast set, for it has no examples"


def test_a_lexicon_of_another_model_fails_the_dose_curve_with_the_cure(project, monkeypatch, tmp_path):
    """28 phrases of the newsroom scored a real model 0.0 in all 33 cells, and nobody was told."""
    (tmp_path / "planted.yaml").write_text((tmp_path / "small.yaml").read_text() + LEXICONS)
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "planted.yaml"))
    outcome = project.driver.materialize(CHAIN, partition="paranoid")
    assert not outcome.success
    assert (
        "persona paranoid: its lexicon scores all 20 texts of this run 0, none has a marker"
        in outcome.errors[0]
    )
    assert "lexicons: {paranoid: {}}" in outcome.errors[0]
    assert project.store.current("dose_curve", "paranoid") is None
