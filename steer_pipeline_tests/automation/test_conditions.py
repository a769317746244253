"""Automation makes what is stale, once what it stands on is fresh and has passed its checks."""

import dagster as dg
import pytest

from steer_pipeline.automation.conditions import with_conditions
from steer_pipeline.observing import observation

PACKS = dg.StaticPartitionsDefinition(["good", "bad"])
CPU, GPU = {"steer/device": "cpu"}, {"steer/device": "gpu"}


def graph(*, broken: bool = False) -> dg.Definitions:
    """news -> raw (accelerator) -> pack, gated -> keep_set; a comparison of packs and news; a release beside them."""

    @dg.observable_source_asset(name="news_source")
    def news_source():
        return dg.DataVersion("unused")

    @dg.asset(deps=["news_source"], tags=CPU, code_version="1")
    def cc_news(context: dg.AssetExecutionContext):
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run_id))

    # As rewrites of base add no vector: one partition of raw has nothing to do with this.
    vectors = dg.StaticPartitionsDefinition(["good"])

    @dg.asset(partitions_def=vectors, tags=GPU, code_version="1")
    def vector():
        return dg.MaterializeResult(data_version=dg.DataVersion("1"))

    steered = dg.StaticPartitionMapping({"good": ["good"]})

    @dg.asset(
        partitions_def=PACKS,
        deps=[cc_news, dg.AssetDep(vector, partition_mapping=steered)],
        tags=GPU,
        code_version="1",
    )
    def raw(context: dg.AssetExecutionContext):
        if broken and context.run.tags.get("again"):
            raise dg.Failure("no dose")
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run_id))

    @dg.asset(partitions_def=PACKS, deps=[raw], tags=CPU, code_version="1")
    def pack(context: dg.AssetExecutionContext):
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run_id))

    @dg.asset_check(asset=pack, partitions_def=PACKS, blocking=True)
    def is_good(context: dg.AssetCheckExecutionContext):
        return dg.AssetCheckResult(passed=context.partition_key == "good")

    @dg.asset(partitions_def=PACKS, deps=[pack], tags=CPU, code_version="1")
    def keep_set(context: dg.AssetExecutionContext):
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run_id))

    @dg.asset(partitions_def=PACKS, deps=[pack], tags=CPU, code_version="1")
    def rewrite_release():
        pass

    @dg.asset(
        deps=[cc_news, dg.AssetDep(pack, partition_mapping=dg.SpecificPartitionsPartitionMapping(["good"]))],
        tags=CPU,
        code_version="1",
    )
    def comparison(context: dg.AssetExecutionContext):
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run_id))

    made = with_conditions([cc_news, vector, raw, pack, keep_set, rewrite_release, comparison])
    return dg.Definitions([news_source, *made], asset_checks=[is_good])


class Automation:
    """Ticks of both sensors together, and runs."""

    def __init__(self, instance: dg.DagsterInstance, defs: dg.Definitions):
        self.instance, self.defs, self.cursor = instance, defs, None
        self.observe("1")

    def observe(self, version: str) -> None:
        self.instance.report_runless_asset_event(observation("news_source", None, version))

    def tick(self) -> set[tuple[str, str | None]]:
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        keys = self.defs.resolve_asset_graph().get_all_asset_keys()
        return {
            (key.to_user_string(), partition)
            for key in keys
            for partition in result.get_requested_partitions(key)
        }

    def make(self, asset: str, *partitions: str | None, **tags: str) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def()
        for partition in partitions or (None,):
            job.execute_in_process(
                instance=self.instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(asset)],
                raise_on_error=False,
                tags=tags,
            )


@pytest.fixture
def automation():
    with dg.DagsterInstance.ephemeral() as instance:
        yield Automation(instance, graph())


def test_what_costs_the_accelerator_is_begun_by_a_person_and_what_is_cheap_follows_in_its_turn(automation):
    automation.make("cc_news")
    automation.make("vector", "good")
    assert automation.tick() == set(), "rewrites that were never made are not begun"
    automation.make("raw", "good", "bad")
    assert automation.tick() == {("pack", "good"), ("pack", "bad")}
    assert automation.tick() == set(), "requested once, not at every tick"
    automation.make("pack", "good", "bad")
    assert automation.tick() == {("keep_set", "good"), ("comparison", None)}, (
        "a failed gate holds back its partition"
    )


def test_after_new_news_everything_waits_for_the_stale_rewrites(automation):
    """After a news file had arrived, keep sets and comparison ran before the rewrites did: nine failed runs."""
    for asset, partitions in (
        ("cc_news", ()),
        ("vector", ("good",)),
        ("raw", ("good", "bad")),
        ("pack", ("good", "bad")),
    ):
        automation.make(asset, *partitions)
    automation.make("keep_set", "good")
    automation.make("comparison")
    assert automation.tick() == set()
    automation.observe("2")
    automation.make("cc_news")
    assert automation.tick() == {("raw", "good"), ("raw", "bad")}, (
        "the comparison waits, though its packs are fresh"
    )
    assert automation.tick() == set()
    automation.make("raw", "good", "bad")
    assert automation.tick() == {("pack", "good"), ("pack", "bad")}
    automation.make("pack", "good", "bad")
    assert automation.tick() == {("keep_set", "good"), ("comparison", None)}


def test_what_failed_is_not_tried_again_until_something_has_changed():
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(instance, graph(broken=True))
        automation.make("cc_news")
        automation.make("vector", "good")
        automation.make("raw", "good", "bad")
        automation.make("cc_news")
        assert automation.tick() == {("raw", "good"), ("raw", "bad")}
        automation.make("raw", "good", "bad", again="yes")
        assert automation.tick() == set()
        automation.make("cc_news")
        assert automation.tick() == {("raw", "good"), ("raw", "bad")}
