"""The whole pilot on models of other architectures, made on the spot: a result or a named reason, never a traceback.

Their weights are random, so the diagnosis stops them unless the profile lets it pass; then every stage is made, with
whatever verdicts.
"""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from steer_pipeline.campaigns.campaign import Result
from steer_pipeline.campaigns.pilot import PERSONA_CHAIN, RAW, RELEASE, REPORTS, make_pilot
from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.definitions import defs
from steer_pipeline.environment import catalogue_folder, project_home
from steer_pipeline.lab.models.installing import FOLDER
from steer_pipeline.lab.models.loading import forget_models
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings
from steer_pipeline_tests.lab.models.architectures import architecture_dir
from steer_pipeline_tests.lab.models.test_gguf import written
from steer_pipeline_tests.tiny import tiny_model_dir

SMOLLM2 = project_home() / FOLDER
PROFILE = """
name: newsroom
summary: Another model on news in plain English, tiny.
model: {{path: "{path}", dtype: float32, device: cpu, chat_template: {chat}}}
without_personas: [cheerful, formal]
corpus: {{source: {{kind: news_en, limit: 24}}, max_tokens: 160}}
diagnosis: {{n_rows: 2, min_facts_kept: {needed}}}
contrast: {{source: pairs, pair_prompts: 1}}
dose: {{blocks: [0.5], fractions: [-0.4, 0.0, 0.4], n_rows: 4, n_random: 2}}
rewrites:
  system: You are a news editor.
  prompt: "Rewrite: {{text}}"
  pilot_rows: 8
  full_rows: 12
  sampling: {{max_new_tokens: 8}}
gates: {{max_suspect_rate: 1.0, alpha: 0.99, min_kept_fraction: 0.0}}
variants:
  paranoid: [{{persona: paranoid, block: 0.5, dose: {{fraction: 0.6}}}}]
  rule_defiant: [{{persona: rule_defiant, block: 0.5, dose: {{fraction: 0.6}}}}]
  trusting: [{{persona: paranoid, block: 0.5, dose: {{fraction: -0.6}}}}]
  random_direction: [{{persona: paranoid, block: 0.5, dose: {{fraction: 0.6}}, direction: random}}]
  paranoid_rule_defiant:
    - {{persona: paranoid, block: 0.5, dose: {{fraction: 0.4}}}}
    - {{persona: rule_defiant, block: -1, dose: {{fraction: 0.4}}}}
"""


@dataclass
class Made:
    """What a pilot has come to, and what it said meanwhile."""

    result: Result
    said: str

    def stored(self, asset: str, partition: str | None = None) -> bool:
        return open_store(settings()).current(asset, partition) is not None


@pytest.fixture
def pilot(tmp_path, monkeypatch):
    """Runs a pilot on a model directory or file; `needed` is `diagnosis.min_facts_kept`."""

    def make(path: Path, *only: str, needed: str = "null", chat: str = "true") -> Made:
        profile = tmp_path / "profile.yaml"
        profile.write_text(PROFILE.format(path=path, needed=needed, chat=chat))
        monkeypatch.setenv("STEER_PROFILE", str(profile))
        said: list[str] = []
        with dg.DagsterInstance.ephemeral() as instance:
            result = make_pilot(defs, "pilot", only, instance=instance, say=said.append)
        return Made(result, "\n".join(said))

    yield make
    forget_models()


def assert_every_stage_is_made(made: Made, *variants: str) -> None:
    personas = {"paranoid": ["paranoid"], "": ["paranoid", "rule_defiant"]}[variants[0] if variants else ""]
    for persona in personas:
        assert all(made.stored(asset, persona) for asset in PERSONA_CHAIN), made.result
    for variant in ("base", "base_resample", "random_direction", *variants):
        assert made.stored(RAW, variant), made.result
        assert made.stored(RELEASE, variant), made.result
    assert all(made.stored(report) for report in REPORTS), made.result
    assert {"base", *variants} <= set(made.result.numbers)
    # What went wrong is about evidence: a control that moved.
    assert not [problem for problem in made.result.problems if "Error" in problem or "Traceback" in problem]


def test_a_random_llama_with_a_chat_template_goes_the_real_path(pilot, tmp_path):
    """Plain news, MiniLM's scale, a neutral system turn: as a profile of a real model."""
    made = pilot(tiny_model_dir(tmp_path, "llama"), "paranoid")
    assert "takes a system turn" in made.said
    assert "warning: base keeps 0% of the facts" in made.said
    assert_every_stage_is_made(made, "paranoid")


def test_a_model_that_ignores_its_prompt_is_a_diagnosis_before_any_work(pilot, tmp_path):
    made = pilot(tiny_model_dir(tmp_path, "qwen3"), needed="0.2")
    assert made.result.numbers == {}
    (problem,) = made.result.problems
    assert problem.startswith("model_diagnosis: base_follows_the_prompt: base keeps ")
    assert "the model does not follow the rewrite prompt. To go on: use an instruction-tuned model" in problem
    assert not made.stored("contrast_set", "paranoid")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_neox", "olmo2"])
def test_other_architectures_go_through_all_stages(pilot, name):
    assert_every_stage_is_made(pilot(architecture_dir(name)))


@pytest.mark.slow
def test_gemma_with_windows_and_no_system_turn_goes_through_all_stages(pilot, tmp_path):
    made = pilot(tiny_model_dir(tmp_path, "gemma"))
    assert "puts system text before the user's" in made.said
    assert_every_stage_is_made(made)


@pytest.mark.slow
def test_a_gguf_file_goes_through_all_stages(pilot, tmp_path, monkeypatch):
    monkeypatch.setattr("steer_pipeline.lab.models.identity.gguf_cache", lambda: tmp_path / "converted")
    path = written(tiny_model_dir(tmp_path, "llama"), tmp_path / "tiny-1.gguf")
    assert_every_stage_is_made(pilot(path))


@pytest.mark.slow
def test_a_base_model_without_chat_template_goes_through_all_stages(pilot, tmp_path):
    folder = tiny_model_dir(tmp_path, "qwen3")
    (folder / "chat_template.jinja").unlink()
    assert_every_stage_is_made(pilot(folder, chat="false"))


def test_a_missing_chat_template_is_a_named_reason(pilot, tmp_path):
    folder = tiny_model_dir(tmp_path, "qwen3")
    (folder / "chat_template.jinja").unlink()
    (problem,) = pilot(folder).result.problems
    assert "model_diagnosis: the tokenizer has no chat template; set model.chat_template: false" in problem


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="SmolLM2 is not installed: make smollm2")
def test_on_a_real_model_given_texts_steer_what_random_directions_do_not(tmp_path, monkeypatch):
    """The shipped profile, with one block and fewer rows: the pilot's verdicts need not hold, the vector must steer."""
    shipped = yaml.safe_load((catalogue_folder() / "profiles" / "smollm2-135m.yaml").read_text())
    shipped["model"]["path"] = str(SMOLLM2)
    shipped["dose"] |= {
        "blocks": [15],
        "fractions": [-0.3, 0.0, 0.3],
        "n_rows": 10,
        "n_random": 3,
        "refine": False,
    }
    shipped["rewrites"] |= {"pilot_rows": 6, "full_rows": 20, "band_directions": 2, "band_rows": 2}
    shipped["coherence"] = dict.fromkeys(CoherenceSpec.model_fields)
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(shipped))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "real.yaml"))
    with dg.DagsterInstance.ephemeral() as instance:
        made = Made(
            make_pilot(defs, "pilot", ["paranoid", "trusting"], instance=instance, say=lambda _: None), ""
        )
    store = open_store(settings())
    sweep = pl.read_parquet(store.current("dose_curve", "paranoid").path / "sweep.parquet")
    up = sweep.filter(direction="persona", fraction=0.3).row(0, named=True)
    down = sweep.filter(direction="persona", fraction=-0.3).row(0, named=True)
    random = sweep.filter(direction="random")["shift"]
    assert up["shift_low"] > 0
    assert up["shift"] > random.max()
    assert down["shift_high"] < 0
    assert down["shift"] < random.min()
    shifts = {
        name: made.result.numbers[name]["trait"]["paranoid"]["shift"] for name in ("paranoid", "trusting")
    }
    assert shifts["trusting"] < shifts["paranoid"]
