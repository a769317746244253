"""What is out of date, and why, in words: Dagster's own answer, asked by the command and by automation alike.

In: an instance and the asset graph. Out: for an asset partition, whether it was never made or has changed in code or
inputs since, and the reasons. It looks one edge up: what stands on something stale is asked again when that is made.
"""

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import (
    CachingStaleStatusResolver,
    StaleCause,
    StaleCauseCategory,
    StaleStatus,
    extract_data_provenance_from_entry,
)
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.loader import LoadingContext

from steer_pipeline.io.store import label
from steer_pipeline.keys import name_of
from steer_pipeline.lineage import changes

NEVER = "was never made"


class Staleness:
    """As things are when it is made; make a new one after something has changed."""

    def __init__(self, instance: dg.DagsterInstance, graph: BaseAssetGraph):
        self._instance, self._graph = instance, graph
        self._resolver = CachingStaleStatusResolver(instance, graph, _Loading(instance))
        self._waiting: dict[tuple[dg.AssetKey, str | None], bool] = {}

    def is_stale(self, asset: dg.AssetKey, partition: str | None) -> bool:
        """It was made, and has changed in code or inputs since."""
        return self._resolver.get_status(asset, partition) == StaleStatus.STALE

    def is_missing(self, asset: dg.AssetKey, partition: str | None) -> bool:
        """It was never made."""
        return self._resolver.get_status(asset, partition) == StaleStatus.MISSING

    def waits(self, asset: dg.AssetKey, partition: str | None) -> bool:
        """Whether something that it stands on, however far up, is stale, or one of its inputs is missing altogether."""
        place = (asset, partition)
        if place not in self._waiting:
            self._waiting[place] = any(
                self._holds_up(parent, asset, partition) for parent in self._parents(asset)
            )
        return self._waiting[place]

    def _parents(self, asset: dg.AssetKey) -> list[dg.AssetKey]:
        made = self._graph.materializable_asset_keys
        return [parent for parent in sorted(self._graph.get(asset).parent_keys) if parent in made]

    def reads(self, parent: dg.AssetKey, asset: dg.AssetKey, partition: str | None) -> list[str | None]:
        """The partitions of one of its inputs that an asset partition is made of."""
        if not self._graph.get(parent).is_partitioned:
            return [None]
        with partition_loading_context():
            mapped = self._graph.get_parent_partition_keys_for_child(partition, parent, asset)
        return list(mapped.partitions_subset.get_partition_keys())

    def _holds_up(self, parent: dg.AssetKey, asset: dg.AssetKey, partition: str | None) -> bool:
        needed = self.reads(parent, asset, partition)
        there = [each for each in needed if not self.is_missing(parent, each)]
        if needed and not there:
            return True
        return any(self.is_stale(parent, each) or self.waits(parent, each) for each in there)

    def why(self, asset: dg.AssetKey, partition: str | None) -> list[str]:
        """The reasons; none for what is fresh."""
        status = self._resolver.get_status(asset, partition)
        if status == StaleStatus.FRESH:
            return []
        if status == StaleStatus.MISSING:
            return [NEVER]
        causes = self._resolver.get_stale_causes(asset, partition)
        return list(dict.fromkeys(reason for cause in causes for reason in self._reasons(cause)))

    def _reasons(self, cause: StaleCause) -> list[str]:
        if cause.category == StaleCauseCategory.CODE:
            record = self._instance.get_latest_data_version_record(
                cause.asset_key, False, cause.partition_key
            )
            made = extract_data_provenance_from_entry(record.event_log_entry) if record else None
            return changes(
                made.code_version if made else "", self._graph.get(cause.asset_key).code_version or ""
            )
        if cause.dependency_asset_key is None:
            return [cause.reason]
        where = label(name_of(cause.dependency_asset_key), cause.dependency_partition_key)
        if cause.category == StaleCauseCategory.DATA:
            return [f"{where} has changed"]
        return [f"is {'no longer' if cause.reason.startswith('removed') else 'now'} made of {where}"]


class _Loading(LoadingContext):
    """What the staleness resolver batches its look-ups in."""

    def __init__(self, instance: dg.DagsterInstance):
        self._instance = instance
        self._loaders: dict = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict:
        return self._loaders
