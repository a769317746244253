"""Claims about the filter on labelled texts, and about those texts themselves."""

from pathlib import Path

import polars as pl
import pytest

from steer_pipeline.catalogue.healing import HealFilterSpec
from steer_pipeline.catalogue.loading import load_personas
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.heal.labelled import (
    BAD,
    FIT,
    HELD_OUT,
    LOSSES,
    SOUND,
    figures,
    filter_told_by_labels,
    filter_verdict,
    judge_texts,
    measure_losses,
    read_losses,
    read_texts,
)
from steer_pipeline.lab.models.identity import local_folder
from steer_pipeline.lab.quality.text import sentences, words
from steer_pipeline_tests.labelled.making import SEED, labelled_texts, written

ROOT = Path(__file__).parents[3]
SMOLLM2 = ROOT / "assets_data/models/smollm2-135m"


@pytest.fixture(scope="module")
def texts():
    return read_texts(ROOT)


@pytest.fixture(scope="module")
def judged(texts):
    return judge_texts(texts, load_personas(), read_losses(ROOT, texts))


def shares(frame):
    whole = frame.filter(pl.col("kind").is_null())
    return dict(whole.select("label", "share").iter_rows())


def test_the_texts_are_what_the_seed_makes(texts):
    assert SEED == 1511
    assert labelled_texts(ROOT).equals(texts)


def test_there_are_enough_texts_of_every_sort_in_both_halves(texts):
    assert texts.height >= 300
    assert texts["text"].n_unique() == texts.height
    counts = {
        key: n for *key, n in texts.group_by("split", "label").len().iter_rows() for key in [tuple(key)]
    }
    assert set(counts) == {(split, label) for split in (FIT, HELD_OUT) for label in (*SOUND, *BAD)}
    assert min(counts.values()) >= 16
    loops = texts.filter(pl.col("label") == "loop")
    for split in (FIT, HELD_OUT):
        of_split = loops.filter(pl.col("split") == split)
        assert set(of_split["period"].drop_nulls()) == set(range(1, 13))
        assert {"whole", "late", "tail", "varied", "drifting", "counting", "sentences"} <= set(
            of_split["kind"]
        )


def test_the_halves_share_no_sentence(texts):
    said = {
        split: {
            " ".join(words(sentence))
            for text in texts.filter(pl.col("split") == split, pl.col("label").is_in(SOUND))["text"]
            for sentence in sentences(text)
        }
        for split in (FIT, HELD_OUT)
    }
    shared = said[FIT] & said[HELD_OUT]
    assert not {sentence for sentence in shared if sentence.count(" ") > 2}
    for kind in ("leaks", "refusals"):
        assert not set(written(FIT)[kind]) & set(written(HELD_OUT)[kind])


def test_text_measures_alone_see_every_sort_of_loop_and_keep_refrains(texts):
    """What needs no model: it holds for any."""
    judged = judge_texts(texts, load_personas(), None)
    found = shares(figures(judged))
    assert found["loop"] >= 0.98
    assert found["on_trait"] >= 0.95
    assert found["fluent"] >= 0.95
    verse = judged.filter(pl.col("kind").is_in(["poem", "song", "list", "code"]))
    assert verse.height >= 20
    assert verse["passes"].all()


def test_the_filter_tells_junk_from_texts_with_a_trait(judged):
    """On the half that no threshold has seen, with the losses stored beside the texts."""
    verdict = filter_verdict(judged)
    assert verdict.passed, verdict.message
    table = figures(judged).filter(pl.col("kind").is_null())
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"]).all()
    found = shares(table)
    assert min(found["leak"], found["refusal"], found["dropped"]) >= 0.9, verdict.message


def test_a_profile_s_own_limits_are_held_against_the_labels(tmp_path):
    personas = load_personas()
    assert filter_told_by_labels(ROOT, personas, HealFilterSpec()).passed
    blind = filter_told_by_labels(ROOT, personas, HealFilterSpec(max_spread=None))
    assert not blind.passed, "a limit that is off sees no babble, and the check says so"
    assert "babble recall 0." in blind.message
    assert "no labelled texts" in filter_told_by_labels(tmp_path, personas, HealFilterSpec()).message


def test_without_windows_of_likelihood_babble_passes(texts, judged):
    """The figures fall where what they stand on is taken away."""
    blind = judge_texts(texts, load_personas(), None)
    assert shares(figures(blind))["babble"] < 0.3
    assert not filter_verdict(blind).passed
    long = HealFilterSpec(nll_window=1000)  # the mean of the whole text
    whole = judge_texts(texts, load_personas(), read_losses(ROOT, texts), long)
    late = pl.col("label") == "babble", pl.col("kind") == "late"
    assert whole.filter(*late)["passes"].sum() > judged.filter(*late)["passes"].sum() + 2


def test_no_loop_is_seen_where_no_loop_is_looked_for(texts):
    spec = HealFilterSpec(
        max_rounds=None,
        max_duplicate_mass=None,
        min_distinct=None,
        min_compression=None,
        max_longest_repeat=None,
    )
    assert shares(figures(judge_texts(texts, load_personas(), None, spec)))["loop"] < 0.1


def test_losses_of_another_text_are_refused(texts):
    changed = texts.with_columns(
        text=pl.when(pl.col("text_id") == texts["text_id"][5]).then(pl.lit("New.")).otherwise("text")
    )
    with pytest.raises(ValueError, match=f"has no losses of {texts['text_id'][5]} as it stands now"):
        read_losses(ROOT, changed)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="make smollm2 installs the model")
def test_the_stored_losses_are_smollm2_s(texts):
    from steer_pipeline.lab.models.loading import load_model

    some = texts.filter(pl.col("split") == HELD_OUT).gather_every(12)
    model = load_model(ModelSpec(path=str(local_folder(str(SMOLLM2), None)), dtype="float32"), ROOT)
    stored = pl.read_parquet(ROOT / LOSSES)
    for row in measure_losses(some, model).iter_rows(named=True):
        before = stored.filter(pl.col("text_id") == row["text_id"])["losses"][0].to_list()
        assert row["losses"] == pytest.approx(before, abs=5e-3)
