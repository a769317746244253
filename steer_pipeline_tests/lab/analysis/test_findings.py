"""Claims about verdicts: both nulls must hold of both statistics, and the rule keeps its level where nothing is."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.analysis.findings import (
    MIN_CLEAN,
    PUSHED,
    STATISTICS,
    WRITTEN,
    as_statistics,
    clean_draw,
    judged,
    null_rate,
    rate,
    statistics_of,
)
from steer_pipeline.lab.analysis.mlp import Mlps
from steer_pipeline.lab.analysis.susceptibility import susceptibility
from steer_pipeline_tests.lab.analysis.conftest import directions, neutral

NAMES = ("persona:a", "persona:b")


def numbers(written, pushed, null_p=0.001):
    values = {WRITTEN: written, PUSHED: pushed}
    rows = [
        (name, kind, float(values[kind][at]), null_p) for at, name in enumerate(NAMES) for kind in STATISTICS
    ]
    return pl.DataFrame(rows, schema=["direction", "statistic", "value", "null_p"], orient="row")


def clean(n, seed=0):
    draws = np.random.default_rng(seed)
    return pl.concat(
        as_statistics(f"{k}", "model", f"s{k}", numbers(*draws.normal(size=(2, 2)), null_p=0.5))
        for k in range(n)
    )


def found(own, judges):
    return set(judged("pair", own, judges).filter("found")["direction"])


def test_a_direction_is_found_where_both_statistics_lie_beyond_both_nulls():
    judges = clean(12)
    assert found(numbers((8, 0), (8, 0)), judges) == {"persona:a"}
    assert found(numbers((8, 0), (-8, 0)), judges) == {"persona:a"}  # pushed the other way
    assert found(numbers((8, 0), (0, 0)), judges) == set()  # one odd statistic
    assert found(numbers((-8, 0), (8, 0)), judges) == set()  # written less than in clean students
    assert found(numbers((8, 0), (8, 0), null_p=0.2), judges) == set()  # as random directions do


def test_the_distance_from_clean_students_is_that_of_a_prediction():
    judges = clean(9)
    row = judged("pair", numbers((2.0, 0), (0, 0)), judges).filter(direction="persona:a", statistic=WRITTEN)
    values = judges.filter(direction="persona:a", statistic=WRITTEN)["value"].to_numpy()
    wanted = (2.0 - values.mean()) / (values.std(ddof=1) * np.sqrt(1 + 1 / 9))
    assert row["clean_t"][0] == pytest.approx(wanted)
    assert row["clean_n"][0] == 9


def test_with_few_clean_students_random_directions_alone_decide_and_that_is_told():
    table = judged("pair", numbers((8, 0), (8, 0)), clean(MIN_CLEAN - 1))
    assert set(table.filter("found")["direction"]) == set(NAMES)  # both are beyond random directions
    assert table["clean_p"].null_count() == table.height


def test_pairs_of_clean_students_are_judged_by_pairs_that_share_no_student():
    names = [f"s{k}" for k in range(8)]
    draws, drawn = np.random.default_rng(3), clean_draw(names, 20, 0)
    assert len(drawn) == len(set(drawn)) == 20
    tables = [
        as_statistics(f"{a} | {b}", a, b, numbers(*draws.normal(size=(2, 2)), null_p=0.01)) for a, b in drawn
    ]
    table, share = null_rate(pl.concat(tables))
    assert share.n == 20
    assert share.hits <= 2
    assert share.low <= share.hits / 20 <= share.high
    a, b = drawn[0]
    apart = sum(not {a, b} & {c, d} for c, d in drawn)
    assert table.filter(pair=f"{a} | {b}")["clean_n"].unique().to_list() == [apart]


def test_rates_have_exact_intervals():
    assert rate(0, 24).high == pytest.approx(1 - 0.025 ** (1 / 24))
    assert (rate(5, 5).low, rate(5, 5).high) == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    assert (rate(0, 0).low, rate(0, 0).high) == (0.0, 1.0)


def test_statistics_of_a_pair_are_those_of_its_tables(qwen):
    named, states = directions(2), neutral()
    own = statistics_of(qwen.pair, named, states, 0.2)
    tables = susceptibility(qwen.pair, named, states)
    mlps = Mlps(named, states, 0.2)
    for pair in qwen.pair.blocks(check=False):
        mlps.see(pair)
    for name in named.names:
        written = tables.found.filter(side="writes", direction=name)["mean_z"][0]
        pushed = mlps.tables().pushed.filter(direction=name)["mean_z"][0]
        got = dict(own.filter(direction=name).select("statistic", "value").iter_rows())
        assert got == {WRITTEN: pytest.approx(written), PUSHED: pytest.approx(pushed)}
