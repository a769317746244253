"""What runs the graph without a person: jobs, schedules, sensors and conditions. Off until switched on in the UI."""

import steer_pipeline.execution  # noqa: F401 - silences warnings about the beta parts of Dagster that are used here
