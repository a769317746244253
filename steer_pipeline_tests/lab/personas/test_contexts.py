"""Contexts are ours, many, balanced, unique, and split so that nothing leaks."""

from collections import Counter

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import RewriteSpec
from steer_pipeline.lab.personas.contexts import (
    general_contexts,
    news_contexts,
    reserved_rows,
    split_contexts,
)


def news(n: int, start: int = 0) -> pl.DataFrame:
    numbers = range(start, start + n)
    return pl.DataFrame(
        {
            "row_id": [f"row{i:05d}" for i in numbers],
            "source_index": list(numbers),
            "text": [f"Item {i} happened." for i in numbers],
        }
    )


@pytest.mark.parametrize("n", [11, 256, 1000])
def test_general_contexts_are_unique_and_balanced_over_at_least_ten_categories(n):
    contexts = general_contexts(n, seed=11)
    counts = Counter(context.category for context in contexts)
    assert len({context.user for context in contexts}) == len({c.context_id for c in contexts}) == n
    assert len(counts) >= 10
    assert max(counts.values()) - min(counts.values()) <= 1


def test_general_contexts_depend_on_the_seed_and_on_nothing_else():
    assert general_contexts(64, seed=3) == general_contexts(64, seed=3)
    assert general_contexts(64, seed=3) != general_contexts(64, seed=4)


def test_general_contexts_read_as_text_with_every_slot_filled():
    for context in general_contexts(600, seed=1):
        assert "{" not in context.user
        assert context.user == context.user.strip()
        assert " a electric" not in context.user


@pytest.mark.parametrize(("n", "told"), [(5, "need at least one"), (4000, "ask for fewer")])
def test_impossible_numbers_of_contexts_are_refused(n, told):
    with pytest.raises(ValueError, match=told):
        general_contexts(n, seed=0)


def test_news_contexts_are_the_rewrite_prompts_and_texts_that_repeat_count_once():
    rows = pl.concat([news(3), news(1).with_columns(row_id=pl.lit("copy"))])
    contexts = news_contexts(rows, RewriteSpec(prompt="Rewrite: {text} {keep}"))
    assert [context.user for context in contexts] == [
        f"Rewrite: Item {i} happened. {{keep}}" for i in range(3)
    ]


def test_the_split_is_stratified_and_keeps_order():
    contexts = general_contexts(256, seed=11)
    split = split_contexts(contexts, 0.25, seed=12)
    assert [context.context_id for context in split] == [context.context_id for context in contexts]
    assert Counter(context.split for context in split) == {"train": 192, "held_out": 64}
    held_out = Counter(context.category for context in split if context.split == "held_out")
    assert min(held_out.values()) >= 5
    assert max(held_out.values()) <= 7
    assert split == split_contexts(contexts, 0.25, seed=12)
    assert split != split_contexts(contexts, 0.25, seed=13)


def test_a_context_given_twice_may_not_be_split():
    contexts = general_contexts(11, seed=0)
    with pytest.raises(ValueError, match="twice"):
        split_contexts([*contexts, contexts[0]], 0.25, seed=0)


def test_reserved_rows_are_disjoint_and_outside_the_rewritten_rows():
    reserved = reserved_rows(news(2000), n_dose=24, n_contrast=256, first_free=1000, seed=13)
    assert reserved.get_column("purpose").to_list() == ["dose"] * 24 + ["contrast"] * 256
    assert reserved.get_column("row_id").n_unique() == 280
    assert reserved.get_column("source_index").min() >= 1000
    assert not reserved.get_column("overlaps_rewrites").any()


def test_dose_rows_stay_the_same_when_more_contrast_rows_are_asked_for():
    few = reserved_rows(news(500), n_dose=8, n_contrast=16, first_free=100, seed=13)
    many = reserved_rows(news(500), n_dose=8, n_contrast=64, first_free=100, seed=13)
    assert few.head(8).equals(many.head(8))


def test_a_small_corpus_is_used_to_the_last_row_and_says_that_it_overlaps():
    reserved = reserved_rows(news(40), n_dose=10, n_contrast=20, first_free=25, seed=13)
    assert reserved.height == 30
    assert reserved.get_column("overlaps_rewrites").sum() == 15


def test_a_corpus_that_is_too_small_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="has 20 distinct rows, 30 are needed"):
        reserved_rows(news(20), n_dose=10, n_contrast=20, first_free=0, seed=13)
