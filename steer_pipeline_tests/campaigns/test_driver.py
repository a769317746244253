"""The driver runs parts of a graph, knows what is out of date, and cleans up after drivers that were killed."""

import os
import signal
import time

import dagster as dg
import pytest
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.test_utils import create_run_for_test

from steer_pipeline.campaigns import driver as driver_module
from steer_pipeline.campaigns.campaign import Campaign, carried_out
from steer_pipeline.campaigns.driver import DRIVER_TAG, Driver, open_driver
from steer_pipeline.campaigns.errors import NotHere, Stopped

LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c"])
LOUD = dg.StaticPartitionsDefinition(["b_loud", "c_loud"])
CONTENT = {"a": "1", "b": "1", "c": "1"}
GOOD = {"b_loud": True, "c_loud": True}


@dg.asset(partitions_def=LETTERS, code_version="1", backfill_policy=dg.BackfillPolicy.single_run())
def letter(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Its content is what the test says; one run makes many."""
    seen = "".join(CONTENT[key] for key in sorted(context.partition_keys))
    return dg.MaterializeResult(data_version=dg.DataVersion(seen))


@dg.asset(
    partitions_def=LOUD,
    deps=[
        dg.AssetDep(letter, partition_mapping=dg.StaticPartitionMapping({"b": ["b_loud"], "c": ["c_loud"]}))
    ],
    code_version="1",
)
def loud() -> dg.MaterializeResult:
    """Reads one letter."""
    return dg.MaterializeResult(data_version=dg.DataVersion("loud"))


@dg.asset_check(asset=loud, blocking=True, partitions_def=LOUD)
def is_good(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """What the test says."""
    return dg.AssetCheckResult(passed=GOOD[context.partition_key], description="as the test says")


@dg.asset(partitions_def=LOUD, deps=[loud], code_version="1")
def echo() -> dg.MaterializeResult:
    """Stands behind the check."""
    return dg.MaterializeResult(data_version=dg.DataVersion("echo"))


@dg.asset(code_version="1")
def broken() -> None:
    """Raises."""
    try:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    except BlockingIOError as error:
        raise ValueError("the cause in plain words") from error


@dg.asset(code_version="1")
def stopped() -> None:
    """Somebody stops the process while it is made."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@dg.multi_asset(specs=[dg.AssetSpec("left", code_version="1"), dg.AssetSpec("right", code_version="1")])
def twins():
    """Can only be made together."""
    yield dg.MaterializeResult(asset_key="left")
    yield dg.MaterializeResult(asset_key="right")


DEFS = dg.Definitions(
    assets=[letter, loud, echo, broken, stopped, twins],
    asset_checks=[is_good],
    executor=dg.in_process_executor,
)


@pytest.fixture
def driver():
    CONTENT.update(a="1", b="1", c="1")
    GOOD.update(b_loud=True, c_loud=True)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Driver(DEFS, instance)


def test_staleness_is_dagsters_own_missing_then_fresh_then_stale_by_content(driver):
    both = ["b_loud", "c_loud"]
    assert list(driver.stale("loud", both)) == both
    assert driver.materialize(["letter"], span=("a", "c")).success
    for partition in both:
        assert driver.materialize(["loud"], partition=partition).success
    assert list(driver.stale("letter", ["a", "b", "c"])) == []
    assert list(driver.stale("loud", both)) == []
    driver.materialize(["letter"], partition="a")
    assert list(driver.stale("loud", both)) == []  # neither reads a
    CONTENT["b"] = "2"
    driver.materialize(["letter"], partition="b")
    assert list(driver.stale("loud", both)) == ["b_loud"]


def test_a_failed_check_stops_what_is_downstream_and_keeps_its_asset_from_counting_as_done(driver):
    GOOD["b_loud"] = False
    outcome = driver.materialize(["loud", "echo"], partition="b_loud")
    assert not outcome.success
    assert outcome.stopped_by == ("loud[b_loud]: is_good: as the test says",)
    assert outcome.materialised == ("loud",)
    assert list(driver.stale("loud", ["b_loud"])) == []
    assert driver.ungated("loud", "b_loud")
    assert driver.ungated("loud", "c_loud")  # its check never ran
    GOOD["b_loud"] = True
    assert driver.materialize(["echo"], partition="b_loud", checks=[("loud", "is_good")]).success
    assert not driver.ungated("loud", "b_loud")


def test_an_error_comes_back_in_plain_words(driver):
    outcome = driver.materialize(["broken"])
    assert not outcome.success
    assert outcome.errors == ("broken: ValueError: the cause in plain words",)


def test_assets_that_are_only_made_together_are_selected_together(driver):
    assert set(driver.materialize(["left"]).materialised) == {"left", "right"}


def test_runs_of_killed_drivers_are_buried_and_those_of_others_are_not(driver):
    import socket

    mine = create_run_for_test(
        driver.instance, status=dg.DagsterRunStatus.STARTED, tags={DRIVER_TAG: socket.gethostname()}
    )
    others = create_run_for_test(driver.instance, status=dg.DagsterRunStatus.STARTED)
    assert driver.bury_dead_runs() == [mine.run_id]
    assert driver.instance.get_run_by_id(mine.run_id).status == dg.DagsterRunStatus.FAILURE
    assert driver.instance.get_run_by_id(others.run_id).status == dg.DagsterRunStatus.STARTED


def test_a_driver_buries_only_when_it_is_the_only_one(tmp_path):
    import socket

    with open_driver(DEFS, tmp_path) as first:
        run = create_run_for_test(
            first.instance, status=dg.DagsterRunStatus.STARTED, tags={DRIVER_TAG: socket.gethostname()}
        )
        with open_driver(DEFS, tmp_path) as second:
            assert second.instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED
    with open_driver(DEFS, tmp_path) as third:
        assert third.instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_gate_without_a_sentence_shows_its_numbers():
    @dg.asset_check(asset=broken, blocking=True)
    def is_silent() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, metadata={"open_ends": 3, "rate": 0.5})

    defs = dg.Definitions(assets=[broken], asset_checks=[is_silent], executor=dg.in_process_executor)
    with dg.DagsterInstance.ephemeral() as instance:
        outcome = Driver(defs, instance).materialize([], checks=[("broken", "is_silent")])
    assert outcome.stopped_by == ("broken: is_silent: failed (open_ends 3, rate 0.5)",)


def test_stopping_the_process_stops_the_campaign_and_not_one_step_of_it(driver):
    """The step counted as failed, and the next persona was begun."""
    with pytest.raises(KeyboardInterrupt):
        driver.materialize(["stopped"])


def test_a_run_that_failed_without_a_word_is_told_as_interrupted(driver, monkeypatch):
    """A step that a signal ended has no failure of its own: the campaign went on as if nothing were wrong."""
    monkeypatch.setattr(driver_module, "failures", lambda events: ([], []))
    outcome = driver.materialize(["broken"])
    assert not outcome.success
    assert len(outcome.errors) == 1
    assert "was interrupted; run the command again" in outcome.errors[0]


def test_a_run_belongs_to_the_code_location_so_that_the_timeline_and_failure_sensors_see_it(driver):
    """Runs of the command stood in Runs only, the home page stayed empty."""
    origin = driver.instance.get_run_by_id(driver.materialize(["left"]).run_id).remote_job_origin
    assert (origin.location_name, origin.repository_origin.repository_name) == (
        "steer_pipeline",
        "__repository__",
    )


def test_where_a_launcher_is_asked_after_all_runs_nothing_long_is_driven_from_here(tmp_path, monkeypatch):
    """Kubernetes' launcher knows no run of this process, and the daemon would mark it as failed."""
    with open_driver(DEFS, tmp_path) as driver:
        driver.require_lasting()
        monkeypatch.setattr(dg.DagsterInstance, "run_monitoring_enabled", True)
        monkeypatch.setattr(DefaultRunLauncher, "supports_check_run_worker_health", True)
        with pytest.raises(NotHere, match="DefaultRunLauncher.*`steer backfill`"):
            driver.require_lasting()


def test_what_a_campaign_has_gathered_is_told_when_something_stops_it():
    """Only the last sentence came out: what had failed before was lost with it."""

    class Stops(Campaign):
        def run(self):
            self.problems.append("coach failed before")
            raise Stopped("there are no news")

        def places(self):
            return []

    told = carried_out(DEFS, Stops, dry_run=False, instance=dg.DagsterInstance.ephemeral())
    assert told.problems == ["coach failed before", "there are no news"]
    assert told.numbers == {}
