"""Claims about the rankings that cost little, and about rankings as such."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec, Bm25Method
from steer_pipeline.lab.attribution.scoring.methods import _METHODS, score
from steer_pipeline.lab.attribution.scoring.passes import batches_of
from steer_pipeline.lab.attribution.scoring.ranking import (
    RANKING_COLUMNS,
    RANKING_SCHEMA,
    ScoringError,
    ranking,
)
from steer_pipeline.lab.attribution.scoring.rivals import bm25_scores, random_scores
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline_tests.lab.finetune.rows import spec_of


def test_rds_is_the_cosine_of_position_weighted_states(scoring, base, pool, queries, tmp_path):
    made = score("it", scoring({"it": {"kind": "rds"}}, tuned=spec_of(base)), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)

    def pooled(example):
        with torch.inference_mode():
            states = model.model(torch.tensor([example.ids])).last_hidden_state[0]
        weights = torch.arange(1, len(states) + 1.0)
        return (weights[:, None] * states).sum(0) / weights.sum()

    for example in pool[:3]:
        cosines = [torch.cosine_similarity(pooled(example), pooled(query), dim=0) for query in queries]
        assert made.scores[example.row_id] == pytest.approx(float(max(cosines)), abs=1e-4)


def test_the_loss_is_that_of_transformers(scoring, base, pool, tmp_path):
    made = score("it", scoring({"it": {"kind": "loss"}}, tuned=spec_of(base)), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)
    labels = torch.tensor([[-100] * pool[2].start + list(pool[2].ids[pool[2].start :])])
    with torch.inference_mode():
        expected = model(torch.tensor([pool[2].ids]), labels=labels).loss
    assert made.scores["row2"] == pytest.approx(float(expected), abs=1e-4)
    assert made.numbers["seconds"] > 0
    assert made.numbers["peak_memory_bytes"] > 1 << 20


def test_bm25_by_hand():
    pool = [Example("a", (1, 2, 2), 1), Example("b", (3, 4, 5, 6, 7), 1), Example("c", (1, 8), 1)]
    found = bm25_scores(pool, [Example("q", (2, 2, 9), 1), Example("r", (1, 3), 1)], Bm25Method())
    mean = 10 / 3

    def term(count, length, holders):
        weight = math.log1p((3 - holders + 0.5) / (holders + 0.5))
        return weight * count * 2.5 / (count + 1.5 * (0.25 + 0.75 * length / mean))

    assert found["a"] == pytest.approx((term(2, 3, 1) + term(1, 3, 2)) / 2)
    assert found["b"] == pytest.approx(term(1, 5, 1) / 2)
    assert found["c"] == pytest.approx(term(1, 2, 2) / 2)


def test_length_and_chance_do_not_ask_for_the_pools_order(scoring, pool, tmp_path):
    made = scoring({"length": {"kind": "length"}, "random": {"kind": "random"}})
    turned = scoring(made.settings.methods, pool=pool[::-1])
    for name in ("length", "random"):
        first, second = score(name, made, tmp_path / "a"), score(name, turned, tmp_path / "b")
        assert first.ordered == second.ordered
    longest = score("length", made, tmp_path / "a").ordered[0]
    assert len(next(one.ids for one in pool if one.row_id == longest)) == max(len(one.ids) for one in pool)
    assert random_scores(pool, 1) != random_scores(pool, 2)
    assert all(0 <= value < 1 for value in random_scores(pool, 1).values())


def test_a_ranking_has_every_row_in_the_pools_order_and_ranks_without_gaps():
    made = ranking("it", ["b", "a", "c", "d"], {"a": 1.0, "b": 1.0, "d": 2.0}, {"c": "too long"})
    assert made.table.schema == RANKING_SCHEMA
    assert set(RANKING_COLUMNS) == set(RANKING_SCHEMA)
    assert made.table["row_id"].to_list() == ["b", "a", "c", "d"]
    assert made.ordered[0] == "d"
    assert sorted(made.table["rank"].drop_nulls()) == [1, 2, 3]
    assert made.ordered == ranking("it", ["a", "b", "d"], {"a": 1.0, "b": 1.0, "d": 2.0}).ordered
    assert made.coverage == 0.75


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": float("nan"), "b": 1.0}, "row 'a': its score is nan"),
        ({"a": float("inf"), "b": 1.0}, "row 'a': its score is inf"),
        ({"b": 1.0}, "row 'a' has neither a score nor a reason"),
    ],
)
def test_a_missing_score_never_becomes_zero(scores, message):
    with pytest.raises(ScoringError, match=message):
        ranking("it", ["a", "b"], scores)


def test_batches_hold_every_row_once_within_the_budget(pool):
    batches = batches_of(pool, 70)
    assert sorted(one.row_id for batch in batches for one in batch) == sorted(one.row_id for one in pool)
    assert all(len(batch) == 1 or max(len(one.ids) for one in batch) * len(batch) <= 70 for batch in batches)
    assert batches == batches_of(pool[::-1], 70)
    assert len(batches_of(pool, 1)) == len(pool)


def test_every_kind_of_method_has_a_function_and_the_default_needs_no_bergson():
    settings = AttributionScoringSpec()
    assert {method.kind for method in settings.methods.values()} <= set(_METHODS)
    assert all(getattr(method, "back_end", "native") == "native" for method in settings.methods.values())
    with pytest.raises(ValueError, match="kind"):
        AttributionScoringSpec(methods={"it": {"kind": "guess"}})
