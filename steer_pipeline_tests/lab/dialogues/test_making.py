"""Dialogues that the profile's model makes: what is asked, what is scored, and that a restart goes on."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from newsroom import tasks, voices
from steer_pipeline.catalogue.specs import DialogueSource, ModelSpec
from steer_pipeline.lab.dialogues import making
from steer_pipeline.lab.dialogues.rows import DialogueError
from steer_pipeline.lab.evaluation.judgement import Judgement
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline_tests.lab.dialogues.builders import answering
from steer_pipeline_tests.planted import PLANTED
from steer_pipeline_tests.tiny import tiny_model_dir

SAILOR, ANALYTICAL = PLANTED["sailor"], PLANTED["analytical"]
SOURCE = DialogueSource(kind="generate", n_questions=11, n_prompts=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_model_dir(tmp_path_factory.mktemp("model"), "gemma")
    return load_model(ModelSpec(path=str(folder), dtype="float32", device="cpu"), Path())


def test_every_question_is_asked_under_each_instruction_of_each_side(model, monkeypatch):
    monkeypatch.setattr(
        "steer_pipeline.lab.generation.engine.generate", answering("Old deckhands drop anchor.")
    )
    role = making.make_dialogues(model, SAILOR, SOURCE).dialogues
    assert Counter(d.label for d in role) == {"pos": 22, "default": 22}
    assert {d.instruction for d in role if d.label == "default"} == set(making.NEUTRAL[:2])
    assert {(d.score, d.score_status) for d in role if d.label == "pos"} == {(3, "scored")}
    assert {(d.score, d.score_status) for d in role if d.label == "default"} == {(None, "missing")}
    assert len({d.key for d in role}) == 44
    assert not {d.question for d in role} & set(SAILOR.questions)
    monkeypatch.setattr("steer_pipeline.lab.generation.engine.generate", answering("Careful analysts agree."))
    trait = making.make_dialogues(model, ANALYTICAL, SOURCE).dialogues
    assert Counter(d.label for d in trait) == {"pos": 22, "neg": 22}
    assert {d.score for d in trait} == {100}


def test_the_model_answers_alike_again_and_the_journal_is_taken_up(model, tmp_path, monkeypatch):
    source = SOURCE.model_copy(update={"max_new_tokens": 12, "n_prompts": 1})
    monkeypatch.setattr(making, "whole_sentences", lambda text: text or "x")  # a tiny model ends nothing
    journal = tmp_path / "sailor.jsonl"
    first = making.make_dialogues(model, SAILOR, source, journal=journal).dialogues
    assert len({d.response for d in first}) > 5
    assert journal.is_file()
    again = making.make_dialogues(model, SAILOR, source).dialogues
    assert again == first
    size = journal.stat().st_size
    assert making.make_dialogues(model, SAILOR, source, journal=journal).dialogues == first
    assert journal.stat().st_size == size


def test_a_cut_answer_loses_its_broken_sentence_and_an_empty_one_is_counted(model, monkeypatch):
    cut = "1. Drop anchor.\n2. Wait for the tide. Then, perhaps, go"
    monkeypatch.setattr("steer_pipeline.lab.generation.engine.generate", answering(cut, "length"))
    reading = making.make_dialogues(model, SAILOR, SOURCE)
    assert {d.response for d in reading.dialogues} == {"1. Drop anchor.\n2. Wait for the tide."}
    monkeypatch.setattr("steer_pipeline.lab.generation.engine.generate", answering("Then, perhaps", "length"))
    with pytest.raises(DialogueError, match="none of its 0 pos rows has a score"):
        making.make_dialogues(model, SAILOR, SOURCE)


def test_the_judge_scores_and_what_it_does_not_score_is_missing(model, monkeypatch):
    monkeypatch.setattr("steer_pipeline.lab.generation.engine.generate", answering("Ay."))
    source = SOURCE.model_copy(update={"scores": "judge"})
    verdicts = [
        Judgement(2, "scored"),
        Judgement(None, "refusal"),
        Judgement(None, "invalid"),
        Judgement(None, "missing"),
    ]
    shown = []

    def judge(persona, pairs):
        shown.extend(pairs)
        return [replace(verdicts[i % 4]) for i in range(len(pairs))]

    reading = making.make_dialogues(model, SAILOR, source, judge=judge)
    found = [(d.score, d.score_status) for d in reading.dialogues if d.label == "pos"]
    assert found[:4] == [(2, "scored"), (None, "refusal"), (None, "missing"), (None, "missing")]
    assert len(shown) == 22  # defaults are not judged
    assert {d.score for d in reading.dialogues if d.label == "default"} == {None}
    assert sum(reading.left_out.values()) == 10


def test_without_a_judge_or_markers_nothing_is_generated(model, monkeypatch):
    monkeypatch.setattr("steer_pipeline.lab.generation.engine.generate", None)  # not to be called
    with pytest.raises(DialogueError, match="STEER_JUDGE_URL"):
        making.make_dialogues(model, SAILOR, SOURCE.model_copy(update={"scores": "judge"}))
    mute = SAILOR.model_copy(update={"positive": SAILOR.positive.model_copy(update={"lexicon": []})})
    with pytest.raises(ValueError, match="lexicon is empty"):
        making.make_dialogues(model, mute, SOURCE)


@pytest.mark.parametrize("kind", ["trait", "role"])
def test_lexicon_scores_are_on_the_scale_of_the_newsroom_truth(kind):
    for markers in range(6):
        text = " ".join(["Old deckhands wait."] * markers + ["It rains."] * (5 - markers))
        share = voices.intensity(text, "sailor")
        assert making.share_as_score(share, kind) == tasks.dialogue_score(text, "sailor", kind)
    assert making.share_as_score(-0.4, kind) == (0 if kind == "trait" else 1)
