"""Many asset partitions at once, through the queue of the Dagster instance: the daemon of `steer ui` makes them.

In: names of assets and their partitions. Out: one backfill, as the UI's own; it orders the runs by the graph and skips
what stands below a failure.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.selector import (
    PartitionRangeSelector,
    PartitionsByAssetSelector,
    PartitionsSelector,
)
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.storage.dagster_run import RunsFilter
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster._core.utils import make_new_backfill_id
from dagster._daemon.controller import get_daemon_statuses
from dagster._time import get_current_timestamp

from steer_pipeline.campaigns.driver import failures
from steer_pipeline.campaigns.errors import NoSuchName, Stopped
from steer_pipeline.keys import key, name_of

POLL_S = 2.0
Wanted = Mapping[str, Sequence[str | None]]  # asset -> partitions, [None] where it has none


def selected(graph: BaseAssetGraph, names: Sequence[str]) -> list[str]:
    """Assets by name, topmost first; `name+` is an asset and all that is made of it.

    Raises:
        NoSuchName: there is no such asset.
    """
    makeable = {name_of(each) for each in graph.materializable_asset_keys}
    if unknown := [name for name in names if name.removesuffix("+") not in makeable]:
        raise NoSuchName(f"no asset {', '.join(unknown)}; there are {', '.join(sorted(makeable))}")
    found: set[dg.AssetKey] = set()
    for name in names:
        one = dg.AssetSelection.assets(key(name.removesuffix("+")))
        found |= (one.downstream() if name.endswith("+") else one).resolve(graph)
    return [
        name_of(each) for each in graph.toposorted_asset_keys if each in found and name_of(each) in makeable
    ]


def submit(instance: dg.DagsterInstance, graph: BaseAssetGraph, wanted: Wanted, title: str) -> str:
    """Queues one backfill; returns its id."""
    selectors = [
        PartitionsByAssetSelector(asset_key=key(name), partitions=_ranges(partitions))
        for name, partitions in wanted.items()
        if partitions
    ]
    with partition_loading_context(dynamic_partitions_store=instance):
        backfill = PartitionBackfill.from_partitions_by_assets(
            make_new_backfill_id(),
            graph,
            get_current_timestamp(),
            {},
            instance,
            selectors,
            title=title,
            description=None,
            run_config=None,
        )
    instance.add_backfill(backfill)
    return backfill.backfill_id


def _ranges(partitions: Sequence[str | None]) -> PartitionsSelector | None:
    named = [PartitionRangeSelector(start=each, end=each) for each in partitions if each is not None]
    return PartitionsSelector(ranges=named) if named else None


def unmade(
    instance: dg.DagsterInstance, graph: BaseAssetGraph, backfill_id: str
) -> dict[str, list[str | None]]:
    """What a backfill that has ended has not made.

    Raises:
        NoSuchName: there is no such backfill.
        Stopped: it has not ended yet.
    """
    backfill = _backfill(instance, backfill_id)
    if backfill.status not in BULK_ACTION_TERMINAL_STATUSES:
        raise Stopped(f"backfill {backfill_id} is {backfill.status.value.lower()} and has not ended yet")
    data = backfill.get_asset_backfill_data(graph)
    left: dict[str, list[str | None]] = {}
    for each in (data.target_subset - data.materialized_subset).iterate_asset_partitions():
        left.setdefault(name_of(each.asset_key), []).append(each.partition_key)
    return {name: left[name] for name in map(name_of, graph.toposorted_asset_keys) if name in left}


def wait(
    instance: dg.DagsterInstance, graph: BaseAssetGraph, backfill_id: str, say: Callable[[str], None]
) -> list[str]:
    """What has failed, in sentences, once a backfill has ended; `say` is called as its numbers change."""
    last = ""
    while True:
        backfill = _backfill(instance, backfill_id)
        ended = backfill.status in BULK_ACTION_TERMINAL_STATUSES
        data = backfill.get_asset_backfill_data(graph)
        made, asked = (
            each.num_partitions_and_non_partitioned_assets
            for each in (data.materialized_subset, data.target_subset)
        )
        if (line := f"{backfill.status.value.lower()}: {made} of {asked} made") != last:
            say(line)
            last = line
        if ended:
            break
        time.sleep(POLL_S)
    problems = []
    for run in instance.get_runs(
        RunsFilter(tags={BACKFILL_ID_TAG: backfill_id}, statuses=[dg.DagsterRunStatus.FAILURE])
    ):
        events = [log.get_dagster_event() for log in instance.all_logs(run.run_id) if log.is_dagster_event]
        stopped_by, errors = failures(events)
        problems += [*stopped_by, *errors] or [f"run {run.run_id[:8]} failed, see its log"]
    if backfill.error:
        problems.append(backfill.error.message.strip())
    if not problems and backfill.status != BulkActionStatus.COMPLETED_SUCCESS:
        problems.append(f"backfill {backfill_id} ended as {backfill.status.value.lower()}")
    return problems


def daemon_is_there(instance: dg.DagsterInstance) -> bool:
    """Whether something carries backfills out: the daemon of `steer ui`."""
    return bool(get_daemon_statuses(instance, ["BACKFILL"], ignore_errors=True)["BACKFILL"].healthy)


def _backfill(instance: dg.DagsterInstance, backfill_id: str) -> PartitionBackfill:
    found = instance.get_backfill(backfill_id)
    if found is None:
        raise NoSuchName(f"no backfill {backfill_id}; the UI lists them under Runs")
    return found
