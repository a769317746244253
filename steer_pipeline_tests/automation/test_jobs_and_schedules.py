"""What the jobs are about, and what the nightly pilot asks for."""

import dagster as dg
import pytest

from steer_pipeline.automation.schedules import nightly_pilot
from steer_pipeline.campaigns.campaign import Result
from steer_pipeline.definitions import defs
from steer_pipeline.partitions import PERSONA, TRAIT_OR_ROLE, VARIANT, VARIANT_NEEDS, personas_of_variants
from steer_pipeline.settings import settings


def test_the_nightly_pilot_is_the_pilot():
    assert nightly_pilot.job_name == "pilot"
    request = nightly_pilot.evaluate_tick(dg.build_schedule_context()).run_requests[0]
    assert request.run_config == {}


@pytest.mark.parametrize(
    ("job", "campaign", "given", "wanted"),
    [
        (
            "pilot",
            "pilot.make_pilot",
            {"size": "full", "variants": ["base"]},
            {"size": "full", "only": ["base"], "force": False},
        ),
        (
            "behaviour",
            "behaviour.make_behaviour",
            {"personas": ["sailor"], "force": True},
            {"only": ["sailor"], "force": True},
        ),
        ("students", "students.make_students", {"variants": ["base"]}, {"only": ["base"], "force": False}),
        (
            "transport",
            "transport.make_transport",
            {"personas": ["paranoid"]},
            {"only": ["paranoid"], "force": False},
        ),
    ],
)
def test_the_jobs_of_the_campaigns_do_what_the_command_does(monkeypatch, job, campaign, given, wanted):
    """The job `pilot` made packs of one variant, and `make pilot` everything."""
    asked = []

    def make(definitions, *, instance, say, **options):
        assert definitions is defs
        assert instance is here
        asked.append(options)
        return Result({"base": {"rows": 50}}, [] if len(asked) == 1 else ["one gate has failed"])

    monkeypatch.setattr(f"steer_pipeline.campaigns.{campaign}", make)
    definition = defs.resolve_job_def(job)
    (op,) = definition.nodes
    config = {"ops": {op.name: {"config": given}}}
    with dg.DagsterInstance.ephemeral() as here:
        assert definition.execute_in_process(config, instance=here).success
        failed = definition.execute_in_process(config, instance=here, raise_on_error=False)
    assert asked[0] == wanted
    (failure,) = failed.filter_events(lambda event: event.is_step_failure)
    assert failure.step_failure_data.user_failure_data.description == "one gate has failed"


@pytest.mark.parametrize(("job", "size"), [("build_pilot_packs", "pilot"), ("build_full_packs", "full")])
def test_the_size_of_a_pack_is_the_job_s(job, size):
    config = defs.resolve_job_def(job).get_run_config_for_partition_key("base")
    assert config["ops"]["rewrite_raw"]["config"]["size"] == size


@pytest.mark.parametrize(
    ("job", "partitions"),
    [
        ("build_vectors", PERSONA),
        ("build_pilot_packs", VARIANT),
        ("build_full_packs", VARIANT),
        ("promote", VARIANT),
        ("refresh_news", None),
        ("report", None),
        ("train_vectors", TRAIT_OR_ROLE),
        ("study_behaviour", TRAIT_OR_ROLE),
        ("behaviour_report", None),
        ("train_students", VARIANT),
        ("student_report", None),
    ],
)
def test_each_job_takes_one_partition_of_its_kind(job, partitions):
    assert defs.resolve_job_def(job).partitions_def == partitions


def test_a_variant_needs_exactly_the_vectors_of_its_terms():
    needs = personas_of_variants()
    assert needs["base"] == []
    assert needs["paranoid_rule_defiant"] == ["paranoid", "rule_defiant"]
    assert list(needs) == list(settings().variants) == VARIANT.get_partition_keys()
    for variant, personas in needs.items():
        wanted = VARIANT_NEEDS.get_upstream_mapped_partitions_result_for_partitions(
            downstream_partitions_subset=VARIANT.subset_with_partition_keys([variant]),
            downstream_partitions_def=VARIANT,
            upstream_partitions_def=PERSONA,
        )
        assert sorted(wanted.partitions_subset.get_partition_keys()) == sorted(personas)
