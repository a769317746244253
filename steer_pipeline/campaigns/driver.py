"""Runs parts of the asset graph in this process, against the project's Dagster instance.

In: asset keys with a partition or a range of partitions. Out: materialisations and checks that the UI shows
like those of any run, and an `Outcome` with what failed, in plain words. One process means one model load.
Knows which partitions are out of date (Dagster's own staleness); knows nothing of what the assets do.
"""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, RunsFilter
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RETRIES_TAG,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from steer_pipeline.campaigns.errors import NotHere
from steer_pipeline.io.store import label
from steer_pipeline.keys import key, name_of
from steer_pipeline.observing import observe
from steer_pipeline.staleness import Staleness

PLANNED = AssetCheckExecutionRecordStatus.PLANNED
DRIVER_TAG = "steer/driver"
LOCATION = "steer_pipeline"  # as pyproject.toml and workspace.yaml name the code location
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Outcome:
    """What one run did.

    `errors` are steps that raised, `stopped_by` are blocking checks that failed; both read as sentences.
    """

    run_id: str
    success: bool
    errors: tuple[str, ...]
    stopped_by: tuple[str, ...]
    materialised: tuple[str, ...]


@contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of `home`, or of DAGSTER_HOME where that is set.

    The project's dagster.yaml names its state by paths relative to the working directory, so this process
    moves to the project first.
    """
    os.environ.setdefault("DAGSTER_HOME", str(home))
    before = Path.cwd()
    os.chdir(home)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    finally:
        os.chdir(before)


@contextmanager
def open_driver(
    defs: dg.Definitions, home: Path, instance: dg.DagsterInstance | None = None
) -> Iterator["Driver"]:
    """A driver on `instance`, or on that of `home`; see `open_instance`."""
    with (
        nullcontext(instance) if instance else open_instance(home) as chosen,
        _driver_lock(chosen) as alone,
    ):
        driver = Driver(defs, chosen)
        if alone:
            driver.bury_dead_runs()
        yield driver


@contextmanager
def _driver_lock(instance: dg.DagsterInstance) -> Iterator[bool]:
    """Drivers of one instance share a lock; yields whether no other one held it a moment ago.

    The kernel drops the lock when a process dies, so a run that a driver left unfinished is dead if nobody
    holds it. A process id would not tell: ids are used again.
    """
    path = Path(instance.storage_directory()) / "driver.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield alone


@dataclass
class Driver:
    """One code location and one instance."""

    defs: dg.Definitions
    instance: dg.DagsterInstance
    _staleness: Staleness | None = field(default=None, init=False, repr=False)

    @cached_property
    def _job(self) -> dg.JobDefinition:
        return self.defs.resolve_implicit_global_asset_job_def()

    @property
    def asset_graph(self):
        return self.defs.resolve_asset_graph()

    def assets(self) -> list[str]:
        """Names of all assets that can be made, upstream first."""
        graph = self.asset_graph
        return [
            name_of(each) for each in graph.toposorted_asset_keys if each in graph.materializable_asset_keys
        ]

    def partitions(self, asset: str) -> list[str]:
        """Partition keys of an asset, in their order; none for an asset without partitions."""
        definition = self.asset_graph.get(key(asset)).partitions_def
        return definition.get_partition_keys() if definition is not None else []

    def observe(self) -> None:
        """Looks at personas, variants, weights and news files, so that what they have become counts."""
        if observe(self.instance):
            self._staleness = None

    @property
    def staleness(self) -> Staleness:
        """As things are since this driver last made or observed something: asked once, however often it is read."""
        if self._staleness is None:
            self._staleness = Staleness(self.instance, self.asset_graph)
        return self._staleness

    def stale(self, asset: str, partitions: Sequence[str | None]) -> dict[str | None, list[str]]:
        """Those of `partitions` that are missing or stale by the UI's own account, and why; see `Staleness`."""
        staleness = self.staleness
        found = {partition: staleness.why(key(asset), partition) for partition in partitions}
        return {partition: why for partition, why in found.items() if why}

    def seconds(self, asset: str) -> float | None:
        """How long its latest version took to make, as its metadata say."""
        event = self.instance.get_latest_materialization_event(key(asset))
        found = event.asset_materialization.metadata.get("seconds") if event else None
        return float(found.value) if found else None

    def ungated(self, asset: str, partition: str | None) -> bool:
        """Whether a blocking check of one asset partition has not passed when it last ran, or never ran."""
        graph = self.asset_graph
        keys = [
            each
            for each in graph.get_check_keys_for_assets({key(asset)})
            if graph.get_check_spec(each).blocking
        ]
        latest = self.instance.event_log_storage.get_latest_asset_check_execution_by_key(
            keys, partition_filter=PartitionKeyFilter(key=partition)
        )
        done = {each: record for each, record in latest.items() if record.status != PLANNED}
        return any(each not in done or _stops(done[each].evaluation) for each in keys)

    def materialize(
        self,
        assets: Sequence[str],
        *,
        checks: Sequence[tuple[str, str]] = (),
        partition: str | None = None,
        span: tuple[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """One run over `assets` with their own checks: unpartitioned, of one `partition`, or of the `span` from
        first to last (only for assets whose backfill policy is a single run).

        Args:
            checks: (asset, check) of assets that are not made again; given, these run instead of the checks
                of `assets`, and block what is downstream of them.
            config: asset name -> values of its Config.

        Raises:
            KeyboardInterrupt: the process was asked to stop (SIGINT or SIGTERM) while the run was going on.
        """
        # No daemon tries this again behind the back of whoever runs the command.
        tags = {DRIVER_TAG: socket.gethostname(), MAX_RETRIES_TAG: "0"}
        if span:
            tags |= {ASSET_PARTITION_RANGE_START_TAG: span[0], ASSET_PARTITION_RANGE_END_TAG: span[1]}
        nodes = [self.asset_graph.get(key(name)) for name in assets]
        keys = sorted({each for node in nodes for each in node.execution_set_asset_keys})  # made together
        job = self._job
        if checks:
            gates = {dg.AssetCheckKey(key(asset), check) for asset, check in checks}
            job, keys = job.get_subset(asset_selection=set(keys), asset_check_selection=gates), []
        ops = {name: {"config": dict(values)} for name, values in (config or {}).items()}
        self._staleness = None
        with _of_code_location(self.instance, job.name):
            result = job.execute_in_process(
                run_config=QUIET | ({"ops": ops} if ops else {}),
                instance=self.instance,
                partition_key=partition,
                asset_selection=keys,
                tags=tags,
                raise_on_error=False,
            )
        if any(_is_interrupt(event) for event in result.all_events):
            raise KeyboardInterrupt  # Dagster makes a failed step of it; whoever stops the process means all of it
        return _outcome(result)

    def require_lasting(self) -> None:
        """For who is about to drive long runs.

        Raises:
            NotHere: the instance takes runs for dead that it has not launched itself.
        """
        launcher = self.instance.run_launcher
        if self.instance.run_monitoring_enabled and launcher.supports_check_run_worker_health:
            raise NotHere(
                "runs of this process would be marked as failed: the Dagster instance watches over its runs with "
                f"{type(launcher).__name__}, which knows those only that it has launched. Let it launch them: "
                "`steer backfill`, or jobs and automation in the UI"
            )

    def bury_dead_runs(self) -> list[str]:
        """Unfinished runs of drivers on this machine: marked failed, their pool slots freed.

        Only for a caller that knows that no driver is alive. Without this, a killed driver leaves its gpu
        slot taken and the next run waits for it for ever.
        """
        buried = []
        here = RunsFilter(statuses=NOT_FINISHED_STATUSES, tags={DRIVER_TAG: socket.gethostname()})
        for run in self.instance.get_runs(here):
            self.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            self.instance.report_run_failed(run, "The process that drove this run is gone.")
            buried.append(run.run_id)
        return buried


@contextmanager
def _of_code_location(instance: dg.DagsterInstance, job: str) -> Iterator[None]:
    """Runs created meanwhile belong to our code location: the UI's timeline and failure sensors pass over others.

    `execute_in_process` takes no origin, so the call below it is given one.
    """
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name="steer_pipeline.definitions"), LOCATION
    )
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job)
    instance.create_run_for_job = partial(instance.create_run_for_job, remote_job_origin=origin)
    try:
        yield
    finally:
        del instance.create_run_for_job  # the class's own shows again


def _outcome(result: dg.ExecuteInProcessResult) -> Outcome:
    stopped_by, errors = failures(result.all_events)
    if not (result.success or stopped_by or errors):  # no step and no check had the time to say why
        errors = [
            f"run {result.run_id[:8]} was interrupted; run the command again, it goes on where it stopped"
        ]
    made = tuple(name_of(event.asset_key) for event in result.all_events if event.is_step_materialization)
    return Outcome(result.run_id, result.success, tuple(errors), tuple(stopped_by), made)


def failures(events: Sequence[dg.DagsterEvent]) -> tuple[list[str], list[str]]:
    """What the events of a run tell of blocking checks that failed and of steps that raised, in sentences."""
    checks = [
        event.asset_check_evaluation_data
        for event in events
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    stopped_by = [
        f"{label(name_of(check.asset_key), check.partition)}: {check.check_name}: "
        f"{check.description or f'failed ({_numbers(check)})'}"
        for check in checks
        if _stops(check)
    ]
    errors = [
        f"{event.step_key}: {_reason(event)}"
        for event in events
        if event.is_step_failure and not _is_check_failure(event)
    ]
    return stopped_by, errors


def _numbers(check: dg.AssetCheckEvaluation) -> str:
    """What a check without a sentence has found."""
    found = {name: entry.value for name, entry in check.metadata.items()}
    plain = [f"{name} {value}" for name, value in found.items() if isinstance(value, int | float | str)]
    return ", ".join(plain) or "it gives no numbers"


def _stops(check: dg.AssetCheckEvaluation) -> bool:
    """Whether an evaluation stops what is downstream of its asset."""
    return check.blocking and not check.passed and check.severity == dg.AssetCheckSeverity.ERROR


def _is_check_failure(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def _is_interrupt(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error if event.is_step_failure else None
    return error is not None and error.cls_name == "DagsterExecutionInterruptedError"


def _reason(event: dg.DagsterEvent) -> str:
    """What the asset's body raised: below Dagster's own wrappers, and above what that sentence was made from."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster"):
        error = error.cause
    return error.message.strip() if error is not None else "failed without a message"
