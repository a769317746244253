"""Immutable, content-addressed versions of artefacts, in a directory or in an object store.

    <base>/<asset>/<partition or _>/versions/<sha16>/{files, MANIFEST.json}
                                    notes/<sha16>.<name>.json        what was found out about a version later
                                    CURRENT                          the live sha

In: a writer that fills an empty folder. Out: a `Version`, whose sha is the hash of the files' names and
contents; equal content is the same version and adds nothing. A version appears as a whole or not at all, and
CURRENT moves last: whoever is killed while writing leaves the former version live. Files are hashed before they
are handed out, once a process; making a damaged version again replaces it. Knows nothing of Dagster.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import fsspec

MANIFEST = "MANIFEST.json"
RELEASED = ("rewrite_pack", "rewrite_release")  # what a rollback of releases mends
CURRENT = "CURRENT"
STAGING = ".staging"
WORK, SHARED_WORK = ".work", "_work"
NO_PARTITION = "_"
SHA_LENGTH = 16


class StoreError(ValueError):
    """Something is missing from the store or damaged. The message names it and the cure."""


class StoreFull(StoreError, OSError):
    """No room for a new version; the former one stays current."""


@dataclass(frozen=True)
class Version:
    """One immutable version of one asset partition.

    Attributes:
        sha: 16 hexadecimal digits over names and contents of the files.
        manifest: asset, partition, created, run_id, code_version, inputs (name -> sha), metadata and
            files (name -> {sha256, bytes}) as they were when this content was first written.
        url: the version's directory, or its address in the object store.
    """

    sha: str
    manifest: Mapping[str, Any]
    url: str
    _fetch: Callable[[], Path] = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The version as a local directory, whole: every file is what the manifest says.

        A file is hashed the first time that a process asks, and again when its size or time has changed. A remote
        version is downloaded once, and again where the copy is damaged.

        Raises:
            StoreError: a file is missing or damaged; the message names it and the cure.
        """
        return self._fetch()

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())


class ArtifactStore:
    """All versions of all assets below `base`.

    Args:
        base: a directory, or a URL that fsspec knows (s3://bucket/prefix, gs://…).
        storage_options: for the URL's file system; credentials come from the environment.
        cache: where remote versions are downloaded to, and work in progress of remote stores lies.
    """

    def __init__(
        self, base: str, storage_options: Mapping[str, Any] | None = None, cache: Path | None = None
    ) -> None:
        self.base = base.rstrip("/")
        scheme = base.partition("://")[0] if "://" in base else "file"
        cache = cache or Path.home() / ".cache" / "steer_pipeline"
        self._files: _Files
        if scheme in ("file", "local"):
            self._files = _LocalFiles(Path(base.partition("://")[2] or base).expanduser().absolute())
        else:
            slug = hashlib.sha256(self.base.encode()).hexdigest()[:12]
            self._files = _RemoteFiles(self.base, dict(storage_options or {}), cache / slug)

    # ------------------------------------------------------------------------------------- writing

    def write(
        self,
        asset: str,
        partition: str | None,
        writer: Callable[[Path], None],
        *,
        metadata: Mapping[str, Any],
        inputs: Mapping[str, str],
        code_version: str,
        run_id: str | None,
        live: bool = True,
    ) -> Version:
        """Makes what `writer` puts into an empty folder the current version.

        Args:
            metadata: JSON values that describe this content.
            inputs: name of each input -> version it was made from.
            live: False stores the version and leaves CURRENT where it is, until `point`.

        Raises:
            StoreError: the writer wrote no file, or wrote a MANIFEST.json of its own.
            StoreFull: there is no room; whatever the writer's library makes of that.
        """
        staged = self.scratch(asset.replace("/", "-"))
        try:
            writer(staged)
            return self.adopt(
                asset,
                partition,
                staged,
                metadata=metadata,
                inputs=inputs,
                code_version=code_version,
                run_id=run_id,
                live=live,
            )
        except Exception as error:
            if not _is_full(error):
                raise
            raise StoreFull(
                f"{label(asset, partition)}: cannot be written to {self.base} ({error}); free space there, or set "
                "STEER_STORE to a place with more, and materialise it again; the former version is still current"
            ) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def adopt(
        self,
        asset: str,
        partition: str | None,
        folder: Path,
        *,
        metadata: Mapping[str, Any],
        inputs: Mapping[str, str],
        code_version: str,
        run_id: str | None,
        live: bool = True,
    ) -> Version:
        """Like `write`, for a filled folder of `scratch`, which is moved and not copied."""
        where = _place(asset, partition)
        files = _fingerprints(folder, where)
        sha = _content_sha(files)
        key = f"{where}/versions/{sha}"
        manifest = {
            "sha": sha,
            "asset": asset,
            "partition": partition,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run_id": run_id,
            "code_version": code_version,
            "inputs": dict(sorted(inputs.items())),
            "metadata": dict(metadata),
            "files": files,
        }
        if not self._files.is_whole(key, sha):
            self._files.publish(folder, key, manifest)
        if live:
            self._files.put(f"{where}/{CURRENT}", sha.encode())
        return self.version(asset, partition, sha)

    def scratch(self, label: str) -> Path:
        """A new empty folder on the store's own file system, for a version in the making.

        Left over after a crash, it is removed by `steer prune`.
        """
        folder = self._files.local_root / STAGING / f"{label}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return folder

    def work(self, asset: str) -> Path:
        """A local folder for an asset's work in progress, such as journals; it outlives runs.

        Of a remote store it is this machine's own; `segments` are what machines share.
        """
        folder = self._files.local_root / WORK / quote(asset, safe="")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def segments(self, asset: str, name: str) -> "Segments | None":
        """Where machines share the work in progress `name`; None for a directory, whose `work` is in the store."""
        if isinstance(self._files, _LocalFiles):
            return None
        return Segments(self._files, f"{SHARED_WORK}/{quote(asset, safe='')}/{_escape(name)}")

    def in_progress(self) -> list[tuple[str, str]]:
        """(asset, name) of all files of `work` and all folders of `segments`, sorted."""
        here = self._files.local_root / WORK
        found = {(unquote(path.parent.name), path.name) for path in here.glob("*/*")}
        for asset in self._files.folders(SHARED_WORK):
            names = self._files.folders(f"{SHARED_WORK}/{asset}")
            found |= {(unquote(asset), unquote(name)) for name in names}
        return sorted(found)

    def point(self, asset: str, partition: str | None, sha: str) -> Version:
        """Makes an existing version the current one."""
        version = self.version(asset, partition, sha)
        self._files.put(f"{_place(asset, partition)}/{CURRENT}", sha.encode())
        return version

    def annotate(self, asset: str, partition: str | None, sha: str, name: str, data: Any) -> None:
        """Puts JSON beside a version, in place of an earlier note of that name. It is not part of its sha."""
        self.version(asset, partition, sha)
        self._files.put(f"{_place(asset, partition)}/notes/{sha}.{_escape(name)}.json", _json(data))

    def note(self, folder: str, name: str, data: Any) -> str:
        """Puts JSON at `<base>/<folder>/<name>.json`; the folder starts with `_`. Returns its address."""
        if not folder.startswith("_"):
            raise StoreError(f"{folder!r}: folders of notes start with _, so that no asset has their name")
        key = f"{folder}/{_escape(name)}.json"
        self._files.put(key, _json(data))
        return self._files.url(key)

    # ------------------------------------------------------------------------------------- reading

    @property
    def address(self) -> str:
        """The base as an absolute directory or a URL: tells this store from others."""
        return self._files.url("").rstrip("/")

    def current(self, asset: str, partition: str | None) -> Version | None:
        """The live version, or None where nothing has been written yet.

        Raises:
            StoreError: CURRENT names a version that is gone, or whose manifest is damaged.
        """
        sha = self.current_sha(asset, partition)
        return None if sha is None else self.version(asset, partition, sha)

    def current_sha(self, asset: str, partition: str | None) -> str | None:
        """What CURRENT says, whether or not that version is whole."""
        sha = self._files.read(f"{_place(asset, partition)}/{CURRENT}")
        return None if sha is None else sha.decode().strip()

    def version(self, asset: str, partition: str | None, sha: str) -> Version:
        """The version `sha`.

        Raises:
            StoreError: there is none.
        """
        key = f"{_place(asset, partition)}/versions/{sha}"
        text = self._files.read(f"{key}/{MANIFEST}")
        if text is None:
            known = ", ".join(self.shas(asset, partition)) or "none"
            raise StoreError(
                f"{self._files.url(key)}: no such version of {label(asset, partition)}; there are: {known}. "
                "Materialise it again, or point to one of these"
            )
        try:
            manifest = _manifest(text, sha)
        except ValueError as error:
            where = f"{self._files.url(key)}/{MANIFEST}"
            raise StoreError(f"{where}: {error}; {_cure(asset, partition)}") from error
        return Version(sha, manifest, self._files.url(key), lambda: self._whole(key, manifest))

    def versions(self, asset: str, partition: str | None) -> list[Version]:
        """All versions, the oldest first.

        Raises:
            StoreError: the manifest of one is damaged.
        """
        found = [self.version(asset, partition, sha) for sha in self.shas(asset, partition)]
        return sorted(found, key=lambda version: (version.manifest["created"], version.sha))

    def shas(self, asset: str, partition: str | None) -> list[str]:
        """Hashes of all versions, sorted; none is opened, so that a damaged one does not hide the others."""
        return sorted(self._files.folders(f"{_place(asset, partition)}/versions"))

    def partitions(self, asset: str) -> list[str]:
        """Partitions that have a current version, sorted; empty for an unpartitioned asset."""
        names = [name for name in self._files.folders(_escape_asset(asset)) if name != NO_PARTITION]
        where = _escape_asset(asset)
        return sorted(unquote(name) for name in names if self._files.read(f"{where}/{name}/{CURRENT}"))

    def assets(self) -> list[str]:
        """Assets that have a current version, sorted."""
        return sorted(self._assets_below(""))

    def annotation(self, asset: str, partition: str | None, sha: str, name: str) -> Any | None:
        """What was last noted under `name` about a version, or None."""
        text = self._files.read(f"{_place(asset, partition)}/notes/{sha}.{_escape(name)}.json")
        return None if text is None else json.loads(text)

    # ------------------------------------------------------------------------------------ removing

    def remove(self, asset: str, partition: str | None, sha: str) -> None:
        """Deletes a version and what was noted about it.

        Raises:
            StoreError: it is the current one.
        """
        where = _place(asset, partition)
        if self._files.read(f"{where}/{CURRENT}") == sha.encode():
            raise StoreError(f"{label(asset, partition)}: {sha} is current; point to another version first")
        self._files.remove(f"{where}/versions/{sha}")
        for name in self._files.files(f"{where}/notes"):
            if name.startswith(f"{sha}."):
                self._files.remove(f"{where}/notes/{name}")

    def leftovers(self, older_than_s: float) -> list[Path]:
        """Scratch folders that nobody has written to for that long."""
        staging = self._files.local_root / STAGING
        if not staging.is_dir():
            return []
        limit = time.time() - older_than_s
        return sorted(path for path in staging.iterdir() if _last_write(path) < limit)

    # ------------------------------------------------------------------------------------- private

    def _whole(self, key: str, manifest: Mapping[str, Any]) -> Path:
        try:
            return self._files.local(key, manifest)
        except _Damaged as damage:
            asset, partition = manifest["asset"], manifest["partition"]
            raise StoreError(
                f"{self._files.url(key)}/{damage.name}: damaged file of {label(asset, partition)}, version "
                f"{manifest['sha']}: {damage}; {_cure(asset, partition)}"
            ) from None

    def _assets_below(self, key: str) -> Iterator[str]:
        for name in self._files.folders(key):
            below = f"{key}/{name}" if key else name
            if (not key and name.startswith((".", "_"))) or name in ("versions", "notes"):
                continue
            if self._files.read(f"{below}/{CURRENT}") is not None:
                yield unquote(key)
                return
            yield from self._assets_below(below)


class Segments:
    """Small immutable objects in one folder of a remote store."""

    def __init__(self, files: "_Files", folder: str) -> None:
        self._files, self._folder = files, folder

    @property
    def url(self) -> str:
        return self._files.url(self._folder)

    def names(self) -> list[str]:
        return self._files.files(self._folder)

    def read(self, name: str) -> bytes | None:
        """Its content; None where it has been removed."""
        return self._files.read(f"{self._folder}/{name}")

    def put(self, name: str, data: bytes) -> None:
        self._files.put(f"{self._folder}/{name}", data)

    def remove(self, name: str) -> None:
        self._files.remove(f"{self._folder}/{name}")


def label(asset: str, partition: str | None) -> str:
    """`asset` or `asset[partition]`: how messages and manifests name an input."""
    return asset if partition is None else f"{asset}[{partition}]"


# ------------------------------------------------------------------------------------- file systems


class _Files(Protocol):
    """What the store needs of a place; keys are relative to its base, with / between parts."""

    local_root: Path

    def read(self, key: str) -> bytes | None: ...
    def put(self, key: str, data: bytes) -> None: ...
    def publish(self, folder: Path, key: str, manifest: Mapping[str, Any]) -> None: ...
    def is_whole(self, key: str, sha: str) -> bool: ...
    def folders(self, key: str) -> list[str]: ...
    def files(self, key: str) -> list[str]: ...
    def local(self, key: str, manifest: Mapping[str, Any]) -> Path: ...
    def remove(self, key: str) -> None: ...
    def url(self, key: str) -> str: ...


class _LocalFiles:
    """A directory. A version is renamed into place, a small file replaced: each at once or not at all."""

    def __init__(self, root: Path) -> None:
        self.local_root = root

    def read(self, key: str) -> bytes | None:
        try:
            return (self.local_root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, data: bytes) -> None:
        target = self.local_root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = self.local_root / STAGING / f"{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(aside, data)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def publish(self, folder: Path, key: str, manifest: Mapping[str, Any]) -> None:
        target = self.local_root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                _sync_file(path)
        _write_through(folder / MANIFEST, _json(manifest))
        try:
            os.rename(folder, target)
        except OSError:  # something is there: the same content by another process, or a damaged version
            if not self.is_whole(key, manifest["sha"]):
                self.set_aside(target)
                os.rename(folder, target)
        _moved(folder, target, manifest["files"])
        _sync_folder(target.parent)

    def set_aside(self, damaged: Path) -> None:
        """Moves a damaged version to the leftovers, where it can be looked at for a day."""
        place = self.local_root / STAGING / f"damaged-{uuid.uuid4().hex[:8]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(damaged, place)

    def is_whole(self, key: str, sha: str) -> bool:
        text = self.read(f"{key}/{MANIFEST}")
        with suppress(ValueError, _Damaged):
            if text is not None:
                _check(self.local_root / key, _manifest(text, sha)["files"])
                return True
        return False

    def folders(self, key: str) -> list[str]:
        return self._names(key, Path.is_dir)

    def files(self, key: str) -> list[str]:
        return self._names(key, Path.is_file)

    def _names(self, key: str, wanted: Callable[[Path], bool]) -> list[str]:
        folder = self.local_root / key
        return sorted(path.name for path in folder.iterdir() if wanted(path)) if folder.is_dir() else []

    def local(self, key: str, manifest: Mapping[str, Any]) -> Path:
        _check(self.local_root / key, manifest["files"])
        return self.local_root / key

    def remove(self, key: str) -> None:
        path = self.local_root / key
        if path.is_dir():
            doomed = self.local_root / STAGING / f"removed-{uuid.uuid4().hex[:8]}"
            doomed.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, doomed)  # at once, so that no reader sees half a version
            shutil.rmtree(doomed)
        else:
            path.unlink(missing_ok=True)

    def url(self, key: str) -> str:
        return str(self.local_root / key)


class _RemoteFiles:
    """An object store. Each put is atomic: objects first, the manifest after them, CURRENT last."""

    def __init__(self, base: str, options: dict[str, Any], cache: Path) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(base, **{"use_listings_cache": False, **options})
        self._base = base
        self.local_root = cache

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def read(self, key: str) -> bytes | None:
        try:
            return self._fs.cat_file(self._path(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def put(self, key: str, data: bytes) -> None:
        self._make_parent(key)
        self._fs.pipe_file(self._path(key), data)

    def publish(self, folder: Path, key: str, manifest: Mapping[str, Any]) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{key}/{path.relative_to(folder).as_posix()}"
                self._make_parent(name)
                self._fs.put_file(str(path), self._path(name))
        self.put(f"{key}/{MANIFEST}", _json(manifest))

    def _make_parent(self, key: str) -> None:
        with suppress(FileExistsError, NotImplementedError):
            self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)

    def is_whole(self, key: str, sha: str) -> bool:
        """Reads the objects themselves: what a listing says of them is no proof, and replacing costs no less."""
        text = self.read(f"{key}/{MANIFEST}")
        with suppress(ValueError, FileNotFoundError):
            return text is not None and all(
                self._object_sha(f"{key}/{name}") == entry["sha256"]
                for name, entry in _manifest(text, sha)["files"].items()
            )
        return False

    def _object_sha(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._path(key), "rb") as handle:
            while block := handle.read(2**22):
                digest.update(block)
        return digest.hexdigest()

    def folders(self, key: str) -> list[str]:
        return self._names(key, "directory")

    def files(self, key: str) -> list[str]:
        return self._names(key, "file")

    def _names(self, key: str, kind: str) -> list[str]:
        path = self._path(key)
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        names = {
            entry["name"].rstrip("/").rpartition("/")[2]
            for entry in entries
            if entry["type"] == kind and entry["name"].strip("/") != path.strip("/")
        }
        return sorted(names)

    def local(self, key: str, manifest: Mapping[str, Any]) -> Path:
        """Downloads the version into the cache; since versions never change, a whole copy is good for ever.

        A damaged copy is downloaded again. What is damaged in the store itself stays out of the cache.
        """
        target, files = self.local_root / "versions" / key, manifest["files"]
        try:
            _check(target, files)
            return target
        except _Damaged:
            shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = self.local_root / STAGING / f"download-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            for name in [*files, MANIFEST]:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    self._fs.get_file(self._path(f"{key}/{name}"), str(aside / name))
            _check(aside, files)
            os.rename(aside, target)
            _moved(aside, target, files)
        except OSError:
            if not target.is_dir():  # else another process has downloaded it meanwhile
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return target

    def remove(self, key: str) -> None:
        # The manifest goes first: without it the rest is no version.
        with suppress(FileNotFoundError, NotADirectoryError):
            self._fs.rm_file(self._path(f"{key}/{MANIFEST}"))
        with suppress(FileNotFoundError):
            self._fs.rm(self._path(key), recursive=True)
        shutil.rmtree(self.local_root / "versions" / key, ignore_errors=True)

    def url(self, key: str) -> str:
        return f"{self._base}/{key}"


# ------------------------------------------------------------------------------------------ details


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_full(error: Exception) -> bool:
    """Libraries written in Rust wrap the system's error and keep only its text."""
    return any(getattr(error, "errno", None) == code or os.strerror(code) in str(error) for code in _NO_ROOM)


def _escape(name: str) -> str:
    return quote(name, safe=" |,=@+")


def _escape_asset(asset: str) -> str:
    return "/".join(_escape(part) for part in asset.split("/"))


def _place(asset: str, partition: str | None) -> str:
    if not asset or asset.startswith(("_", ".")) or "" in asset.split("/"):
        raise StoreError(f"{asset!r} cannot be the name of an asset in the store")
    if partition is None:
        return f"{_escape_asset(asset)}/{NO_PARTITION}"
    if partition in ("", NO_PARTITION, ".", ".."):
        raise StoreError(f"{asset}: {partition!r} cannot be the name of a partition in the store")
    return f"{_escape_asset(asset)}/{_escape(partition)}"


def _cure(asset: str, partition: str | None) -> str:
    again = f"make {label(asset, partition)} again, which replaces it (`steer make pilot` or `steer make behaviour`)"
    if asset in RELEASED:
        return f"{again}, or go back to another version (`steer release rollback {partition}`)"
    return f"{again}, or go back to another version"


def _manifest(text: bytes, sha: str) -> dict[str, Any]:
    """A version's manifest.

    Raises:
        ValueError: it is torn, or not that of this version.
    """
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    with suppress(TypeError, KeyError, AttributeError):
        if _content_sha(manifest["files"]) == sha:
            return manifest
    raise ValueError(f"the files that it lists are not those of version {sha}")


# path -> (sha256, bytes, mtime in ns) when this process hashed it
_HASHED: dict[str, tuple[str, int, int]] = {}


class _Damaged(Exception):
    """`name`: the file of a version that is not what its manifest says."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.name = name


def _check(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises _Damaged unless every file is what the manifest says."""
    for name, entry in files.items():
        path = folder / name
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise _Damaged(name, "it is gone") from None
        if stat.st_size != entry["bytes"]:
            raise _Damaged(name, f"it has {stat.st_size} bytes instead of {entry['bytes']}")
        found = (entry["sha256"], stat.st_size, stat.st_mtime_ns)
        if _HASHED.get(str(path)) != found:
            if _file_sha(path) != entry["sha256"]:
                raise _Damaged(name, "its content is not what the manifest says")
            _HASHED[str(path)] = found


def _moved(folder: Path, target: Path, files: Mapping[str, Any]) -> None:
    """What was hashed in `folder` need not be hashed again in `target`."""
    for name in files:
        if (hashed := _HASHED.pop(str(folder / name), None)) is not None:
            _HASHED[str(target / name)] = hashed


def _fingerprints(folder: Path, where: str) -> dict[str, dict[str, Any]]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if not paths:
        raise StoreError(
            f"{where}: the writer left no file; an empty version would hide that nothing was made"
        )
    if MANIFEST in paths:
        raise StoreError(f"{where}: {MANIFEST} is the store's own file; give yours another name")
    files = {}
    for name, path in sorted(paths.items()):
        stat, sha = path.stat(), _file_sha(path)
        files[name] = {"sha256": sha, "bytes": stat.st_size}
        _HASHED[str(path)] = (sha, stat.st_size, stat.st_mtime_ns)
    return files


def _content_sha(files: Mapping[str, Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, entry in sorted(files.items()):
        digest.update(f"{name}\0{entry['sha256']}\n".encode())
    return digest.hexdigest()[:SHA_LENGTH]


def _file_sha(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _last_write(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    times = [path.stat().st_mtime]
    for each in inside:
        with suppress(FileNotFoundError):
            times.append(each.stat().st_mtime)
    return max(times)
