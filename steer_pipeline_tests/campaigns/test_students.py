"""Claims about what `steer make students` makes of packs that are released, whoever released them."""

from types import SimpleNamespace

import pytest

from steer_pipeline.campaigns.students import ARMS, CHAIN, COMPARISON, Students
from steer_pipeline.lab.students import claims
from steer_pipeline.lab.verdict import Verdict


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


def test_a_control_that_moves_is_a_problem_of_the_command(campaign, monkeypatch, tmp_path):
    verdicts = [
        Verdict("controls_stay", False, "moved: random_direction"),
        Verdict("traits_travel", False, "none"),
    ]
    monkeypatch.setattr(claims, "comparison_verdicts", lambda folder, variants: verdicts)
    made = campaign("rewrite_release", "keep_set")
    made.store = SimpleNamespace(current=lambda asset, partition: SimpleNamespace(path=tmp_path))
    assert made.moved_controls() == ["student_comparison: controls_stay: moved: random_direction"]
    verdicts[0] = Verdict("controls_stay", True, "none")
    assert made.moved_controls() == []
