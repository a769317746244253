"""What the store promises: whole versions or none, equal content once, and the same on disk and remote."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path

import pytest

from steer_pipeline.io import store as store_module
from steer_pipeline.io.store import ArtifactStore, StoreError

ABOUT = {"metadata": {"rows": 2}, "inputs": {"cc_news": "ab" * 8}, "code_version": "1", "run_id": "run"}


@pytest.fixture(params=["directory", "remote"])
def store(request, tmp_path) -> ArtifactStore:
    if request.param == "directory":
        return ArtifactStore(str(tmp_path / "store"))
    return ArtifactStore(f"memory://{uuid.uuid4().hex}/store", cache=tmp_path / "cache")


def put(store: ArtifactStore, text: str, asset: str = "pack", partition: str | None = "base", **about):
    def writer(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "rows.txt").write_text(text)
        (folder / "inner" / "more.txt").write_text("same")

    return store.write(asset, partition, writer, **{**ABOUT, **about})


def test_what_is_written_is_read_back(store):
    version = put(store, "one")
    assert store.current("pack", "base") == version
    assert (version.path / "rows.txt").read_text() == "one"
    assert (version.path / "inner" / "more.txt").read_text() == "same"
    assert version.manifest["inputs"] == ABOUT["inputs"]
    assert version.manifest["metadata"] == {"rows": 2}
    assert (version.manifest["asset"], version.manifest["partition"]) == ("pack", "base")
    assert version.bytes == 7
    assert json.loads((version.path / "MANIFEST.json").read_text())["sha"] == version.sha


def test_equal_content_is_the_same_version_and_adds_nothing(store):
    first = put(store, "one", run_id="first")
    again = put(store, "one", run_id="second")
    assert again.sha == first.sha
    assert [v.sha for v in store.versions("pack", "base")] == [first.sha]
    assert again.manifest["run_id"] == "first"


def test_disk_and_object_store_give_the_same_sha(tmp_path):
    disk = put(ArtifactStore(str(tmp_path / "store")), "one")
    remote = put(ArtifactStore(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache"), "one")
    assert disk.sha == remote.sha


def test_a_new_version_leaves_the_old_one_and_pointing_back_restores_it(store):
    old, new = put(store, "one"), put(store, "two")
    assert store.current("pack", "base") == new
    assert [v.sha for v in store.versions("pack", "base")] == [old.sha, new.sha]
    store.point("pack", "base", old.sha)
    assert (store.current("pack", "base").path / "rows.txt").read_text() == "one"


def test_assets_and_partitions_are_listed_by_their_own_names(store):
    put(store, "x", partition="b")
    put(store, "x", partition="a|0")
    put(store, "x", asset="rounds/r0/pack", partition=None)
    store.note("_failures", "run 1", {"why": "test"})
    assert store.assets() == ["pack", "rounds/r0/pack"]
    assert store.partitions("pack") == ["a|0", "b"]
    assert store.partitions("rounds/r0/pack") == []
    assert store.current("rounds/r0/pack", None) is not None
    assert store.current("pack", "c") is None


def test_a_partition_key_cannot_leave_its_folder(store):
    version = put(store, "x", partition="../../escape")
    assert store.partitions("pack") == ["../../escape"]
    assert "/pack/" in version.url


@pytest.mark.parametrize("asset,partition", [("", None), ("_private", None), ("pack", "_"), ("pack", "..")])
def test_names_that_the_layout_needs_are_refused(store, asset, partition):
    with pytest.raises(StoreError, match="cannot be the name"):
        put(store, "x", asset=asset, partition=partition)


def test_notes_stand_beside_a_version_and_do_not_change_it(store):
    version = put(store, "one")
    assert store.annotation("pack", "base", version.sha, "gates") is None
    store.annotate("pack", "base", version.sha, "gates", {"passed": False})
    store.annotate("pack", "base", version.sha, "gates", {"passed": True})
    assert store.annotation("pack", "base", version.sha, "gates") == {"passed": True}
    assert store.current("pack", "base").sha == version.sha
    with pytest.raises(StoreError, match="no such version of pack\\[base\\]"):
        store.annotate("pack", "base", "0" * 16, "gates", {})


def test_an_unknown_version_is_named_with_those_that_exist(store):
    version = put(store, "one")
    with pytest.raises(StoreError, match=f"ffff.*there are: {version.sha}"):
        store.point("pack", "base", "ffff")


def test_a_writer_that_fails_or_writes_nothing_changes_nothing(store):
    version = put(store, "one")

    def fails(folder: Path) -> None:
        (folder / "rows.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.write("pack", "base", fails, **ABOUT)
    with pytest.raises(StoreError, match="left no file"):
        store.write("pack", "base", lambda folder: None, **ABOUT)
    assert store.current("pack", "base") == version
    assert store.leftovers(older_than_s=-1) == []


def test_a_version_can_be_removed_but_not_the_current_one(store):
    old, new = put(store, "one"), put(store, "two")
    store.annotate("pack", "base", old.sha, "gates", {})
    with pytest.raises(StoreError, match="is current"):
        store.remove("pack", "base", new.sha)
    store.remove("pack", "base", old.sha)
    assert [v.sha for v in store.versions("pack", "base")] == [new.sha]
    assert store.annotation("pack", "base", old.sha, "gates") is None


def test_values_that_are_no_json_are_refused_before_anything_is_live(store):
    with pytest.raises(ValueError, match="JSON compliant"):
        put(store, "one", metadata={"rate": float("nan")})
    assert store.current("pack", "base") is None


def test_a_version_that_lost_a_file_is_made_whole_by_writing_it_again(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    version = put(store, "one")
    (version.path / "rows.txt").unlink()
    assert (put(store, "one").path / "rows.txt").read_text() == "one"


def test_a_damaged_manifest_is_named_with_the_cure(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    version = put(store, "one")
    (version.path / "MANIFEST.json").write_text('{"sha": ')
    with pytest.raises(StoreError, match="MANIFEST.json: not valid JSON.*make pack\\[base\\] again"):
        store.current("pack", "base")


def spoil(path: Path) -> None:
    """Overwrites bytes: the size stays."""
    data = path.read_bytes()
    path.write_bytes(b"X" * len(data))


def spoil_stored(store: ArtifactStore, version) -> None:
    """Damages `rows.txt` in the store itself, wherever that is; the size stays."""
    if store.address.startswith("memory"):
        path = store._files._path(f"pack/base/versions/{version.sha}/rows.txt")
        store._files._fs.pipe_file(path, b"X" * store._files._fs.size(path))
    else:
        spoil(version.path / "rows.txt")


def test_a_damaged_file_is_not_handed_out_but_named_with_the_cure(store, tmp_path):
    version = put(store, "one")
    spoil_stored(store, version)
    with pytest.raises(StoreError) as told:
        _ = store.current("pack", "base").path
    message = str(told.value)
    assert message.startswith(f"{version.url}/rows.txt: damaged file of pack[base], version {version.sha}")
    assert "its content is not what the manifest says; make pack[base] again" in message
    assert "`steer make pilot`" in message
    assert not list((tmp_path / "cache").rglob("rows.txt"))


def test_a_version_that_lacks_a_file_or_bytes_is_named(store):
    version = put(store, "one")
    if store.address.startswith("memory"):
        path = store._files._path(f"pack/base/versions/{version.sha}/rows.txt")
        store._files._fs.pipe_file(path, b"on")
        remove = partial(store._files._fs.rm_file, path)
    else:
        (version.path / "rows.txt").write_text("on")
        remove = (Path(version.url) / "rows.txt").unlink
    with pytest.raises(StoreError, match="rows.txt: damaged file.*it has 2 bytes instead of 3"):
        _ = version.path
    remove()
    with pytest.raises(StoreError, match="rows.txt: damaged file.*it is gone"):
        _ = version.path


def test_making_a_damaged_version_again_replaces_it(store):
    version = put(store, "one")
    store.annotate("pack", "base", version.sha, "released", {})
    spoil_stored(store, version)
    again = put(store, "one")
    assert again.sha == version.sha
    assert (again.path / "rows.txt").read_text() == "one"
    assert store.annotation("pack", "base", version.sha, "released") == {}


def test_a_damaged_copy_of_a_remote_version_is_downloaded_again(tmp_path):
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    version = put(store, "one")
    spoil(version.path / "rows.txt")
    assert (version.path / "rows.txt").read_text() == "one"


def test_a_file_is_hashed_once_a_process_and_again_when_it_was_touched(store, monkeypatch):
    version, hashed = put(store, "one"), []
    monkeypatch.setattr(store_module, "_HASHED", {})
    real = store_module._file_sha
    monkeypatch.setattr(store_module, "_file_sha", lambda path: (hashed.append(path.name), real(path))[1])
    assert version.path == store.current("pack", "base").path
    assert sorted(hashed) == ["more.txt", "rows.txt"]
    os.utime(version.path / "rows.txt", ns=(1, 1))
    assert version.path
    assert sorted(hashed) == ["more.txt", "rows.txt", "rows.txt"]


def test_a_manifest_of_other_files_is_not_believed_and_its_damage_hides_no_other_version(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    first, second = put(store, "one"), put(store, "two")
    (second.path / "MANIFEST.json").write_bytes((first.path / "MANIFEST.json").read_bytes())
    with pytest.raises(StoreError, match=f"not those of version {second.sha}; make pack\\[base\\] again"):
        store.current("pack", "base")
    assert store.current_sha("pack", "base") == second.sha
    assert store.shas("pack", "base") == sorted([first.sha, second.sha])
    assert (put(store, "two").path / "rows.txt").read_text() == "two"


KILLED_WRITER = """
import sys, time
from pathlib import Path
from steer_pipeline.io.store import ArtifactStore
def slow(folder):
    with (folder / "rows.txt").open("w") as handle:
        for step in range(10_000):
            handle.write("new rows\\n" * 100); handle.flush()
            if step == 3: print("writing", flush=True)
            time.sleep(0.001)
ArtifactStore(sys.argv[1]).write("pack", "base", slow, metadata={}, inputs={}, code_version="1", run_id=None)
"""


def test_killed_writer_leaves_the_former_version_live(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    version = put(store, "good")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, store.base], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert store.current("pack", "base") == version
    assert (version.path / "rows.txt").read_text() == "good"
    assert [v.sha for v in store.versions("pack", "base")] == [version.sha]
    left = store.leftovers(older_than_s=-1)
    assert len(left) == 1
    assert (left[0] / "rows.txt").stat().st_size > 0
    assert store.leftovers(older_than_s=3600) == []


RACING_WRITER = """
import sys
from steer_pipeline.io.store import ArtifactStore
store = ArtifactStore(sys.argv[1])
for round in range(20):
    store.write("pack", "base", lambda folder: (folder / "rows.txt").write_text(f"{round % 4}"),
                metadata={}, inputs={}, code_version="1", run_id=None)
"""


def test_two_writers_and_a_reader_always_see_whole_versions(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    writers = [subprocess.Popen([sys.executable, "-c", RACING_WRITER, store.base]) for _ in range(2)]
    deadline = time.monotonic() + 60
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        version = store.current("pack", "base")
        if version is not None:
            assert (version.path / "rows.txt").read_text() in "0123"
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(store.versions("pack", "base")) == 4
    assert store.leftovers(older_than_s=-1) == []
