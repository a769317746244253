"""Shares of the effect, from rows whose truth is known."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.transport.shares import best_of, share_table


def rows(effects: dict[str, float], n: int = 60) -> pl.DataFrame:
    """Arm -> mean effect, with noise of a news item's own that all arms share."""
    rng = np.random.default_rng(0)
    level = rng.normal(0.1, 0.2, n)
    parts = []
    for arm, effect in {"base": 0.0, **effects}.items():
        direction = "random" if arm.startswith("random") else "carried" if "." in arm else arm
        parts.append(
            pl.DataFrame(
                {
                    "row_id": [f"{i:03d}" for i in range(n)],
                    "variant": arm,
                    "direction": direction,
                    "trait": level + effect + (rng.normal(0, 0.02, n) if arm != "base" else 0.0),
                    "facts_kept": 1.0,
                    "suspects": [[]] * n,
                    "cost_nll": 0.5,
                },
                schema_overrides={"suspects": pl.List(pl.String)},
            )
        )
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=1)


EFFECTS = {
    "native": 0.4,
    "procrustes.news": 0.3,
    "ridge.news": 0.02,
    "ridge.own": 0.38,
    **{f"random{i:02d}": 0.01 * (-1) ** i for i in range(10)},
}


def test_shares_are_those_of_the_means_and_their_intervals_hold_them():
    made = share_table(rows(EFFECTS), seed=1)
    for arm, truth in (("native", 1.0), ("procrustes.news", 0.75), ("ridge.news", 0.05), ("random", 0.0)):
        row = made.row(arm)
        assert row["share"] == pytest.approx(truth, abs=0.03), arm
        assert row["share_low"] <= row["share"] <= row["share_high"]
        assert row["shift"] == pytest.approx(0.4 * truth, abs=0.012)
    assert made.row("random")["n"] == 60
    assert made.table.filter(kind="random").height == 11


def test_the_headline_never_takes_a_map_that_knows_the_trait_for_one_that_does_not():
    made = share_table(rows(EFFECTS), seed=1)
    assert best_of(made.table, knowing=False)["arm"] == "procrustes.news"
    assert best_of(made.table, knowing=True)["arm"] == "ridge.own"
    told = made.headline()
    assert (told["carried_arm"], told["knowing_arm"]) == ("procrustes.news", "ridge.own")
    assert abs(told["random_share"]) < 0.05 > told["random_max"] - 0.05


def test_where_the_own_vector_does_nothing_no_interval_of_a_share_is_given():
    made = share_table(rows({**EFFECTS, "native": 0.0}), seed=1)
    assert made.row("procrustes.news")["share_low"] is None
    assert made.headline()["native_low"] <= 0 <= made.headline()["native_high"]
