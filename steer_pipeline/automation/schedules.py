"""The nightly pilot: every variant in the pilot size. Stopped until switched on."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.automation.jobs import pilot
from steer_pipeline.partitions import VARIANT

COMPARED_WITH = ("base", "base_resample")  # the other variants' gates read their packs
PRIORITY_TAG = "dagster/priority"


@dg.schedule(
    cron_schedule="0 2 * * *",
    job=pilot,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="02:00 each night, one run a variant; rows that are finished already are not made again.",
)
def nightly_pilot(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    night = f"{context.scheduled_execution_time:%Y-%m-%d}"
    variants = VARIANT.get_partition_keys()
    for variant in sorted(variants, key=lambda name: (name not in COMPARED_WITH, variants.index(name))):
        yield dg.RunRequest(
            run_key=f"{night}/{variant}",
            partition_key=variant,
            tags={PRIORITY_TAG: "1" if variant in COMPARED_WITH else "0"},
        )


SCHEDULES = [nightly_pilot]
