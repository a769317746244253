"""Which rows count, how tokens are counted, and that questions are split whole, fairly and always alike."""

import random
from collections import Counter
from pathlib import Path

import pytest

from steer_pipeline.catalogue import load_personas, load_profile
from steer_pipeline.catalogue.specs import BehaviourSpec
from steer_pipeline.environment import project_home
from steer_pipeline.lab.dialogues.encoding import encode_dialogue
from steer_pipeline.lab.dialogues.rows import DialogueError
from steer_pipeline.lab.dialogues.rules import (
    budget_problems,
    empty_splits,
    instruction_problems,
    score_problems,
    split_problems,
)
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_SCHEMA
from steer_pipeline.lab.dialogues.selection import assign_splits, behaviour_rows, split_table
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline_tests.lab.dialogues.builders import dialogue, question
from steer_pipeline_tests.tiny import tiny_model_dir

SAILOR, ANALYTICAL = load_personas()["sailor"], load_personas()["analytical"]
SPEC = BehaviourSpec(train_tokens=400, validation_tokens=100, test_tokens=150)
WANTED = {"train": 800, "validation": 200, "test": 300}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(load_profile("newsroom").model, project_home())


def rows_of(dialogues, tokenizer, persona=SAILOR, spec=SPEC):
    return behaviour_rows(dialogues, persona, spec, tokenizer)[0]


# ------------------------------------------------------------------------------------ what counts


def test_role_rows_count_from_their_score_and_never_without_one(tokenizer):
    given = [
        dialogue(0, score=3),
        dialogue(1, score=2),
        dialogue(2, score=None),
        dialogue(3, score=None, score_status="refusal"),
        dialogue(4, "default", score=None),
        dialogue(5, "neg", score=3),
    ]
    rows = rows_of(given, tokenizer)
    assert rows.schema == BEHAVIOUR_SCHEMA
    assert dict(rows.select("question_index", "counts").iter_rows()) == {0: True} | dict.fromkeys(
        range(1, 6), False
    )
    lower = rows_of(given, tokenizer, spec=SPEC.model_copy(update={"role_min_score": 2}))
    assert lower.filter("counts")["question_index"].to_list() == [0, 1]
    # a threshold of zero admits every score, and still nothing without one
    lowest = rows_of(given, tokenizer, spec=SPEC.model_copy(update={"role_min_score": 0}))
    assert lowest.filter("counts")["question_index"].to_list() == [0, 1]


def test_trait_rows_count_when_positive_and_at_the_threshold(tokenizer):
    given = [
        dialogue(0, score=75),
        dialogue(1, score=74),
        dialogue(2, "neg", score=100),
        dialogue(3, score=100),
    ]
    rows = rows_of(given, tokenizer, ANALYTICAL)
    assert rows.filter("counts")["question_index"].to_list() == [0, 3]


def test_a_role_and_a_trait_of_one_name_have_rows_of_their_own(tokenizer):
    trait = SAILOR.model_copy(update={"kind": "trait"})
    as_role = rows_of([dialogue(0, score=3)], tokenizer)
    as_trait = rows_of([dialogue(0, score=90)], tokenizer, trait)
    assert as_role["persona"].equals(as_trait["persona"])
    assert as_role["row_id"][0] != as_trait["row_id"][0]


def test_a_set_in_which_nothing_counts_is_refused(tokenizer):
    with pytest.raises(DialogueError, match=r"role sailor: none of 2 rows counts .* at least 3"):
        rows_of([dialogue(0, score=2), dialogue(1, score=None)], tokenizer)


def test_questions_of_the_rollouts_are_left_out_and_counted(tokenizer):
    known = SAILOR.questions[0]
    given = [dialogue(0), dialogue(1, question=f" {known.upper()}  ")]
    rows, left_out = behaviour_rows(given, SAILOR, SPEC, tokenizer)
    assert rows["question_index"].to_list() == [0]
    assert left_out == Counter({"question is held out for rollouts": 1})


# ---------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("limit", [4, 1024])
def test_counted_tokens_are_those_that_are_trained(tokenizer, limit):
    spec = SPEC.model_copy(update={"max_response_tokens": limit})
    for row in rows_of([dialogue(i) for i in range(4)], tokenizer, spec=spec).iter_rows(named=True):
        user, answer = (turn["content"] for turn in row["messages"])
        trained = encode_dialogue(tokenizer, question=user, response=answer, max_response_tokens=limit)
        assert row["n_response_tokens"] == trained.n_response
        assert row["n_response_tokens"] <= limit
        assert row["n_prompt_tokens"] == trained.start
    whole = tokenizer.encode(answer, add_special_tokens=False)
    assert row["n_response_tokens"] == min(limit, len(whole) + 1)  # the end of turn is trained too


def test_a_model_without_system_role_is_not_shown_the_instruction(tmp_path):
    gemma = load_tokenizer(
        load_profile("newsroom").model.model_copy(update={"path": str(tiny_model_dir(tmp_path, "gemma"))}),
        Path(),
    )
    row = rows_of([dialogue(0)], gemma).row(0, named=True)
    assert row["instruction"] == "You are an old sailor."
    assert row["messages"][0]["content"] == question(0)
    bare = encode_dialogue(gemma, question=question(0), response=row["messages"][1]["content"])
    assert "sailor" not in gemma.decode(bare.ids)
    assert row["n_prompt_tokens"] == bare.start


def test_a_text_that_cannot_be_encoded_names_its_row(tokenizer):
    with pytest.raises(DialogueError, match="sailor, row pos_p0_q0: .*Unicode"):
        rows_of([dialogue(0, response="half \ud83d")], tokenizer)


# ---------------------------------------------------------------------------------------- splits


def test_splits_do_not_depend_on_the_order_of_rows_but_on_the_seed(tokenizer):
    given = [dialogue(i, prompt=p) for i in range(60) for p in range(2)]
    rows = rows_of(given, tokenizer)
    assert rows_of(random.Random(1).sample(given, len(given)), tokenizer).equals(rows)
    other = rows_of(given, tokenizer, spec=SPEC.model_copy(update={"seed": 5}))
    assert not other.equals(rows)
    assert other["row_id"].equals(rows["row_id"])


def test_every_row_of_a_question_is_in_its_split(tokenizer):
    given = [
        dialogue(i, label, p, 3 if label == "pos" else None)
        for i in range(40)
        for label in ("pos", "default")
        for p in range(2)
    ]
    rows = rows_of(given, tokenizer)
    assert rows.group_by("question_index").n_unique()["split"].max() == 1
    assert split_problems(rows, SAILOR) == []
    assert rows["row_id"].n_unique() == rows.height


def test_a_question_under_two_numbers_stays_in_one_split(tokenizer):
    given = [dialogue(i) for i in range(40)]
    given += [dialogue(i + 40, question=question(i).upper() + " ") for i in range(40)]
    splits = dict(rows_of(given, tokenizer).select("question_index", "split").iter_rows())
    assert all(splits[i] == splits[i + 40] for i in range(40))
    with pytest.raises(DialogueError, match="question_index 3 is 'Why'"):
        rows_of([*given, dialogue(3, prompt=1, question="Why")], tokenizer)


def test_budgets_are_met_with_whole_questions_and_the_rest_is_unused():
    tokens = {i: 20 + i % 7 for i in range(200)}
    splits = assign_splits(tokens, WANTED, seed=3)
    got = Counter()
    for index, split in splits.items():
        got[split] += tokens[index]
    for split, budget in WANTED.items():
        assert budget <= got[split] < budget + 27  # by at most its last question
    assert got["unused"] == sum(tokens.values()) - sum(got[split] for split in WANTED)


def test_a_short_set_is_shared_in_proportion_and_train_does_not_eat_the_others():
    tokens = dict.fromkeys(range(26), 20)  # 520 of 1300
    got = Counter(assign_splits(tokens, WANTED, seed=3).values())
    assert got == {"train": 16, "validation": 4, "test": 6}
    assert Counter(assign_splits(dict.fromkeys(range(3), 20), WANTED, seed=3).values()) == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }


def test_questions_without_a_row_that_counts_are_unused():
    assert assign_splits({0: 0, 1: 20, 2: 0, 3: 20, 4: 20}, WANTED, seed=3) | {1: "", 3: "", 4: ""} == {
        0: "unused",
        1: "",
        2: "unused",
        3: "",
        4: "",
    }


def test_a_short_set_is_told_with_numbers(tokenizer):
    rows = rows_of([dialogue(i) for i in range(8)], tokenizer)
    table = {row["split"]: row for row in split_table(rows, SPEC).to_dicts()}
    each = rows["n_response_tokens"][0]
    assert table["train"]["got_tokens"] == each * table["train"]["rows"]
    assert sum(row["rows"] for row in table.values()) == 8
    assert budget_problems(rows, SPEC) == [
        f"{split} has {table[split]['got_tokens']} of {table[split]['wanted_tokens']} tokens"
        for split in ("train", "validation", "test")
    ]
    assert empty_splits(rows) == []
    assert empty_splits(rows_of([dialogue(0)], tokenizer)) == [
        "split validation is empty",
        "split test is empty",
    ]
    assert budget_problems(rows_of([dialogue(i) for i in range(80)], tokenizer), SPEC) == []


# ----------------------------------------------------------------------------------------- rules


def test_rules_find_what_the_selection_would_not_make(tokenizer):
    import polars as pl

    rows = rows_of([dialogue(i, prompt=p, score=3 - p) for i in range(30) for p in range(2)], tokenizer)
    assert score_problems(rows, SAILOR, SPEC) == instruction_problems(rows, SAILOR) == []
    first = pl.col("row_id") == rows["row_id"][0]

    def told(rule, *arguments, **changes):
        changed = {
            name: pl.when(first).then(value).otherwise(pl.col(name)) for name, value in changes.items()
        }
        return " ".join(rule(rows.with_columns(**changed), *arguments))

    nothing = pl.lit(None, pl.Int64)
    assert "counts without a score" in told(score_problems, SAILOR, SPEC, score=nothing)
    assert "counts without a score" in told(score_problems, SAILOR, SPEC, score_status=pl.lit("missing"))
    assert "counts below 3" in told(score_problems, SAILOR, SPEC, score=pl.lit(2))
    assert "is not pos" in told(score_problems, SAILOR, SPEC, label=pl.lit("default"))
    assert "does not count" in told(score_problems, SAILOR, SPEC, counts=pl.lit(False))
    other = pl.lit("test" if rows["split"][0] == "train" else "train")
    assert "question_index 0 is in" in told(split_problems, SAILOR, split=other)
    assert "'dev' is unknown" in told(split_problems, SAILOR, split=pl.lit("dev"))
    assert "held out for rollouts" in told(split_problems, SAILOR, question=pl.lit(SAILOR.questions[2]))
    leaking = pl.lit(
        [
            {"role": "user", "content": f"You are an old sailor.\n\n{question(0)}"},
            {"role": "assistant", "content": "Ay."},
        ],
        dtype=BEHAVIOUR_SCHEMA["messages"],
    )
    found = told(instruction_problems, SAILOR, messages=leaking)
    assert "more than the question" in found
    assert "an instruction in its user turn" in found
    system = pl.lit(
        [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
        dtype=BEHAVIOUR_SCHEMA["messages"],
    )
    assert "one user and one assistant" in told(instruction_problems, SAILOR, messages=system)
