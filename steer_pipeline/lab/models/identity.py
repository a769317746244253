"""Which model this is: hashes of all bytes of its weights, its tokenizer and its adapters.

In: a ModelSpec and the project root, or folders. Out: a `ModelIdentity`, without importing torch or transformers.
Hashes of files are kept on disk under path, size, times and inode, so that asking again costs a few stat calls. Only
files that loading reads count: where there are safetensors, no `.bin`; where there is a tokenizer.json, no vocab.json.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.errors import ModelLoadError
from steer_pipeline.lab.models.gguf import converted

_SETTLED_NS = 2_000_000_000  # a file changed so lately may change again without its times telling
_SHOWN = 12  # digits of a hash in messages
_CONFIGS = ("config.json", "generation_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES = ("chat_template.*", "additional_chat_templates/*")
_SLOW_TOKENIZER = ("vocab.*", "merges.txt", "*.model", "tekken.json", "*.tiktoken")
_GGUF = ".gguf"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"


# ---------------------------------------------------------------------------------------- identities


@dataclass(frozen=True)
class ModelIdentity:
    """A model known by its content. Equal identities are the same model, whatever their folders are called.

    Attributes:
        base: sha256 of the base model's weights and configs: what a steering vector belongs to.
        tokenizer: sha256 of tokenizer and chat template.
        adapters: sha256 of each adapter on top (its config and weights), in the order in which they are applied.
    """

    base: str
    tokenizer: str
    adapters: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`base:<sha> tokenizer:<sha> adapter:<sha> …`, for records; `parse` reads it."""
        adapters = (f" adapter:{one}" for one in self.adapters)
        return f"base:{self.base} tokenizer:{self.tokenizer}" + "".join(adapters)

    @classmethod
    def parse(cls, text: str) -> "ModelIdentity":
        """What `str` wrote.

        Raises:
            ValueError: it is not such a text.
        """
        parts = [part.partition(":") for part in text.split(" ")]
        kinds, shas = [kind for kind, _, _ in parts], [sha for _, _, sha in parts]
        if kinds[:2] != ["base", "tokenizer"] or set(kinds[2:]) - {"adapter"} or not all(shas):
            raise ValueError(f"{text!r} is no model identity; 'base:<sha> tokenizer:<sha>' is expected")
        return cls(shas[0], shas[1], tuple(shas[2:]))

    @property
    def digest(self) -> str:
        """64 hex digits over all parts."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def on_base(self) -> "ModelIdentity":
        """The same model without its adapters."""
        return replace(self, adapters=())

    def differences(self, other: "ModelIdentity") -> str:
        """Which parts differ, with both values: `weights differ: 1a2b… against 3c4d…`; empty where none does."""
        differing = []
        for what, mine, theirs in (
            ("weights differ", (self.base,), (other.base,)),
            ("tokenizer or chat template differ", (self.tokenizer,), (other.tokenizer,)),
            ("adapters differ", self.adapters, other.adapters),
        ):
            if mine != theirs:
                differing.append(f"{what}: {_shown(mine)} against {_shown(theirs)}")
        return "; ".join(differing)

    def differences_from(self, recorded: str | None) -> str:
        """How this model differs from the one that a stored result was made with; empty where it does not.

        Args:
            recorded: `str` of that identity, or None where the result does not say.
        """
        if recorded is None:
            return "it does not say which weights it was made with"
        return ModelIdentity.parse(recorded).differences(self)


def _shown(shas: tuple[str, ...]) -> str:
    return " + ".join(short_sha(sha) for sha in shas) or "none"


def short_sha(sha: str) -> str:
    """For messages: the first digits of a long hash."""
    return sha if len(sha) <= _SHOWN else f"{sha[:_SHOWN]}…"


def model_identity(spec: ModelSpec, home: Path) -> ModelIdentity | None:
    """Identity of what `spec` names; None where its files are not all here yet (a hub id before its download).

    Imports neither torch nor transformers, and costs a few stat calls where nothing changed.

    Raises:
        ModelLoadError: no such directory, no model or no adapter in it.
    """
    if (gguf := gguf_file(spec, home)) is not None:
        return _with_adapters(_gguf_identity(gguf), adapter_folders(spec, home))
    source = model_source(spec, home)
    folder = local_folder(source, spec.revision)
    if folder is None:
        return None
    return folder_identity(folder, adapter_folders(spec, home))


def folder_identity(folder: Path, adapters: Iterable[Path] = ()) -> ModelIdentity | None:
    """Identity of a model's folder with adapters on top; None where weights are missing (an unfinished download)."""
    weights = _weight_files(folder)
    if not weights:
        return None
    if folder.parent == gguf_cache():  # known by the file that it was made of
        base, _, tokenizer = folder.name.partition("-")
        return _with_adapters(ModelIdentity(base, tokenizer), adapters)
    with _Hashes() as hashes:
        return ModelIdentity(
            hashes.of(folder, [*_named(folder, _CONFIGS), *weights]),
            hashes.of(folder, _tokenizer_files(folder)),
            tuple(hashes.of(one, _adapter_files(one)) for one in adapters),
        )


def _with_adapters(identity: ModelIdentity, adapters: Iterable[Path]) -> ModelIdentity:
    return replace(identity, adapters=tuple(adapter_identity(one) for one in adapters))


def _gguf_identity(path: Path) -> ModelIdentity:
    """The file's hash for weights and tokenizer; a chat template beside it is part of the latter."""
    template = gguf_template(path)
    with _Hashes() as hashes:
        own = hashes.content(path)
        both = own if template is None else f"{own} {hashes.content(template)}"
    return ModelIdentity(own, own if template is None else hashlib.sha256(both.encode()).hexdigest())


def tokenizer_identity(folder: Path) -> str:
    """sha256 of tokenizer and chat template."""
    with _Hashes() as hashes:
        return hashes.of(folder, _tokenizer_files(folder))


def adapter_identity(folder: Path) -> str:
    """sha256 of an adapter's config and weights."""
    with _Hashes() as hashes:
        return hashes.of(folder, _adapter_files(folder))


def _tokenizer_files(folder: Path) -> list[Path]:
    slow = () if (folder / "tokenizer.json").is_file() else _SLOW_TOKENIZER
    return _named(folder, (*_TOKENIZER, *_TEMPLATES, *slow))


def _adapter_files(folder: Path) -> list[Path]:
    return [folder / name for name in (ADAPTER_CONFIG, *_adapter_weights(folder))]


def _weight_files(folder: Path) -> list[Path]:
    """Weights and their index, in the format that loading takes; none where some of the index are missing."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        stem, _, suffix = name.rpartition(".")
        found = set(_named(folder, (f"{stem}*.{suffix}",)))
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = {folder / part for part in json.loads(index.read_text())["weight_map"].values()}
            found = found | listed | {index} if all(part.is_file() for part in listed) else set()
        if found:
            return sorted(found)
    return []


def _adapter_weights(folder: Path) -> tuple[str, ...]:
    """PEFT reads the first of them."""
    return next(((name,) for name in _ADAPTER_WEIGHTS if (folder / name).is_file()), ())


def _named(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


# --------------------------------------------------------------------------------------------- names

# How published sets of dialogues and vectors call their models.
MODEL_SLUGS = {
    "gemma-2-27b": "google/gemma-2-27b-it",
    "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "qwen-3-32b": "Qwen/Qwen3-32B",
}


def known_name(source: str) -> str:
    """What others call the model: its hub id, also where its folder lies in the hub cache, or its folder's own name.

    A folder called `model` or `merged` names nothing and stays a path: names of models have a number in them. A
    config's `_name_or_path` does not count: a merged fine-tune keeps its base's.
    """
    owner = next((part for part in PurePath(source).parts if part.startswith("models--")), None)
    if owner is not None:
        return owner.removeprefix("models--").replace("--", "/", 1)
    own = PurePath(source).name
    return source if _like_hub_id(source) or not re.search(r"\d", own) else own


def name_of(spec: ModelSpec, home: Path) -> str:
    """`known_name` of what a spec names."""
    local = (home / spec.path).resolve()
    if gguf_file(spec, home) is not None:
        return local.stem
    known = known_name(str(local)) if local.is_dir() else spec.path
    return spec.path if known == str(local) else known


def same_name(a: str, b: str) -> bool:
    """The rule for models of which only names are known, as of imported vectors: whether both may be of one model.

    Published slugs and folders of the hub cache stand for their hub ids. Two hub ids, or two paths, must be equal;
    against a name without organisation (a folder's, a slug) the last part decides, its letters and digits in any case.
    """
    a, b = (MODEL_SLUGS.get(name, known_name(name)).casefold() for name in (a, b))
    if "/" in a and "/" in b:
        return a == b
    return re.sub(r"[^a-z0-9]", "", a.rsplit("/", 1)[-1]) == re.sub(r"[^a-z0-9]", "", b.rsplit("/", 1)[-1])


def _like_hub_id(path: str) -> bool:
    return path.count("/") <= 1 and not path.startswith((".", "/", "~"))


# ------------------------------------------------------------------------------------------- folders


def model_source(spec: ModelSpec, home: Path) -> str:
    """An existing directory as absolute path, or the hub id; of a GGUF file, the directory that it is converted to, now
    if it has not been before.

    Raises:
        ModelLoadError: the path is neither, or its directory has no config.json or holds an adapter; a GGUF file that
            cannot be converted.
    """
    local = home / spec.path
    if (gguf := gguf_file(spec, home)) is not None:
        return str(converted(gguf, gguf_folder(gguf), gguf_template(gguf)))
    if local.is_dir():
        if (local / ADAPTER_CONFIG).is_file():
            raise ModelLoadError(
                f"model {local}: an adapter; give its base as model.path and this directory as model.adapter"
            )
        if not (local / "config.json").is_file():
            raise ModelLoadError(
                f"model {local}: no config.json; give the directory that save_pretrained wrote"
            )
        return str(local.resolve())
    if local.is_file() or spec.path.lower().endswith(_GGUF) or not _like_hub_id(spec.path):
        what = "no GGUF file or directory" if local.is_file() else "no such directory"
        raise ModelLoadError(f"model {spec.path}: {what} under {home}; correct model.path in the profile")
    return spec.path


def gguf_file(spec: ModelSpec, home: Path) -> Path | None:
    """The GGUF file that a spec names, if it names one."""
    local = (home / spec.path).absolute()
    return local if local.suffix.lower() == _GGUF and local.is_file() else None


def gguf_template(path: Path) -> Path | None:
    """A chat template that lies beside a GGUF file, in place of the one in it."""
    beside = (path.with_suffix(".jinja"), path.parent / "chat_template.jinja")
    return next((one for one in beside if one.is_file()), None)


def gguf_cache() -> Path:
    """Where GGUF files are kept as directories that load fast."""
    return cache_file().parent / "gguf"


def gguf_folder(path: Path) -> Path:
    """Where one is kept; called by its identity."""
    identity = _gguf_identity(path)
    return gguf_cache() / f"{identity.base}-{identity.tokenizer}"


def adapter_folders(spec: ModelSpec, home: Path) -> list[Path]:
    """The directories of the spec's adapters, in their order.

    Raises:
        ModelLoadError: one is no PEFT adapter, or has no weights.
    """
    folders = [(home / path).resolve() for path in spec.adapters]
    for folder in folders:
        if not (folder / ADAPTER_CONFIG).is_file():
            raise ModelLoadError(f"adapter {folder}: no {ADAPTER_CONFIG}; give a PEFT adapter directory")
        if not _adapter_weights(folder):
            raise ModelLoadError(f"adapter {folder}: no {_ADAPTER_WEIGHTS[0]}; save the adapter again")
    return folders


def local_folder(source: str, revision: str | None) -> Path | None:
    """Where the files of a model lie: the directory itself or the hub cache's snapshot; None before a download."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


# -------------------------------------------------------------------------------------------- hashes


def cache_file() -> Path:
    """Where hashes of files are kept.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path.home() / ".cache" / "steer_pipeline" / "hashes.json"


class _Hashes:
    """sha256 of files, remembered on disk. A lost or damaged cache, or a home without room, costs reading anew."""

    def __enter__(self) -> "_Hashes":
        self._known: dict[str, list] = {}
        self._new: dict[str, list] = {}
        with suppress(OSError, ValueError, RuntimeError):
            known = json.loads(cache_file().read_text())
            self._known = known if isinstance(known, dict) else {}
        return self

    def __exit__(self, *_: object) -> None:
        if not self._new:
            return
        kept = {path: entry for path, entry in self._known.items() if os.path.exists(path)}
        with suppress(OSError, RuntimeError):
            target = cache_file()
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
            staged.write_text(json.dumps(kept | self._new))
            os.replace(staged, target)

    def of(self, folder: Path, files: Iterable[Path]) -> str:
        """One sha256 over names and contents."""
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{self.content(path)}\n".encode())
        return digest.hexdigest()

    def content(self, path: Path) -> str:
        while True:
            began, before = time.time_ns(), _state(path)
            entry = self._known.get(str(path.absolute()))
            if isinstance(entry, list) and entry[:-1] == before:
                return entry[-1]
            # a blob of the hub cache is called by its content's hash; one that has changed since is read
            sha = _blob_sha(path) if entry is None else None
            if sha is None:
                with path.open("rb") as file:
                    sha = hashlib.file_digest(file, "sha256").hexdigest()
            if _state(path) == before:
                break  # else it was written meanwhile
        if began - max(before[1:3]) > _SETTLED_NS:
            self._new[str(path.absolute())] = [*before, sha]
        return sha


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _blob_sha(path: Path) -> str | None:
    """The sha256 that a hub cache's blob has as its name; None for other files and for blobs under git's hash."""
    if not path.is_symlink():
        return None
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name) else None


# ------------------------------------------------------------------------------------ parts by themselves


def content_sha(files: Iterable[Path]) -> str:
    """sha256 over names and contents of files, from the same cache."""
    with _Hashes() as hashes:
        return hashlib.sha256(
            "\n".join(hashes.of(path.parent, [path]) for path in files).encode()
        ).hexdigest()


def vocabulary_sha(folder: Path) -> str:
    """Identity of how text becomes ids: a model's tokenizer without its chat template."""
    config = _tokenizer_config(folder)
    config.pop("chat_template", None)
    templates = {*_named(folder, _TEMPLATES), folder / "tokenizer_config.json"}
    files = [path for path in _tokenizer_files(folder) if path not in templates]
    return hashlib.sha256(f"{json.dumps(config, sort_keys=True)} {content_sha(files)}".encode()).hexdigest()


def template_sha(folder: Path) -> str:
    """Identity of a model's chat templates, wherever they lie."""
    inside = json.dumps(_tokenizer_config(folder).get("chat_template"))
    return hashlib.sha256(f"{inside} {content_sha(_named(folder, _TEMPLATES))}".encode()).hexdigest()


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
