"""What training is given and what it leaves behind."""

import json

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.models import loading
from steer_pipeline.lab.models.hidden import residual_norms, sequence_nll
from steer_pipeline.lab.models.prompts import end_of_turn_id
from steer_pipeline.lab.models.sites import Site, SteeringPlan
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.learned.data import TrainingError, encode_split
from steer_pipeline.lab.vectors.learned.loop import HISTORY_SCHEMA
from steer_pipeline.lab.vectors.learned.sweep import make_sweep, make_trained
from steer_pipeline.lab.vectors.vector import load_vector, require_same_model
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.models.test_identity import negate_in_place
from steer_pipeline_tests.lab.vectors.learned.rows import behaviour_rows, persona, profile
from steer_pipeline_tests.tiny import tiny_model_dir

# ------------------------------------------------------------------------------------------- data


def with_behaviour(settings, **changes):
    return settings.model_copy(update={"behaviour": settings.behaviour.model_copy(update=changes)})


def test_only_counted_rows_of_the_split_are_encoded_without_their_instruction(tmp_path):
    model = loaded(tmp_path)
    rows = behaviour_rows(model.name)
    data = encode_split(rows, "train", model, profile(model))
    counted = rows.filter(pl.col("counts") & (pl.col("split") == "train"))
    assert set(data.row_ids) == set(counted["row_id"])
    assert 0 < len(data) < rows.filter(split="train").height
    for row_id, ids, start in zip(data.row_ids, data.ids, data.starts, strict=True):
        row = counted.row(by_predicate=pl.col("row_id") == row_id, named=True)
        assert row["question"] in model.tokenizer.decode(ids[:start])
        assert row["messages"][1]["content"] == model.tokenizer.decode(ids[start:-1])
        assert ids[-1] == end_of_turn_id(model.tokenizer)
        assert row["instruction"] not in model.tokenizer.decode(ids)


def test_responses_are_cut_where_the_profile_says_and_counted_after_the_cut(tmp_path):
    """1024 of a trainer's default against the 4096 that were counted: here what is counted is trained."""
    model = loaded(tmp_path)
    settings = with_behaviour(profile(model), max_response_tokens=7)
    data = encode_split(behaviour_rows(model.name), "train", model, settings)
    assert set(data.n_tokens) == {7}
    _, tokens = sequence_nll(model, list(data.ids), list(data.starts))
    assert (tokens == data.n_tokens).all()


def test_a_row_that_the_model_cannot_hold_is_refused_and_not_cut_in_silence(tmp_path):
    model = loaded(tmp_path)
    long = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "harbour bridge " * 600}]
    rows = behaviour_rows(model.name).with_columns(messages=pl.Series([long] * 30))
    settings = with_behaviour(profile(model), max_response_tokens=4096)
    with pytest.raises(TrainingError, match=r"row analytical-0000: \d+ tokens, the model has 1024 positions"):
        encode_split(rows, "train", model, settings)


def test_rows_of_another_model_are_refused_unless_allowed(tmp_path):
    model = loaded(tmp_path)
    rows = behaviour_rows("Qwen/Qwen2.5-32B-Instruct")
    with pytest.raises(TrainingError, match=r"answered by 'Qwen/Qwen2\.5-32B-Instruct'"):
        encode_split(rows, "train", model, profile(model))
    assert len(encode_split(rows, "train", model, with_behaviour(profile(model), allow_other_model=True)))


def test_a_set_without_counted_rows_is_refused_by_name(tmp_path):
    model = loaded(tmp_path)
    rows = behaviour_rows(model.name, persona="sailor").with_columns(counts=pl.lit(False))
    with pytest.raises(TrainingError, match="sailor: no row of split 'validation' counts"):
        encode_split(rows, "validation", model, profile(model))


# ------------------------------------------------------------------------------------------ steps


@pytest.fixture
def made(tmp_path):
    model = loaded(tmp_path)
    rows, settings = behaviour_rows(model.name), profile(model)
    choice = make_sweep(model, rows, persona(), settings, tmp_path / "sweep")
    vector = make_trained(model, rows, persona(), settings, tmp_path / "sweep", tmp_path / "trained")
    return model, rows, settings, choice, vector, tmp_path


def test_a_sweep_chooses_the_rate_that_is_best_on_validation(made):
    _, _, settings, choice, _, tmp = made
    sweep = pl.read_parquet(tmp / "sweep" / "sweep.parquet")
    assert sweep["learning_rate"].to_list() == settings.training.learning_rates
    best = sweep.sort("validation_nll").row(0, named=True)
    assert choice["learning_rate"] == best["learning_rate"]
    assert sweep.filter("chosen")["learning_rate"].to_list() == [best["learning_rate"]]
    assert choice["edge"] in ("low", "high")  # two rates have nothing between them
    assert json.loads((tmp / "sweep" / "choice.json").read_text()) == choice
    table = pl.read_parquet(tmp / "sweep" / "history.parquet")
    assert table.schema == HISTORY_SCHEMA
    assert table["seed"].unique().to_list() == [1]
    assert (tmp / "sweep" / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_the_trained_vector_is_the_best_seed_with_all_seeds_and_last_steps_beside_it(made):
    model, rows, settings, choice, vector, tmp = made
    folder = tmp / "trained"
    stored = load_vector(folder)
    report = json.loads((folder / "training.json").read_text())
    seeds = {seed: load_vector(folder / "seeds" / str(seed)) for seed in settings.training.seeds}
    lasts = {seed: load_vector(folder / "last" / str(seed)) for seed in settings.training.seeds}
    assert stored.digest == vector.digest == seeds[report["seed"]].digest
    nlls = {seed: one.metadata["best_validation_nll"] for seed, one in seeds.items()}
    assert report["seed"] == min(nlls, key=nlls.get)
    assert len({one.digest for one in seeds.values()}) == 3
    assert all(lasts[seed].metadata["source"]["selected"] == "last step" for seed in seeds)
    assert stored.present_blocks == (1,)
    assert stored.raw.dtype == np.float32
    require_same_model(stored, model)
    assert stored.metadata["method"] == "trained"
    assert stored.metadata["learning_rate"] == choice["learning_rate"]
    data = encode_split(rows, "train", model, settings)
    assert stored.residual_norm(1) == pytest.approx(residual_norms(model, list(data.ids))[1], rel=1e-4)
    assert report["norm_fraction"] == pytest.approx(np.linalg.norm(stored.at(1)) / stored.residual_norm(1))
    history = pl.read_parquet(folder / "history.parquet")
    assert history.schema == HISTORY_SCHEMA
    assert history["learning_rate"].unique().to_list() == [choice["learning_rate"]]


def test_the_stored_vector_steers_to_the_stored_likelihoods(made):
    model, rows, settings, _, vector, tmp = made
    stored = pl.read_parquet(tmp / "trained" / "validation.parquet")
    data = encode_split(rows, "validation", model, settings)
    assert stored["row_id"].to_list() == list(data.row_ids)
    term = make_term(vector, Site(1), float(np.linalg.norm(vector.at(1))))
    for column, plan in (("vanilla_nll", None), ("trained_nll", SteeringPlan("x", (term,)))):
        expected, tokens = sequence_nll(model, list(data.ids), list(data.starts), plan)
        assert np.allclose(stored[column], expected, rtol=1e-4, atol=1e-3)
        assert stored["n_tokens"].to_list() == tokens.tolist()


def test_the_same_inputs_give_the_same_files(made):
    model, rows, settings, _, _, tmp = made
    make_sweep(model, rows, persona(), settings, tmp / "again")
    make_trained(model, rows, persona(), settings, tmp / "again", tmp / "trained again")
    for first, second in (("sweep", "again"), ("trained", "trained again")):
        for path in (tmp / first).rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (tmp / second / path.relative_to(tmp / first)).read_bytes(), path


def test_a_sweep_of_other_rows_or_another_site_is_refused(made):
    model, rows, settings, _, _, tmp = made
    with pytest.raises(TrainingError, match="lr_sweep is of another behaviour set"):
        make_trained(model, rows.head(20), persona(), settings, tmp / "sweep", tmp / "x")
    with pytest.raises(TrainingError, match="lr_sweep is of another site"):
        make_trained(model, rows, persona(), profile(model, block=2), tmp / "sweep", tmp / "x")
    assert not (tmp / "x").exists()


def test_a_sweep_of_a_model_with_one_other_tensor_or_of_unknown_weights_is_refused(made, tmp_path):
    model, _, _, choice, _, tmp = made
    negate_in_place(tiny_model_dir(tmp_path))
    other = loaded(tmp_path)
    rows, settings = behaviour_rows(other.name), profile(other)
    differing = f"weights differ: {model.weights_sha[:12]}… against {other.weights_sha[:12]}…"
    with pytest.raises(TrainingError, match=f"lr_sweep is of another model, .*; {differing}"):
        make_trained(other, rows, persona(), settings, tmp / "sweep", tmp_path / "x")
    old = {key: value for key, value in choice.items() if key != "model_identity"}
    (tmp_path / "choice.json").write_text(json.dumps(old))
    with pytest.raises(TrainingError, match="it does not say which weights"):
        make_trained(model, behaviour_rows(model.name), persona(), profile(model), tmp_path, tmp_path / "x")


def test_a_site_that_the_model_does_not_have_is_refused(tmp_path):
    model = loaded(tmp_path)
    with pytest.raises(TrainingError, match=r"training\.block: block 9 is outside a model of 4 blocks"):
        make_sweep(model, behaviour_rows(model.name), persona(), profile(model, block=9), tmp_path / "x")


def test_all_personas_share_one_model_load_and_leave_nothing_behind(tmp_path, monkeypatch):
    loads = []
    original = loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *args: loads.append(1) or original(*args))
    loading.forget_models()
    for name in ("analytical", "sailor", "coach"):
        model = loaded(tmp_path)
        rows = behaviour_rows(model.name, persona=name)
        make_sweep(model, rows, persona(name), profile(model), tmp_path / name)
    assert len(loads) == 1
    assert all(weight.grad is None and not weight.requires_grad for weight in model.module.parameters())
    assert model.module.config._attn_implementation != "steer_blocks"
