"""A checkpoint of another architecture needs a profile and nothing else: the whole lab on three tiny models."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns.behaviour import CHAIN, TABLE, Behaviour
from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.vectors.vector import load_vector
from steer_pipeline_tests.stages.behaviour.published import publish
from steer_pipeline_tests.tiny import tiny_model_dir

PROFILE = """\
name: newsroom
summary: A tiny model of noise, for tests.
model: {{path: {model}, dtype: float32, device: cpu, batch_tokens: 4096}}
behaviour:
  source: {{kind: responses, path: {data}}}
  min_count: 8
  train_tokens: 900
  validation_tokens: 400
  test_tokens: 400
training: {{block: 1, learning_rates: [0.05, 0.2], epochs: 2, batch_rows: 4, seeds: [41, 42, 43]}}
rollouts:
  n_questions: 4
  trained_scales: [-1.0, 1.0]
  averaged_scales: [-1.0, 1.0]
  random_seeds: [51]
  sampling: {{temperature: 0.7, top_p: 0.9, max_new_tokens: 8, seed: 50}}
  minilm_texts: 24
"""

CASES = [("qwen3", "creative", "trait"), ("llama", "sailor", "role"), ("gemma", "empathetic", "trait")]


@pytest.mark.parametrize("arch, persona, kind", CASES)
def test_a_profile_is_all_that_another_architecture_needs(arch, persona, kind, tmp_path, monkeypatch):
    from steer_pipeline.definitions import defs

    model = tiny_model_dir(tmp_path, arch)
    data = publish(tmp_path / "data" / model.name, persona, kind, questions=24, system_role=arch != "gemma")
    (tmp_path / "tiny.yaml").write_text(PROFILE.format(model=model, data=data))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "tiny.yaml"))
    monkeypatch.delenv("STEER_JUDGE_URL", raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        lab = Behaviour(Driver(defs, instance), [persona])
        lab.run()
        assert lab.problems == []
        again = instance.get_runs_count()
        lab.run()
        assert instance.get_runs_count() == again, "what is fresh is left alone"
    store = ArtifactStore(str(tmp_path / "store"))
    made = {asset: store.current(asset, None if asset == TABLE else persona) for asset in (*CHAIN, TABLE)}
    assert all(made.values()), made

    rows = pl.read_parquet(made["behaviour_set"].path / "data.parquet")
    assert set(rows["split"]) >= {"train", "validation", "test"}
    assert not any(row["instruction"] and row["instruction"] in row["messages"][0]["content"]
                   for row in rows.iter_rows(named=True))  # fmt: skip
    trained = load_vector(made["trained_vector"].path)
    assert trained.present_blocks == (1,)
    assert len(list((Path(made["trained_vector"].path) / "seeds").iterdir())) == 3
    said = pl.read_parquet(made["rollouts"].path / "data.parquet")
    assert {"vanilla", "trained", "random"} <= set(said["arm"])
    assert any(arm.startswith("prompted") for arm in said["arm"].unique())
    assert lab.numbers()[persona].keys() == {
        "nll_gap_closed",
        "low",
        "high",
        "random_gap",
        "random_gap_low",
        "minilm_auc",
    }
