"""Rankings by Bergson 2.5: gradient similarity, TrackStar, EK-FAC and MAGIC, on exactly our ids and labels.

In: encoded examples and the model's spec. Out: scores by row id, higher is better. Every step writes its configuration
beside its result, so that the next one knows what has been applied already; a step that is done is not done again, so
that a killed run goes on. Bergson is no dependency: `require` says how to get it.

Rules learned the hard way: only the commands' own classes are used, for `build` alone leaves no configuration and the
next step then preconditions and norms a second time; the one-sided form with unit norm does not exist there, so its
query is made here and stored as already normed; nothing is sent to a tracking service.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steer_pipeline.catalogue.attribution_scoring import (
    EkfacMethod,
    GradientMethod,
    MagicMethod,
    ReplaySpec,
    TrackstarMethod,
)
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError
from steer_pipeline.lab.attribution.scoring.replay import Replay, require_smooth
from steer_pipeline.lab.attribution.scoring.similarity import applied, powers
from steer_pipeline.lab.finetune.data import IGNORED, Example
from steer_pipeline.lab.models.identity import adapter_folders, model_source

SERIES = "2.5"
CURE = (
    "run `make bergson` in the checkout, or pip install 'steer-pipeline[attribution]' and then "
    "pip install --no-deps bergson==2.5.1"
)
Found = tuple[dict[str, float], dict[str, str]]  # scores, and failures with their reason, by row id


def installed() -> bool:
    return importlib.util.find_spec("bergson") is not None


def require() -> None:
    """Raises a ScoringError that says how to get Bergson, or which one is wrong."""
    if not installed():
        raise ScoringError(f"Bergson is not installed: {CURE}; or use a method with back_end: native")
    found = importlib.metadata.version("bergson")
    if not found.startswith(f"{SERIES}."):
        raise ScoringError(
            f"Bergson {found} is installed, but its interface changes often; for {SERIES}: {CURE}"
        )


@dataclass(frozen=True)
class Job:
    """What is ranked for what, and where the steps leave what they make.

    Attributes:
        spec: the model, with at most one adapter; None of it for MAGIC, which trains its own.
        work: of these very rows and settings; it may hold finished steps of a killed run.
        max_tokens: positions of the model.
    """

    spec: ModelSpec
    home: Path
    pool: Sequence[Example]
    queries: Sequence[Example]
    work: Path
    batch_tokens: int
    max_tokens: int
    loss: str

    def folder(self, name: str) -> Path:
        return (self.work / name).absolute()


def gradient_scores(job: Job, method: GradientMethod) -> Found:
    """As `similarity.similarities`, to 1e-5."""
    require()
    with _quiet():
        moment = _moment(job, method) if method.preconditioning != "none" else None
        ours = moment is not None and method.sides == "one" and method.unit_norm
        applied_there = None if ours else moment
        query = _query(job, method, applied_there)
        if ours:
            assert moment is not None
            query = _preconditioned(job, method, query, moment)
        scores = job.folder("scores")
        _step(
            scores,
            lambda: _bergson().Score(
                _config("ScoreConfig", query_path=str(query), score=_mode(method)),
                _index(job, scores, "pool", method.projection, method.seed),
                _preprocess(method, applied_there),
            ),
        )
        return _read(job, scores, method.unit_norm)


def trackstar_scores(job: Job, method: TrackstarMethod) -> Found:
    require()
    run = job.folder("trackstar")
    with _quiet():
        index = _index(job, run, "pool", method.projection, 0, kind="TrackstarIndexConfig")
        cfg = _config(
            "TrackstarConfig",
            query=_config("QuerySetConfig", dataset=str(_rows(job, "queries")), aggregation="mean"),
            preprocess_cfg=_config("PreprocessConfig", unit_normalize=True),
            target_downweight_components=method.downweighted,
            resume=True,
        )
        _bergson().Trackstar(index, cfg).execute()
        return _read(job, run / "scores", unit_norm=True)


def ekfac_scores(job: Job, method: EkfacMethod) -> Found:
    """The factors' labels are drawn from the model, with seed 0."""
    require()
    run = job.folder("ekfac")
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cfg = _config(
            "HessianPipelineConfig",
            query=_config("QuerySetConfig", dataset=str(_rows(job, "queries")), aggregation="mean"),
            inversion_cfg=_config("InversionConfig", damping_factor=method.damping),
            resume=True,
        )
        _bergson().Ekfac(
            _index(job, run, "pool", 0, 0),
            _config("HessianConfig", method="kfac", ev_correction=True),
            _config("ScoreConfig"),
            _config("PreprocessConfig"),
            cfg,
        ).execute()
        return _read(job, run / "scores", unit_norm=False)


def magic_scores(job: Job, method: MagicMethod, replay: Replay) -> Found:
    """Minus the derivative of the queries' NLL by a row's weight.

    Args:
        replay: the same training natively, whose start Bergson begins with.

    Raises:
        ScoringError: the training answers to its weights in no smooth way; nothing is scored then.
    """
    require()
    run = job.folder("magic")
    with _quiet():
        require_smooth(metasmoothness(job, method, replay), method.min_metasmoothness)
        if not (run / "scores").is_dir():
            training = _training(job, replay, run)
            _bergson().Magic(
                **training,
                query=_config("QuerySetConfig", dataset=str(_rows(job, "queries")), aggregation="mean"),
                resume=True,
                backward_save_every=max(1, math.isqrt(len(replay.steps))),
            ).execute()
        found, failed = _read(job, run / "scores", unit_norm=False, recorded=False)
    return {row_id: -value for row_id, value in found.items()}, failed


def metasmoothness(job: Job, method: MagicMethod, replay: Replay) -> float:
    """See `Replay.metasmoothness`; by Bergson."""
    run = job.folder("metasmoothness")
    told = run / "metasmoothness.json"
    if not told.is_file():
        _bergson().Metasmoothness(
            **_training(job, replay, run), fd_step=method.fd_step, direction_seed=0
        ).execute()
    return float(json.loads(told.read_text())["score"])


# ----------------------------------------------------------------------------------------------- steps


def _step(folder: Path, command: Callable[[], Any]) -> None:
    """Runs a command that moves what it made to `folder` at its end, where that is not there yet."""
    if not folder.is_dir():
        command().execute()


def _moment(job: Job, method: GradientMethod) -> Path:
    """Where the second moment of gradients lies: the queries', or theirs and the pool's mixed."""
    queries = job.folder("moment_queries")
    _step(queries, lambda: _hessian(job, method, queries, "queries"))
    if method.preconditioning == "query":
        return queries
    pool, mixed = job.folder("moment_pool"), job.folder("moment_mixed")
    _step(pool, lambda: _hessian(job, method, pool, "pool"))
    if not mixed.is_dir():  # Bergson's own Mix chooses the share itself
        processor = importlib.import_module("bergson.gradients").GradientProcessor
        one, other = processor.load(queries), processor.load(pool)
        one.hessians = {
            name: method.mixing * found + (1 - method.mixing) * other.hessians[name]
            for name, found in one.hessians.items()
        }
        one.hessians_eigen = {}
        part = mixed.with_name("moment_mixed.part")
        shutil.copytree(queries, part, dirs_exist_ok=True)
        one.save(part)
        part.rename(mixed)
    return mixed


def _hessian(job: Job, method: GradientMethod, folder: Path, rows: str) -> Any:
    return _bergson().Hessian(
        _config("HessianConfig", method="autocorrelation"),
        _index(job, folder, rows, method.projection, method.seed),
    )


def _query(job: Job, method: GradientMethod, moment: Path | None) -> Path:
    """Gradients of queries: normed, preconditioned and averaged as the configuration beside them says."""
    folder = job.folder("query")
    if not folder.is_dir():
        aggregation = "mean" if method.query == "mean" else "none"
        importlib.import_module("bergson.build").build_query(
            _index(job, folder, "queries", method.projection, method.seed),
            _config("QuerySetConfig", dataset=str(_rows(job, "queries")), aggregation=aggregation),
            _preprocess(method, moment),
        )
    return folder


def _preconditioned(job: Job, method: GradientMethod, query: Path, moment: Path) -> Path:
    """The queries' unit gradients times H^-1, normed again, under the configuration that says they are normed."""
    folder = job.folder("query_one_sided")
    if not folder.is_dir():
        part = folder.with_name("query_one_sided.part")
        shutil.copytree(query, part, dirs_exist_ok=True)
        info = json.loads((part / "info.json").read_text())
        rows = torch.from_numpy(
            np.array(importlib.import_module("bergson.data").load_gradients(query), dtype=np.float32)
        )
        hessians = torch.load(moment / "hessians.pth", weights_only=True)
        inverse = powers({name: hessians[name] for name in info["grad_sizes"]}, method.damping, -1.0)
        rows = applied(rows, info["grad_sizes"], inverse)
        rows = rows / rows.norm(dim=1, keepdim=True)
        rows.numpy().astype(info["base_dtype"]).tofile(part / "gradients.bin")
        part.rename(folder)
    return folder


def _mode(method: GradientMethod) -> str:
    return "nearest" if method.query == "nearest" else "individual"


def _read(job: Job, folder: Path, unit_norm: bool, recorded: bool = True) -> Found:
    """Scores by row id, once the rows there are found to be ours, id by id and label by label."""
    data = importlib.import_module("bergson.data")
    if recorded:
        _require_ours(job.pool, folder)
    table = data.load_scores(folder)
    values = np.asarray(table[:], dtype=np.float64).reshape(len(job.pool), -1)[:, 0]
    scores, failed = {}, {}
    for example, value, there in zip(job.pool, values, table.mmap["written_0"], strict=True):
        if not there:
            failed[example.row_id] = "Bergson wrote no score"
        elif unit_norm and value == 0.0:
            failed[example.row_id] = "its gradient is zero"
        else:
            scores[example.row_id] = float(value)
    return scores, failed


def _require_ours(pool: Sequence[Example], folder: Path) -> None:
    from datasets import load_from_disk

    seen = load_from_disk(str(folder / "data.hf"))
    columns = zip(seen["row_id"], seen["input_ids"], seen["labels"], strict=True)
    for example, (row_id, ids, labels) in zip(pool, columns, strict=True):
        if (row_id, list(ids), list(labels)) != (example.row_id, list(example.ids), labels_of(example)):
            raise ScoringError(f"row {example.row_id!r}: Bergson saw other tokens or labels (its {row_id!r})")


# --------------------------------------------------------------------------------------- configurations


def labels_of(example: Example) -> list[int]:
    masked = set(example.masked)
    return [IGNORED if at < example.start or at in masked else token for at, token in enumerate(example.ids)]


def _rows(job: Job, name: str) -> Path:
    """The data set `pool` or `queries` as Bergson reads it, in our order."""
    from datasets import Dataset

    folder = job.folder(f"rows_{name}")
    if not folder.is_dir():
        examples = job.pool if name == "pool" else job.queries
        part = folder.with_name(folder.name + ".part")
        Dataset.from_dict(
            {
                "row_id": [one.row_id for one in examples],
                "input_ids": [list(one.ids) for one in examples],
                "labels": [labels_of(one) for one in examples],
                "length": [len(one.ids) for one in examples],
            }
        ).save_to_disk(str(part))
        part.rename(folder)
    return folder


def _base(job: Job) -> str:
    return model_source(job.spec, job.home)


def _model(job: Job) -> str:
    """What Bergson loads: the base, or a copy of the adapter that names the base where it lies here."""
    folders = adapter_folders(job.spec, job.home)
    if len(folders) > 1:
        raise ScoringError(
            f"{len(folders)} adapters: Bergson reads one; merge those below into the base, or use back_end: native"
        )
    if not folders:
        return _base(job)
    return _adapter(job, folders[0], "adapter")


def _adapter(job: Job, source: Path, name: str) -> str:
    folder = job.folder(name)
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(source / file, part / file)
        config = json.loads((part / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = _base(job)
        (part / "adapter_config.json").write_text(json.dumps(config))
        part.rename(folder)
    return str(folder)


def _index(job: Job, run: Path, rows: str, projection: int, seed: int, kind: str = "IndexConfig") -> Any:
    longest = max(len(one.ids) for one in [*job.pool, *job.queries])
    return _config(
        kind,
        run_path=str(run),
        overwrite=True,  # only of what a killed run left half done
        model=_model(job),
        tokenizer=_base(job),
        data=_config("DataConfig", dataset=str(_rows(job, rows))),
        drop_columns=False,  # the row ids
        distributed=_config("DistributedConfig", nnode=1, nproc_per_node=1),
        projection_dim=projection,
        projection_seed=seed,
        token_batch_size=min(job.max_tokens, max(job.batch_tokens, longest)),
        loss_reduction=job.loss,
    )


def _preprocess(method: GradientMethod, moment: Path | None) -> Any:
    return _config(
        "PreprocessConfig",
        unit_normalize=method.unit_norm,
        hessian_path=str(moment) if moment else None,
        inversion_cfg=_config("InversionConfig", damping_factor=method.damping),
    )


def _training(job: Job, replay: Replay, run: Path) -> dict[str, Any]:
    """The arguments of Bergson's trainer that make the training of `replay`."""
    if job.spec.adapters:
        raise ScoringError(
            "MAGIC by Bergson trains on a base without adapters; merge them into it, or use back_end: native"
        )
    start, recipe = job.folder("start_saved"), replay.recipe
    if not start.is_dir():
        part = start.with_name("start_saved.part")
        replay.save(part)
        part.rename(start)
    return {
        "run_path": str(run),
        "model": _adapter(job, start, "start"),
        "tokenizer": _base(job),
        "data": _config("DataConfig", dataset=str(_rows(job, "pool"))),
        "distributed": _config("DistributedConfig", nnode=1, nproc_per_node=1),
        "lr_schedule": _schedule(recipe),
        "batch_size": recipe.batch_rows,
        "num_epochs": recipe.epochs,
        "seed": recipe.seed,
        "adam_beta1": recipe.beta1,
        "adam_beta2": recipe.beta2,
        "adam_eps": recipe.eps,
        "eps_root": recipe.eps_root,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip or None,
        "wandb_project": "",  # else it sends them away
    }


def _schedule(recipe: ReplaySpec) -> Any:
    names = {"constant": "constant_with_warmup"}
    return _config(
        "LRScheduleConfig",
        lr=recipe.learning_rate,
        lr_scheduler_type=names.get(recipe.schedule, recipe.schedule),
        warmup_steps=recipe.warmup,
    )


def _config(name: str, **fields: Any) -> Any:
    return getattr(importlib.import_module("bergson.config.config"), name)(**fields)


def _bergson() -> Any:
    return importlib.import_module("bergson.cli.commands")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its many lines on standard output and error, and without its log below warnings."""
    from datasets.utils import logging as bars

    before = logging.root.manager.disable
    shown = bars.is_progress_bar_enabled()
    logging.disable(logging.INFO)
    bars.disable_progress_bar()
    silent = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()
