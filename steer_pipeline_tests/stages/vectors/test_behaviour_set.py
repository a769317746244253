"""The behaviour set of each persona, and the checks that stop a bad one and warn of a short one."""

import json

import dagster as dg
import polars as pl
import pytest
import yaml

from steer_pipeline.catalogue import load_personas
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.dialogues import building
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_SCHEMA
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.vectors.assets import behaviour_set
from steer_pipeline.stages.vectors.checks import behaviour_set_checks
from steer_pipeline_tests.lab.dialogues.builders import answering, records, scores_of, write_responses
from steer_pipeline_tests.planted import LEXICONS
from steer_pipeline_tests.stages.origins import ORIGINS, READER
from steer_pipeline_tests.tiny import tiny_model_dir

BLOCKING = {
    "no_row_without_a_score_counts",
    "questions_are_disjoint",
    "splits_are_not_empty",
    "instructions_are_stripped",
    "dialogues_are_of_this_model",
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    return ArtifactStore(str(tmp_path / "store"))


def run(persona):
    shelf = ArtifactStoreResource()
    return dg.materialize(
        [*ORIGINS, behaviour_set, behaviour_set_checks],
        partition_key=persona,
        resources={
            "store": shelf,
            "language_model": LanguageModelResource(),
            "judge": JudgeResource(),
            "parquet_io": ParquetIO(store=shelf),
            **READER,
        },
        raise_on_error=False,
    )


def verdicts(result):
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def stored(store, persona):
    return pl.read_parquet(store.current("behaviour_set", persona).path / "data.parquet")


def failure(result):
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.event_specific_data.error.message + str(
        event.event_specific_data.user_failure_data.description
    )


def test_a_role_and_a_trait_of_the_newsroom_pass_every_check(store):
    for persona, labels in {"sailor": {"pos", "default"}, "analytical": {"pos", "neg"}}.items():
        result = run(persona)
        assert result.success
        found = verdicts(result)
        assert found.keys() == BLOCKING | {"token_budget_is_met"}
        assert all(one.passed for one in found.values()), {n: o.description for n, o in found.items()}
        assert {
            n for n, o in found.items() if o.severity == dg.AssetCheckSeverity.ERROR and o.blocking
        } == BLOCKING
        rows = stored(store, persona)
        assert rows.schema == BEHAVIOUR_SCHEMA
        assert set(rows["label"]) == labels
        assert set(rows["persona"]) == {persona}
        assert not set(rows["question"]) & set(load_personas()[persona].questions)
        (made,) = result.asset_materializations_for_node("behaviour_set")
        assert made.metadata["refusals"].value == rows.filter(score_status="refusal").height > 0
        assert made.metadata["rows_that_count"].value == rows["counts"].sum()
        assert "| validation | 2000 |" in made.metadata["splits"].value


def test_a_short_set_warns_with_its_numbers_and_fills_every_split(store):
    result = run("gardener")
    assert result.success
    found = verdicts(result)
    short = found.pop("token_budget_is_met")
    assert all(one.passed for one in found.values())
    assert not short.passed
    assert short.severity == dg.AssetCheckSeverity.WARN
    rows = stored(store, "gardener").filter("counts")
    got = {
        name: int(rows.filter(split=name)["n_response_tokens"].sum())
        for name in ("train", "validation", "test")
    }
    assert got["train"] < 8000
    assert f"train has {got['train']} of 8000 tokens" in short.description
    assert {name: int(short.metadata[f"{name}_tokens"].value) for name in got} == got
    shares = {
        name: got[name] / want for name, want in {"train": 8000, "validation": 2000, "test": 3000}.items()
    }
    assert max(shares.values()) < 1.1 * min(shares.values())


def test_every_check_notices_what_it_is_there_for(store, monkeypatch):
    """One row of each kind of harm; the rules behind the checks have tests of their own."""
    now = settings()
    make, tokenizer = building.make_behaviour_set, load_tokenizer(now.profile.model, now.home)
    sailor = load_personas()["sailor"]
    good, left_out = make(sailor, now.profile, tokenizer, home=now.home, shipped=now.shipped, model=None)
    first, second, third = good.filter("counts", split="train")["row_id"][:3]
    head = pl.concat_list(
        pl.struct(role=pl.lit("user"), content=pl.col("instruction") + "\n\n" + pl.col("question")),
        pl.struct(role=pl.lit("assistant"), content=pl.lit("Ay.")),
    )

    def where(row_id, value, otherwise):
        return pl.when(pl.col("row_id") == row_id).then(value).otherwise(otherwise)

    bad = good.with_columns(
        score=where(first, pl.lit(None, pl.Int64), pl.col("score")),
        messages=where(second, head, pl.col("messages")),
        model=where(third, pl.lit("qwen-3-32b"), pl.col("model")),
        split=pl.when(pl.col("row_id") == third)
        .then(pl.lit("unused"))
        .otherwise(pl.col("split").replace("test", "unused")),
    )
    monkeypatch.setattr(building, "make_behaviour_set", lambda *_, **__: (bad, left_out))
    found = verdicts(run("sailor"))
    assert found.keys() == BLOCKING | {"token_budget_is_met"}
    assert not any(one.passed for one in found.values())
    assert (
        "1 rows are of qwen-3-32b and not of assets_data/newsroom/model"
        in found["dialogues_are_of_this_model"].description
    )


# ----------------------------------------------------------------------------- published layouts


@pytest.fixture
def published(tmp_path, monkeypatch, store):
    """A profile of a Gemma model without a system role, and the published set of its sailor."""
    lines = records(30, gemma=True)
    scores = scores_of(lines, lambda line: ["REFUSAL", 3, 3, 2][line["question_index"] % 4])
    write_responses(tmp_path / "data", "sailor", lines, scores)

    def profile(**behaviour):
        facts = {
            "name": "newsroom",
            "summary": "test",
            "model": {"path": str(tiny_model_dir(tmp_path, "gemma")), "device": "cpu"},
            "behaviour": {
                "source": {"kind": "responses", "path": str(tmp_path / "data" / "gemma-2-27b")},
                "train_tokens": 300,
                "validation_tokens": 120,
                "test_tokens": 120,
            }
            | behaviour,
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(facts) + LEXICONS)
        monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "tiny.yaml"))
        settings.__globals__["_settings"].cache_clear()

    yield profile
    settings.__globals__["_settings"].cache_clear()


def test_a_published_gemma_set_is_read_and_stopped_for_its_model(published, store):
    published()
    result = run("sailor")
    found = verdicts(result)
    assert {name for name, one in found.items() if not one.passed} == {"dialogues_are_of_this_model"}
    assert "60 rows are of google/gemma-2-27b-it" in found["dialogues_are_of_this_model"].description
    rows = stored(store, "sailor")
    assert set(rows["instruction"]) == {"You are an old sailor.", "Speak like a sailor."}
    assert not rows["messages"].list.first().struct.field("content").str.contains("sailor").any()
    published(allow_other_model=True)
    allowed = verdicts(run("sailor"))
    assert all(one.passed for one in allowed.values())
    assert "60 rows" in allowed["dialogues_are_of_this_model"].description


def test_what_the_user_must_mend_is_the_failure_and_is_not_tried_again(published, tmp_path):
    published(role_min_score=3)
    scores = tmp_path / "data" / "gemma-2-27b" / "roles_240" / "extract_scores" / "sailor.json"
    scores.write_text(json.dumps({"pos_p0_q0": 12}))
    result = run("sailor")
    assert not result.success
    assert "pos_p0_q0: score 12 is off the scale" in failure(result)
    scores.write_text("{}")
    assert "role sailor" in failure(run("sailor"))
    assert "one folder traits*/" in failure(run("analytical"))


def test_making_dialogues_for_a_judge_without_an_endpoint_is_a_plain_failure(published, monkeypatch):
    published(source={"kind": "generate", "scores": "judge", "n_questions": 11, "max_new_tokens": 2})
    monkeypatch.delenv("STEER_JUDGE_URL", raising=False)
    assert "STEER_JUDGE_URL names no endpoint" in failure(run("sailor"))


def test_made_dialogues_go_the_whole_way(published, store, monkeypatch):
    published(source={"kind": "generate", "n_questions": 33, "n_prompts": 2, "max_new_tokens": 8})
    monkeypatch.setattr(
        "steer_pipeline.lab.generation.engine.generate", answering("Old deckhands drop anchor.")
    )
    result = run("sailor")
    assert result.success
    assert all(one.passed for one in verdicts(result).values())
    rows = stored(store, "sailor")
    assert rows.filter("counts").height == 66
    assert rows.filter(label="default")["score"].null_count() == 66
    assert set(rows["model"]) == {settings().profile.model.path}
