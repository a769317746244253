"""When assets are made without being asked: when they are stale by the UI's own account, and nothing above them is.

Applied to all assets in one place. The sensor `automation` makes what is cheap, `automation_gpu` what costs
the accelerator. Never automatic: releases, which are decisions; the fee of a judge or a player; reading news, the job
of `news_inbox`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import dagster as dg
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.asset_graph_view.entity_subset import EntitySubset
from dagster._core.definitions.declarative_automation.operands.subset_automation_condition import (
    SubsetAutomationCondition,
)
from dagster._record import record

from steer_pipeline.keys import name_of
from steer_pipeline.origins import ORIGINS
from steer_pipeline.staleness import Staleness

NOT_AUTOMATIC = ("rewrite_release", "judge_scores", "word_games", "cc_news", "news_quarantine")
_of_tick: WeakKeyDictionary[AssetGraphView, Staleness] = WeakKeyDictionary()


class _OfStaleness(SubsetAutomationCondition[dg.AssetKey]):
    """A condition that Dagster does not bring along, so that it is evaluated in the code server."""

    @abstractmethod
    def holds(self, staleness: Staleness, asset: dg.AssetKey, partition: str | None) -> bool: ...

    def compute_subset(self, context: dg.AutomationContext[dg.AssetKey]) -> EntitySubset[dg.AssetKey]:
        view = context.asset_graph_view
        staleness = _of_tick.setdefault(view, Staleness(view.instance, view.asset_graph))
        held = {
            each
            for each in context.candidate_subset.expensively_compute_asset_partitions()
            if self.holds(staleness, each.asset_key, each.partition_key)
        }
        return view.get_asset_subset_from_asset_partitions(context.key, held)


@record
class Stale(_OfStaleness):
    """Made, and changed in code or inputs since: what the UI, `steer status` and `steer make` call stale."""

    @property
    def name(self) -> str:
        return "stale"

    def holds(self, staleness: Staleness, asset: dg.AssetKey, partition: str | None) -> bool:
        return staleness.is_stale(asset, partition)


@record
class Waits(_OfStaleness):
    """Something that it stands on, however far up, is stale, or an input is missing altogether.

    One edge would not do: a comparison stands on packs that are fresh until their stale rewrites are made again.
    """

    @property
    def name(self) -> str:
        return "waits_for_what_it_stands_on"

    def holds(self, staleness: Staleness, asset: dg.AssetKey, partition: str | None) -> bool:
        return staleness.waits(asset, partition)


_CHANGED = (
    dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    | dg.AutomationCondition.code_version_changed()
)
_CHECKED = dg.AutomationCondition.all_checks_match(dg.AutomationCondition.check_passed(), blocking_only=True)
_IN_ITS_TURN = (
    ~Waits()
    # Not all_deps_blocking_checks_passed(): it is never true of a partition that has no counterpart in some input.
    & ~dg.AutomationCondition.any_deps_match(~_CHECKED).with_label("an_input_failed_a_blocking_check")
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
    # What failed is not tried again until something that it is made of has changed.
    & ~dg.AutomationCondition.newly_requested().since(_CHANGED).with_label("tried_already")
)
# What costs the accelerator, or stands on nothing that was made, is begun by a person and kept fresh after that.
KEPT_FRESH = (Stale() & _IN_ITS_TURN).with_label("kept_fresh")
AFTER_ITS_INPUTS = ((Stale() | dg.AutomationCondition.missing()) & _IN_ITS_TURN).with_label(
    "after_its_inputs"
)


def with_conditions(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The same assets, with their condition."""
    return [asset.map_asset_specs(_with_condition) for asset in assets]


def _with_condition(spec: dg.AssetSpec) -> dg.AssetSpec:
    if name_of(spec.key) in NOT_AUTOMATIC:
        return spec
    cheap = spec.tags.get("steer/device") == "cpu"
    stands_on_origins = {name_of(dep.asset_key) for dep in spec.deps} <= {origin.name for origin in ORIGINS}
    condition = AFTER_ITS_INPUTS if cheap and not stands_on_origins else KEPT_FRESH
    return spec.replace_attributes(automation_condition=condition)
