"""The published layouts are read by key; their gaps are counted, their errors named."""

import json
import subprocess
import sys
from collections import Counter

import polars as pl
import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import DialogueSource
from steer_pipeline.lab.dialogues.readers import read_dialogues
from steer_pipeline.lab.dialogues.rows import DialogueError
from steer_pipeline.lab.models.identity import same_name
from steer_pipeline_tests.lab.dialogues.builders import (
    INSTRUCTIONS,
    processed,
    question,
    record,
    records,
    scores_of,
    write_responses,
)

SAILOR, ANALYTICAL = load_personas()["sailor"], load_personas()["analytical"]


def read(path, persona=SAILOR, kind="responses"):
    return read_dialogues(DialogueSource(kind=kind, path=str(path)), persona, path, path)


# ------------------------------------------------------------------------------------- responses


@pytest.mark.parametrize("gemma", [False, True])
def test_answers_and_scores_are_joined_by_key_whatever_their_order(tmp_path, gemma):
    lines = records(4, gemma=gemma)
    scores = scores_of(lines, lambda line: line["question_index"] % 4)
    shuffled = dict(sorted(scores.items(), key=lambda item: item[0][::-1]))
    root = write_responses(tmp_path, "sailor", lines[::-1], shuffled)
    found = read(root).dialogues
    assert {d.key: d.score for d in found} == scores
    assert {(d.question, d.instruction) for d in found} == {
        (question(i), instruction) for i in range(4) for instruction in INSTRUCTIONS["pos"]
    }
    assert {d.model for d in found} == {"google/gemma-2-27b-it"}


def test_a_refusal_is_a_status_and_breaks_nothing(tmp_path):
    lines = records(3)
    scores = scores_of(lines, lambda line: "REFUSAL" if line["question_index"] == 1 else 3)
    del scores["pos_p0_q2"]
    scores["pos_p1_q2"] = None
    found = {
        d.key: (d.score, d.score_status)
        for d in read(write_responses(tmp_path, "sailor", lines, scores)).dialogues
    }
    assert found == {
        "pos_p0_q0": (3, "scored"),
        "pos_p1_q0": (3, "scored"),
        "pos_p0_q1": (None, "refusal"),
        "pos_p1_q1": (None, "refusal"),
        "pos_p0_q2": (None, "missing"),
        "pos_p1_q2": (None, "missing"),
    }


def test_scores_without_a_row_and_unusable_rows_are_counted(tmp_path):
    lines = records(3)
    scores = scores_of(lines, lambda line: 3) | {"pos_p0_q77": 3, "pos_p4_q0": 1}
    lines[0]["conversation"] *= 2
    lines[1]["conversation"][-1]["content"] = ""
    reading = read(write_responses(tmp_path, "sailor", lines, scores))
    assert len(reading.dialogues) == 4
    # the two scores of unusable rows are without a row as well
    assert reading.left_out == Counter({"several turns": 1, "empty answer": 1, "score without a row": 4})


def test_defaults_come_with_roles_without_scores_and_with_prompts_counted_on(tmp_path):
    lines = records(2)
    root = write_responses(tmp_path, "sailor", lines, scores_of(lines, lambda line: 3))
    plain = [
        {**record(i, "neutral", p), "label": label}
        for label in ["neutral"]
        for p in range(2)
        for i in range(2)
    ]
    write_responses(tmp_path, "0_default", plain, None)
    write_responses(tmp_path, "1_default", plain, {"default_p0_q0": 3})  # a score of a default is not one
    write_responses(tmp_path, "by_default", plain, None)  # somebody's role, not a default set
    defaults = [d for d in read(root).dialogues if d.label == "default"]
    assert [(d.prompt_index, d.question_index) for d in defaults] == [
        (p, q) for p in range(4) for q in range(2)
    ]
    assert {(d.score, d.score_status, d.instruction) for d in defaults} == {(None, "missing", "")}


def test_a_trait_brings_no_defaults_and_a_name_of_both_kinds_stays_two(tmp_path):
    as_role, as_trait = records(2), records(3, kind="trait")
    write_responses(tmp_path, "analytical", as_role, scores_of(as_role, lambda line: 3))
    root = write_responses(
        tmp_path, "analytical", as_trait, scores_of(as_trait, lambda line: 90), kind="trait"
    )
    write_responses(tmp_path, "0_default", [record(0, "default")], None)
    trait = read(root, ANALYTICAL).dialogues
    assert len(trait) == 12
    assert {d.label for d in trait} == {"pos", "neg"}
    assert {d.score for d in trait} == {90}
    role = read(root, ANALYTICAL.model_copy(update={"kind": "role"})).dialogues
    assert Counter(d.label for d in role) == {"pos": 4, "default": 1}
    assert {d.score for d in role} == {3, None}


def test_a_set_without_any_score_is_refused_by_name(tmp_path):
    lines = records(2)
    refused = scores_of(lines, lambda line: "REFUSAL")
    with pytest.raises(DialogueError, match=r"role sailor in .*: none of its 4 pos rows has a score"):
        read(write_responses(tmp_path, "sailor", lines, refused))
    with pytest.raises(DialogueError, match="role sailor"):
        read(write_responses(tmp_path, "sailor", lines, {}))
    for line in lines:
        line["question"] = "Something else?"
    with pytest.raises(DialogueError, match="left out: 4 with user turn is not the question"):
        read(write_responses(tmp_path, "sailor", lines, {}))


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"pos_p0_q0": 4}, r"sailor\.json: pos_p0_q0: score 4 is off the scale"),
        ({"pos_p0_q0": 1.5}, r"pos_p0_q0: score is 1\.5"),
        ({"positive_p0_q0": 3}, "key 'positive_p0_q0'"),
        ({"pos_0_0": 3}, "key 'pos_0_0'"),
        ([3, 3], "an object"),
    ],
)
def test_wrong_scores_name_file_and_key(tmp_path, scores, told):
    with pytest.raises(DialogueError, match=told):
        read(write_responses(tmp_path, "sailor", records(1), scores))


def test_broken_files_name_file_and_line(tmp_path):
    lines = records(2)
    root = write_responses(tmp_path, "sailor", lines, scores_of(lines, lambda line: 3))
    folder = root / "roles_240"
    answers, scores = folder / "responses" / "sailor.jsonl", folder / "extract_scores" / "sailor.json"
    good, good_scores = answers.read_text(), scores.read_text()

    def refused(match):
        with pytest.raises(DialogueError, match=match):
            read(root)

    answers.write_text(good + "\n{broken\n")
    refused(r"sailor\.jsonl, line 6: not valid JSON")
    answers.write_bytes(good.encode() + b'{"label": "\xff"}')
    refused(r"sailor\.jsonl, line 5: not valid JSON: .*utf-8")
    for name, value in {
        "label": "positive",
        "prompt_index": "0",
        "question_index": -1,
        "conversation": None,
    }.items():
        answers.write_text(good + json.dumps(lines[0] | {name: value}) + "\n")
        refused(f"line 5: .*{name}")
    answers.write_text(good + json.dumps(lines[0]) + "\n")
    refused("rows come twice, the first is pos_p0_q0")
    answers.write_text(good)
    scores.write_text('{"pos_p0_q0": 3, "pos_p0_q0": 1}')
    refused(r"sailor\.json: a key comes twice")
    scores.write_text("{")
    refused(r"sailor\.json: not valid JSON")
    scores.unlink()
    refused(r"extract_scores/sailor\.json is missing")
    scores.write_text(good_scores)
    answers.rename(answers.with_name("coach.jsonl"))
    refused(r"sailor\.jsonl is missing; responses/ has coach")


def test_a_root_of_the_wrong_kind_is_told(tmp_path):
    lines = records(1)
    root = write_responses(tmp_path, "sailor", lines, scores_of(lines, lambda line: 3))
    with pytest.raises(DialogueError, match=r"one folder traits\*/ .* found none"):
        read(root, ANALYTICAL)
    with pytest.raises(DialogueError, match="holds roles, the persona is a trait"):
        read(root / "roles_240", ANALYTICAL)
    assert len(read(root / "roles_240").dialogues) == 2
    with pytest.raises(DialogueError, match=r"behaviour\.source\.path is missing"):
        read_dialogues(DialogueSource(kind="responses"), SAILOR, tmp_path, tmp_path)


# ------------------------------------------------------------------------------------- processed


def test_parquet_and_save_to_disk_read_alike(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = processed(records(3, gemma=True), "sailor")
    defaults = processed([record(i, "default") for i in range(3)], "0_default", score=None)
    found = []
    for form in ("parquet", "dict", "plain"):
        root = tmp_path / form
        root.mkdir()
        for name, frame in (("sailor", rows), ("0_default", defaults)):
            target = root / f"gemma-2-27b__role__{name}"
            one = datasets.Dataset.from_list(frame.to_dicts())
            if form == "parquet":
                frame.write_parquet(target.with_name(f"{target.name}.parquet"))
            elif form == "dict":
                datasets.DatasetDict({"train": one}).save_to_disk(str(target))
            else:
                one.select(list(range(frame.height))[::-1]).save_to_disk(str(target))
        found.append(sorted(read(root, kind="processed").dialogues, key=lambda d: d.key))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 9
    assert {d.score for d in found[0] if d.label == "pos"} == {3}
    assert {d.score_status for d in found[0] if d.label == "default"} == {"missing"}
    assert {d.question for d in found[0]} == {
        question(i) for i in range(3)
    }  # nothing of Gemma's head is left


def test_save_to_disk_without_its_package_is_told_plainly(tmp_path, monkeypatch):
    (tmp_path / "m__role__sailor").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DialogueError, match=r"install the extra: steer-pipeline\[hub\]"):
        read(tmp_path, kind="processed")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows.drop("role"), "neither role nor trait"),
        (lambda rows: rows.with_columns(trait=pl.lit("sailor")), "role and trait"),
        (lambda rows: rows.rename({"role": "trait"}), "has column trait"),
        (lambda rows: rows.drop("extract_score"), "column extract_score is missing"),
        (lambda rows: rows.head(0), "no rows"),
        (lambda rows: rows.with_columns(role=pl.lit("coach")), "rows of role 'coach' in the set of sailor"),
        (
            lambda rows: rows.with_columns(extract_score=pl.lit(None, pl.Int64)),
            "none of its 4 pos rows has a score",
        ),
        (lambda rows: rows.with_columns(extract_score=pl.lit(75)), "row 0: score 75 is off the scale"),
        (lambda rows: rows.with_columns(label=pl.lit("good")), "row 0: label is 'good'"),
    ],
)
def test_a_processed_set_that_cannot_be_filtered_is_refused(tmp_path, change, told):
    change(processed(records(2), "sailor")).write_parquet(tmp_path / "m__role__sailor.parquet")
    with pytest.raises(DialogueError, match=told):
        read(tmp_path, kind="processed")


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "m__role__sailor.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DialogueError, match=r"m__role__sailor\.parquet: not a Parquet file"):
        read(tmp_path, kind="processed")


def test_the_whole_set_goes_before_its_parts_and_halves_belong_together(tmp_path):
    rows = processed(records(2, kind="trait"), "analytical", kind="trait", score=80)
    pos, neg = rows.filter(label="pos"), rows.filter(label="neg")
    pos.write_parquet(tmp_path / "m__trait__analytical__pos.parquet")
    neg.write_parquet(tmp_path / "m__trait__analytical__neg.parquet")
    pos.head(1).write_parquet(tmp_path / "m__trait__analytical__min75__pos.parquet")
    assert Counter(d.label for d in read(tmp_path, ANALYTICAL, "processed").dialogues) == {"pos": 4, "neg": 4}
    rows.head(6).write_parquet(tmp_path / "m__trait__analytical.parquet")
    assert len(read(tmp_path, ANALYTICAL, "processed").dialogues) == 6
    rows.write_parquet(tmp_path / "other__trait__analytical.parquet")
    with pytest.raises(DialogueError, match=r"several models \(m, other\)"):
        read(tmp_path, ANALYTICAL, "processed")
    with pytest.raises(DialogueError, match="no set of the role sailor; it has none"):
        read(tmp_path, SAILOR, "processed")


# ----------------------------------------------------------------------------------------- names


def test_models_are_the_same_by_name_or_published_slug():
    assert same_name("qwen-3-32b", "Qwen/Qwen3-32B")
    assert same_name("gemma-2-27b", "google/gemma-2-27b-it")
    assert same_name("assets_data/newsroom/model", "assets_data/newsroom/model")
    assert not same_name("qwen-3-32b", "Qwen/Qwen2.5-32B-Instruct")
    assert not same_name("assets_data/newsroom/model", "mine/model")


def test_reading_and_splitting_need_no_torch():
    told = (
        "import sys; from steer_pipeline.lab.dialogues import building, rules; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
