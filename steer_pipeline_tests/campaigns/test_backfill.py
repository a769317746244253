"""A backfill is queued on the instance, the daemon makes it, and what failed is said and can be submitted again."""

import logging
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context, instance_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.backfill import execute_backfill_iteration

from steer_pipeline.campaigns import backfill
from steer_pipeline.campaigns.errors import NoSuchName, Stopped

VARIANT = dg.StaticPartitionsDefinition(["base", "paranoid"])
faults: set[tuple[str, str | None]] = set()


def made(context: dg.AssetExecutionContext) -> None:
    partition = context.partition_key if context.has_partition_key else None
    if (context.asset_key.to_user_string(), partition) in faults:
        raise ValueError("the cause in plain words")


@dg.asset(partitions_def=VARIANT, code_version="1")
def raw(context: dg.AssetExecutionContext) -> None:
    """At the top."""
    made(context)


@dg.asset(partitions_def=VARIANT, deps=[raw], code_version="1")
def pack(context: dg.AssetExecutionContext) -> None:
    """Below it."""
    made(context)


@dg.asset(deps=[pack], code_version="1")
def report(context: dg.AssetExecutionContext) -> None:
    """Reads every variant."""
    made(context)


defs = dg.Definitions(assets=[raw, pack, report], executor=dg.in_process_executor)
GRAPH = defs.resolve_asset_graph()
IN_PROCESS = {
    "module": "dagster._core.launcher.sync_in_memory_run_launcher",
    "class": "SyncInMemoryRunLauncher",
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    faults.clear()
    unqueued = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    with instance_for_test({"run_launcher": IN_PROCESS, "run_coordinator": unqueued}) as made:
        yield made


def work(instance: dg.DagsterInstance) -> None:
    """The daemon, until nothing is left to do."""
    target = LoadableTargetOrigin(module_name=__name__, attribute="defs")
    place = InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(target, location_name="tests"))
    with create_test_daemon_workspace_context(place, instance) as workspace:
        while any(each.status.value in ("REQUESTED", "FAILING") for each in instance.get_backfills()):
            list(execute_backfill_iteration(workspace, logging.getLogger("backfill")))


def asked(*names: str) -> dict[str, list[str | None]]:
    """Every partition of the assets."""
    found = {name: GRAPH.get(dg.AssetKey(name)).partitions_def for name in backfill.selected(GRAPH, names)}
    return {name: each.get_partition_keys() if each else [None] for name, each in found.items()}


def test_assets_are_chosen_by_name_topmost_first_and_with_what_is_made_of_them():
    assert backfill.selected(GRAPH, ["report", "raw"]) == ["raw", "report"]
    assert backfill.selected(GRAPH, ["pack+"]) == ["pack", "report"]
    with pytest.raises(NoSuchName, match="no asset packs; there are pack, raw, report"):
        backfill.selected(GRAPH, ["packs"])


def test_the_daemon_makes_what_was_submitted_and_no_more(instance):
    submitted = backfill.submit(
        instance, GRAPH, asked("raw+") | {"raw": ["base"], "pack": ["base"]}, "a title"
    )
    with pytest.raises(Stopped, match="has not ended yet"):
        backfill.unmade(instance, GRAPH, submitted)
    work(instance)
    lines: list[str] = []
    assert backfill.wait(instance, GRAPH, submitted, lines.append) == []
    assert lines == ["completed_success: 3 of 3 made"]
    assert instance.get_materialized_partitions(dg.AssetKey("pack")) == {"base"}
    assert backfill.unmade(instance, GRAPH, submitted) == {}


def test_what_failed_is_told_with_its_reason_and_submitted_again(instance):
    faults.add(("raw", "paranoid"))
    submitted = backfill.submit(instance, GRAPH, asked("raw+"), "a title")
    work(instance)
    problems = backfill.wait(instance, GRAPH, submitted, print)
    assert problems == ["raw: ValueError: the cause in plain words"]
    left = backfill.unmade(instance, GRAPH, submitted)
    assert left == {"raw": ["paranoid"], "pack": ["paranoid"], "report": [None]}
    faults.clear()
    again = backfill.submit(instance, GRAPH, left, "a title")
    work(instance)
    assert backfill.wait(instance, GRAPH, again, print) == []


def test_an_unknown_backfill_and_a_missing_daemon_are_said_so(instance):
    with pytest.raises(NoSuchName, match="no backfill abc"):
        backfill.unmade(instance, GRAPH, "abc")
    assert not backfill.daemon_is_there(instance)
