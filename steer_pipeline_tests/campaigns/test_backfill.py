"""What `python -m steer_pipeline.campaigns.backfill` makes, in which order, and what it says of failures."""

import io
import json
import sys
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import dagster as dg
import pytest

from steer_pipeline.campaigns import backfill
from steer_pipeline.campaigns.backfill import (
    BackfillError,
    Result,
    Server,
    run_here,
    run_there,
    selected,
    targets,
)
from steer_pipeline.campaigns.driver import Driver

PERSONA = dg.StaticPartitionsDefinition(["p", "q", "r"])
VARIANT = dg.StaticPartitionsDefinition(["base", "with_p", "with_q", "both"])
NEEDS = dg.StaticPartitionMapping({"p": ["with_p", "both"], "q": ["with_q", "both"]})

runs = []
faults = set()


def ran(context):
    keys = (
        list(context.partition_keys)
        if context.has_partition_key or context.has_partition_key_range
        else [None]
    )
    name = context.asset_key.to_user_string()
    runs.append((name, keys))
    if faults & {(name, key) for key in keys}:
        raise ValueError("the cause in plain words")


@dg.asset(code_version="1")
def news(context: dg.AssetExecutionContext) -> None:
    """Unpartitioned, at the top."""
    ran(context)


@dg.asset(partitions_def=PERSONA, code_version="1")
def vector(context: dg.AssetExecutionContext) -> None:
    """One run a persona."""
    ran(context)


@dg.asset(
    partitions_def=VARIANT,
    deps=[news, dg.AssetDep(vector, partition_mapping=NEEDS)],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
)
def raw(context: dg.AssetExecutionContext) -> None:
    """All variants of a contiguous range in one run."""
    ran(context)


@dg.asset(partitions_def=VARIANT, deps=[raw], code_version="1")
def pack(context: dg.AssetExecutionContext) -> None:
    """One run a variant."""
    ran(context)


@dg.asset_check(asset=pack, blocking=True, partitions_def=VARIANT)
def is_good(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """What the test says."""
    bad = ("is_good", context.partition_key) in faults
    return dg.AssetCheckResult(passed=not bad, description="3 rows are bad")


@dg.asset(partitions_def=VARIANT, deps=[pack], code_version="1")
def release(context: dg.AssetExecutionContext) -> None:
    """Behind the check."""
    ran(context)


@dg.asset(deps=[pack], code_version="1")
def report(context: dg.AssetExecutionContext) -> None:
    """Reads every variant."""
    ran(context)


@dg.asset(partitions_def=VARIANT, code_version="1")
def lonely(context: dg.AssetExecutionContext) -> None:
    """Partitioned like the packs, and reads nothing."""
    ran(context)


@dg.multi_asset(specs=[dg.AssetSpec("left", code_version="1"), dg.AssetSpec("right", code_version="1")])
def twins(context: dg.AssetExecutionContext):
    """Can only be made together."""
    runs.append(("twins", [None]))
    yield dg.MaterializeResult(asset_key="left")
    yield dg.MaterializeResult(asset_key="right")


DEFS = dg.Definitions(
    assets=[news, vector, raw, pack, release, report, lonely, twins, dg.AssetSpec("outside")],
    asset_checks=[is_good],
    executor=dg.in_process_executor,
)
GRAPH = DEFS.resolve_asset_graph()


@pytest.fixture(autouse=True)
def clean_slate():
    runs.clear()
    faults.clear()


def here(selection, partitions=None):
    with dg.DagsterInstance.ephemeral() as instance:
        return list(run_here(Driver(DEFS, instance), selected(DEFS, selection), partitions))


@contextmanager
def ephemeral_driver(defs, home):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Driver(defs, instance)


def states(results):
    return {(result.asset, result.partition): result.state for result in results}


# ------------------------------------------------------------------------------------------ targets


def test_named_partitions_go_down_the_mappings():
    assert targets(GRAPH, selected(DEFS, "key:vector+"), ["q"]) == {
        "vector": ["q"],
        "raw": ["with_q", "both"],
        "pack": ["with_q", "both"],
        "release": ["with_q", "both"],
        "report": [None],
    }
    assert targets(GRAPH, selected(DEFS, "vector,raw"), ["r"]) == {"vector": ["r"]}  # no variant reads r
    assert targets(GRAPH, selected(DEFS, "vector,pack"), ["p"])["pack"] == ["with_p", "both"]  # through raw


def test_all_means_all_partitions_of_everything_selected():
    everything = targets(GRAPH, selected(DEFS, "*"), None)
    assert everything["vector"] == ["p", "q", "r"]
    assert everything["pack"] == ["base", "with_p", "with_q", "both"]
    assert everything["news"] == everything["left"] == [None]
    assert "outside" not in everything  # nobody here makes it


@pytest.mark.parametrize(
    ("selection", "partitions", "message"),
    [
        ("pakc", None, "'pakc' names no asset; there are: left, lonely, news, pack"),
        ("pack and (", None, "Invalid selection string"),
        ("pack", ["base", "bass"], "pack has no bass; there are: base, with_p, with_q, both"),
        ("vector,lonely", ["p"], "(lonely, vector) are not partitioned alike"),
        ("news", ["p"], "no selected asset has partitions; use --all"),
    ],
)
def test_what_cannot_be_selected_is_refused_with_what_there_is(selection, partitions, message):
    with pytest.raises(BackfillError) as error:
        targets(GRAPH, selected(DEFS, selection), partitions)
    assert message in str(error.value)


# ------------------------------------------------------------------------------------ this process


def test_the_graph_is_made_from_the_top_with_ranges_in_single_runs():
    results = here("*")
    assert set(states(results).values()) == {"made"}
    assert len(results) == 1 + 3 + 3 * 4 + 1 + 4 + 2
    order = [name for name, _ in runs]
    assert order.index("news") < order.index("raw")
    assert (
        max(i for i, name in enumerate(order) if name == "vector") < order.index("raw") < order.index("pack")
    )
    assert [keys for name, keys in runs if name == "raw"] == [["base", "with_p", "with_q", "both"]]
    assert [keys for name, keys in runs if name == "pack"] == [["base"], ["with_p"], ["with_q"], ["both"]]
    assert order.count("twins") == 1


def test_a_selection_with_a_gap_is_one_run_a_contiguous_range():
    here("raw", ["base", "with_p", "both"])
    assert runs == [("raw", ["base", "with_p"]), ("raw", ["both"])]


def test_what_stands_below_a_failure_is_skipped_and_the_rest_is_made():
    faults.add(("vector", "p"))
    results = {(result.asset, result.partition): result for result in here("key:vector+")}
    assert results["vector", "p"] == Result(
        "vector", "p", "failed", "vector: ValueError: the cause in plain words"
    )
    assert results["raw", "both"] == Result("raw", "both", "skipped", "below vector[p]")
    made = {key for key, result in results.items() if result.state == "made"}
    assert made == {("vector", "q"), ("vector", "r")} | {
        (asset, variant) for asset in ("raw", "pack", "release") for variant in ("base", "with_q")
    }
    assert results["report", None].state == "skipped"


def test_a_failed_blocking_check_stops_only_its_partition():
    faults.add(("is_good", "with_q"))
    results = {(result.asset, result.partition): result for result in here("pack,release")}
    assert results["pack", "with_q"].state == "failed"
    assert "is_good: 3 rows are bad" in results["pack", "with_q"].reason
    assert results["release", "with_q"] == Result("release", "with_q", "skipped", "below pack[with_q]")
    assert results["release", "both"].state == "made"


def test_the_command_tells_every_partition_and_fails_with_any(monkeypatch, capsys):
    monkeypatch.setattr(
        backfill, "open_driver", ephemeral_driver
    )  # sqlite on disk is slow, and the driver's business
    monkeypatch.setitem(sys.modules, "steer_pipeline.definitions", SimpleNamespace(defs=DEFS))
    assert backfill.main(["--select", "pack", "--partitions", "base, both", "--local"]) == 0
    assert (
        capsys.readouterr().out == "made     pack[base]\nmade     pack[both]\n2 made, 0 failed, 0 skipped\n"
    )
    faults.add(("pack", "base"))
    assert backfill.main(["--select", "pack", "--partitions", "base,both", "--local"]) == 1
    assert (
        "failed   pack[base]: pack: ValueError: the cause in plain words\nmade     pack[both]"
        in capsys.readouterr().out
    )
    assert backfill.main(["--select", "pack", "--partitions", "basse", "--local"]) == 1
    assert "FAILED: --partitions: pack has no basse" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- a Dagster server


def path(name):
    return {"path": [name]}


def progress(status, targeted, made, failed, error=None):
    counts = {
        "numPartitionsTargeted": targeted,
        "numPartitionsMaterialized": made,
        "numPartitionsFailed": failed,
    }
    statuses = [
        counts,
        {"materialized": made > 0, "failed": False},
    ]  # of partitioned assets, and of one that is not
    return {"status": status, "error": error, "assetBackfillData": {"assetBackfillStatuses": statuses}}


def run_of(run_id, status, assets, made, **tags):
    return {
        "runId": run_id,
        "status": status,
        "tags": [{"key": f"dagster/{key}", "value": value} for key, value in tags.items()],
        "assetSelection": [path(name) for name in assets],
        "assetMaterializations": [{"assetKey": path(name), "partition": key} for name, key in made],
    }


def page(*events, more=False):
    return {"eventConnection": {"cursor": "c", "hasMore": more, "events": list(events)}}


def step_failure(step, name, *chain):
    error = {"message": "…", "className": name, "errorChain": [{"error": {"message": one}} for one in chain]}
    return {
        "__typename": "ExecutionStepFailureEvent",
        "stepKey": step,
        "error": error,
        "failureMetadata": None,
    }


@pytest.fixture
def script(monkeypatch):
    """What a webserver answers to each document, one after the other; the last answer stays. Under "asked", what it
    was asked.
    """
    monkeypatch.setattr(backfill, "POLL_S", 0)
    monkeypatch.setattr(backfill, "DAEMON_PATIENCE_S", 0)
    answers = {
        "asked": [],
        backfill.HEALTH: [{"daemonHealth": {"daemonStatus": {"healthy": True}}}],
        backfill.LAUNCH: [{"backfillId": "abcd"}],
    }

    def urlopen(request, timeout):
        question = json.loads(request.data)
        answers["asked"].append(question)
        own = answers[question["query"]]
        answer = own.pop(0) if len(own) > 1 else own[0]
        return io.BytesIO(json.dumps(answer if "errors" in answer else {"data": {"field": answer}}).encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return answers


def there(selection, partitions):
    return run_there(Server("http://dagster/"), GRAPH, selected(DEFS, selection), partitions)


def test_a_server_is_given_the_partitions_and_asked_until_the_end(script, capsys):
    span = {"asset_partition_range_start": "with_p", "asset_partition_range_end": "with_q"}
    both = ["pack", "release"]
    runs = [
        run_of("1", "SUCCESS", ["raw"], [("raw", "with_p"), ("raw", "with_q")], **span),
        run_of(
            "2", "SUCCESS", both, [(name, "with_p") for name in both] + [("report", None)], partition="with_p"
        ),
        run_of("34567890x", "FAILURE", both, [("pack", "with_q")], partition="with_q"),
    ]
    check = {
        "checkName": "is_good",
        "assetKey": path("pack"),
        "partition": "with_q",
        "severity": "ERROR",
        "success": False,
        "description": "3 rows are bad",
    }
    script |= {
        backfill.PROGRESS: [
            progress("REQUESTED", 6, 0, 0),
            {"errors": [{"message": "database is locked"}]},  # passing troubles do not end the watch
            progress("REQUESTED", 6, 0, 0),
            progress("COMPLETED_FAILED", 6, 5, 1),
        ],
        backfill.RUNS: [{"runs": runs}],
        backfill.EVENTS: [
            page(more=True),
            page(
                {"__typename": "AssetCheckEvaluationEvent", "evaluation": check},
                step_failure("pack_is_good", "DagsterAssetCheckFailedError"),
            ),
        ],
    }
    results = there("key:raw+", ["with_p", "with_q"])
    assert states(results) == {
        ("raw", "with_p"): "made",
        ("raw", "with_q"): "made",
        ("pack", "with_p"): "made",
        ("pack", "with_q"): "failed",
        ("release", "with_p"): "made",
        ("release", "with_q"): "failed",
        ("report", None): "made",
    }
    reasons = {result.reason for result in results if result.state == "failed"}
    assert reasons == {"pack[with_q]: is_good: 3 rows are bad (run 34567890)"}
    (launch,) = [question for question in script["asked"] if question["query"] == backfill.LAUNCH]
    selectors = launch["variables"]["params"]["partitionsByAssets"]
    ranges = [{"start": key, "end": key} for key in ("with_p", "with_q")]
    assert selectors[0] == {"assetKey": path("raw"), "partitions": {"ranges": ranges}}
    assert {"assetKey": path("report"), "partitions": {"ranges": []}} in selectors
    assert capsys.readouterr().out.splitlines() == [
        "backfill abcd: http://dagster/runs/b/abcd",
        "requested: 0 of 7 made, 0 failed or skipped",
        "completed_failed: 6 of 7 made, 1 failed or skipped",
    ]


def test_a_step_that_raised_is_told_with_its_innermost_cause_and_what_never_ran_is_skipped(script):
    cause = step_failure("vector", "DagsterExecutionStepExecutionError", "ValueError: line 7 of news.jsonl\n")
    script |= {
        backfill.PROGRESS: [progress("COMPLETED_FAILED", 3, 0, 3)],
        backfill.RUNS: [{"runs": [run_of("1", "FAILURE", ["vector"], [], partition="p")]}],
        backfill.EVENTS: [page(cause)],
    }
    assert [str(result) for result in there("vector,raw", ["p"])] == [
        "failed   vector[p]: vector: ValueError: line 7 of news.jsonl (run 1)",
        "skipped  raw[with_p]",
        "skipped  raw[both]",
    ]


@pytest.mark.parametrize(
    ("document", "answer", "message"),
    [
        ("HEALTH", {"daemonHealth": {"daemonStatus": {"healthy": None}}}, "no daemon works for it"),
        (
            "LAUNCH",
            {"__typename": "PartitionKeysNotFoundError", "message": "no such keys"},
            "PartitionKeysNotFoundError: no such keys",
        ),
        ("LAUNCH", {"errors": [{"message": "the code location is gone"}]}, "the code location is gone"),
        ("PROGRESS", {"errors": [{"message": "database is gone"}]}, "database is gone"),
        ("PROGRESS", progress("FAILED", 1, 0, 0, {"message": "could not load\n"}), "could not load"),
    ],
)
def test_a_server_that_cannot_do_it_is_an_error_in_its_words(script, document, answer, message):
    script[getattr(backfill, document)] = [answer]
    with pytest.raises(BackfillError, match=message):
        there("pack", ["base"])


def test_nobody_listening_is_said_with_the_cure():
    with pytest.raises(
        BackfillError, match=r"no Dagster webserver answers at http://127\.0\.0\.1:9 .*make ui"
    ):
        run_there(Server("http://127.0.0.1:9"), GRAPH, ["news"], None)


def test_the_questions_are_valid_for_the_installed_dagster():
    from dagster_graphql.schema import create_schema
    from graphql import parse, validate

    schema = create_schema().graphql_schema
    for document in (backfill.HEALTH, backfill.LAUNCH, backfill.PROGRESS, backfill.RUNS, backfill.EVENTS):
        assert validate(schema, parse(document)) == []
