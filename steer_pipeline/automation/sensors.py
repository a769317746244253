"""Sensors: news files that arrive, runs that fail, assets whose turn has come."""

import hashlib
import time
from pathlib import Path

import dagster as dg
from dagster._utils.error import SerializableErrorInfo

from steer_pipeline.automation.jobs import refresh_news
from steer_pipeline.observing import changed
from steer_pipeline.resources import open_store
from steer_pipeline.settings import Settings, settings

SETTLED_AFTER_S = 5.0  # a file that changed later than this may still be being written
FAILURES = "_failures"
MAX_MESSAGE_CHARS = 4000


@dg.sensor(
    job=refresh_news,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Reads the news again when the files of the inbox have changed (STEER_NEWS_INBOX, default "
    "assets_data/inbox). The profile's corpus.source must be that directory.",
)
def news_inbox(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    latest = settings(anew=True)
    if (reason := _not_the_source(latest)) is not None:
        return dg.SkipReason(reason)
    files = inbox_files(latest.inbox)
    if not files:
        return dg.SkipReason(f"no files in {latest.inbox}")
    if time.time() - max(path.stat().st_mtime for path in files) < SETTLED_AFTER_S:
        return dg.SkipReason("a file has changed just now and may still be being written")
    content = inbox_fingerprint(files)
    if content == context.cursor:
        return dg.SkipReason(f"the {len(files)} files of {latest.inbox} have not changed")
    request = dg.RunRequest(run_key=content, tags={"steer/inbox": content})
    return dg.SensorResult(run_requests=[request], cursor=content)


def inbox_files(folder: Path) -> list[Path]:
    """Files of the inbox, without hidden ones and partial downloads."""
    if not folder.is_dir():
        return []
    partial = (".part", ".tmp", ".crdownload")
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix not in partial
    )


def inbox_fingerprint(files: list[Path]) -> str:
    """Changes when a file is added, removed, renamed or written."""
    digest = hashlib.sha256()
    for path in files:
        state = path.stat()
        digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _not_the_source(latest: Settings) -> str | None:
    source = latest.profile.corpus.source
    folder = latest.home / Path(source.path or "").expanduser()
    if source.kind == "directory" and folder.resolve() == latest.inbox.resolve():
        return None
    return (
        f"profile {latest.profile.name} reads its news from {source.kind} {source.path or ''}; to watch the inbox, "
        f"set corpus.source: {{kind: directory, path: {latest.inbox}}}"
    )


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Writes what failed and why to {FAILURES}/<run id>.json in the artifact store.",
)
def failure_notes(context: dg.RunFailureSensorContext) -> None:
    run = context.dagster_run
    steps = {
        event.step_key: _reason(event.step_failure_data.error)
        for event in context.get_step_failure_events()
        if event.step_failure_data.error is not None
    }
    address = open_store().note(
        FAILURES,
        run.run_id,
        {
            "run_id": run.run_id,
            "job": run.job_name,
            "partition": run.tags.get("dagster/partition"),
            "message": (context.failure_event.message or "")[:MAX_MESSAGE_CHARS],
            "steps": steps,
        },
    )
    context.log.info("wrote %s", address)


def _reason(error: SerializableErrorInfo) -> str:
    """The innermost message: what the asset itself said."""
    while error.cause is not None:
        error = error.cause
    return error.message.strip()[:MAX_MESSAGE_CHARS]


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports personas, variants, weights and news files that have changed, so that what was made of them "
    "shows as stale. Starts no run. New personas and variants, and sections of the profile, show when the definitions "
    "are loaded again.",
)
def catalogue_watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    events = list(changed(context.instance, settings(anew=True)))
    if not events:
        return dg.SkipReason("nothing has changed")
    return dg.SensorResult(asset_events=events)


def _automation(name: str, device: str, what: str) -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        name,
        target=dg.AssetSelection.tag("steer/device", device),
        default_status=dg.DefaultSensorStatus.STOPPED,
        use_user_code_server=True,
        description=f"Makes {what} when it is stale and what it stands on is fresh and has passed its blocking checks.",
    )


automation = _automation(
    "automation", "cpu", "what is cheap (what costs the accelerator is awaited, not made: see automation_gpu)"
)
automation_gpu = _automation("automation_gpu", "gpu", "what costs the accelerator")

SENSORS = [news_inbox, catalogue_watch, failure_notes, automation, automation_gpu]
