"""Tells Dagster which versions of personas, variants, weights and news files there are now.

In: an instance and the settings. Out: an observation for each origin whose version is not the one last observed.
Asking costs a query an origin and, where no file has changed, no reading of large files.
"""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.data_version import (
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
)
from dagster._core.events import DagsterEventType

from steer_pipeline.keys import key
from steer_pipeline.origins import ORIGINS, versions
from steer_pipeline.settings import Settings, settings


def observe(instance: dg.DagsterInstance, latest: Settings | None = None) -> list[dg.AssetObservation]:
    """Reports what has changed to the instance, and returns it."""
    events = list(changed(instance, latest or settings()))
    for event in events:
        instance.report_runless_asset_event(event)
    return events


def changed(instance: dg.DagsterInstance, latest: Settings) -> Iterator[dg.AssetObservation]:
    """An observation for each origin and partition that is not as it was when last observed."""
    known = {origin.name: _known(instance, origin.name, origin.partitions is not None) for origin in ORIGINS}
    for name, partition, found in versions(latest):
        if known[name].get(partition) != found.version:
            yield observation(name, partition, found.version, found.problem)


def observation(
    name: str, partition: str | None, version: str, problem: str | None = None
) -> dg.AssetObservation:
    """The event that makes `version` the present one of an origin."""
    return dg.AssetObservation(
        key(name),
        partition=partition,
        metadata={"problem": problem} if problem else {},
        tags={DATA_VERSION_TAG: version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"},
    )


def _known(instance: dg.DagsterInstance, name: str, partitioned: bool) -> dict[str | None, str]:
    """partition -> the version last observed."""
    if partitioned:
        tags = instance.event_log_storage.get_latest_tags_by_partition(
            key(name), DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION_TAG]
        )
        return {partition: found[DATA_VERSION_TAG] for partition, found in tags.items()}
    records = instance.fetch_observations(key(name), limit=1).records
    return {None: (records[0].asset_observation.tags or {}).get(DATA_VERSION_TAG, "")} if records else {}
