"""Claims about what `steer make analysis` makes, and what it says of names that are no pairs."""

import pytest

from steer_pipeline.campaigns.analysis import ANALYSED, OF_PAIR, Analysis, chosen
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.pilot import Pilot
from steer_pipeline.campaigns.students import Students
from steer_pipeline.catalogue.analysis import CheckpointSpec, PairSpec
from steer_pipeline.partitions import ANALYSIS, EXPERIMENTS

CONTROLS = ("base", "base_resample", "random_direction")


@pytest.fixture
def campaign(monkeypatch):
    """Of one pair, over a store that holds the named assets of all partitions."""

    def of(*stored):
        for made in (Analysis, Students, Pilot):
            monkeypatch.setattr(made, "_stored", lambda self, asset, partition: asset in stored)
        return Analysis(driver=None, pairs=["paranoid"])

    return of


def test_with_released_packs_only_adapters_are_trained_and_no_transfer_is_measured(campaign):
    places = campaign("rewrite_release", "keep_set").places()
    assert [place for place in places if place[0].startswith("student")] == [
        *(("student_adapter", variant) for variant in (*CONTROLS, "paranoid"))
    ]
    assert not {asset for asset, _ in places} & {"rewrite_pack", "student_transfer", "heal_adapter"}
    assert [place for place in places if place[1] == "paranoid" and place[0] in OF_PAIR] == [
        (asset, "paranoid") for asset in OF_PAIR
    ]
    order = [asset for asset, _ in places]
    assert order.index("analysis_basis") < order.index("clean_students") < order.index("model_pair")
    assert order[-len(EXPERIMENTS) :] == EXPERIMENTS
    assert set(ANALYSED) <= set(order)


def test_without_clean_pairs_no_student_is_trained_for_a_checkpoint_that_somebody_else_made(
    campaign, monkeypatch
):
    """A foreign checkpoint should not cost hours of clean students before its first number."""
    spec = PairSpec(checkpoint=CheckpointSpec(path="assets_data/newsroom/model"))
    bare = ANALYSIS.model_copy(update={"clean_pairs": 0, "pairs": {"paranoid": spec}})
    monkeypatch.setattr("steer_pipeline.campaigns.analysis.ANALYSIS", bare)
    places = campaign().places()
    assert not {asset for asset, _ in places} & {"student_adapter", "rewrite_pack", "rewrite_raw"}
    assert ("pair_report", "paranoid") in places


def test_packs_that_nobody_has_released_are_made_first(campaign):
    places = campaign().places()
    assert {("rewrite_pack", variant) for variant in (*CONTROLS, "paranoid")} <= set(places)
    assert places.index(("rewrite_release", "paranoid")) < places.index(("student_adapter", "paranoid"))


def test_a_name_that_is_no_pair_is_told_with_those_that_are():
    assert chosen(["trusting"]) == ["trusting"]
    with pytest.raises(NoSuchName, match="sailor: no pair; the profile has paranoid, trusting"):
        chosen(["sailor"])
