"""Features of training rows, against a dense computation on transformers' own hidden states."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.catalogue.sae import SaeFeaturesSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune.data import TextRow, digest, encode_examples
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, each_states
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae import features
from steer_pipeline.lab.sae.claims import every_row_has_features, same_ids
from steer_pipeline.lab.sae.dictionary import Sae, SaeError
from steer_pipeline.lab.sae.features import (
    FEATURE_SCHEMA,
    STATISTICS,
    feature_matrix,
    row_features,
    write_features,
)
from steer_pipeline_tests.tiny import SENTENCES, tiny_model_dir

BLOCK, N = 2, 96


def random_sae(site=Site(BLOCK), n=N, hidden=64):
    random = torch.Generator().manual_seed(5)
    decoder = torch.nn.functional.normalize(torch.randn(n, hidden, generator=random), dim=1)
    return Sae(
        decoder.T.clone(),
        decoder,
        torch.randn(n, generator=random),
        torch.randn(hidden, generator=random) * 0.1,
        activation="jumprelu",
        threshold=torch.rand(n, generator=random) + 1.0,
        site=site,
    )


@pytest.fixture(scope="module", params=["qwen3", "gemma"])
def loaded(request, tmp_path_factory):
    folder = tiny_model_dir(tmp_path_factory.mktemp("model"), request.param)
    return load_model(ModelSpec(path=str(folder), dtype="float32", device="cpu"), folder)


def examples_of(model, n=6):
    rows = [TextRow(f"r{i}", SENTENCES[i], SENTENCES[-1 - i][: 20 + 9 * i]) for i in range(n)]
    return encode_examples(model.tokenizer, rows)


def dense(model, sae, example, span):
    """Features [tokens, n] of the positions that count, from `output_hidden_states`, in numpy."""
    with torch.no_grad():
        out = model.module(torch.tensor([example.ids]), output_hidden_states=True)
    states = out.hidden_states[BLOCK + 1][0].double().numpy()
    start = 1 if span == "sequence" else example.start
    weights, threshold = sae.encoder.double().numpy(), sae.threshold.double().numpy()
    raw = (states[start:] - sae.decoder_bias.double().numpy()) @ weights + sae.encoder_bias.double().numpy()
    return np.where(raw > threshold, np.maximum(raw, 0), 0)


@pytest.mark.parametrize("span", ["sequence", "completion"])
def test_lists_and_statistics_are_those_of_a_dense_computation(loaded, span):
    """Position 0, BOS where there is one, does not count; nor does padding of shorter rows in the same batch."""
    examples, sae = examples_of(loaded), random_sae()
    table = pl.concat(row_features(loaded, sae, examples, span))
    assert table["row_id"].to_list() == [one.row_id for one in examples]
    assert table.schema == FEATURE_SCHEMA
    for row, example in zip(table.iter_rows(named=True), examples, strict=True):
        every = dense(loaded, sae, example, span)
        active = every > 0
        seen = np.flatnonzero(active.any(axis=0))
        assert row["feature"] == seen.tolist()
        assert row["length"] == len(example.ids)
        assert row["tokens"] == active.sum(axis=0)[seen].tolist()
        np.testing.assert_allclose(row["mean"], every.mean(axis=0)[seen], rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(row["max"], every.max(axis=0)[seen], rtol=2e-3, atol=1e-5)
        per_token, p = active.sum(axis=1), active.sum(axis=0) / active.sum()
        expected = {
            "n_tokens": len(every),
            "active_entry_share": active.mean(),
            "active_feature_share": len(seen) / N,
            "active_mean": every[active].mean(),
            "active_std": every[active].std(),
            "active_max": every.max(),
            "l0_mean": per_token.mean(),
            "l0_std": per_token.std(),
            "l0_cv": per_token.std() / per_token.mean(),
            "concentration": (p**2).sum(),
        }
        assert tuple(expected) == STATISTICS
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=2e-3), name


def test_rows_stream_and_no_matrix_of_all_tokens_is_made(loaded, tmp_path, monkeypatch):
    """Small pieces and small groups of rows give the same table, and no encoding is larger than a piece."""
    examples, sae = examples_of(loaded, 8), random_sae()
    write_features(loaded, sae, examples, SaeFeaturesSpec(), tmp_path / "whole.parquet")
    largest = []
    encode = Sae.encode

    def watched(self, states):
        largest.append(states.shape[0])
        return encode(self, states)

    monkeypatch.setattr(Sae, "encode", watched)
    monkeypatch.setattr(features, "_CELLS", 10 * N)
    monkeypatch.setattr(features, "_TOGETHER", 3)
    write_features(loaded, sae, examples, SaeFeaturesSpec(), tmp_path / "pieces.parquet")
    assert max(largest) <= 10
    whole, pieces = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("whole", "pieces"))
    assert whole.select("row_id", "ids", "feature", "tokens").equals(
        pieces.select("row_id", "ids", "feature", "tokens")
    )
    for name in ("mean", "max"):
        np.testing.assert_allclose(whole[name].explode(), pieces[name].explode(), rtol=1e-3, atol=1e-5)
    assert whole["active_std"].to_list() == pytest.approx(pieces["active_std"].to_list(), rel=1e-4)


def test_ids_are_those_of_training_and_a_change_is_named(loaded, tmp_path):
    examples = examples_of(loaded, 3)
    table = pl.concat(row_features(loaded, random_sae(), examples))
    assert table["ids"].to_list() == [digest([one]) for one in examples]
    again = pl.concat(row_features(loaded, random_sae(), [replace(examples[0], row_id="twin")]))
    assert again["content"][0] == table["content"][0]
    assert table["content"].n_unique() == 3
    assert same_ids(table, examples).passed
    cut = encode_examples(loaded.tokenizer, [TextRow("r1", SENTENCES[1], "another end")])
    verdict = same_ids(table, [examples[0], *cut, examples[2]])
    assert not verdict.passed
    assert verdict.numbers["mismatches"] == 1
    assert "r1" in verdict.message
    assert same_ids(table.head(2), examples).numbers["mismatches"] == 1


def test_a_row_without_features_is_named(loaded):
    table = pl.concat(row_features(loaded, random_sae(), examples_of(loaded, 3)))
    assert every_row_has_features(table).passed
    empty = pl.lit([], dtype=pl.List(pl.Int32))
    broken = table.with_columns(
        feature=pl.when(pl.col("row_id") == "r1").then(empty).otherwise(pl.col("feature"))
    )
    assert not every_row_has_features(broken).passed
    assert "r1" in every_row_has_features(broken).message
    endless = table.with_columns(active_std=pl.lit(float("nan")))
    assert every_row_has_features(endless).numbers["without"] == 3


def test_matrices_hold_what_the_lists_say(loaded):
    table = pl.concat(row_features(loaded, random_sae(), examples_of(loaded, 4)))
    for pooling in ("mean", "max", "presence"):
        matrix = feature_matrix(table, N, pooling).toarray()
        for values, row in zip(matrix, table.iter_rows(named=True), strict=True):
            expected = np.zeros(N, dtype=np.float32)
            expected[row["feature"]] = 1 if pooling == "presence" else row[pooling]
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("kind", ["output", "attention", "mlp"])
def test_states_of_each_site_are_those_of_the_mean_over_spans(loaded, kind):
    sequences = [list(one.ids) for one in examples_of(loaded, 4)]
    means = collect_means(
        loaded, [HiddenRequest(ids, 0, len(ids)) for ids in sequences], blocks=[BLOCK], kind=kind
    )
    for i, states in each_states(loaded, sequences, BLOCK, kind):
        np.testing.assert_allclose(states.mean(dim=0).numpy(), means[i, 0], rtol=1e-3, atol=1e-4)


def test_an_autoencoder_of_another_model_is_refused(loaded):
    with pytest.raises(SaeError, match="take the model that it was trained on"):
        list(row_features(loaded, random_sae(hidden=32), examples_of(loaded, 2)))
    with pytest.raises(SaeError, match="in 4 blocks"):
        list(row_features(loaded, random_sae(Site(4)), examples_of(loaded, 2)))
