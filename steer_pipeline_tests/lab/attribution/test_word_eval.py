"""What counts as guessed, and how arms compare: truth before the log, games and seeds in the interval."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.attribution import LearnSpec
from steer_pipeline.lab.attribution.adapters import (
    Below,
    adapter_verdicts,
    below_arm,
    place,
    train_adapters,
)
from steer_pipeline.lab.attribution.encoding import alignment
from steer_pipeline.lab.attribution.rows import AttributionError
from steer_pipeline.lab.attribution.word_eval import (
    GUESS_SCHEMA,
    accuracies,
    best_reference,
    effects,
    games_are_the_same,
    measure_of,
    play,
    write_guesses,
)
from steer_pipeline.lab.finetune.training import RECORD
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline_tests.lab.attribution.builders import encoder_of, manifest_of
from steer_pipeline_tests.lab.finetune.rows import spec_of
from steer_pipeline_tests.tiny import tiny_model_dir

GAMES = 40


def guesses(arm, seeds, chance, known=True):
    rng = np.random.default_rng([len(arm), *arm.encode()])
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "row_id": f"e{game:02d}",
            "group_id": f"g{game // 2}",
            "output": "GUESS: lamp",
            "word": "lamp",
            "target_word": "lamp",
            "logged_word": "moon",
            "correct": bool(rng.random() < chance) if known else None,
            "agrees": False,
            "nll": 1.0 - chance + 0.01 * game,
        }
        for seed in seeds
        for game in range(GAMES)
    ]
    return pl.DataFrame(rows, schema=GUESS_SCHEMA)


def drawn(rng, seed, chance):
    """One seed of an arm `a` that is right so often."""
    return guesses("a", (seed,), chance).with_columns(correct=pl.Series(rng.random(GAMES) < chance))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("eval"))


def test_arms_are_compared_game_by_game_and_what_ties_is_said_to_tie():
    told = pl.concat(
        [guesses("good", (1, 2, 3), 0.9), guesses("same", (1, 2, 3), 0.88), guesses("base", (0,), 0.1)]
    )
    found = effects(told, "good", ["base", "same"], seed=1)
    assert found["verdict"].to_list() == ["beats", "ties"]
    assert found["low"][0] > 0.5
    table = accuracies(told, seed=1)
    assert table["arm"].to_list() == ["good", "same", "base"]
    good = table.row(0, named=True)
    assert good["low"] < good["accuracy"] < good["high"] <= 1
    assert (good["n_games"], good["n_seeds"], good["agreement"]) == (GAMES, 3, 0.0), (
        "the log is another question"
    )
    assert best_reference(table, ["base", "same"], "accuracy") == "same"
    assert effects(told, "base", ["good"], seed=1)["verdict"].to_list() == ["loses"]


def test_the_interval_holds_for_other_seeds_as_well_as_for_other_games():
    rng = np.random.default_rng(5)
    steady, shaky = (
        pl.concat([drawn(rng, seed, chance) for seed, chance in enumerate(chances)])
        for chances in ((0.6, 0.6, 0.6), (0.95, 0.6, 0.25))
    )
    reference = guesses("base", (0,), 0.0)
    width = [
        float(found["high"][0] - found["low"][0])
        for found in (effects(pl.concat([own, reference]), "a", ["base"], seed=1) for own in (steady, shaky))
    ]
    assert width[1] > 2 * width[0]


def test_games_that_are_lacking_or_other_are_seen():
    whole, part = guesses("a", (1, 2), 0.5), guesses("b", (1,), 0.5).head(30)
    ids = [f"e{game:02d}" for game in range(GAMES)]
    assert games_are_the_same(whole, ids, {"a": 2}).passed
    assert not games_are_the_same(whole, ids, {"a": 3}).passed
    assert not games_are_the_same(pl.concat([whole, part]), ids, {"a": 2, "b": 1}).passed
    with pytest.raises(AttributionError, match="b and a played other games|a and b played other games"):
        effects(pl.concat([whole, part]), "a", ["b"], seed=1)
    with pytest.raises(AttributionError, match="nobody has played no game"):
        effects(whole, "a", ["nobody"], seed=1)


def test_rows_without_words_are_compared_by_their_loss():
    told = pl.concat([guesses("good", (1, 2), 0.9, known=False), guesses("base", (0,), 0.1, known=False)])
    assert measure_of(told) == "nll"
    found = effects(told, "good", ["base"], seed=1)
    assert found["difference"][0] == pytest.approx(0.8)
    assert accuracies(told, seed=1)["accuracy"].to_list() == [None, None]
    assert best_reference(accuracies(told, seed=1), ["good", "base"], "nll") == "good"


def test_adapters_learn_play_and_saw_the_manifest_s_ids(base, tmp_path):
    manifest = manifest_of(base)
    encode = encoder_of(base)
    examples = encode(manifest.rows)
    train, selection, eval_ = (encode(manifest.split(name)) for name in ("train", "selection", "eval"))
    learn = LearnSpec(rank=2, learning_rate=5e-3, max_steps=2, batch_rows=4, rows_at_once=4, evaluations=2)
    model = spec_of(base)
    told = {}
    for mode in ("scratch", "continued"):
        folder = tmp_path / mode
        folder.mkdir()
        below = below_arm(model, base.parent, mode, tmp_path / "scratch" / place(7))
        learned = {7: train[:8], 8: train[8:16]}
        made = train_adapters("arm", learned, selection, learn, below, folder, work=tmp_path / "work" / mode)
        assert made.adapters["mode"].to_list() == [mode, mode]
        assert adapter_verdicts(folder, [7, 8])[0].passed
        assert not adapter_verdicts(folder, [7, 9])[0].passed
        told[mode] = made.adapters
        assert alignment(examples, {"arm": pl.read_parquet(folder / "seen.parquet")}).numbers[
            "compared"
        ] == 16 + len(selection)
    assert told["scratch"]["model"][0] != told["continued"]["model"][0], "what an adapter lies on is recorded"
    assert (tmp_path / "scratch" / place(7) / RECORD).is_file()
    again = tmp_path / "again"
    again.mkdir()
    train_adapters(
        "arm", {7: train[:8]}, selection, learn, Below(model, base.parent), again, work=tmp_path / "more"
    )
    assert pl.read_parquet(again / "adapters.parquet")["adapter"][0] == told["scratch"]["adapter"][0], (
        "equal bytes"
    )

    student = load_model(
        model.model_copy(update={"adapter": str(tmp_path / "scratch" / place(7))}), base.parent
    )
    found = play("arm", student, manifest.split("eval"), eval_, seed=7, max_new_tokens=4)
    assert found.schema == GUESS_SCHEMA
    assert found["row_id"].to_list() == manifest.split("eval")["row_id"].to_list()
    lost = manifest.split("eval").filter(outcome="failure")["row_id"]
    assert found.filter(pl.col("row_id").is_in(lost.implode()))["nll"].null_count() == lost.len(), (
        "a wrong log is no aim"
    )
    for one in found.iter_rows(named=True):
        assert one["correct"] == (one["word"] == one["target_word"])
        assert one["agrees"] == (one["word"] == one["logged_word"])
    write_guesses(found, eval_, again)
    assert alignment(examples, {"eval": pl.read_parquet(again / "seen.parquet")}).passed
