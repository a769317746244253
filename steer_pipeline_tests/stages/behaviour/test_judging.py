"""judge_scores skips plainly without an endpoint, asks only what is missing with one, and its checks can fail."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.catalogue import load_personas
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.behaviour.judging import judged_rows
from steer_pipeline.lab.behaviour.schema import JUDGE_COLUMNS, JUDGE_SCHEMA
from steer_pipeline.lab.evaluation.judgement import STATUSES, Judgement
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource
from steer_pipeline.stages.behaviour import assets, checks
from steer_pipeline_tests.lab.evaluation.judge_server import NOW, Request, ScriptedJudge, Step
from steer_pipeline_tests.stages.origins import READER, STUDIED

SECRET = "sk-very-secret-4711"
FAST = "judge: {model: scripted, requests_per_second: 2000, concurrency: 4, max_retries: 1}"
PROFILE = f"name: newsroom\nsummary: A small project for tests.\nmodel: {{path: no_model}}\n{FAST}\n"


def rollouts(n: int = 12) -> pl.DataFrame:
    arms = ["vanilla", "prompted_0", "trained"]
    return pl.DataFrame(
        {
            "row_id": [f"row{i:02d}" for i in range(n)],
            "persona": ["creative"] * n,
            "arm": [arms[i % 3] for i in range(n)],
            "question": [f"What about fair {i}?" for i in range(n)],
            "response": [f"Answer {i} with {{braces}}." for i in range(n)],
        }
    )


class Project:
    """A store with rollouts, and a driver on the stage."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.store, self.instance = store, instance
        shelf = ArtifactStoreResource()
        made_elsewhere = dg.AssetSpec(
            "rollouts", partitions_def=TRAIT_OR_ROLE, metadata={"dagster/io_manager_key": "parquet_io"}
        )
        self.driver = Driver(
            dg.Definitions(
                assets=[*STUDIED, assets.judge_scores, made_elsewhere],
                asset_checks=[checks.judge_scores_checks],
                resources={
                    "store": shelf,
                    "judge": JudgeResource(),
                    "parquet_io": ParquetIO(store=shelf),
                    **READER,
                },
                executor=dg.in_process_executor,
            ),
            instance,
        )

    def put(self, asset: str, partition: str, rows: pl.DataFrame) -> None:
        self.store.write(
            asset,
            partition,
            lambda folder: rows.write_parquet(folder / "data.parquet"),
            metadata={},
            inputs={},
            code_version="1",
            run_id=None,
        )

    def judge(self, partition: str = "creative"):
        return self.driver.materialize(["judge_scores"], partition=partition)

    def scores(self, partition: str = "creative") -> pl.DataFrame:
        version = self.store.current("judge_scores", partition)
        assert version is not None
        return pl.read_parquet(version.path / "data.parquet")

    def metadata(self) -> dict:
        event = self.instance.get_latest_materialization_event(dg.AssetKey("judge_scores"))
        assert event is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}

    def checks(self) -> dict[str, tuple[bool, str]]:
        found = {}
        for name in ("scores_fit_the_scale", "judge_answers_are_readable"):
            (record,) = self.instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(dg.AssetKey("judge_scores"), name), limit=1
            )
            evaluation = record.event.dagster_event.event_specific_data
            found[name] = (evaluation.passed, evaluation.description)
        return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "small.yaml").write_text(PROFILE)
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "small.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STEER_JUDGE_KEY", SECRET)
    monkeypatch.delenv("STEER_JUDGE_URL", raising=False)
    with dg.DagsterInstance.ephemeral() as instance:
        made = Project(ArtifactStore(str(tmp_path / "store")), instance)
        made.put("rollouts", "creative", rollouts())
        yield made


def test_without_an_endpoint_every_row_says_so_and_the_graph_goes_on(project, tmp_path):
    assert project.judge().success
    scores = project.scores()
    assert scores.schema == JUDGE_SCHEMA
    columns = project.metadata()["dagster/column_schema"].columns
    assert {one.name: one.description for one in columns} == JUDGE_COLUMNS
    assert scores["row_id"].to_list() == rollouts()["row_id"].to_list()
    assert set(scores["status"]) == {"not_asked"}
    assert scores["score"].null_count() == scores["judge_model"].null_count() == scores.height
    told = project.metadata()
    assert "STEER_JUDGE_URL" in told["judged"]
    assert told["rows_not_asked"] == 12
    checks = project.checks()
    assert all(passed for passed, _ in checks.values())
    assert checks["judge_answers_are_readable"][1].startswith("not asked: STEER_JUDGE_URL")
    assert not (tmp_path / "store" / ".work" / "judge").exists()


def test_scores_come_from_the_rubric_and_a_second_run_asks_nothing(project, monkeypatch, tmp_path):
    with ScriptedJudge(lambda request: Step("70" if "Answer 1 " in request.prompt else "20")) as server:
        monkeypatch.setenv("STEER_JUDGE_URL", server.url)
        assert project.judge().success
        assert project.judge().success
    assert len(server.requests) == 12
    assert "displays the trait: creative" in server.requests[0].prompt
    assert any("Answer 3 with {braces}." in prompt for prompt in server.prompts())
    scores = project.scores()
    assert scores.filter(row_id="row01").row(0, named=True) == {
        "row_id": "row01",
        "persona": "creative",
        "judge_model": "scripted",
        "scale_max": 100,
        "score": 70,
        "status": "scored",
        "answer": "70",
        "cached": True,
    }
    told = project.metadata()
    assert (told["rows_scored"], told["replies_from_cache"], told["scale_max"]) == (12, 12, 100)
    assert told["endpoint"] == server.url
    assert "| prompted_0 | 4 | 4 | 32.50 |" in told["mean_score_by_arm"]
    assert all(passed for passed, _ in project.checks().values())
    assert (tmp_path / "store" / ".work" / "judge" / "answers.sqlite").is_file()


def test_unreadable_and_missing_replies_warn_with_their_numbers_and_stop_nothing(project, monkeypatch):
    def script(request: Request) -> Step:
        if "fair 5?" in request.prompt:
            return Step("I would say 85")
        return Step("no", 500, NOW) if "fair 6?" in request.prompt else Step("REFUSAL")

    with ScriptedJudge(script) as server:
        monkeypatch.setenv("STEER_JUDGE_URL", server.url)
        assert project.judge().success
    told = project.metadata()
    assert {name: told[f"rows_{name}"] for name in STATUSES} == {
        "scored": 0,
        "refusal": 10,
        "invalid": 1,
        "missing": 1,
        "not_asked": 0,
    }
    found = project.checks()
    passed, message = found["judge_answers_are_readable"]
    assert not passed
    assert "1 unreadable and 1 missing replies of 12 (16.7%), less than 5% is wanted" in message
    assert "To go on: make the rubric ask for one number alone" in message
    assert found["scores_fit_the_scale"][0]


def test_a_role_has_its_own_scale(project, monkeypatch):
    project.put("rollouts", "sailor", rollouts(3).with_columns(persona=pl.lit("sailor")))
    with ScriptedJudge(lambda request: Step("3" if "fair 0?" in request.prompt else "85")) as server:
        monkeypatch.setenv("STEER_JUDGE_URL", server.url)
        assert project.judge("sailor").success
    scores = project.scores("sailor")
    assert scores["scale_max"].to_list() == [3, 3, 3]
    assert scores["score"].to_list() == [3, None, None]
    assert scores["status"].to_list() == ["scored", "invalid", "invalid"]


def test_a_refused_key_fails_at_once_without_retries_and_unseen(project, monkeypatch, capfd):
    with ScriptedJudge(lambda request: Step(f"Incorrect API key provided: {SECRET}", 401)) as server:
        monkeypatch.setenv("STEER_JUDGE_URL", server.url)
        outcome = project.judge()
    assert not outcome.success
    assert "HTTP 401" in outcome.errors[0]
    assert "STEER_JUDGE_KEY" in outcome.errors[0]
    assert len(server.requests) <= 4  # what was under way
    assert project.store.current("judge_scores", "creative") is None
    runs = [run.run_id for run in project.instance.get_runs()]
    events = [str(entry) for run in runs for entry in project.instance.all_logs(run)]
    assert events
    assert SECRET not in "".join([*events, *capfd.readouterr()])


def test_the_key_is_in_nothing_that_is_stored(project, monkeypatch, tmp_path):
    with ScriptedJudge() as server:
        for url in (server.url, server.url.replace("http://", "http://me:hidden@")):
            monkeypatch.setenv("STEER_JUDGE_URL", url)
            assert project.judge().success
    assert server.requests[0].key == f"Bearer {SECRET}"
    assert project.metadata()["endpoint"] == server.url
    assert SECRET not in repr(JudgeResource()) + str(JudgeResource().spec())
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
        assert b"hidden" not in path.read_bytes(), path


def test_a_table_off_the_scale_fails_its_blocking_check(project):
    judgements = [Judgement(0, "scored", "0"), Judgement(100, "scored", "100"), Judgement(None, "refusal")]
    good = judged_rows(load_personas()["creative"], ["a", "b", "c"], judgements, "j")
    bad = good.with_columns(score=pl.Series([0, 300, None], dtype=pl.Int64))
    project.put("judge_scores", "creative", bad)
    both = [("judge_scores", spec.name) for spec in checks.judge_scores_checks.check_specs]
    assert not project.driver.materialize([], partition="creative", checks=both).success
    passed, told = project.checks()["scores_fit_the_scale"]
    assert not passed
    assert "b has a score outside 0 to 100" in told
    assert {spec.name: spec.blocking for spec in checks.judge_scores_checks.check_specs} == {
        "scores_fit_the_scale": True,
        "judge_answers_are_readable": False,
    }
