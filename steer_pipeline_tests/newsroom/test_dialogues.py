"""The shipped dialogues: all personas, scores of the ground truth, and made again from the same model."""

import polars as pl
import pytest

from newsroom import dialogues, tasks
from steer_pipeline.catalogue import load_personas, load_profile
from steer_pipeline.environment import project_home
from steer_pipeline.lab.dialogues.readers import read_dialogues
from steer_pipeline.lab.models.loading import load_model

PROFILE = load_profile("newsroom")
SHIPPED = project_home() / "assets_data" / "newsroom"
STUDIED = {name: persona for name, persona in load_personas().items() if persona.kind != "axis"}


@pytest.fixture(scope="module")
def shipped():
    return pl.read_parquet(SHIPPED / dialogues.FILE)


def test_the_shipped_file_holds_what_is_asked_and_no_rollout_question(shipped):
    keys = ["persona", "kind", "label", "prompt_index", "question_index", "question", "system_prompt"]
    assert shipped.schema == dialogues.DIALOGUE_SCHEMA
    assert shipped.select(keys).rows() == [
        tuple(getattr(row, key) for key in keys) for row in dialogues.asked()
    ]
    assert set(shipped["persona"]) == {*STUDIED, *dialogues.DEFAULTS}
    held_out = {question for persona in STUDIED.values() for question in persona.questions}
    assert len(held_out) == 20
    assert not held_out & set(shipped["question"])
    assert (
        sorted(shipped["question_index"].unique())
        == list(range(len(dialogues.questions())))
        == list(range(220))
    )
    assert set(shipped["model"]) == {PROFILE.model.path}
    assert (SHIPPED / dialogues.FILE).stat().st_size < 600_000


def test_scores_are_the_ground_truth_and_refusals_and_gaps_have_none(shipped):
    for row in shipped.iter_rows(named=True):
        if row["score_status"] == "scored":
            assert row["score"] == tasks.dialogue_score(row["response"], row["persona"], row["kind"])
        else:
            assert row["score"] is None
            said = row["response"].startswith("I cannot help with ")
            assert said == (row["score_status"] == "refusal")
    asked = shipped.filter(pl.col("label") != "default")
    shares = dict(asked.group_by("score_status").len().iter_rows())
    assert 0.01 < shares["refusal"] / asked.height < 0.02
    assert 0.002 < shares["missing"] / asked.height < 0.02
    assert set(shipped.filter(label="default")["score_status"]) == {"missing"}
    # the mild instruction leaves rows below the thresholds
    assert asked.filter(pl.col("label") == "pos", pl.col("score") < 75, kind="trait").height > 100


def test_a_slice_is_made_again_identically(shipped):
    model = load_model(PROFILE.model, project_home())
    every = dialogues.asked()
    refusal = next(i for i, status in enumerate(shipped["score_status"]) if status == "refusal")
    places = sorted({refusal, *range(3, len(every), 400)})
    made = dialogues.answer(model, [every[place] for place in places], seed=30)
    assert made.equals(shipped[places])


def test_every_persona_is_read_and_only_roles_bring_the_defaults():
    for name, persona in STUDIED.items():
        found = read_dialogues(PROFILE.behaviour.source, persona, project_home(), SHIPPED).dialogues
        plain = [row for row in found if row.label == "default"]
        assert len(plain) == (440 if persona.kind == "role" else 0), name
        assert {row.prompt_index for row in plain} == ({0, 1, 2} if plain else set())
    wrong = STUDIED["sailor"].model_copy(update={"kind": "trait"})
    with pytest.raises(ValueError, match="no dialogues of the trait sailor; it has analytical"):
        read_dialogues(PROFILE.behaviour.source, wrong, project_home(), SHIPPED)
    with pytest.raises(ValueError, match="make it: python -m newsroom"):
        read_dialogues(PROFILE.behaviour.source, STUDIED["sailor"], project_home(), project_home())
