"""The table of all arms from stored rows: scales that tell nothing are no evidence that nothing moved."""

import polars as pl
import pytest

from steer_pipeline.catalogue import load_profile
from steer_pipeline.catalogue.healing import HealArmSpec
from steer_pipeline.lab.heal.evaluating import SHOWN, Evaluation
from steer_pipeline.lab.heal.stage import make_stage, off_target_is_heard
from steer_pipeline.lab.heal.verdicts import CONTROL, CONTROL_MOVES, HEALED, STEERED

N = 12
PROFILE = load_profile("newsroom").heal


def evaluation(
    arm: str, target: float, cheerful: float, seed: int | None = None, config: dict | None = None
) -> Evaluation:
    """Texts of one arm: what it shows of the target, and of another scale in its first text."""
    texts = dict.fromkeys(SHOWN, "text") | {"arm": arm, "made_with": "recipe"}
    rows = [
        texts
        | {"seed": seed, "row_id": f"row-{number}", "number": 0, "truncated": False, "n_tokens": 8}
        | {"target": target + 0.01 * (number % 3), "off_target_cheerful": cheerful * (number == 0)}
        | {"off_target_formal": 0.1 * number, "loop_score": 0.0, "kl": target}
        for number in range(N)
    ]
    return Evaluation(pl.DataFrame(rows, schema_overrides={"seed": pl.Int64}), None, config)


def trained(arm: str, moves: list[float], **settings) -> Evaluation:
    """Students of one arm, one a seed, by what they move the target."""
    config = HealArmSpec(**settings).model_dump(mode="json")
    rows = [evaluation(arm, one, 0.5, seed).rows for seed, one in enumerate(moves, 71)]
    return Evaluation(pl.concat(rows), None, config)


def test_what_an_arm_learns_makes_it_a_control_whatever_it_is_called():
    """An arm of random directions under another name was judged as a healed one, and could be called good."""
    stage = make_stage(
        {
            "base": evaluation("base", 0.0, 0.0),
            "steered": evaluation("steered", 0.5, 0.5),
            "nll": trained("nll", [0.5, 0.5, 0.5]),
            "chance": trained("chance", [0.0, 0.1, 0.9, 0.2], direction="random"),
            "own_words": trained("own_words", [0.5, 0.5, 0.5], texts="base"),
        },
        PROFILE,
        left_out={},
    )
    stages = {row["arm"]: row["stage"] for row in stage.tables.table.iter_rows(named=True)}
    assert stages == {"steered": STEERED, "nll": HEALED, "chance": CONTROL, "own_words": CONTROL}
    margins = dict(stage.tables.control_shifts.select("control", "margin").iter_rows())
    assert margins["chance"] == pytest.approx(0.408, abs=0.01), "the spread of its directions"
    assert margins["own_words"] < margins["chance"]
    assert stage.tables.row("own_words")["verdict"] == CONTROL_MOVES


@pytest.mark.parametrize(("shown", "judged"), [(0.0, ["formal"]), (0.5, ["cheerful", "formal"])])
def test_a_scale_that_says_the_same_of_every_text_is_left_out_and_told(shown, judged):
    """A real model never wrote one marker word of two scales, and the table said that both stayed at zero."""
    arms = {"base": evaluation("base", 0.0, 0.0), "steered": evaluation("steered", 0.5, shown)}
    stage = make_stage(arms, PROFILE, left_out={})
    silent = sorted({"cheerful", "formal"} - set(judged))
    told = off_target_is_heard(stage)
    assert told.passed == (not silent)
    assert all(f"{name}: the same score in all {2 * N} texts" in told.message for name in silent)
    row = stage.tables.row("steered")
    assert row["off_name"] in judged
    assert "off_target_cheerful" in stage.texts.columns, "shown, though nobody is judged by it"
