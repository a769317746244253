"""The nightly pilot: what `steer make pilot` makes. Stopped until switched on."""

import dagster as dg

from steer_pipeline.automation.jobs import pilot

nightly_pilot = dg.ScheduleDefinition(
    name="nightly_pilot",
    cron_schedule="0 2 * * *",
    job=pilot,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="02:00 each night: the job `pilot`, which is `steer make pilot`; what is fresh is left alone.",
)

SCHEDULES = [nightly_pilot]
