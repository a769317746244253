"""Assets through the IO managers: content versions, partitions, ranges, fan-in and what the manifest records."""

import json
import shutil
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore, StoreError
from steer_pipeline.io.versioned import note_input
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource, open_store
from steer_pipeline.settings import settings
from steer_pipeline_tests.tiny import lora, tiny_model_dir

LETTERS = dg.StaticPartitionsDefinition(["c", "a", "b"])
PACKS = dg.StaticPartitionsDefinition(["none", "one", "all"])
NEEDS = dg.StaticPartitionMapping({"c": ["all"], "a": ["one", "all"], "b": ["all"]})
TABLE = {"io_manager_key": "parquet_io", "code_version": "1"}


def resources() -> dict:
    place = ArtifactStoreResource()
    return {"store": place, "parquet_io": ParquetIO(store=place), "bundle_io": BundleIO(store=place)}


def materialize(*assets, instance=None, **how) -> dg.ExecuteInProcessResult:
    return dg.materialize(list(assets), resources=resources(), instance=instance, **how)


def record(result: dg.ExecuteInProcessResult, asset: str, partition: str | None = None):
    events = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(asset)]
    return next(
        e.step_materialization_data.materialization for e in events if partition in (None, e.partition)
    )


def data_version(result, asset, partition=None) -> str:
    return record(result, asset, partition).tags["dagster/data_version"]


@dg.asset(**TABLE, partitions_def=LETTERS, backfill_policy=dg.BackfillPolicy.single_run())
def letter(context: dg.AssetExecutionContext):
    for key in context.partition_keys:
        context.add_asset_metadata({"upper": key.upper()}, partition_key=key)
    return {key: pl.DataFrame({"letter": [key]}) for key in context.partition_keys}


@pytest.fixture
def store() -> ArtifactStore:
    return open_store()


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_a_table_comes_back_as_lazy_frame_with_its_content_as_data_version(store):
    @dg.asset(**TABLE)
    def numbers(context: dg.AssetExecutionContext) -> pl.DataFrame:
        context.add_output_metadata({"mean": 1.5, "plot": dg.MetadataValue.md("![](data:…)")})
        return pl.DataFrame({"x": [1, 2]})

    @dg.asset(**TABLE)
    def doubled(numbers: pl.LazyFrame) -> pl.LazyFrame:
        return numbers.with_columns(pl.col("x") * 2)

    result = materialize(numbers, doubled)
    version, below = store.current("numbers", None), store.current("doubled", None)
    assert pl.read_parquet(below.path / "data.parquet")["x"].to_list() == [2, 4]
    assert data_version(result, "numbers") == version.sha
    assert below.manifest["inputs"] == {"numbers": version.sha}
    assert version.manifest["metadata"]["mean"] == 1.5
    assert "plot" not in version.manifest["metadata"]
    assert version.manifest["code_version"] == "1"
    assert version.manifest["run_id"] == result.run_id
    shown = record(result, "numbers").metadata
    assert shown["rows"].value == shown["dagster/row_count"].value == 2
    assert shown["mean"].value == 1.5
    assert shown["version"].value == version.sha
    assert shown["location"].value == str(version.path)
    assert [column.name for column in shown["dagster/column_schema"].value.columns] == ["x"]
    assert materialize(numbers).success
    assert len(store.versions("numbers", None)) == 1


def test_a_table_streamed_twice_is_one_version(store, tmp_path):
    many = pl.DataFrame({"x": range(120_000), "text": [f"row {i % 977}" for i in range(120_000)]})
    many.write_parquet(tmp_path / "source.parquet")

    @dg.asset(**TABLE)
    def table() -> pl.LazyFrame:
        return pl.scan_parquet(tmp_path / "source.parquet")

    for _ in range(3):
        materialize(table)
    (version,) = store.versions("table", None)
    assert pl.read_parquet(version.path / "data.parquet").equals(many)


def test_every_materialisation_says_where_it_comes_from(store):
    @dg.asset(**TABLE)
    def numbers(context: dg.AssetExecutionContext) -> pl.DataFrame:
        context.add_output_metadata({"profile": "said by the body"})
        return pl.DataFrame({"x": [1]})

    shown = record(materialize(numbers), "numbers").metadata
    manifest = store.current("numbers", None).manifest["metadata"]
    for name in ("git_commit", "profile_sha", "libraries", "peak_memory_mb", "seconds"):
        assert shown[name].value == manifest[name]
    assert shown["profile"].value == manifest["profile"] == "said by the body"
    assert 0 <= shown["seconds"].value < 60
    assert "model" not in shown


def test_each_materialisation_names_the_model_that_its_own_step_loaded(tmp_path, store):
    base = tiny_model_dir(tmp_path)
    one, other = lora(base, tmp_path / "one", seed=1), lora(base, tmp_path / "other", seed=2)
    loaded: dict[str, str] = {}

    def made_with(name, adapters, inputs=()):
        @dg.asset(name=name, **TABLE, deps=list(inputs))
        def table(language_model: LanguageModelResource) -> pl.DataFrame:
            for adapter in adapters:
                loaded[name] = str(language_model.load(adapter).identity)
            return pl.DataFrame({"x": [1]})

        return table

    first = made_with("first", [one])
    second = made_with("second", [other], [first])
    plain = made_with("plain", [None], [second])
    idle = made_with("idle", [], [plain])
    both = made_with("both", [one, None, other], [idle])
    language_model = LanguageModelResource(overrides={"path": str(base), "device": "cpu"})
    result = dg.materialize(
        [first, second, plain, idle, both], resources={**resources(), "language_model": language_model}
    )
    told = {name: record(result, name).metadata for name in ("first", "second", "plain", "idle", "both")}
    assert len({loaded["first"], loaded["second"], loaded["plain"]}) == 3
    for name in ("first", "second", "plain", "both"):
        assert told[name]["model_identity"].value == loaded[name]
        assert store.current(name, None).manifest["metadata"]["model_identity"] == loaded[name]
    assert [told[name]["adapters"].value for name in ("first", "second", "plain")] == [1, 1, 0]
    assert "model" not in told["idle"]
    assert "model_identities" not in told["first"]
    assert set(told["both"]["model_identities"].value) == {loaded["first"], loaded["second"], loaded["plain"]}


def test_a_page_in_a_bundle_is_linked_where_it_lies(store, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "report.html").write_text("<p>all of it</p>")

    @dg.asset(io_manager_key="bundle_io", code_version="1")
    def report() -> Path:
        return tmp_path / "made"

    shown = record(materialize(report), "report").metadata
    page = store.current("report", None).path / "report.html"
    assert shown["report.html"].value == str(page)
    assert shown["open_report.html"].value == page.as_uri()


def test_a_bundle_is_copied_and_handed_on_as_a_directory(store, tmp_path):
    @dg.asset(io_manager_key="bundle_io", code_version="1")
    def adapter() -> Path:
        folder = tmp_path / "made"
        (folder / "inner").mkdir(parents=True, exist_ok=True)
        (folder / "inner" / "config.json").write_text("{}")
        return folder

    @dg.asset(**TABLE)
    def seen(adapter: Path) -> pl.DataFrame:
        assert adapter != tmp_path / "made"
        return pl.DataFrame({"config": [(adapter / "inner" / "config.json").read_text()]})

    assert materialize(adapter, seen).success
    assert (tmp_path / "made" / "inner" / "config.json").exists()
    assert list(store.current("adapter", None).manifest["files"]) == ["inner/config.json"]


@pytest.mark.parametrize(
    "key,value", [("parquet_io", [1]), ("bundle_io", "text"), ("bundle_io", Path("nowhere"))]
)
def test_what_a_manager_does_not_store_is_refused_by_name(key, value):
    @dg.asset(io_manager_key=key)
    def wrong():
        return value

    with pytest.raises(TypeError, match=f"{key} stores"):
        materialize(wrong)


def test_a_range_stores_each_partition_with_its_own_metadata(store):
    result = materialize(letter, tags=span("c", "b"))
    assert store.partitions("letter") == ["a", "b", "c"]
    for key in "abc":
        shown = record(result, "letter", key).metadata
        assert shown["version"].value == store.current("letter", key).sha
        assert shown["upper"].value == key.upper()
        assert shown["dagster/partition_row_count"].value == 1
        assert "dagster/row_count" not in shown
        assert store.current("letter", key).manifest["metadata"]["upper"] == key.upper()


def test_the_data_version_of_a_range_does_not_depend_on_order_and_changes_with_content():
    first = data_version(materialize(letter, tags=span("c", "b")), "letter", "a")
    again = data_version(materialize(letter, tags=span("c", "b")), "letter", "a")

    @dg.asset(name="letter", **TABLE, partitions_def=LETTERS, backfill_policy=dg.BackfillPolicy.single_run())
    def changed(context: dg.AssetExecutionContext):
        return {key: pl.DataFrame({"letter": [key * 2]}) for key in reversed(context.partition_keys)}

    assert first == again
    assert data_version(materialize(changed, tags=span("c", "b")), "letter", "a") != first


def test_a_range_that_lacks_a_partition_is_refused_and_stores_nothing(store):
    @dg.asset(name="letter", **TABLE, partitions_def=LETTERS, backfill_policy=dg.BackfillPolicy.single_run())
    def partial():
        return {"c": pl.DataFrame({"letter": ["c"]}), "x": pl.DataFrame({"letter": ["x"]})}

    with pytest.raises(Exception, match=r"lacks \['a', 'b'\] and has \['x'\]"):
        materialize(partial, tags=span("c", "b"))
    assert store.partitions("letter") == []


@pytest.mark.parametrize("pack,letters", [("all", "abc"), ("one", "a"), ("none", "")])
def test_fan_in_is_a_sorted_dict_for_many_one_and_no_partition(instance, store, pack, letters):
    @dg.asset(
        **TABLE,
        partitions_def=PACKS,
        ins={"letter": dg.AssetIn(partition_mapping=NEEDS)},
    )
    def mixed(letter: dict[str, pl.LazyFrame]) -> pl.DataFrame:
        assert all(isinstance(value, pl.LazyFrame) for value in letter.values())
        return pl.DataFrame({"order": ["".join(letter)]})

    materialize(letter, instance=instance, tags=span("c", "b"))
    result = materialize(letter, mixed, instance=instance, partition_key=pack, selection=[mixed])
    assert result.success
    version = store.current("mixed", pack)
    assert pl.read_parquet(version.path / "data.parquet")["order"].to_list() == [letters]
    assert sorted(version.manifest["inputs"]) == [f"letter[{key}]" for key in letters]


def test_fan_in_into_an_unannotated_input_says_what_to_write():
    @dg.asset(**TABLE)
    def everything(letter):
        return letter

    materialize(letter, tags=span("c", "b"))
    with pytest.raises(Exception, match=r"annotate it as dict\[str"):
        materialize(letter, everything, selection=[everything])


def test_missing_partitions_are_named_or_left_out_on_request(store):
    materialize(letter, tags=span("c", "a"))

    @dg.asset(**TABLE)
    def strict(letter: dict[str, pl.LazyFrame]) -> pl.DataFrame:
        return pl.DataFrame({"n": [len(letter)]})

    @dg.asset(**TABLE, ins={"letter": dg.AssetIn(metadata={"allow_missing_partitions": True})})
    def lenient(letter: dict[str, pl.LazyFrame]) -> pl.DataFrame:
        return pl.DataFrame({"n": [len(letter)]})

    with pytest.raises(Exception, match=r"letter\[b\] is not in the store .*materialise it first"):
        materialize(letter, strict, selection=[strict])
    materialize(letter, lenient, selection=[lenient])
    assert pl.read_parquet(store.current("lenient", None).path / "data.parquet")["n"].to_list() == [2]


def test_one_partition_passes_bare_between_assets_of_the_same_partitions(store):
    @dg.asset(**TABLE, partitions_def=LETTERS)
    def upper(letter: pl.LazyFrame) -> pl.LazyFrame:
        return letter.with_columns(pl.col("letter").str.to_uppercase())

    assert materialize(letter, upper, partition_key="a").success
    assert pl.read_parquet(store.current("upper", "a").path / "data.parquet")["letter"].to_list() == ["A"]


def test_an_asset_that_reads_the_store_by_itself_can_say_what_it_read(store):
    @dg.asset(**TABLE, deps=[letter])
    def own(context: dg.AssetExecutionContext, store: ArtifactStoreResource) -> pl.DataFrame:
        return pl.read_parquet(
            note_input(context, store.store().current("letter", "a")).path / "data.parquet"
        )

    materialize(letter, tags=span("c", "b"))
    materialize(letter, own, selection=[own])
    assert store.current("own", None).manifest["inputs"] == {"letter[a]": store.current("letter", "a").sha}


def test_a_partitioned_check_reads_its_own_partition():
    @dg.asset_check(asset="letter", partitions_def=LETTERS)
    def is_a(letter: pl.LazyFrame) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=letter.collect()["letter"].to_list() == ["a"])

    for key in "ab":
        result = materialize(letter, is_a, partition_key=key, raise_on_error=False)
        (evaluation,) = result.get_asset_check_evaluations()
        assert (evaluation.partition, evaluation.passed) == (key, key == "a")


def test_content_decides_what_is_stale(instance):
    rows = ["v1"]

    @dg.asset(**TABLE)
    def source():
        return pl.DataFrame({"x": rows})

    versions = []
    for value in ("v1", "v1", "v2", "v1"):
        rows[:] = [value]
        versions.append(data_version(materialize(source, instance=instance), "source"))
    assert versions[0] == versions[1] == versions[3] != versions[2]


def test_the_store_can_be_remote_by_setting_a_url(monkeypatch, tmp_path):
    monkeypatch.setenv("STEER_STORE", f"memory://{tmp_path.name}")
    monkeypatch.setenv("HOME", str(tmp_path))

    @dg.asset(**TABLE)
    def numbers() -> pl.DataFrame:
        return pl.DataFrame({"x": [1, 2]})

    @dg.asset(**TABLE)
    def total(numbers: pl.LazyFrame) -> pl.LazyFrame:
        return numbers.sum()

    result = materialize(numbers, total)
    version = open_store(settings()).current("total", None)
    assert version.url.startswith("memory://")
    assert pl.read_parquet(version.path / "data.parquet")["x"].to_list() == [3]
    assert json.loads((version.path / "MANIFEST.json").read_text())["run_id"] == result.run_id


def span(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def damaged(version, name: str = "data.parquet") -> None:
    """Overwrites bytes in the middle of a stored file; its size stays."""
    path = Path(version.url) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\0" * 8
    path.write_bytes(data)


@dg.asset(**TABLE)
def seven() -> pl.DataFrame:
    return pl.DataFrame({"x": [7]})


@dg.asset(**TABLE)
def reader(seven: pl.LazyFrame) -> pl.DataFrame:
    return seven.collect()


def test_a_damaged_input_fails_by_name_and_making_it_again_heals(store, instance):
    assert materialize(seven, reader, instance=instance).success
    version = store.current("seven", None)
    damaged(version)
    with pytest.raises(StoreError, match=f"data.parquet: damaged file of seven, version {version.sha}"):
        materialize(seven, reader, instance=instance, selection=[reader])
    assert materialize(seven, reader, instance=instance).success
    assert store.current("seven", None).sha == version.sha


@pytest.mark.parametrize("loss", ["manifest", "version"])
def test_what_is_live_but_gone_or_torn_is_mended_by_making_it_again(store, instance, loss):
    materialize(seven, instance=instance)
    version = store.current("seven", None)
    (version.path / "MANIFEST.json").write_text("{") if loss == "manifest" else shutil.rmtree(version.path)
    with pytest.raises(StoreError):
        store.current("seven", None)
    assert materialize(seven, instance=instance).success
    assert (store.current("seven", None).path / "data.parquet").is_file()
