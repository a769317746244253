"""Claims about aim and side effects: what moves along the goal is aim, the rest is side, and random sets the floor."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.rewrites.steerability import AIM_SCHEMA, MATRIX_SCHEMA, steerability

AXES = ("calm", "formal", "paranoid")
ROWS = 60


def scores(**shifts):
    """Base scores with noise, and variants: base plus a shift an axis (standard deviations) and a little noise."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.0, 2.0, (ROWS, len(AXES)))
    tables = {"base": base}
    tables |= {
        name: base + 2.0 * np.array(shift) + rng.normal(0, 0.2, base.shape) for name, shift in shifts.items()
    }
    return pl.DataFrame(
        [
            {"row_id": f"r{i}", "variant": name, "axis": axis, "score": float(table[i, j])}
            for name, table in tables.items()
            for i in range(ROWS)
            for j, axis in enumerate(AXES)
        ]
    )


def tables(frame, targets, band=("random_1", "random_2")):
    return steerability(frame, targets, base="base", band=band, seed=0)


def test_movement_along_the_aim_is_told_from_movement_beside_it():
    frame = scores(paranoid=(0.3, 0.0, 1.0), random_1=(0.05, 0, 0.05), random_2=(-0.05, 0.02, 0))
    matrix, aims = tables(frame, {"paranoid": {"paranoid": 1}})
    assert matrix.schema == MATRIX_SCHEMA
    assert aims.schema == AIM_SCHEMA
    row = aims.filter(variant="paranoid").row(0, named=True)
    assert row["aim"] == pytest.approx(1.0, abs=0.15)
    assert row["side"] == pytest.approx(0.3, abs=0.1)
    assert row["aim_low"] < row["aim"] < row["aim_high"]
    assert row["random_side"] < row["side"]


def test_an_aim_downwards_counts_as_aim():
    frame = scores(trusting=(0, 0, -0.8), random_1=(0, 0, 0), random_2=(0, 0, 0))
    _, aims = tables(frame, {"trusting": {"paranoid": -1}})
    assert aims.filter(variant="trusting")["aim"][0] == pytest.approx(0.8, abs=0.15)


def test_two_aims_are_one_direction():
    frame = scores(both=(0, 1.0, 1.0), random_1=(0, 0, 0), random_2=(0, 0, 0))
    _, aims = tables(frame, {"both": {"paranoid": 1, "formal": 1}})
    row = aims.filter(variant="both").row(0, named=True)
    assert row["aim"] == pytest.approx(np.sqrt(2), abs=0.2)
    assert row["side"] < 0.2


def test_what_random_directions_do_is_the_floor():
    frame = scores(weak=(0, 0, 0.1), random_1=(0, 0, 0.3), random_2=(0, 0, -0.3))
    matrix, aims = tables(frame, {"weak": {"paranoid": 1}})
    assert not matrix.filter(variant="weak", axis="paranoid")["beyond_band"][0]
    assert aims.filter(variant="random_1")["aim"][0] is None


def test_a_scorer_that_says_the_same_of_every_text_is_an_error():
    frame = scores(a=(0, 0, 1)).with_columns(
        score=pl.when(pl.col("axis") == "calm").then(0.0).otherwise(pl.col("score"))
    )
    with pytest.raises(ValueError, match="axis 'calm': base scores the same on every row"):
        tables(frame, {}, band=())


def test_other_rows_and_unknown_aims_are_named():
    frame = scores(a=(0, 0, 1))
    with pytest.raises(ValueError, match="variant 'a' aims at 'joy'"):
        tables(frame, {"a": {"joy": 1}}, band=())
    with pytest.raises(ValueError, match="variant 'a' and 'base' have other rows"):
        tables(frame.filter(~((pl.col("variant") == "a") & (pl.col("row_id") == "r3"))), {}, band=())


def test_a_band_of_fewer_rows_is_held_against_the_same_rows():
    """Over all items the variant moves beyond the band; on those that the directions rewrote it moves as they do."""
    frame = scores(a=(0, 0, 1.0), random_1=(0, 0, -0.3), random_2=(0, 0, 0.3))
    first = pl.col("row_id").is_in([f"r{i}" for i in range(8)])
    held_back = pl.when((pl.col("variant") == "a") & first).then(pl.col("score") - 2.0).otherwise("score")
    part = frame.filter(~pl.col("variant").str.starts_with("random") | first)
    for given, outside in ((part, True), (part.with_columns(score=held_back), False)):
        matrix, aims = tables(given, {"a": {"paranoid": 1}})
        row = matrix.filter(variant="a", axis="paranoid").row(0, named=True)
        assert row["beyond_band"] is outside
        assert row["band_low"] < 0 < row["band_high"] < row["moved"]
        assert dict(aims.select("variant", "n").iter_rows()) == {"a": ROWS, "random_1": 8, "random_2": 8}
