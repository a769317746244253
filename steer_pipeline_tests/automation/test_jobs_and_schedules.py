"""What the jobs are about, and what the nightly pilot asks for."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from steer_pipeline.automation.schedules import nightly_pilot
from steer_pipeline.definitions import defs
from steer_pipeline.partitions import PERSONA, TRAIT_OR_ROLE, VARIANT, VARIANT_NEEDS, personas_of_variants
from steer_pipeline.settings import settings


def test_the_nightly_pilot_asks_for_every_variant_once_and_first_for_what_others_are_compared_with():
    night = datetime(2030, 1, 2, 2, 0, tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=night)
    requests = list(nightly_pilot(context))
    assert [request.partition_key for request in requests[:2]] == ["base", "base_resample"]
    assert sorted(r.partition_key for r in requests) == sorted(VARIANT.get_partition_keys())
    priorities = [int(request.tags["dagster/priority"]) for request in requests]
    assert priorities == sorted(priorities, reverse=True)
    assert requests[0].run_key == "2030-01-02/base"
    assert len({request.run_key for request in requests}) == len(requests)


@pytest.mark.parametrize(("job", "size"), [("pilot", "pilot"), ("build_packs", "full")])
def test_the_size_of_a_pack_is_the_job_s(job, size):
    config = defs.resolve_job_def(job).get_run_config_for_partition_key("base")
    assert config["ops"]["rewrite_raw"]["config"]["size"] == size


@pytest.mark.parametrize(
    ("job", "partitions"),
    [
        ("build_vectors", PERSONA),
        ("pilot", VARIANT),
        ("build_packs", VARIANT),
        ("promote", VARIANT),
        ("refresh_news", None),
        ("report", None),
        ("train_vectors", TRAIT_OR_ROLE),
        ("study_behaviour", TRAIT_OR_ROLE),
        ("behaviour_report", None),
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
