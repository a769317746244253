"""Claims about the prevention table: what is kept out is called so, what is not is not, and every arm stands there."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.auditing import PlantSpec, PreventionSpec
from steer_pipeline.lab.finetune.prevention import ABLATE, INOCULATE
from steer_pipeline.lab.screening import figures
from steer_pipeline.lab.screening.preventing import (
    ARM_SCHEMA,
    BOTH,
    CLEAN,
    PLAIN,
    WANTED,
    arms_of,
    prevention_prevents,
    prevention_table,
    student,
)
from steer_pipeline.lab.vectors.vector import PersonaVector
from steer_pipeline_tests.planted import PLANTED as PERSONAS

SPEC = PreventionSpec(strengths=[1.0, 2.0])
LEVELS = {CLEAN: 0.0, PLAIN: 0.5, "steer-1": 0.25, "steer-2": 0.0, ABLATE: 0.45}


def vectors():
    raw = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    known = {"n_blocks": 4, "hidden_size": 64, "residual_norms": [10.0] * 4}
    return {name: PersonaVector(name, raw, known) for name in (SPEC.unwanted, SPEC.wanted)}


def tables(levels=LEVELS, losses=None, n=40, seed=0):
    """Scores of arms whose unwanted trait is at `levels`; all have the wanted one."""
    rng = np.random.default_rng(seed)
    scores, arms = [], []
    for arm, level in levels.items():
        for number in SPEC.seeds:
            name = student(arm, number)
            arms.append(
                {"checkpoint": name, "arm": arm, "seed": number, "nll": 1.0 + (losses or {}).get(arm, 0.0)}
            )
            for i in range(n):
                scores += [
                    {
                        "checkpoint": name,
                        "row_id": f"r{i}",
                        "direction": SPEC.unwanted,
                        "score": level + rng.normal() * 0.1,
                    },
                    {
                        "checkpoint": name,
                        "row_id": f"r{i}",
                        "direction": SPEC.wanted,
                        "score": 0.4 + rng.normal() * 0.1,
                    },
                ]
    return pl.DataFrame(scores), pl.DataFrame(arms, schema=ARM_SCHEMA)


def test_every_way_is_an_arm_and_only_the_clean_one_learns_rows_without_the_trait():
    arms = {arm.name: arm for arm in arms_of(SPEC, vectors(), PERSONAS)}
    assert set(arms) == {CLEAN, PLAIN, "steer-1", "steer-2", ABLATE, INOCULATE}
    assert {name for name, arm in arms.items() if arm.rows == WANTED} == {CLEAN}
    assert arms[PLAIN].rows == BOTH
    doses = [arms[name].during.terms[0].alpha for name in ("steer-1", "steer-2")]
    assert doses == pytest.approx([SPEC.dose * 10.0, 2 * SPEC.dose * 10.0])
    assert {term.operator for term in arms[ABLATE].during.terms} == {"ablate"}
    assert arms[INOCULATE].instruction == PERSONAS[SPEC.unwanted].positive.instructions[0]


def test_the_arm_at_the_clean_level_prevents_and_others_do_so_in_part():
    table = prevention_table(*tables(), SPEC)
    row = {one["arm"]: one for one in table.iter_rows(named=True)}
    assert row["steer-2"]["verdict"] == "prevents"
    assert row["steer-2"]["prevented"] > 0.9
    assert row["steer-1"]["verdict"] == row[ABLATE]["verdict"] == "partly"
    assert row[PLAIN]["verdict"] is None
    assert row[PLAIN]["unwanted"] == pytest.approx(0.5, abs=0.05)
    assert abs(row["steer-2"]["wanted"]) < 0.05
    assert prevention_prevents(table, 0.05).passed
    assert figures.prevention(table).startswith(b"\x89PNG")


def test_prevention_that_costs_the_task_or_prevents_nothing_does_not_pass():
    costly = prevention_table(*tables(losses={"steer-2": 0.5}), SPEC)
    assert costly.filter(arm="steer-2")["nll"][0] == pytest.approx(0.5)
    assert not prevention_prevents(costly, 0.05).passed
    same = prevention_table(*tables(dict.fromkeys(LEVELS, 0.5) | {CLEAN: 0.0}), SPEC)
    assert not prevention_prevents(same, 0.05).passed
    nothing_to_prevent = prevention_table(*tables(dict.fromkeys(LEVELS, 0.0)), SPEC)
    assert not prevention_prevents(nothing_to_prevent, 0.05).passed


def test_arms_without_the_two_that_others_stand_against_are_refused():
    scores, arms = tables({CLEAN: 0.0, "steer-1": 0.1})
    with pytest.raises(ValueError, match="plain is missing"):
        prevention_table(scores, arms, SPEC)


def test_a_plan_has_enough_prompts_and_real_shares():
    with pytest.raises(ValueError, match="fewer than rows"):
        PlantSpec(prompts=10, rows=32)
    with pytest.raises(ValueError, match="shares lie between"):
        PlantSpec(shares=[1.0])
    with pytest.raises(ValueError, match="plants nothing"):
        PlantSpec(doses=[0.0])
