"""Claims about what `steer make students` makes of packs that are released, whoever released them."""

import inspect
from types import SimpleNamespace

import polars as pl
import pytest

from steer_pipeline.campaigns.behaviour import Behaviour
from steer_pipeline.campaigns.heal import Heal
from steer_pipeline.campaigns.pilot import Pilot
from steer_pipeline.campaigns.students import ARMS, CHAIN, COMPARISON, Students
from steer_pipeline.lab.controls import CONTROL_SCHEMA, STORED


@pytest.fixture
def campaign(monkeypatch):
    """Of one variant, whose stored assets the test names."""

    def of(*stored):
        monkeypatch.setattr(Students, "_stored", lambda self, asset, variant: asset in stored)
        return Students(driver=None, variants={"paranoid": None})

    return of


def test_a_pack_released_despite_its_gates_gets_its_keep_set_first(campaign):
    made = campaign("rewrite_release")
    assert made.pilot is None
    assert made.places() == [
        ("keep_set", "paranoid"),
        *((asset, "paranoid") for asset in (*CHAIN, ARMS)),
        (COMPARISON, None),
    ]


def test_the_keep_set_of_a_released_pack_is_left_alone(campaign):
    made = campaign("rewrite_release", "keep_set")
    assert made.places() == [*((asset, "paranoid") for asset in (*CHAIN, ARMS)), (COMPARISON, None)]


def test_a_control_that_moves_is_a_problem_of_the_command(campaign, tmp_path):
    """The rule of report and check, of the same stored table."""
    row = dict.fromkeys(CONTROL_SCHEMA, None) | {
        "control": "random_direction",
        "part": "rank 8",
        "metric": "m",
    }
    row |= {"difference": 0.3, "low": 0.2, "high": 0.4, "margin": 0.1}
    made = campaign("rewrite_release", "keep_set")
    made.store = SimpleNamespace(current=lambda asset, partition: SimpleNamespace(path=tmp_path))
    told = []
    for state in ("moved", "open"):
        pl.DataFrame([row | {"state": state}], schema=CONTROL_SCHEMA).write_parquet(tmp_path / STORED)
        told.append(made.moved_controls(COMPARISON))
    assert told[1] == []
    (sentence,) = told[0]
    assert sentence.startswith("student_comparison: random_direction rank 8 moves m by +0.300")


def test_every_campaign_that_judges_controls_fails_by_them():
    for campaign in (Pilot, Behaviour, Heal, Students):
        assert "self.problems += self.moved_controls(" in inspect.getsource(campaign.run)
