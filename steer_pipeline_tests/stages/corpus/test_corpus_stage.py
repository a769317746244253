"""The corpus stage on a store of its own: what it makes, and what its checks stop."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.corpus.sources import QUARANTINE_SCHEMA
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.corpus.assets import ASSETS
from steer_pipeline.stages.corpus.checks import ARTICLES, CHECKS, NEWS
from steer_pipeline_tests.lab.corpus.conftest import tokenizer as tokenizer  # the fixture
from steer_pipeline_tests.lab.corpus.test_duplicates import article, edited

TALE = "It rained in the U.S. on Monday. A cup of tea cost $3.50. Dr. Poe stayed at home. "


@pytest.fixture
def project(tmp_path, monkeypatch, tokenizer):
    """A project home with a model directory, a news file and a profile of 40 tokens an article."""
    model = tmp_path / "model"
    tokenizer.save_pretrained(model)
    (model / "config.json").write_text("{}")
    profile = {
        "name": "stage",
        "summary": "test",
        "model": {"path": "model"},
        "corpus": {"max_tokens": 40, "source": {"kind": "files", "path": "news.jsonl"}},
    }
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setenv("STEER_HOME", str(tmp_path))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "stage.yaml"))
    return tmp_path


def write_news(project: Path, texts, junk=()):
    lines = [json.dumps({"text": text, "url": f"u/{i}"}) for i, text in enumerate(texts)]
    (project / "news.jsonl").write_text("\n".join([*lines, *junk]) + "\n")


def run(selection=None, raise_on_error=False):
    store = ArtifactStoreResource()
    return dg.materialize(
        [*ASSETS, *CHECKS],
        selection=selection,
        resources={"store": store, "parquet_io": ParquetIO(store=store)},
        raise_on_error=raise_on_error,
    )


def stored(asset) -> pl.DataFrame:
    return pl.read_parquet(ArtifactStore(settings().store).current(asset, None).path / "data.parquet")


def of_asset(result, name):
    """Metadata of the asset's materialisation."""
    (found,) = [e for e in result.get_asset_materialization_events() if e.asset_key.path == [name]]
    return found.materialization.metadata


def failed(result) -> set[str]:
    return {e.check_name for e in result.get_asset_check_evaluations() if not e.passed}


def put(asset, frame: pl.DataFrame):
    ArtifactStore(settings().store).write(
        asset, None, lambda folder: frame.write_parquet(folder / "data.parquet"),
        metadata={}, inputs={}, code_version="1", run_id=None,
    )  # fmt: skip


def test_news_becomes_tables_and_all_checks_pass(project):
    base = "A storm came. " + TALE
    write_news(
        project, [TALE * 9, base, base.upper(), "no stop at all"] + [f"{i} {TALE}" for i in range(200)], ["{"]
    )
    result = run(raise_on_error=True)
    assert failed(result) == set()
    assert {e.check_name for e in result.get_asset_check_evaluations()} == {*NEWS.names, *ARTICLES.names}
    news, quarantine, articles = map(stored, ("cc_news", "news_quarantine", "truncated_news"))
    assert news.height == 204
    assert quarantine.select("file", "line").rows() == [("news.jsonl", 205)]
    assert articles["n_tokens"].max() <= 40
    assert set(articles["row_id"]) < set(news["row_id"])
    metadata = result.asset_materializations_for_node("truncated_news")[0].metadata
    assert metadata["dropped_without_sentence"].value == 1
    assert metadata["dropped_duplicates"].value == news.height - articles.height - 1
    assert "preview" in metadata
    assert "tokens" in metadata
    scratch = Path(settings().store) / ".staging"
    assert not [each for each in scratch.iterdir() if each.is_dir()]


def test_the_same_news_give_the_same_version(project):
    write_news(project, [TALE, edited(TALE, 2), article(3) + " " + TALE])
    run(raise_on_error=True)
    store = ArtifactStore(settings().store)
    before = {asset: store.current(asset, None).sha for asset in ("cc_news", "truncated_news")}
    run(raise_on_error=True)
    assert before == {asset: store.current(asset, None).sha for asset in before}


def test_many_unreadable_lines_warn_with_the_reasons_and_do_not_stop(project, capfd):
    write_news(project, [TALE], ["broken", '{"text": ""}', "also broken"])
    result = run()
    assert result.success
    assert failed(result) == {"few_lines_are_quarantined"}
    (evaluation,) = [e for e in result.get_asset_check_evaluations() if not e.passed]
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert evaluation.metadata["reasons"].value == {"not JSON": 2, "empty text": 1}
    assert evaluation.metadata["quarantine_rate"].value == 0.75
    told = (
        "3 of 4 lines gave no article (75.0%): not JSON (2), empty text (1); the first is news.jsonl, line 2"
    )
    assert told in capfd.readouterr().err
    for asset in ("cc_news", "news_quarantine"):
        assert of_asset(result, asset)["set_aside"].value == told


def test_what_was_mended_is_metadata_and_said(project, capfd):
    write_news(project, [TALE + "Smith &amp; Sons<br/>won.", TALE + "<b>Two</b> won."])
    result = run(raise_on_error=True)
    assert of_asset(result, "cc_news")["mended"].value == {"html_tags": 2, "html_entities": 1}
    assert "html tags (2), html entities (1)" in capfd.readouterr().err


def test_articles_left_out_are_named_and_said(project, capfd):
    write_news(project, [TALE, "no stop at all"])
    result = run(raise_on_error=True)
    assert "1 articles left out: no whole sentence within 40 tokens (1)" in capfd.readouterr().err
    left_out = of_asset(result, "truncated_news")["dropped"].value
    assert "no whole sentence within 40 tokens" in left_out
    assert "| 1 |" in left_out


def test_an_empty_file_is_an_error_that_names_it(project):
    (project / "news.jsonl").write_text("\n")
    (failure,) = [e for e in run().all_events if e.is_step_failure]
    assert "news.jsonl: empty" in failure.step_failure_data.error.message


def test_a_source_without_one_article_stops_before_truncation(project):
    write_news(project, [], ["broken"])
    result = run()
    assert not result.success
    assert "news_has_its_schema" in failed(result)
    assert stored("news_quarantine").height == 1
    assert ArtifactStore(settings().store).current("truncated_news", None) is None


def test_news_without_one_whole_sentence_stop_what_follows(project):
    write_news(project, ["no stop at all", "none here either, and other words"])
    result = run()
    assert failed(result) == {"articles_have_their_schema"}
    assert not result.success
    assert stored("truncated_news").height == 0


def test_a_missing_source_fails_at_once_with_the_cure(project):
    result = run()
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert "correct corpus.source.path" in failure.step_failure_data.error.message


def broken_ids(news, articles):
    put("cc_news", pl.concat([news, news[:1].with_columns(source_index=pl.lit(99, pl.Int64))]))


def wrong_type(news, articles):
    put("cc_news", news.with_columns(pl.col("source_index").cast(pl.Int32)))


def over_cap(news, articles):
    put("truncated_news", articles.with_columns(n_tokens=pl.lit(41, pl.Int64)))


def open_end(news, articles):
    put("truncated_news", articles.with_columns(pl.col("text").str.head(25)))


def foreign_row(news, articles):
    put("truncated_news", articles.with_columns(source_index=pl.lit(7, pl.Int64)))


def lost_column(news, articles):
    put("truncated_news", articles.drop("url"))


@pytest.mark.parametrize(
    ("seed", "check"),
    [
        (broken_ids, "ids_are_unique"),
        (wrong_type, "news_has_its_schema"),
        (over_cap, "token_cap_is_kept"),
        (open_end, "articles_end_on_a_sentence"),
        (foreign_row, "articles_are_aligned_with_cc_news"),
        (lost_column, "articles_have_their_schema"),
    ],
)
def test_a_seeded_fault_is_stopped_by_the_named_check(project, tokenizer, seed, check):
    from steer_pipeline.lab.corpus import snapshot_news, snapshot_truncated

    write_news(project, [TALE, "A storm came. It went. " + TALE])
    spec = settings().profile.corpus
    news = snapshot_news(spec, project, project / "a").rows
    articles = snapshot_truncated(news, tokenizer, spec, project / "b").rows.collect()
    put("cc_news", news.collect())
    put("truncated_news", articles)
    put("news_quarantine", pl.DataFrame(schema=QUARANTINE_SCHEMA))
    seed(news.collect(), articles)
    result = run(selection=dg.AssetSelection.all_asset_checks())
    assert not result.success
    assert check in failed(result)


def test_definitions_load_without_the_tokenizer_libraries():
    code = (
        "import sys, steer_pipeline.stages.corpus.assets, steer_pipeline.stages.corpus.checks; "
        "print([name for name in ('torch', 'transformers', 'datasketch', 'pysbd') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
