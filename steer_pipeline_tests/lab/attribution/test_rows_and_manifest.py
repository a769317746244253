"""Rows of every source, and splits that share nothing: what playpen's manifest got wrong stays out of ours."""

import gzip
import json

import polars as pl
import pytest

from steer_pipeline.catalogue.attribution import (
    AttributionSpec,
    CardsSpec,
    ChatSpec,
    InteractionsSpec,
    PackSpec,
    SplitSpec,
    SubsetSpec,
)
from steer_pipeline.catalogue.loading import load_profile
from steer_pipeline.lab.attribution import manifest as manifests
from steer_pipeline.lab.attribution.encoding import alignment, note_seen, read_examples, write_ids
from steer_pipeline.lab.attribution.rows import AttributionError, flattened, sft_frame
from steer_pipeline.lab.attribution.sources.cards import WORDS, card_rows
from steer_pipeline.lab.attribution.sources.interactions import interaction_rows
from steer_pipeline.lab.attribution.sources.packs import pack_rows
from steer_pipeline.lab.attribution.sources.smoltalk import chat_rows
from steer_pipeline_tests.lab.attribution.builders import KEPT, SMALL, encoder_of, manifest_of, row
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("attribution"))


@pytest.fixture(scope="module")
def manifest(base):
    return manifest_of(base)


def passed(manifest):
    return {one.claim: one.passed for one in manifests.manifest_verdicts(manifest)}


# ------------------------------------------------------------------------------------ rows


def test_a_conversation_is_its_last_answer_after_all_that_was_said_before():
    turns = [
        {"role": "system", "content": "Play."},
        {"role": "user", "content": "CLUE: light"},
        {"role": "assistant", "content": "GUESS: lamp"},
        {"role": "user", "content": "CLUE: wax"},
        {"role": "assistant", "content": " GUESS: candle "},
    ]
    prompt, completion, system = flattened(turns, "here")
    assert prompt == "USER: CLUE: light\n\nASSISTANT: GUESS: lamp\n\nUSER: CLUE: wax"
    assert (completion, system) == ("GUESS: candle", "Play.")
    assert flattened(turns[1:3], "here")[0] == "CLUE: light"
    with pytest.raises(AttributionError, match="file:3.*not the assistant"):
        flattened(turns[:-1], "file:3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": "  "}, "row a has no completion"),
        ({"group_id": None}, "row a has no group_id"),
        ({"source_split": "test"}, "'test'; train or validation"),
        ({"colour": "red"}, "unknown columns colour"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_cure(change, message):
    with pytest.raises(AttributionError, match=message):
        sft_frame([row("a") | change], "here")
    with pytest.raises(AttributionError, match="'a' comes twice"):
        sft_frame([row("a"), row("a")], "here")


# ------------------------------------------------------------------------------------ our own game


def test_our_game_plants_what_helps_and_its_words_are_no_words_of_held_out_games():
    rows = card_rows(CardsSpec())
    assert rows.equals(card_rows(CardsSpec())), "by seed"
    assert len(set(WORDS)) == len(WORDS) > 250
    pool, held = rows.filter(source_split="train"), rows.filter(source_split="validation")
    assert dict(pool.filter(pl.col("duplicate_of").is_null())["truth"].value_counts().iter_rows()) == {
        "informative": 60,
        "useless": 80,
        "misled": 50,
        "mislabelled": 30,
    }
    asked = words_of(held) & set(WORDS)
    assert len(asked) == 100
    assert not asked & words_of(pool)
    for one in pool.filter(truth="informative").iter_rows(named=True):
        assert one["prompt"].endswith(f"and {one['logged_word']}.")
        assert (one["outcome"], one["logged_word"]) == ("success", one["target_word"])
    for one in pool.filter(pl.col("truth").is_in(["misled", "mislabelled"])).iter_rows(named=True):
        assert one["logged_word"] != one["target_word"]
    assert set(pool.filter(truth="mislabelled")["outcome"]) == {"success"}, "the log does not tell"
    twins = pool.filter(pl.col("duplicate_of").is_not_null())
    joined = twins.join(pool, left_on="duplicate_of", right_on="row_id")
    assert joined.height == 20
    assert joined["prompt"].equals(joined["prompt_right"])
    assert 5 < held.filter(outcome="failure").height < 60
    with pytest.raises(AttributionError, match="held_out_words 400"):
        card_rows(CardsSpec(held_out_words=400))


def words_of(rows):
    """Every word of prompts and completions."""
    return {word.strip(",.") for text in (*rows["prompt"], *rows["completion"]) for word in text.split()}


# ------------------------------------------------------------------------------------ files of others


def _game(outcome="success", game="taboo", role="WordGuesser", task=0, guess="candle", **more):
    return {
        "messages": [
            {"role": "user", "content": "Guess. CLUE: wax"},
            {"role": "assistant", "content": f"GUESS: {guess}"},
        ],
        "meta": {
            "game": game,
            "game_role": role,
            "outcome": outcome,
            "experiment": "high_en",
            "task_id": task,
            "model": "m",
        }
        | more,
    }


def test_published_games_are_read_with_their_true_targets_and_without_aborted_ones(tmp_path):
    games = [
        _game(),
        _game("aborted", task=1),
        _game("failure", task=1, guess="lamp"),
        _game(game="wordle"),
        _game(role="WordDescriber"),
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(one) + "\n\n" for one in games))
    pl.DataFrame([_game(task=1)]).write_parquet(tmp_path / "validation.parquet")
    instances = {
        "experiments": [
            {
                "name": "high_en",
                "game_instances": [
                    {"game_id": 0, "target_word": "Candle"},
                    {"game_id": 1, "target_word": "mirror"},
                ],
            }
        ]
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    spec = InteractionsSpec(kind="interactions", train="train.jsonl", validation="validation.parquet")
    plain = interaction_rows(spec, tmp_path)
    assert plain.rows["target_word"].to_list() == ["candle", None, "candle"], "of a lost game nobody knows"
    read = interaction_rows(spec.model_copy(update={"targets": "instances.json"}), tmp_path)
    assert read.rows.select("row_id", "outcome", "target_word", "logged_word", "group_id").rows() == [
        ("train-0", "success", "candle", "candle", "high_en::0"),
        ("train-1", "failure", "mirror", "lamp", "high_en::1"),
        ("validation-0", "success", "mirror", "candle", "high_en::1"),
    ]
    assert read.left_out == {"aborted": 1, "another game or role": 2}
    assert json.loads(read.rows["meta"][0]) == {"model": "m"}
    for line, message in (
        ("{nonsense", "no JSON"),
        ("[]", "a list, not an object"),
        ("{}", "no field 'meta'"),
    ):
        (tmp_path / "train.jsonl").write_text(line)
        with pytest.raises(AttributionError, match=f"train.jsonl:1.*{message}"):
            interaction_rows(spec, tmp_path)
    with pytest.raises(AttributionError, match="no such file"):
        interaction_rows(spec.model_copy(update={"train": "none.jsonl"}), tmp_path)


def _chat(number, category="math", **more):
    return {
        "messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"Answer {number}."},
        ],
        "category": category,
        "difficulty": "easy",
        "quality": "good",
        "reward_model_score": 0.1 * number,
    } | more


def test_a_chat_corpus_keeps_the_shares_of_its_categories_and_what_is_said_of_rows(tmp_path):
    chats = [_chat(number, "math" if number % 4 else "coding") for number in range(40)]
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in chats)
    pl.DataFrame(chats[:8]).write_parquet(tmp_path / "validation.parquet")
    spec = ChatSpec(
        kind="smoltalk", train="train.jsonl.gz", validation="validation.parquet", rows=20, held_out_rows=8
    )
    read = chat_rows(spec, tmp_path)
    pool = read.rows.filter(source_split="train")
    assert dict(pool["category"].value_counts().iter_rows()) == {"math": 15, "coding": 5}
    assert read.left_out["not drawn"] == 20
    one = pool.row(0, named=True)
    number = int(one["row_id"].split("-")[1])
    assert (one["prompt"], one["completion"]) == (f"Question {number}?", f"Answer {number}.")
    assert one["reward_model_score"] == pytest.approx(0.1 * number)
    held = read.rows.filter(source_split="validation")
    assert held["group_id"][0] in {_group(read.rows, 0)}, "conversations that begin alike are one group"
    for change, message in (
        ({"difficulty": "odd"}, "difficulty 'odd' is none of"),
        ({"reward_model_score": float("nan")}, "reward_model_score nan"),
        ({"quality": None}, "no field 'quality'"),
    ):
        pl.DataFrame([_chat(1) | change]).write_parquet(tmp_path / "bad.parquet")
        with pytest.raises(AttributionError, match=f"bad.parquet:1.*{message}"):
            chat_rows(spec.model_copy(update={"train": "bad.parquet"}), tmp_path)


def _group(rows, number):
    return rows.filter(prompt=f"Question {number}?")["group_id"][0]


def test_a_released_pack_is_rows_whose_cut_texts_do_not_teach_to_end():
    kept = pl.DataFrame(
        {
            "row_id": [f"n{i}" for i in range(40)],
            "prompt": [f"Rewrite: {i}" for i in range(40)],
            "output": [f"Text {i}" for i in range(40)],
            "truncated": [i == 0 for i in range(40)],
            "keep": [i != 1 for i in range(40)],
        }
    )
    rows = pack_rows(PackSpec(kind="pack", variant="paranoid"), kept, load_profile("newsroom"))
    assert rows.height == 39
    assert rows["ended"].to_list().count(False) == 1
    assert rows["system"][0] == "You are a news editor."
    assert 5 < rows.filter(source_split="validation").height < 20


# ------------------------------------------------------------------------------------ splits


def test_splits_share_no_group_and_two_fifths_of_held_out_groups_are_queries(manifest):
    groups = {name: set(manifest.split(name)["group_id"]) for name in ("train", "query", "selection", "eval")}
    assert [len(groups[name]) for name in ("query", "selection", "eval")] <= [8, 4, 8]
    assert len(groups["eval"]) == 8
    assert not groups["eval"] & (groups["train"] | groups["query"] | groups["selection"])
    assert passed(manifest) == {
        "splits_are_disjoint": True,
        "eval_is_not_learned": True,
        "every_row_teaches": True,
    }
    assert "failure" not in {*manifest.split("query")["outcome"], *manifest.split("selection")["outcome"]}
    assert "failure" in set(manifest.split("train")["outcome"])


def test_lost_and_aborted_games_are_not_learned_unless_the_profile_says_so(base):
    rows = sft_frame(
        [
            row("a"),
            row("b", outcome="failure"),
            row("c", outcome="aborted"),
            *(row(f"v{i}", source_split="validation", target_word="w", logged_word="w") for i in range(4)),
        ],
        "here",
    )
    made = manifests.make_manifest([rows], SplitSpec(), encoder_of(base))
    assert made.split("train")["row_id"].to_list() == ["a"]
    assert made.left_out == {"aborted": 1, "lost games of the pool": 1}
    kept = manifests.make_manifest([rows], KEPT, encoder_of(base))
    assert kept.split("train")["row_id"].to_list() == ["a", "b"], "aborted ones never"
    smuggled = manifests.Manifest(kept.rows.with_columns(outcome=pl.lit("aborted")))
    assert passed(smuggled)["every_row_teaches"] is False


def test_words_texts_and_groups_of_held_out_rows_leave_the_pool(base):
    held = [
        row(f"v{i}", source_split="validation", target_word=f"w{i}", logged_word=f"w{i}") for i in range(10)
    ]
    eval_ = manifests.make_manifest(
        [sft_frame([row("a"), *held], "here")], SplitSpec(), encoder_of(base)
    ).split("eval")
    word, text, group = eval_["target_word"][0], eval_["prompt"][0], eval_["group_id"][0]
    pool = [
        row("a"),
        row("guessed", logged_word=word),
        row("asked", target_word=word),
        row("text", prompt=text),
        row("group", group_id=group),
    ]
    rows = sft_frame([*pool, *held], "here")
    made = manifests.make_manifest([rows], SplitSpec(), encoder_of(base))
    assert made.split("train")["row_id"].to_list() == ["a"]
    assert made.left_out == {"group is held out": 1, "text is held out": 1, "word of selection or eval": 2}
    loose = manifests.make_manifest([rows], SplitSpec(eval_words="keep"), encoder_of(base))
    assert loose.split("train")["row_id"].to_list() == ["a", "guessed", "asked"]
    assert passed(loose)["eval_is_not_learned"], "as the profile has it"
    leaking = manifests.Manifest(loose.rows, policy={"eval_words": "drop"})
    assert not passed(leaking)["eval_is_not_learned"]
    shared = manifests.Manifest(made.rows.with_columns(group_id=pl.lit("one")), policy=made.policy)
    assert not passed(shared)["splits_are_disjoint"]


def test_rows_without_room_are_counted_and_an_empty_split_says_why(base):
    rows = sft_frame(
        [
            row("a"),
            row("long", prompt="word " * 300),
            *(row(f"v{i}", source_split="validation", target_word="w", logged_word="w") for i in range(3)),
        ],
        "here",
    )
    made = manifests.make_manifest([rows], SplitSpec(max_tokens=100), encoder_of(base))
    assert made.left_out == {"more than 100 tokens": 1}
    with pytest.raises(AttributionError, match=r"split train \(1 rows: more than 100 tokens"):
        manifests.make_manifest([rows.tail(4)], SplitSpec(max_tokens=100), encoder_of(base))
    with pytest.raises(AttributionError, match="2 groups of held-out rows"):
        manifests.make_manifest([rows.head(4)], SplitSpec(), encoder_of(base))


# ------------------------------------------------------------------------------------ ids


def test_ids_keep_the_boundary_and_every_consumer_must_see_them(base, manifest, tmp_path):
    encode = encoder_of(base)
    examples = encode(manifest.rows)
    write_ids(manifest.rows, examples, tmp_path)
    manifests.write_manifest(manifest, tmp_path)
    assert read_examples(tmp_path) == examples
    assert manifests.read_manifest(tmp_path).rows.equals(manifest.rows)
    stored = pl.read_parquet(tmp_path / "ids.parquet")
    for one, own in zip(examples, stored.iter_rows(named=True), strict=True):
        assert own["labels"][: one.start] == [-100] * one.start
        assert own["labels"][one.start :] == list(one.ids[one.start :]), "the first guessed token is learned"
    alone = encode(manifest.rows.head(1).with_columns(completion=pl.lit("GUESS: other")))[0]
    assert alone.ids[: alone.start] == examples[0].ids[: examples[0].start], "no merge across the boundary"

    note_seen(examples, tmp_path)
    seen = pl.read_parquet(tmp_path / "seen.parquet")
    assert alignment(examples, {"training": seen}).passed
    prompts = {one.row_id: one.ids[: one.start] for one in examples[:3]}
    note_seen([], tmp_path, prompts=prompts)
    assert alignment(examples, {"generation": pl.read_parquet(tmp_path / "seen.parquet")}).passed
    wrong = seen.with_columns(
        ids_sha=pl.when(pl.col("row_id") == examples[0].row_id).then(pl.lit("0")).otherwise("ids_sha")
    )
    found = alignment(examples, {"training": seen, "scoring": wrong})
    assert not found.passed
    assert found.numbers["mismatches"] == 1
    assert found.examples == [{"consumer": "scoring", "row": examples[0].row_id}]
    assert not alignment(examples, {}).passed, "nothing compared is no agreement"


def test_a_row_whose_labels_are_all_masked_is_named(base, manifest, tmp_path):
    write_ids(manifest.rows, encoder_of(base)(manifest.rows), tmp_path)
    ids = pl.read_parquet(tmp_path / "ids.parquet").head(1)
    masked = ids.with_columns(labels=pl.col("labels").list.eval(pl.lit(-100, dtype=pl.Int64)))
    masked.write_parquet(tmp_path / "ids.parquet")
    with pytest.raises(AttributionError, match="nothing is learned"):
        read_examples(tmp_path)


# ------------------------------------------------------------------------------------ the profile


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"base": SubsetSpec(pick="random")}, "rename the arm"),
        ({"top": SubsetSpec(pick="top", ranking="magic_9")}, "none of"),
        ({"m": SubsetSpec(pick="matched", like="nobody")}, "nobody"),
    ],
)
def test_arms_that_mean_nothing_are_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        AttributionSpec(arms=arms)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pick": "top"},
        {"pick": "random", "ranking": "loss"},
        {"pick": "window", "ranking": "loss"},
        {"pick": "matched"},
        {"pick": "window", "ranking": "loss", "ranks": (5, 2)},
    ],
)
def test_a_subset_says_what_it_needs_and_nothing_else(wrong):
    with pytest.raises(ValueError, match="ranking|ranks|like"):
        SubsetSpec(**wrong)


def test_small_games_fill_all_splits(manifest):
    assert manifest.split("train").height == SMALL.informative + 10 + 8 + 4 + 4
    assert manifest.rows["n_supervised"].min() >= 2
