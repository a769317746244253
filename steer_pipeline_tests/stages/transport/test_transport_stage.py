"""The stage carries a vector to another model: a rotation of the first one, so that the truth is known.

A pre-norm transformer whose norms have no gains does not care how its residual stream is turned: folding the gains
into the weights and turning all of them gives a model that writes the same texts with every direction elsewhere.
"""

import json
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.campaigns.transport import Transport, chosen
from steer_pipeline.environment import project_home
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.transport import random_rotation
from steer_pipeline.lab.transport.claims import transport_verdicts
from steer_pipeline.lab.transport.measuring import read_summary, spec_of, transport_rows
from steer_pipeline.lab.vectors.vector import load_vector
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline_tests.planted import LEXICONS
from steer_pipeline_tests.stages.origins import ORIGINS, READER

SHIPPED = project_home() / "assets_data" / "newsroom"
PROFILE = """
name: newsroom
summary: A small project for tests.
model: {{path: {model}, dtype: float32, device: cpu}}
contrast: {{contexts: news, n_contexts: 24, max_new_tokens: 24, temperature: 0.7, filter: false}}
dose: {{blocks: [2], fractions: [0.0, 0.3], n_rows: 4, n_random: 1, both_poles: []}}
coherence: {{max_extra_nll: null, max_length_ratio: null, max_lost_facts: null}}
rewrites: {{prompt: "Rewrite: {{text}}", pilot_rows: 4, full_rows: 8, sampling: {{max_new_tokens: 48, seed: 20}}}}
transport: {{model: {{path: {other}, dtype: float32, device: cpu}}, personas: [paranoid], rows: 12, fit_texts: 60,
  texts: [news, own]}}
"""
PLANTED = "paranoid"


def turned(source: Path, folder: Path) -> torch.Tensor:
    """Writes the model of `source` with its stream turned; returns the rotation [hidden, hidden]."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    rotation = torch.tensor(
        random_rotation(model.config.hidden_size, model.config.hidden_size, 3).matrix
    ).float()
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight.clone()
        head = torch.nn.Parameter((embedding * model.model.norm.weight) @ rotation)
        model.model.embed_tokens.weight = torch.nn.Parameter(embedding @ rotation)
        model.lm_head.weight = head
        model.model.norm.weight.fill_(1)
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for norm, readers in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                for reader in readers:
                    reader.weight.copy_((reader.weight * norm.weight) @ rotation)
                norm.weight.fill_(1)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(rotation.T @ writer.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return rotation


class Project:
    """A store with news, and a driver on this stage and the one before it."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        from steer_pipeline.stages import personas, transport

        self.store = store
        place = ArtifactStoreResource()
        stored = {"dagster/io_manager_key": "parquet_io"}
        self.driver = Driver(
            dg.Definitions(
                assets=[
                    *ORIGINS,
                    *personas.ASSETS,
                    *transport.ASSETS,
                    dg.AssetSpec("truncated_news", metadata=stored),
                ],
                asset_checks=transport.CHECKS,
                resources={
                    "store": place,
                    "language_model": LanguageModelResource(),
                    "judge": JudgeResource(),
                    "parquet_io": ParquetIO(store=place),
                    "bundle_io": BundleIO(store=place),
                    **READER,
                },
                executor=dg.in_process_executor,
            ),
            instance,
        )
        news = pl.read_parquet(SHIPPED / "news.parquet").head(160)
        facts = pl.read_parquet(SHIPPED / "facts.parquet").head(160)
        rows = pl.DataFrame({"row_id": facts["row_id"], "source_index": range(160), "text": news["text"]})
        store.write(
            "truncated_news",
            None,
            lambda folder: rows.write_parquet(folder / "data.parquet"),
            metadata={}, inputs={}, code_version="1", run_id=None,
        )  # fmt: skip
        self.news = rows


@pytest.fixture
def project(tmp_path, monkeypatch):
    rotation = turned(SHIPPED / "model", tmp_path / "other")
    profile = PROFILE.format(model=SHIPPED / "model", other=tmp_path / "other") + LEXICONS
    (tmp_path / "newsroom.yaml").write_text(profile)
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "newsroom.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    with dg.DagsterInstance.ephemeral() as instance:
        made = Project(ArtifactStore(str(tmp_path / "store")), instance)
        made.rotation = rotation.numpy()
        yield made


def test_a_vector_keeps_its_effect_in_a_model_whose_stream_is_turned(project):
    for asset in ("contrast_set", "persona_vector", "vector_transport"):
        outcome = project.driver.materialize([asset], partition=PLANTED)
        assert asset in outcome.materialised, outcome.errors
    folder = project.store.current("vector_transport", PLANTED).path
    summary = read_summary(folder)
    shares = {row["arm"]: row for row in pl.read_parquet(folder / "shares.parquet").iter_rows(named=True)}
    maps = pl.read_parquet(folder / "maps.parquet")
    assert summary["native_low"] > 0
    for way in ("procrustes", "embeddings", "ridge"):
        row = shares[f"{way}.news"]
        assert row["share"] == pytest.approx(1.0, abs=0.25), way
    assert abs(shares["random"]["share"]) < 0.2
    rotations = maps.filter(way="embeddings")
    assert rotations["r2"][0] > 0.999
    assert rotations["rank"][0] == 192
    native = load_vector(folder / "native")
    own = load_vector(project.store.current("persona_vector", PLANTED).path)
    turned_to = own.at(2) @ project.rotation
    assert float(turned_to @ native.unit_at(2)) / np.linalg.norm(turned_to) > 0.99

    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.height == 12 * len(rows["variant"].unique())
    assert {"base", "native", "subspace.own", "random09"} < set(rows["variant"])
    assert not set(rows["row_id"]) & set(
        transport_rows(settings().profile, settings().profile, project.news)[1]["row_id"]
    )
    verdicts = {one.claim: one for one in transport_verdicts(folder, spec_of(settings().profile))}
    assert verdicts["arms_compare"].passed
    assert verdicts["carried_keeps_the_effect"].passed
    assert not verdicts["enough_news"].passed
    assert json.loads((folder / "summary.json").read_text())["persona"] == PLANTED
    assert (folder / "shares.png").stat().st_size > 5000

    campaign = Transport(project.driver, chosen([]), say=lambda line: None)
    assert campaign.numbers()[PLANTED]["carried_share"] == summary["carried_share"]
