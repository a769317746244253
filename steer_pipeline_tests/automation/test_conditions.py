"""Cheap assets follow their inputs, but not past a failed check; costly ones and decisions wait for a person."""

import dagster as dg
import pytest

from steer_pipeline.automation.conditions import with_conditions

PACKS = dg.StaticPartitionsDefinition(["good", "bad"])
CPU, GPU = {"steer/device": "cpu"}, {"steer/device": "gpu"}


def graph() -> dg.Definitions:
    @dg.asset(partitions_def=PACKS, tags=CPU)
    def pack():
        pass

    @dg.asset_check(asset=pack, partitions_def=PACKS, blocking=True)
    def is_good(context: dg.AssetCheckExecutionContext):
        return dg.AssetCheckResult(passed=context.partition_key == "good")

    @dg.asset(partitions_def=PACKS, deps=[pack], tags=CPU)
    def keep_set():
        pass

    @dg.asset(partitions_def=PACKS, deps=[pack], tags=GPU)
    def adapter():
        pass

    @dg.asset(partitions_def=PACKS, deps=[pack], tags=CPU)
    def rewrite_release():
        pass

    return dg.Definitions(with_conditions([pack, keep_set, adapter, rewrite_release]), asset_checks=[is_good])


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def requested(defs: dg.Definitions, instance: dg.DagsterInstance, cursor=None):
    result = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
    keys = defs.resolve_asset_graph().get_all_asset_keys()
    found = {
        (key.to_user_string(), partition)
        for key in keys
        for partition in result.get_requested_partitions(key)
    }
    return found, result.cursor


def make(defs: dg.Definitions, instance: dg.DagsterInstance, *partitions: str) -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    for partition in partitions:
        job.execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey("pack")],
            raise_on_error=False,
        )


def test_nothing_is_requested_in_a_fresh_clone(instance):
    assert requested(graph(), instance)[0] == set()


def test_only_the_cheap_asset_behind_a_passed_check_is_requested(instance):
    defs = graph()
    _, cursor = requested(defs, instance)
    make(defs, instance, "good", "bad")
    found, cursor = requested(defs, instance, cursor)
    assert found == {("keep_set", "good")}
    assert requested(defs, instance, cursor)[0] == set()
