"""Makes many asset partitions at once, in the order of the graph, and says of each what became of it.

    python -m steer_pipeline.campaigns.backfill --select 'key:rewrite_raw+' --partitions base,paranoid
    python -m steer_pipeline.campaigns.backfill --select 'group:personas' --all --url http://dagster.example:3000
    python -m steer_pipeline.campaigns.backfill --select '*' --all --local

In: a selection as in the UI, and partitions of its topmost assets; assets partitioned otherwise follow by the
partition mappings. A running Dagster does it, or, with `--local`, this process without webserver and daemon. What
stands below a failure is skipped, the rest is made; the exit status is 1 unless all was made.
"""

import argparse
import json
import logging
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.backfill_policy import BackfillPolicyType
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.errors import DagsterError, DagsterInvalidSubsetError
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from steer_pipeline.campaigns.driver import Driver, Outcome, open_driver
from steer_pipeline.io.store import label
from steer_pipeline.settings import settings

URL = "http://localhost:3000"
POLL_S = 2.0
DAEMON_PATIENCE_S = 30.0
MISSES = 10  # answers in a row that may fail before watching ends
MADE, FAILED, SKIPPED = "made", "failed", "skipped"
ENDED = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


class BackfillError(Exception):
    """The backfill cannot start or its end cannot be known; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """What became of one asset partition: made, failed or skipped, and why not made."""

    asset: str
    partition: str | None
    state: str
    reason: str = ""

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.state:<8} {label(self.asset, self.partition)}{reason}"


# -------------------------------------------------------------------------------------- selections


def selected(defs: dg.Definitions, selection: str) -> list[str]:
    """Assets of a selection that can be made, topmost first.

    Raises:
        BackfillError: it is no selection, or names nothing.
    """
    graph = defs.resolve_asset_graph()
    found: Collection[dg.AssetKey] = ()
    try:
        found = dg.AssetSelection.from_coercible(selection.split(",")).resolve(graph)
    except DagsterInvalidSubsetError:
        pass  # a name that is none, answered below with the names that there are
    except DagsterError as error:
        raise BackfillError(f"--select {selection!r}: {error}") from error
    makeable = graph.materializable_asset_keys
    keys = [key for key in graph.toposorted_asset_keys if key in found and key in makeable]
    if not keys:
        names = ", ".join(sorted(key.to_user_string() for key in makeable))
        raise BackfillError(f"--select {selection!r} names no asset; there are: {names}")
    return [key.to_user_string() for key in keys]


def targets(
    graph: Any, assets: Sequence[str], partitions: Sequence[str] | None
) -> dict[str, list[str | None]]:
    """What a backfill makes: asset -> partitions in their order, [None] for an unpartitioned one.

    An asset takes the named partitions if it is partitioned like the topmost assets; else those that read them.

    Args:
        assets: topmost first.
        partitions: of the topmost partitioned assets; None for all partitions of all assets.

    Raises:
        BackfillError: a partition does not exist, or the topmost assets are not partitioned alike.
    """
    keys = [dg.AssetKey.from_user_string(name) for name in assets]
    partitioned = {key for key in keys if graph.get(key).is_partitioned}
    if partitions is None:
        chosen = {key: list(_partitions(graph, key)) for key in partitioned}
    else:
        chosen = _read_by(graph, partitioned, _topmost_definition(graph, partitioned, partitions), partitions)
    wanted = {key.to_user_string(): chosen[key] if key in partitioned else [None] for key in keys}
    return {name: found for name, found in wanted.items() if found}


def _read_by(
    graph: Any, partitioned: set[dg.AssetKey], topmost: Any, partitions: Sequence[str]
) -> dict[dg.AssetKey, list[str | None]]:
    """Partitions of each partitioned asset that stand for the named ones; ways through unselected assets count."""
    reached: dict[dg.AssetKey, list[str | None]] = {}
    for key in graph.toposorted_asset_keys:
        if not graph.get(key).is_partitioned:
            continue
        wanted: Collection[str | None] = partitions
        if key not in partitioned or graph.get(key).partitions_def != topmost:
            wanted = _below(graph, key, {above: dict.fromkeys(them, "") for above, them in reached.items()})
        reached[key] = [p for p in _partitions(graph, key) if p in wanted]
    return reached


def _topmost_definition(graph: Any, partitioned: set[dg.AssetKey], partitions: Sequence[str]) -> Any:
    if not partitioned:
        raise BackfillError("--partitions: no selected asset has partitions; use --all")
    roots = dg.AssetSelection.assets(*partitioned).sources().resolve(graph)
    definitions = list({graph.get(key).partitions_def for key in roots})
    if len(definitions) > 1:
        names = ", ".join(sorted(key.to_user_string() for key in roots))
        raise BackfillError(
            f"--partitions: the topmost selected assets ({names}) are not partitioned alike; select fewer or use --all"
        )
    known = definitions[0].get_partition_keys()
    if unknown := [partition for partition in partitions if partition not in known]:
        names = ", ".join(sorted(key.to_user_string() for key in roots))
        raise BackfillError(
            f"--partitions: {names} has no {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    return definitions[0]


def _partitions(graph: Any, key: dg.AssetKey) -> Sequence[str]:
    return graph.get(key).partitions_def.get_partition_keys()


# ------------------------------------------------------------------------------------ this process


def run_here(driver: Driver, assets: Sequence[str], partitions: Sequence[str] | None) -> Iterator[Result]:
    """Makes asset by asset, partition by partition; single-run assets a contiguous range at a time.

    Raises:
        BackfillError: see `targets`.
    """
    with partition_loading_context(dynamic_partitions_store=driver.instance):
        graph = driver.asset_graph
        wanted = targets(graph, assets, partitions)
        lost: dict[dg.AssetKey, dict[str | None, str]] = {}  # asset -> partition -> what it stands below
        seen: set[dg.AssetKey] = set()
        for name, asked in wanted.items():
            key = dg.AssetKey.from_user_string(name)
            if key in seen:
                continue
            together = sorted(graph.get(key).execution_set_asset_keys)
            seen |= set(together)
            below = {p: why for each in together for p, why in _below(graph, each, lost).items()}
            for partition in (p for p in asked if p in below):
                for each in together:
                    lost.setdefault(each, {})[partition] = below[partition]
                    yield Result(each.to_user_string(), partition, SKIPPED, f"below {below[partition]}")
            for run in _runs(graph, key, [p for p in asked if p not in below]):
                outcome = _materialize(driver, name, run)
                for each in together:
                    for partition in run:
                        result = _judged(each, partition, outcome)
                        if result.state != MADE:
                            lost.setdefault(each, {})[partition] = label(result.asset, partition)
                        yield result


def _below(
    graph: Any, key: dg.AssetKey, lost: Mapping[dg.AssetKey, Mapping[str | None, str]]
) -> dict[str | None, str]:
    """Partitions of `key` that read a lost one -> which."""
    node, found = graph.get(key), {}
    for parent in sorted(node.parent_keys & set(lost)):
        for partition, why in lost[parent].items():
            if node.partitions_def is None:
                children: Sequence[str | None] = [None]
            elif partition is None:
                children = _partitions(graph, key)
            else:
                above = graph.get(parent).partitions_def
                children = (
                    graph.get_partition_mapping(key, parent)
                    .get_downstream_partitions_for_partitions(
                        above.subset_with_partition_keys([partition]), above, node.partitions_def
                    )
                    .get_partition_keys()
                )
            found |= dict.fromkeys(children, why)
    return found


def _runs(graph: Any, key: dg.AssetKey, asked: Sequence[str | None]) -> list[list[str | None]]:
    """Partitions that one run makes together."""
    policy = graph.get(key).backfill_policy
    if asked in ([], [None]) or policy is None or policy.policy_type != BackfillPolicyType.SINGLE_RUN:
        return [[partition] for partition in asked]
    runs: list[list[str | None]] = []
    before = None
    for partition in _partitions(graph, key):
        if partition in asked:
            runs[-1].append(partition) if before in asked else runs.append([partition])
        before = partition
    return runs


def _materialize(driver: Driver, name: str, run: Sequence[str | None]) -> Outcome:
    if len(run) > 1:
        return driver.materialize([name], span=(str(run[0]), str(run[-1])))
    return driver.materialize([name], partition=run[0])


def _judged(key: dg.AssetKey, partition: str | None, outcome: Outcome) -> Result:
    name = key.to_user_string()
    if outcome.success:
        return Result(name, partition, MADE)
    reasons = [*outcome.stopped_by, *outcome.errors] or [f"run {outcome.run_id} failed"]
    return Result(name, partition, FAILED, "; ".join(reasons))


# ---------------------------------------------------------------------------------- a Dagster server


HEALTH = """query { instance { daemonHealth { daemonStatus(daemonType: "BACKFILL") { healthy } } } }"""
LAUNCH = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename
  ... on LaunchBackfillSuccess { backfillId }
  ... on Error { message }
  ... on RunConfigValidationInvalid { errors { message } }
} }"""
PROGRESS = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  __typename
  ... on PartitionBackfill { status error { message } assetBackfillData { assetBackfillStatuses {
    ... on AssetPartitionsStatusCounts { numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed }
    ... on UnpartitionedAssetStatus { materialized failed }
  } } }
  ... on Error { message }
} }"""
RUNS = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
  __typename
  ... on PartitionBackfill { runs(limit: 10000) {
    runId status tags { key value } assetSelection { path } assetMaterializations { assetKey { path } partition }
  } }
  ... on Error { message }
} }"""
EVENTS = """query ($run: ID!, $after: String) { runOrError(runId: $run) {
  __typename
  ... on Run { eventConnection(afterCursor: $after) { cursor hasMore events {
    __typename
    ... on ExecutionStepFailureEvent { stepKey error { message className errorChain { error { message } } }
      failureMetadata { description } }
    ... on RunFailureEvent { message }
    ... on AssetCheckEvaluationEvent { evaluation {
      checkName assetKey { path } partition severity success description } }
  } } }
  ... on Error { message }
} }"""


@dataclass(frozen=True)
class Server:
    """A Dagster webserver."""

    url: str

    def ask(self, document: str, **variables: Any) -> Any:
        """The single field that a GraphQL document asks for.

        Raises:
            BackfillError: nobody answers, or the answer is an error.
        """
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/graphql",
            json.dumps({"query": document, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise BackfillError(f"{self.url} answered {error.code}: {text}") from error
        except (OSError, json.JSONDecodeError) as error:
            raise BackfillError(
                f"no Dagster webserver answers at {self.url} ({error}): start it with `make ui`, name another by "
                "--url, or use --local"
            ) from error
        if answer.get("errors"):
            raise BackfillError(f"{self.url}: {'; '.join(error['message'] for error in answer['errors'])}")
        (value,) = answer["data"].values()
        if "message" in value:
            raise BackfillError(f"{value['__typename']}: {value['message']}")
        return value

    def require_daemon(self) -> None:
        """
        Raises:
            BackfillError: nobody would carry out a backfill, it would wait for ever.
        """
        give_up = (
            time.monotonic() + DAEMON_PATIENCE_S
        )  # a daemon that has just started has not yet been heard of
        while not self.ask(HEALTH)["daemonHealth"]["daemonStatus"]["healthy"]:
            if time.monotonic() > give_up:
                raise BackfillError(
                    f"{self.url} answers, but no daemon works for it: run `make ui` (or dagster-daemon run), or use "
                    "--local"
                )
            time.sleep(POLL_S)

    def launch(self, wanted: Mapping[str, Sequence[str | None]]) -> str:
        """Starts a backfill of asset -> partitions, [None] for an unpartitioned asset; returns its id."""
        selectors = [
            {
                "assetKey": {"path": name.split("/")},
                "partitions": {"ranges": [{"start": p, "end": p} for p in partitions if p is not None]},
            }
            for name, partitions in wanted.items()
        ]
        answer = self.ask(LAUNCH, params={"partitionsByAssets": selectors})
        if "backfillId" not in answer:
            reasons = "; ".join(error["message"] for error in answer.get("errors", []))
            raise BackfillError(f"{answer['__typename']}: {reasons or 'the backfill was not accepted'}")
        return answer["backfillId"]

    def wait(self, backfill: str, say: Callable[[str], None]) -> str:
        """The status that a backfill ends with; `say` is told whenever its numbers change.

        Raises:
            BackfillError: it broke before it could start runs, or the server no longer answers.
        """
        told, misses = "", 0
        while True:
            try:
                answer = self.ask(PROGRESS, id=backfill)
            except BackfillError:  # a server that restarts, or a database that is busy
                misses += 1
                if misses == MISSES:
                    raise
                time.sleep(POLL_S)
                continue
            misses = 0
            statuses = (answer["assetBackfillData"] or {}).get("assetBackfillStatuses", [])
            total = sum(each.get("numPartitionsTargeted", 1) for each in statuses)
            made = sum(
                each.get("numPartitionsMaterialized", int(each.get("materialized", 0))) for each in statuses
            )
            failed = sum(each.get("numPartitionsFailed", int(each.get("failed", 0))) for each in statuses)
            text = f"{answer['status'].lower()}: {made} of {total} made, {failed} failed or skipped"
            if text != told:
                say(text)
                told = text
            if answer["status"] in ENDED:
                if answer["error"]:
                    raise BackfillError(answer["error"]["message"].strip())
                return answer["status"]
            time.sleep(POLL_S)

    def results(
        self, backfill: str, wanted: Mapping[str, Sequence[str | None]], order: Mapping[str, Sequence[str]]
    ) -> list[Result]:
        """What became of every asset partition of a backfill.

        Args:
            wanted: as it was launched.
            order: asset -> all of its partitions, for those that have any.
        """
        made: set[tuple[str, str | None]] = set()
        faults: dict[tuple[str, str | None], str] = {}
        for run in self.ask(RUNS, id=backfill)["runs"]:
            for event in run["assetMaterializations"]:
                made.add((_name(event["assetKey"]), event["partition"]))
            if run["status"] == "SUCCESS":
                continue
            reason, failed_checks = self._reasons(run)
            for name in map(_name, run["assetSelection"] or []):
                for partition in _covered(run["tags"], order[name]) if name in order else [None]:
                    if (name, partition) not in made or failed_checks & {(name, partition), (name, None)}:
                        faults[name, partition] = f"{reason} (run {run['runId'][:8]})"
        return [
            Result(name, partition, FAILED, faults[name, partition])
            if (name, partition) in faults
            else Result(name, partition, MADE if (name, partition) in made else SKIPPED)
            for name, partitions in wanted.items()
            for partition in partitions
        ]

    def _reasons(self, run: Mapping[str, Any]) -> tuple[str, set[tuple[str, str | None]]]:
        """Why a run failed, in a sentence, and the asset partitions whose checks did."""
        reasons, checked, last, after = [], set(), "", None
        while True:
            page = self.ask(EVENTS, run=run["runId"], after=after)["eventConnection"]
            for event in page["events"]:
                kind = event["__typename"]
                if kind == "AssetCheckEvaluationEvent":
                    check = event["evaluation"]
                    if not check["success"] and check["severity"] == "ERROR":
                        name = _name(check["assetKey"])
                        checked.add((name, check["partition"]))
                        reasons.append(
                            f"{label(name, check['partition'])}: {check['checkName']}: "
                            f"{check['description'] or 'failed'}"
                        )
                elif kind == "ExecutionStepFailureEvent":
                    if (event["error"] or {}).get("className") != "DagsterAssetCheckFailedError":
                        reasons.append(f"{event['stepKey']}: {_cause(event)}")
                elif kind == "RunFailureEvent":
                    last = event["message"]
            if not page["hasMore"]:
                break
            after = page["cursor"]
        return "; ".join(reasons) or last or f"run ended as {run['status']}", checked


def _name(key: Mapping[str, Sequence[str]]) -> str:
    return "/".join(key["path"])


def _covered(tags: Sequence[Mapping[str, str]], order: Sequence[str]) -> Sequence[str | None]:
    """Partitions that a run is over, by its tags."""
    told = {tag["key"]: tag["value"] for tag in tags}
    if ASSET_PARTITION_RANGE_START_TAG in told:
        first, last = told[ASSET_PARTITION_RANGE_START_TAG], told[ASSET_PARTITION_RANGE_END_TAG]
        return order[order.index(first) : order.index(last) + 1]
    return [told.get(PARTITION_NAME_TAG)]


def _cause(event: Mapping[str, Any]) -> str:
    """The innermost cause: what the asset body raised."""
    if event["failureMetadata"] and event["failureMetadata"]["description"]:
        return event["failureMetadata"]["description"]
    if not event["error"]:
        return "failed without a message"
    chain = [link["error"]["message"] for link in event["error"]["errorChain"]]
    return (chain[-1] if chain else event["error"]["message"]).strip()


def run_there(
    server: Server, graph: Any, assets: Sequence[str], partitions: Sequence[str] | None
) -> list[Result]:
    """Launches a backfill on a server, tells its progress and waits for its end.

    Raises:
        BackfillError: it could not be launched, or broke as a whole.
    """
    wanted = targets(graph, assets, partitions)
    server.require_daemon()
    backfill = server.launch(wanted)
    print(f"backfill {backfill}: {server.url.rstrip('/')}/runs/b/{backfill}", flush=True)
    try:
        server.wait(backfill, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print(f"backfill {backfill} goes on unwatched; the UI can cancel it", file=sys.stderr)
        raise
    keys = {name: dg.AssetKey.from_user_string(name) for name in wanted}
    order = {name: _partitions(graph, key) for name, key in keys.items() if graph.get(key).is_partitioned}
    return server.results(backfill, wanted, order)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m steer_pipeline.campaigns.backfill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--select",
        required=True,
        help="assets: 'rewrite_pack,keep_set', 'key:rewrite_raw+', 'group:personas', '*', …",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--partitions", help="of the topmost selected assets, separated by commas")
    which.add_argument("--all", action="store_true", help="every partition of every selected asset")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default=URL, help="webserver of a running Dagster (default: %(default)s)")
    where.add_argument("--local", action="store_true", help="in this process, without webserver and daemon")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)

    from steer_pipeline.definitions import defs

    asked = None if options.all else [name.strip() for name in options.partitions.split(",") if name.strip()]
    results = []
    try:
        assets = selected(defs, options.select)
        if options.local:
            with open_driver(defs, settings().home) as driver:
                for result in run_here(driver, assets, asked):
                    print(result, flush=True)
                    results.append(result)
        else:
            results = run_there(Server(options.url), defs.resolve_asset_graph(), assets, asked)
            for result in results:
                print(result)
    except BackfillError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    counts = {state: sum(result.state == state for result in results) for state in (MADE, FAILED, SKIPPED)}
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0 if counts[MADE] == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
