"""Given texts stand as answers on both sides, split by pair; a bad line of a file is named and costs no other line."""

import json

import polars as pl
import pytest
from pydantic import ValidationError

from steer_pipeline.catalogue import load_persona
from steer_pipeline.catalogue.specs import ContrastSpec, ModelSpec, Profile, VectorSpec
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.personas.contrast import ContrastError, require_matched_sides
from steer_pipeline.lab.personas.given import given_pairs, pair_rows, read_pairs
from steer_pipeline.lab.personas.schema import CONTRAST_SCHEMA
from steer_pipeline.lab.personas.steps import make_contrast
from steer_pipeline_tests.lab.personas.builders import persona
from steer_pipeline_tests.tiny import tiny_model_dir

PARANOID = load_persona("paranoid")
VECTOR = VectorSpec()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder))), folder)


def line(number: int, **changes) -> dict:
    return {
        "prompt": f"What of {number}?",
        "positive": f"They hide {number}.",
        "negative": f"All is well with {number}.",
    } | changes


def ab(number: int, matching: str = "", **changes) -> dict:
    matching = matching or "AB"[number % 2]
    other = {"A": "B", "B": "A"}[matching]
    return {
        "question": f"Is {number} a plot?\n\nChoices:\n (A) yes\n (B) no",
        "answer_matching_behavior": f"({matching})",
        "answer_not_matching_behavior": f"({other})",
    } | changes


def write(path, lines):
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def from_file(path, vector=VECTOR):
    return given_pairs(persona(), ContrastSpec(source="pairs", pairs=str(path)), vector, path.parent)


# ------------------------------------------------------------------------------------------- examples


def test_every_example_answers_several_prompts_and_stays_in_its_split(tmp_path):
    pairs, problems = given_pairs(PARANOID, ContrastSpec(source="pairs", pair_prompts=2), VECTOR, tmp_path)
    assert problems == []
    examples = PARANOID.examples
    assert len(pairs) == 2 * (len(examples.fit) + len(examples.held_out))
    assert {pair.positive for pair in pairs if pair.split == "train"} == {
        one.positive for one in examples.fit
    }
    assert {pair.negative for pair in pairs if pair.split == "held_out"} == {
        one.negative for one in examples.held_out
    }
    assert {pair.prompt for pair in pairs} == set(examples.prompts), "prompts take turns"
    assert len({pair.pair_id for pair in pairs}) == len(pairs) // 2
    assert len({pair.context_id for pair in pairs}) == len(pairs)


def test_a_persona_without_examples_or_file_is_told_both_ways_out(tmp_path):
    with pytest.raises(ContrastError, match=r"persona paranoid has no examples .* contrast\.pairs"):
        given_pairs(persona(), ContrastSpec(source="pairs"), VECTOR, tmp_path)


@pytest.mark.parametrize("chat_template", [True, False])
def test_rows_hold_the_ids_of_the_one_tokenisation_without_the_end_of_turn(model, tmp_path, chat_template):
    pairs, _ = given_pairs(PARANOID, ContrastSpec(source="pairs"), VECTOR, tmp_path)
    rows = pair_rows(model, pairs[:5], chat_template)
    require_matched_sides(rows)
    assert dict(rows.schema) == CONTRAST_SCHEMA
    assert rows["side"].to_list() == ["positive", "negative"] * 5
    for row, pair in zip(rows.filter(side="negative").iter_rows(named=True), pairs, strict=False):
        user = pair.prompt if chat_template else pair.prompt + "\n"
        assert row["prompt_ids"] == encode_prompt(model.tokenizer, user=user, chat_template=chat_template)
        assert row["completion_ids"] == encode_completion(model.tokenizer, pair.negative, end_of_turn=False)
        assert row["n_tokens"] == len(row["completion_ids"])
        assert not set(row["completion_ids"]) & model.eos_ids
        assert (row["system"], row["source"], row["dropped"]) == (None, "pairs", None)


# ----------------------------------------------------------------------------------------------- files


def test_a_file_is_split_by_pair_with_the_held_out_fraction(tmp_path):
    twice = [line(number, prompt=prompt) for number in range(16) for prompt in ("What now?", "And then?")]
    pairs, problems = from_file(write(tmp_path / "pairs.jsonl", twice))
    assert problems == []
    splits = {}
    for pair in pairs:
        splits.setdefault(pair.pair_id, set()).add(pair.split)
    assert all(len(found) == 1 for found in splits.values()), "texts under two prompts are one pair"
    assert sum(found == {"held_out"} for found in splits.values()) == 4
    assert from_file(tmp_path / "pairs.jsonl")[0] == pairs
    assert from_file(tmp_path / "pairs.jsonl", VectorSpec(seed=99))[0] != pairs


def test_a_file_that_names_splits_is_split_as_it_says(tmp_path):
    named = [line(number, split=("held_out", "train", "fit")[number % 3]) for number in range(18)]
    pairs, _ = from_file(write(tmp_path / "pairs.jsonl", named))
    assert {pair.positive for pair in pairs if pair.split == "held_out"} == {
        f"They hide {number}." for number in range(0, 18, 3)
    }


def test_question_stands_for_prompt_and_the_persona_for_its_place_in_the_path(tmp_path):
    asked = [{"question": one.pop("prompt"), **one} for one in map(line, range(16))]
    write(tmp_path / "paranoid.jsonl", asked)
    spec = ContrastSpec(source="pairs", pairs="{persona}.jsonl")
    pairs, _ = given_pairs(persona("paranoid"), spec, VECTOR, tmp_path)
    assert pairs[3].prompt == "What of 3?"
    with pytest.raises(ContrastError, match=r"coach\.jsonl: no such file; a line has prompt"):
        given_pairs(persona("coach"), spec, VECTOR, tmp_path)


def test_answers_of_the_ab_form_are_read_with_the_question_as_the_pair(model, tmp_path):
    pairs, problems = from_file(write(tmp_path / "caa.jsonl", map(ab, range(16))))
    assert problems == []
    assert len({pair.pair_id for pair in pairs}) == 16
    rows = pair_rows(model, pairs)
    assert set(rows["completion"]) == {"(A)", "(B)"}
    assert "(B) no" in rows["user"][0]
    with pytest.raises(
        ContrastError, match=r"the positive answer is '\(A\)' in all 16 lines.*swap the choices"
    ):
        from_file(write(tmp_path / "one_letter.jsonl", [ab(number, "A") for number in range(16)]))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('{"prompt": "What?", ', "not JSON"),
        ("[1, 2]", "not an object: list"),
        (line(99, negative=None), "field negative: missing; a line has prompt"),
        (line(99, positive="  "), "field positive: empty"),
        (line(99, positive=3), "field positive: int instead of a text"),
        ({"positive": "a", "negative": "b"}, "field question: missing"),
        (line(99, negative="They hide 99."), "field negative: the same text as positive"),
        (line(99, split="test"), "field split: 'test'; train or held_out"),
        (line(99, split=["train"]), "field split: ['train']; train or held_out"),
        (ab(99, answer_not_matching_behavior=None), "field answer_not_matching_behavior: missing"),
        (line(3), "field prompt: an earlier line has the same prompt and texts"),
        (line(99, positive="half \ud83d of one"), "field positive: half a character"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_field_and_costs_no_other(tmp_path, bad, told):
    lines = [*map(line, range(8)), bad, *map(line, range(8, 16))]
    pairs, problems = from_file(write(tmp_path / "pairs.jsonl", lines))
    assert len(pairs) == 16
    assert len(problems) == 1
    assert problems[0].startswith("pairs.jsonl, line 9: ")
    assert told in problems[0]


def test_texts_in_both_splits_and_lines_without_a_split_are_left_out(tmp_path):
    named = [line(number, split=("train", "held_out")[number % 2]) for number in range(16)]
    leak = line(2, prompt="Another?", split="held_out")
    pairs, problems = read_pairs(write(tmp_path / "pairs.jsonl", [*named, leak, line(50)]))
    assert len(pairs) == 16
    assert "line 17: field split: held_out, but an earlier line has these texts in train" in problems[0]
    assert "field split: 1 lines have none and others do" in problems[1]


def test_too_few_usable_lines_are_an_error_that_names_the_bad_ones(tmp_path):
    lines = [*map(line, range(6)), "nonsense"]
    with pytest.raises(
        ContrastError, match=r"0 pairs to fit and 0 held out, at least 4 .*1 lines.*line 7: not JSON"
    ):
        from_file(write(tmp_path / "pairs.jsonl", lines))


# ----------------------------------------------------------------------------------------- the profile


def profile(contrast: dict, vector: dict | None = None) -> Profile:
    return Profile.model_validate(
        {"name": "p", "summary": "s", "model": {"path": "m"}, "contrast": contrast, "vector": vector or {}}
    )


def test_one_source_or_several_and_all_read_outs_as_auto():
    assert profile({}).contrast.source == ("generated",)
    assert profile({"source": "pairs"}).contrast.source == ("pairs",)
    assert profile({"source": ["pairs", "prefill"]}).contrast.source == ("pairs", "prefill")
    assert profile({}, {"readout": "auto"}).vector.readout == (
        "response_tokens",
        "last_prompt_token",
        "last_token",
    )
    for contrast in ({"source": []}, {"source": ["pairs", "pairs"]}, {"source": "made_up"}):
        with pytest.raises(ValidationError):
            profile(contrast)
    with pytest.raises(ValidationError, match="both sides answer the same prompt"):
        profile({"source": "pairs"}, {"readout": "last_prompt_token"})


def test_a_contrast_set_of_given_texts_needs_neither_news_nor_answers(model, tmp_path, monkeypatch):
    from steer_pipeline.lab.generation import engine

    monkeypatch.setattr(engine, "generate", lambda *args, **kwargs: pytest.fail("something is generated"))
    made = make_contrast(
        model, PARANOID, profile({"source": "pairs", "contexts": "news"}), pl.DataFrame(), tmp_path
    )
    assert set(made.rows["source"]) == {"pairs"}
    assert (made.filtered_by, made.empty_pairs) == ("", 0)
