"""What `steer prune` removes, and what it never does."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steer_pipeline.campaigns.pruning import readable
from steer_pipeline.io.journals import open_journal
from steer_pipeline.lab.generation.jobs import FinishedRow
from steer_pipeline.lab.rewrites import release
from steer_pipeline.resources import open_store
from steer_pipeline_tests.cli.running import printed, refused


def put(asset, partition, text, *, inputs=(), days_old=100):
    """Makes a version with the given content current, as if written `days_old` days ago."""
    version = open_store().write(
        asset,
        partition,
        lambda folder: (folder / "data.txt").write_text(text),
        metadata={},
        inputs={f"input {i}": source.sha for i, source in enumerate(inputs)},
        code_version="1",
        run_id=None,
    )
    manifest = version.path / "MANIFEST.json"
    created = (datetime.now(UTC) - timedelta(days=days_old)).isoformat(timespec="milliseconds")
    manifest.write_text(json.dumps(dict(version.manifest, created=created)))
    return version


def release_it(variant, version):
    store = open_store()
    pointer = release.prepare(store, variant, version.sha, "run", "1")
    release.move(store, variant, pointer, "run")


def left(asset, partition):
    return [version.sha for version in open_store().versions(asset, partition)]


def prune(*arguments):
    return printed("prune", *arguments)


def test_nothing_goes_without_yes_but_its_size_is_told():
    old, new = put("table", None, "x" * 1500), put("table", None, "new")
    text = prune()
    assert f"{old.sha}  {datetime.now(UTC) - timedelta(days=100):%Y-%m-%d}" in text
    assert "would remove 1 versions and 0 leftovers, 1.5 kB; --yes does it" in text
    assert left("table", None) == [old.sha, new.sha]
    assert "removed 1 versions and 0 leftovers, 1.5 kB" in prune("--yes")
    assert left("table", None) == [new.sha]
    assert prune() == "would remove 0 versions and 0 leftovers, 0 bytes\n"


def test_current_versions_and_all_that_they_were_made_from_stay():
    news, unused_news = put("news", None, "1"), put("news", None, "2")
    vector = put("vector", "paranoid", "1", inputs=[news])
    put("vector", "paranoid", "2", inputs=[unused_news])
    put("vector", "paranoid", "3")
    put("news", None, "3")
    put("pack", "base", "1", inputs=[vector])
    prune("--yes")
    assert news.sha in left("news", None)  # two steps away
    assert unused_news.sha not in left("news", None)
    assert vector.sha in left("vector", "paranoid")
    assert len(left("vector", "paranoid")) == 2


def test_what_was_ever_released_stays_with_its_history():
    news = put("news", None, "1")
    put("news", None, "2")
    packs = []
    for text in ("first", "second"):
        packs.append(put("rewrite_pack", "base", text, inputs=[news]))
        release_it("base", packs[-1])
    never = put("rewrite_pack", "base", "never released")
    put("rewrite_pack", "base", "current")
    for path in Path(open_store().base).glob("rewrite_release/base/versions/*/MANIFEST.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"created": "2020-01-01T00:00:00+00:00"}))
    prune("--yes")
    assert {pack.sha for pack in packs} < set(left("rewrite_pack", "base"))
    assert never.sha not in left("rewrite_pack", "base")
    assert len(left("rewrite_release", "base")) == 2
    assert news.sha in left("news", None)
    release_it("base", packs[0])  # the rollback still works
    assert release.released(open_store(), "base") == packs[0].sha


def test_young_versions_stay():
    old, young = put("table", None, "old", days_old=20), put("table", None, "young", days_old=5)
    now = put("table", None, "now")
    prune("--yes", "--keep-days", "30")
    assert set(left("table", None)) == {old.sha, young.sha, now.sha}
    prune("--yes")
    assert set(left("table", None)) == {young.sha, now.sha}
    prune("--yes", "--keep-days", "1")
    assert left("table", None) == [now.sha]


def test_leftovers_go_after_a_day_and_journals_stay():
    store = open_store()
    dead, alive, journals = store.scratch("dead"), store.scratch("alive"), store.work("rewrite_raw")
    long_ago = time.time() - 25 * 3600
    for folder in (dead, alive, journals):
        (folder / "half").write_bytes(b"x" * 700)
    for path in (dead, dead / "half", alive, journals, journals / "half"):
        os.utime(path, (long_ago, long_ago))
    assert "would remove 0 versions and 1 leftovers, 700 bytes" in prune()
    assert "removed 0 versions and 1 leftovers" in prune("--yes")
    assert not dead.exists()
    assert (alive / "half").exists()  # written to a moment ago
    assert (journals / "half").exists()


def test_rows_of_journals_that_no_run_will_take_go():
    row = FinishedRow("r0", "base", "text", [1], 3, 2, "eos", False, 20)
    journal = open_journal(open_store(), "rewrite_raw")
    for fingerprint in ("of the former model", "of the current version"):
        with journal as book:
            book.record([row], [fingerprint])
            book.finished()
        journal = open_journal(open_store(), "rewrite_raw")
    assert "journal rewrite_raw[journal], 1 lines" in prune("--yes")  # a note of the first run
    assert prune() == "would remove 0 versions and 0 leftovers, 0 bytes\n"  # its row is young
    text = prune("--keep-days", "-1")
    assert "journal rewrite_raw[journal], 1 lines" in text
    assert "; --yes does it" in text
    with open_journal(open_store(), "rewrite_raw") as book:
        assert "journal rewrite_raw[journal]: a run is writing it; left alone" in prune(
            "--yes", "--keep-days", "-1"
        )
    assert "left alone" not in prune("--yes", "--keep-days", "-1")
    with open_journal(open_store(), "rewrite_raw") as book:
        assert book.take("r0", "base", "of the former model") is None
        assert book.take("r0", "base", "of the current version") == row


def test_an_empty_store_has_nothing_to_remove():
    assert "would remove 0 versions" in prune()


def test_a_damaged_store_is_left_alone():
    put("table", None, "old")
    (put("table", None, "new").path / "MANIFEST.json").write_text("{")
    assert "MANIFEST.json: not valid JSON" in refused("prune", "--yes")


@pytest.mark.parametrize(("size", "text"), [(999, "999 bytes"), (1000, "1.0 kB"), (2_340_000_000, "2.3 GB")])
def test_sizes_are_readable(size, text):
    assert readable(size) == text
