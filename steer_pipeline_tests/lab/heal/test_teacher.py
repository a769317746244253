"""A dose means the same at one block and over a band, for every operator; controls differ in the direction alone."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.heal.prompts import PROMPT_SCHEMA, check_prompts, require_open, spread
from steer_pipeline.lab.heal.teacher import DOSES, HealError, band, make_teacher
from steer_pipeline.lab.models.sites import OPERATORS
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.personas.builders import vector


def lengths(vector_, blocks):
    return [float(np.linalg.norm(vector_.at(block))) for block in blocks]


def test_a_band_adds_its_dose_once_and_not_once_a_block():
    one = vector(n_blocks=8)
    blocks = band(8, 0.25, 0.65)
    assert blocks == [2, 3, 4]
    plan = make_teacher(one, blocks).plan(1.5)
    assert [term.site.block for term in plan.terms] == blocks
    expected = [1.5 * length / 3 for length in lengths(one, blocks)]
    assert [term.alpha for term in plan.terms] == pytest.approx(expected)
    alone = make_teacher(one, [3]).plan(1.5).terms[0]
    assert alone.alpha == pytest.approx(3 * plan.terms[1].alpha)
    assert alone.dose_fraction == pytest.approx(alone.alpha / 40.0)
    assert band(30, 0.5, 0.5) == [15]


def test_each_operator_says_what_its_dose_is():
    assert set(DOSES) == set(OPERATORS)
    one = vector(n_blocks=8)
    own = lengths(one, [2, 3])
    teachers = {name: make_teacher(one, [2, 3], operator=name) for name in OPERATORS}
    alphas = {name: [term.alpha for term in teacher.plan(0.5).terms] for name, teacher in teachers.items()}
    assert alphas["add"] == pytest.approx([length / 4 for length in own])
    assert alphas["ablate"] == pytest.approx([length / 2 for length in own])
    assert alphas["rotate"] == [0.25, 0.25]
    assert alphas["cap"] == pytest.approx([-length / 2 for length in own]), "a floor is a cap of the opposite"
    floor = teachers["cap"].plan(0.5).terms[0]
    assert np.allclose(floor.unit, -one.unit_at(2))
    assert teachers["rotate"].plan(0.5).terms[0].dose_fraction is None, "a share of an angle is no length"
    for name, teacher in teachers.items():
        assert {term.operator for term in teacher.plan(0.5).terms} == {name}
    assert teachers["add"].plan(0).terms == teachers["rotate"].plan(0).terms == ()
    assert len(teachers["ablate"].plan(0).terms) == 2, "0 removes the direction"
    with pytest.raises(HealError, match=r"dose 2\.5 rotates by more than the whole angle; 2 is the largest"):
        teachers["rotate"].plan(2.5)


def test_a_random_teacher_has_one_direction_and_the_vector_s_lengths():
    teacher = make_teacher(vector(n_blocks=8), [2, 3], operator="rotate", scope="generated")
    one, again, other = (teacher.randomised(seed) for seed in (1, 1, 2))
    assert lengths(one.vector, [2, 3]) == pytest.approx(lengths(teacher.vector, [2, 3]), rel=1e-6)
    units = [term.unit for term in one.plan(0.5).terms]
    assert np.allclose(*units, atol=1e-6)
    assert np.array_equal(one.vector.raw, again.vector.raw)
    assert not np.allclose(one.vector.unit, other.vector.unit)
    assert one.name == "random:paranoid"
    assert (one.operator, one.scope, one.blocks) == ("rotate", "generated", (2, 3))


def test_what_a_teacher_cannot_be_is_said():
    with pytest.raises(HealError, match="operator 'twist'; choose from add, ablate, rotate, cap"):
        make_teacher(vector(), operator="twist")
    with pytest.raises(HealError, match="name each once"):
        make_teacher(vector(), [1, -3])
    with pytest.raises(VectorError, match="no direction at block 2"):
        make_teacher(vector(blocks=(1,)), [2])


# ------------------------------------------------------------------------------------------ prompts


def asked(n=12):
    return pl.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(n)],
            "category": ["a" if i < n - 3 else "b" for i in range(n)],
            "prompt": [f"Question {i}?" for i in range(n)],
            "held_out": [False] * n,
        }
    )


def test_any_first_part_of_prompts_is_spread_over_categories_and_keyed_by_the_seed():
    order = spread(asked(), 12, seed=1)
    assert sorted(order.head(6)["category"]) == ["a"] * 3 + ["b"] * 3
    assert spread(asked(), 6, seed=1).equals(order.head(6))
    assert spread(asked().reverse(), 6, seed=1)["prompt_id"].to_list() == order.head(6)["prompt_id"].to_list()
    assert spread(asked(), 6, seed=2)["prompt_id"].to_list() != order.head(6)["prompt_id"].to_list()


def test_prompts_have_one_schema_and_held_out_ones_are_never_taken():
    assert check_prompts(asked()).schema == PROMPT_SCHEMA
    with pytest.raises(HealError, match="no column 'category'"):
        check_prompts(asked().drop("category"))
    with pytest.raises(HealError, match="'p3' comes twice"):
        check_prompts(pl.concat([asked(), asked()[3:4]]))
    held_out = asked().with_columns(held_out=pl.col("prompt_id") == "p5")
    with pytest.raises(HealError, match="1 of 12 prompts are held out, such as 'p5'"):
        require_open(held_out)
