"""Claims about cosines: like with like, and intervals that hold."""

import numpy as np
import pytest

from steer_pipeline.lab.likelihood.cosines import cosine_table, random_cosine
from steer_pipeline.lab.vectors.averaged import AveragedVector, ContrastSums
from steer_pipeline.lab.vectors.vector import PersonaVector
from steer_pipeline_tests.lab.personas.builders import vector

HIDDEN, BLOCKS = 32, 3


def averaged(seed, truth, n_questions=40, noise=1.0):
    """Sums of two rows a side and question around `truth` [blocks, hidden]."""
    rng = np.random.default_rng(seed)
    shape = (n_questions, BLOCKS, HIDDEN)
    up, down = (2 * (mean + noise * rng.standard_normal(shape)) for mean in (truth, 0 * truth))
    counts = np.full(n_questions, 2)
    sums = ContrastSums(
        np.arange(n_questions), up.astype(np.float32), down.astype(np.float32), counts, counts
    )
    metadata = {"n_blocks": BLOCKS, "hidden_size": HIDDEN}
    return AveragedVector(PersonaVector("paranoid", sums.contrast(), metadata), sums)


def truth(seed=0):
    return np.random.default_rng(seed).standard_normal((BLOCKS, HIDDEN))


def at_block(direction, block):
    metadata = {"n_blocks": BLOCKS, "hidden_size": HIDDEN}
    return PersonaVector("paranoid", direction.astype(np.float32)[None], metadata, (block,))


def test_each_row_is_the_cosine_at_its_own_block_and_the_trained_site_is_marked():
    made = averaged(1, truth())
    seeds = {
        41: at_block(truth()[1], 1),
        42: at_block(truth()[1] + 0.5, 1),
        43: at_block(made.vector.at(1), 1),
    }
    table = cosine_table(seeds, made)
    assert table["block"].to_list() == [0, 1, 2]
    assert table["same_site"].to_list() == [False, True, False]
    for block, row in enumerate(table.iter_rows(named=True)):
        a = made.vector.raw[block]
        by_hand = [float(v.raw[0] @ a / np.linalg.norm(v.raw[0]) / np.linalg.norm(a)) for v in seeds.values()]
        assert row["cosine"] == pytest.approx(np.mean(by_hand), abs=1e-6)
        assert (row["seed_low"], row["seed_high"]) == pytest.approx((min(by_hand), max(by_hand)), abs=1e-6)
        assert row["low"] <= row["cosine"] <= row["high"]
    assert table["seed_high"][1] == pytest.approx(1, abs=1e-6)
    assert table["seed_high"][0] < 0.9


def test_the_interval_holds_the_cosine_of_the_true_contrast():
    real, inside = truth(), 0
    site = at_block(real[1] + truth(9)[1], 1)
    wanted = float(site.unit_at(1) @ real[1] / np.linalg.norm(real[1]))
    for run in range(100):
        row = cosine_table({41: site}, averaged(run, real, noise=0.6)).row(1, named=True)
        inside += row["low"] <= wanted <= row["high"]
    assert inside >= 88


def test_seeds_that_differ_widen_the_interval():
    made, real = averaged(1, truth(), noise=0.1), truth()[1]
    alike = {seed: at_block(real + 0.01 * truth(seed)[1], 1) for seed in (41, 42, 43)}
    apart = {seed: at_block(real + 1.0 * truth(seed)[1], 1) for seed in (41, 42, 43)}
    narrow, wide = (cosine_table(seeds, made).row(1, named=True) for seeds in (alike, apart))
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])
    assert narrow["n_seeds"] == 3


def test_random_directions_stay_under_the_band_as_often_as_it_says():
    draws = np.random.default_rng(0).standard_normal((20_000, HIDDEN))
    cosines = np.abs(draws[:, 0] / np.linalg.norm(draws, axis=1))
    assert np.mean(cosines < random_cosine(HIDDEN)) == pytest.approx(0.95, abs=0.006)


def test_a_vector_of_many_blocks_is_not_a_trained_one():
    with pytest.raises(ValueError, match="one block, the same for all, is needed"):
        cosine_table({41: vector(BLOCKS, HIDDEN)}, averaged(1, truth()))
