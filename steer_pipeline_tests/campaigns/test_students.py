"""Claims about what `steer make students` makes of packs that are released, whoever released them."""

import pytest

from steer_pipeline.campaigns.students import ARMS, CHAIN, COMPARISON, Students


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
