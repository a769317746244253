"""Claims about MAGIC: its scores are what a training really does, and a killed one goes on to the same scores."""

import pytest
import torch

from steer_pipeline.catalogue.attribution_scoring import GradientMethod, MagicMethod, QualitySpec
from steer_pipeline.lab.attribution.scoring.gradients import row_nll
from steer_pipeline.lab.attribution.scoring.methods import score
from steer_pipeline.lab.attribution.scoring.quality import (
    HALVES,
    SMALL,
    Retrainings,
    agreement,
    effect,
    lds,
    protocol,
    recall,
    subsets,
    table,
)
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError, ranking
from steer_pipeline.lab.attribution.scoring.replay import Replay
from steer_pipeline_tests.lab.attribution.scoring.conftest import REPLAY

RANDOM = {"random": {"kind": "random"}}
SPEC = QualitySpec(n_subsets=16, small_drop=0.1)


@pytest.fixture(scope="module")
def replay(scoring):
    return scoring(RANDOM).replay()


@pytest.fixture(scope="module")
def exact(replay):
    """Minus the derivative of the queries' NLL by each row's weight."""
    found = -replay.influences()
    return ranking(
        "magic",
        [one.row_id for one in replay.train_rows],
        dict(zip(ids(replay), found.tolist(), strict=True)),
    )


@pytest.fixture(scope="module")
def retrainings(replay, tmp_path_factory):
    return Retrainings(replay, tmp_path_factory.mktemp("retrained") / "record.txt")


@pytest.fixture(scope="module")
def retrained(retrainings):
    return retrainings.over(SPEC)


def ids(replay):
    return [one.row_id for one in replay.train_rows]


def loss_at(replay, weights):
    nll, tokens = replay.query_losses(replay.trained(weights))
    return float(nll.sum() / tokens.sum())


@pytest.mark.parametrize("row", [1, 6])
def test_a_score_is_what_a_little_more_of_the_row_does_to_the_queries_loss(replay, exact, row):
    weights = torch.ones(len(replay.train_rows))
    ends = []
    for step in (0.05, -0.05):
        weights[row] = 1 + step
        ends.append(loss_at(replay, weights))
    assert exact.scores[ids(replay)[row]] == pytest.approx(-(ends[0] - ends[1]) / 0.1, rel=0.05)


def test_training_starts_and_ends_the_same_and_learns(scoring, replay):
    again = scoring(RANDOM).replay()
    assert torch.equal(again.start, replay.start)
    assert torch.equal(again.trained().theta, replay.trained().theta)
    assert loss_at(replay, None) < loss_at(replay, torch.zeros(len(replay.train_rows)))


def test_each_epoch_holds_each_row_once_and_the_last_batch_is_filled_without_weight(replay):
    order = torch.cat(replay.steps)
    assert len(replay.steps) == 5  # 20 rows in batches of 4
    assert sorted(order[:10].tolist()) == list(range(10))
    longer = Replay.__new__(Replay)
    longer.recipe, longer.train_rows = REPLAY.model_copy(update={"epochs": 1}), replay.train_rows
    assert [int((step < 0).sum()) for step in longer._steps()] == [0, 0, 2]


def test_the_rate_warms_up_from_zero_and_falls_to_almost_nothing(replay):
    rates = [replay.rate(step) for step in range(5)]
    assert rates[0] == 0.0
    assert rates[1] == REPLAY.learning_rate
    assert rates[1] > rates[2] > rates[3] > rates[4] > 0


def test_killed_on_the_way_back_it_goes_on_to_the_same_scores(replay, exact, tmp_path, monkeypatch):
    back, calls = Replay._back, []

    def killed(self, *args):
        calls.append(args[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return back(self, *args)

    monkeypatch.setattr(Replay, "_back", killed)
    with pytest.raises(KeyboardInterrupt):
        replay.influences(tmp_path / "way_back.pt")
    again = replay.influences(tmp_path / "way_back.pt")
    assert calls == [4, 3, 2, 3, 2, 1, 0][: len(calls)]
    assert (-again).tolist() == list(exact.scores.values())


def test_a_training_that_answers_in_no_smooth_way_is_not_scored(scoring, replay, tmp_path):
    assert replay.metasmoothness(0.01) > 0.5
    with pytest.raises(ScoringError, match=r"metasmoothness is 0\.\d+, below 1: .* raise replay.eps_root"):
        score("it", scoring({"it": MagicMethod(min_metasmoothness=1)}), tmp_path)


def test_a_training_that_diverges_says_so(replay, monkeypatch):
    monkeypatch.setattr(replay, "start", replay.start * float("nan"))
    with pytest.raises(ScoringError, match="diverged; lower replay.learning_rate"):
        replay.trained()


def test_a_method_may_read_the_end_of_the_training_that_judges_it(scoring, replay, queries, tmp_path):
    """Products of gradients there, row by row, computed by another way than the method's own."""
    plain = GradientMethod(projection=0, unit_norm=False, preconditioning="none", model="replay")
    made = scoring({"it": plain, "adapter": plain.model_copy(update={"model": "adapter"})}, loss="sum")
    found = score("it", made, tmp_path).scores
    state = replay.trained()

    def gradient(example):
        theta = state.theta.detach().requires_grad_()
        nll, _ = row_nll(replay._at(theta), replay._collated([example]))
        return torch.autograd.grad(nll.sum(), theta)[0]

    asked = sum(gradient(one) for one in queries) / len(queries)
    expected = [float(gradient(one) @ asked) for one in replay.train_rows]
    own = [found[name] for name in ids(replay)]
    assert own == pytest.approx(expected, rel=1e-3, abs=1e-6)
    other = score("adapter", made, tmp_path).scores
    assert [other[name] for name in ids(replay)] != pytest.approx(own, rel=0.1)


# ---------------------------------------------------------------------------------------------- quality


def test_magic_foretells_trainings_without_some_rows_and_chance_does_not(retrained, exact, scoring, tmp_path):
    chance = score("random", scoring(RANDOM), tmp_path)
    found = {name: lds(one, retrained, SMALL) for name, one in (("magic", exact), ("random", chance))}
    assert found["magic"].estimate > 0.9
    assert found["magic"].low > 0.7
    assert abs(found["random"].estimate) < found["magic"].low
    assert lds(exact, retrained, HALVES).estimate > 0.5
    flipped = ranking("flipped", list(exact.scores), {row: -value for row, value in exact.scores.items()})
    assert lds(flipped, retrained, SMALL).estimate == pytest.approx(-found["magic"].estimate)


def test_trainings_are_made_once_and_killed_ones_go_on(retrainings, retrained, monkeypatch):
    again = Retrainings(retrainings.replay, retrainings._known._path)
    monkeypatch.setattr(Replay, "trained", lambda *_: pytest.fail("trained again"))
    assert again.over(SPEC).equals(retrained)


def test_subsets_depend_on_ids_and_seed_and_not_on_the_order_of_rows():
    names = [f"r{i}" for i in range(40)]
    one = subsets(names, 0.05, 6, 1)
    assert one == subsets(names[::-1], 0.05, 6, 1)
    assert one != subsets(names, 0.05, 6, 2)
    assert [len(dropped) for dropped in one] == [2] * 6
    assert len(subsets(names, 0.5, 6, 1)[0]) == 20


def test_without_the_first_rows_queries_lose_more_than_without_random_ones(exact, retrainings):
    found = effect(exact, retrainings, SPEC.model_copy(update={"top": 0.3}))
    assert found.estimate > 0
    assert found.n == 3


def test_recall_counts_planted_rows_among_as_many_first_ones():
    names = [f"r{i}" for i in range(10)]
    made = ranking("it", names, {name: -float(i) for i, name in enumerate(names)}, {"r9": "damaged"})
    share, area = recall(made, {"r0", "r1", "r2", "r9"})
    assert share.estimate == 0.75
    assert share.low < 0.75 < share.high
    assert area.estimate == 1.0  # of the nine that have scores
    with pytest.raises(ScoringError, match="0 of 10 rows are planted"):
        recall(made, {"elsewhere"})


def test_the_table_has_a_row_a_method_and_the_protocol_says_what_was_done(exact, retrained, replay):
    found = table({"magic": exact}, retrained, {"row1", "row2"}).row(0, named=True)
    assert found["method"] == "magic"
    assert found["lds_small_drop_low"] <= found["lds_small_drop"] <= found["lds_small_drop_high"]
    assert {"seconds", "peak_memory_bytes", "lds_halves", "recall", "auc_high"} <= set(found)
    told = protocol(replay, SPEC)
    assert told["left_out"] == {SMALL: 0.1, HALVES: 0.5}
    assert (told["steps"], told["rows"], told["subsets"]) == (5, 10, 16)
    with pytest.raises(ScoringError, match="at least 8"):
        lds(exact, retrained.head(5), SMALL)


def test_two_rankings_agree_where_only_arithmetic_differs():
    names = [f"r{i}" for i in range(6)]
    one = ranking("one", names, {name: float(i // 2) for i, name in enumerate(names)})
    other = ranking(
        "other", names, {row: value + 1e-7 * (i % 2) for i, (row, value) in enumerate(one.scores.items())}
    )
    assert agreement(one, other) == pytest.approx(
        {"rows": 6, "largest_difference": 1e-7, "relative_difference": 5e-8, "spearman": 1.0}
    )
