"""The three steps on a tiny model: what is written is what checks and reports read."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from steer_pipeline.catalogue.sae import RankPredictorSpec, SaeSpec, SaeTrainingSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune.data import TextRow, encode_examples
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae import predictor
from steer_pipeline.lab.sae.dictionary import Sae, SaeError
from steer_pipeline.lab.sae.formats import read_sae, write_sae
from steer_pipeline.lab.sae.stage import (
    judge_features,
    judge_predictor,
    make_features,
    make_predictor,
    make_sae,
    read_made,
    read_predictor,
)
from steer_pipeline_tests.tiny import SENTENCES, tiny_model_dir

WORDS = " ".join(SENTENCES).split()
SPEC = SaeSpec(
    training=SaeTrainingSpec(block=1, expansion=2.0, l0=8, tokens=1500, epochs=3, batch_tokens=256),
    fidelity_rows=4,
    predictor=RankPredictorSpec(group_by=["task_id"], alphas=[1.0, 100.0], folds=3, k=10, shuffles=2),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_model_dir(tmp_path_factory.mktemp("model"), "qwen3")
    return load_model(ModelSpec(path=str(folder), dtype="float32", device="cpu"), folder)


@pytest.fixture(scope="module")
def rows(model):
    texts = [
        TextRow(f"r{i}", " ".join(WORDS[i : i + 9]), " ".join(WORDS[-4 - i : -i or None])) for i in range(46)
    ]
    return encode_examples(model.tokenizer, texts)


@pytest.fixture(scope="module")
def made(model, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae")
    make_sae(model, folder, rows[:40], rows[40:], SPEC, folder)
    return folder


def test_features_and_predictions_follow_from_a_trained_autoencoder(model, rows, made, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "N_BOOT", 50)
    path = make_features(model, made, rows[:40], SPEC.features, tmp_path)
    features = pl.read_parquet(path)
    assert all(verdict.passed for verdict in judge_features(features, rows[:40]))
    assert not judge_features(features, rows)[0].passed  # six rows were not read
    ranked = pl.DataFrame(
        {
            "row_id": [one.row_id for one in rows[:36]],  # four could not be scored
            "score": features["l0_mean"].head(36) + features["active_mean"].head(36),
            "task_id": [str(i % 12) for i in range(36)],
        }
    )
    found = make_predictor(ranked, path, made, SPEC.predictor, tmp_path)
    again = read_predictor(tmp_path)
    assert again.predictions.equals(found.predictions)
    assert again.quality.equals(found.quality)
    assert [one.claim for one in judge_predictor(again)] == ["groups_stay_whole", "features_tell_ranks"]
    assert found.predictions.height == 36


def test_what_is_written_says_what_was_made_and_how_good_it_is(model, rows, made):
    again = read_made(made)
    assert again.trained
    assert again.sae.site == Site(1)
    assert again.fidelity.rows.height == 4
    assert again.fidelity.l0.estimate <= 8
    assert 0 < again.fidelity.explained.estimate < 1
    assert {one.claim for one in again.verdicts} == {"sae_reconstructs", "sae_is_sparse"}
    metadata = json.loads((made / "cfg.json").read_text())["metadata"]
    assert metadata["model_identity"] == str(model.identity)
    assert metadata["training"]["seed"] == SPEC.training.seed
    assert again.history.height >= 3


def test_a_published_one_is_read_from_its_directory(model, rows, tmp_path):
    eye = torch.eye(64)
    both = torch.cat([eye, -eye])
    write_sae(Sae(both.T.clone(), both, torch.zeros(128), torch.zeros(64)), tmp_path / "release")
    spec = SPEC.model_copy(update={"folder": "release"})
    with pytest.raises(SaeError, match=r"sae\.block"):
        make_sae(model, tmp_path, rows[:4], rows[40:], spec, tmp_path / "none")
    made = make_sae(model, tmp_path, [], rows[40:], spec.model_copy(update={"block": 2}), tmp_path / "made")
    assert not made.trained
    assert made.fidelity.explained.estimate == pytest.approx(1.0, abs=1e-6)
    assert read_made(tmp_path / "made").sae.site == read_sae(tmp_path / "made").site == Site(2)


def test_held_out_rows_are_none_of_the_pool(model, rows, tmp_path):
    with pytest.raises(SaeError, match="'r39' is in the pool and held out"):
        make_sae(model, Path("."), rows[:40], rows[39:], SPEC, tmp_path)
