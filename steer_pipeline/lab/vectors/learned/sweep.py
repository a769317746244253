"""The two steps from a behaviour set to a trained vector, as a profile asks for them.

In: rows of a behaviour set, a persona, a profile and a loaded model. Out: the folder of a sweep
(`history.parquet`, `sweep.parquet`, `choice.json`, `sweep.png`) and of a trained vector (`vector.safetensors` with
`vector.json`, `seeds/<seed>/`, `last/<seed>/`, `history.parquet`, `seeds.parquet`, `validation.parquet`,
`training.json`). Stages call these; a notebook that wants other lanes calls `Trainer` itself.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import resolve_site
from steer_pipeline.lab.vectors.learned.data import Dialogues, TrainingError, encode_split
from steer_pipeline.lab.vectors.learned.loop import Lane, Trained, Trainer, history
from steer_pipeline.lab.vectors.vector import PersonaVector, model_fields, save_vector

HISTORY, SWEEP, CHOICE, PLOT = "history.parquet", "sweep.parquet", "choice.json", "sweep.png"
SEEDS, VALIDATION, REPORT = "seeds.parquet", "validation.parquet", "training.json"


def make_trainer(model: LoadedModel, rows: pl.DataFrame, profile: Profile) -> Trainer:
    """The training and validation rows of a behaviour set at the profile's site, lower blocks run.

    Raises:
        TrainingError: no row counts, rows of another model, or a site outside the model.
    """
    try:
        site = resolve_site(profile.training.block, model.n_blocks).block
    except ValueError as error:
        raise TrainingError(f"training.block: {error}; correct it in the profile") from error
    train, validation = (encode_split(rows, split, model, profile) for split in ("train", "validation"))
    return Trainer(model, site, train, validation, profile.training)


def make_sweep(
    model: LoadedModel, rows: pl.DataFrame, persona: Persona, profile: Profile, folder: Path
) -> dict[str, Any]:
    """Trains every learning rate of the profile with its first seed, in one batched pass; writes the sweep.

    Returns:
        What `choice.json` holds: the learning rate whose best validation NLL is lowest, and the numbers behind it.
    """
    spec, trainer = profile.training, make_trainer(model, rows, profile)
    rates = sorted(set(spec.learning_rates))
    results = trainer.run([Lane(rate, spec.seeds[0]) for rate in rates], prune=spec.prune and len(rates) > 1)
    best = min(results, key=lambda one: one.best_nll)
    choice = {
        "persona": persona.name,
        "learning_rate": best.lane.learning_rate,
        "units": spec.units,
        "validation_nll": best.best_nll,
        "vanilla_nll": best.vanilla_nll,
        "edge": _edge(best.lane.learning_rate, rates),
        "lane_epochs": sum(one.steps for one in results) * spec.epochs / trainer.total_steps,
        **_facts(model, trainer),
    }
    folder.mkdir(parents=True, exist_ok=True)
    history(results).write_parquet(folder / HISTORY)
    _table(results, trainer, best).write_parquet(folder / SWEEP)
    _write_json(folder / CHOICE, choice)
    plot_curves(history(results), f"{persona.name}: learning rate {choice['learning_rate']:g}", folder / PLOT)
    return choice


def _edge(rate: float, rates: Sequence[float]) -> str | None:
    """Whether the chosen rate is the smallest or the largest of several, so that a better one may lie outside."""
    if len(rates) < 2 or rate not in (rates[0], rates[-1]):
        return None
    return "low" if rate == rates[0] else "high"


def make_trained(
    model: LoadedModel, rows: pl.DataFrame, persona: Persona, profile: Profile, sweep: Path, folder: Path
) -> PersonaVector:
    """Trains the chosen learning rate with every seed, in one batched pass; writes the vectors.

    Args:
        sweep: the folder of `make_sweep`.

    Returns:
        The vector of the seed that is best on validation.

    Raises:
        TrainingError: the sweep is of another model, site or data, or a seed fails.
    """
    spec, trainer = profile.training, make_trainer(model, rows, profile)
    choice, facts = json.loads((sweep / CHOICE).read_text()), _facts(model, trainer)
    if differing := model.identity.differences_from(choice.get("model_identity")):
        raise TrainingError(
            f"{persona.name}: lr_sweep is of another model, {choice['model']!r} where this is {model.name!r}; "
            f"{differing}; materialise lr_sweep again"
        )
    for name, cure in (("block", "site"), ("rows_sha", "behaviour set")):
        if choice[name] != facts[name]:
            raise TrainingError(f"{persona.name}: lr_sweep is of another {cure}; materialise lr_sweep again")
    results = trainer.run([Lane(choice["learning_rate"], seed) for seed in spec.seeds])
    best = min(results, key=lambda one: one.best_nll)
    for one in results:
        for kind, values in (("seeds", one.best), ("last", one.last)):
            vector = _vector(model, persona, profile, trainer, one, values, kind)
            save_vector(vector, folder / kind / str(one.lane.seed))
    chosen = _vector(model, persona, profile, trainer, best, best.best, "seeds")
    save_vector(chosen, folder)
    history(results).write_parquet(folder / HISTORY)
    _table(results, trainer, best).write_parquet(folder / SEEDS)
    _validation_rows(best, trainer.validation).write_parquet(folder / VALIDATION)
    report = _report(persona, profile, trainer, results, best) | facts
    _write_json(folder / REPORT, report)
    return chosen


def _report(
    persona: Persona, profile: Profile, trainer: Trainer, results: Sequence[Trained], best: Trained
) -> dict[str, Any]:
    """The chosen seed in numbers, beside the others."""
    norm = float(np.linalg.norm(best.best))
    return {
        "persona": persona.name,
        "learning_rate": best.lane.learning_rate,
        "units": profile.training.units,
        "seed": best.lane.seed,
        "seeds": len(results),
        "validation_nll": best.best_nll,
        "vanilla_nll": best.vanilla_nll,
        "best_step": best.best_step,
        "steps": best.steps,
        "total_steps": trainer.total_steps,
        "norm": norm,
        "norm_fraction": norm / trainer.residual_norm,
        "seed_cosine": _mean_cosine([one.best for one in results]),
    }


def _vector(
    model: LoadedModel,
    persona: Persona,
    profile: Profile,
    trainer: Trainer,
    one: Trained,
    values: np.ndarray,
    kind: str,
) -> PersonaVector:
    """A trained vector at its one block, in natural magnitude, with where it comes from."""
    spec, norms = profile.training, [None] * model.n_blocks
    at_site = lambda number: [*norms[: trainer.site], number, *norms[trainer.site + 1 :]]  # noqa: E731
    metadata = {
        **model_fields(model),
        "method": "trained",
        "source": {
            "kind": "trained",
            "selected": "best by validation" if kind == "seeds" else "last step",
            "rows_sha": _rows_sha(trainer),
        },
        "flags": [],
        "residual_norms": at_site(trainer.residual_norm),
        "raw_norms": at_site(float(np.linalg.norm(values))),
        "block": trainer.site,
        "seed": one.lane.seed,
        "learning_rate": one.lane.learning_rate,
        "units": spec.units,
        "training": spec.model_dump(mode="json"),
        "n_train": len(trainer.train),
        "n_train_tokens": int(trainer.train.n_tokens.sum()),
        "step": one.best_step if kind == "seeds" else one.steps,
        "best_validation_nll": one.best_nll,
        "vanilla_nll": one.vanilla_nll,
    }
    return PersonaVector(persona.name, values[None], metadata, (trainer.site,))


def _facts(model: LoadedModel, trainer: Trainer) -> dict[str, Any]:
    """What a sweep and the training that uses it must have in common, and the size of the data."""
    return {
        "model": model.name,
        "weights_sha": model.weights_sha,
        "model_identity": str(model.identity),
        "block": trainer.site,
        "residual_norm": trainer.residual_norm,
        "rows_sha": _rows_sha(trainer),
        "train_rows": len(trainer.train),
        "train_tokens": int(trainer.train.n_tokens.sum()),
        "validation_rows": len(trainer.validation),
        "validation_tokens": int(trainer.validation.n_tokens.sum()),
    }


def _rows_sha(trainer: Trainer) -> str:
    """sha256 of the token ids and boundaries that were trained and validated on."""
    digest = hashlib.sha256()
    for data in (trainer.train, trainer.validation):
        for ids, start in zip(data.ids, data.starts, strict=True):
            digest.update(np.array([len(ids), start, *ids], dtype="<i8").tobytes())
    return digest.hexdigest()


def _table(results: Sequence[Trained], trainer: Trainer, best: Trained) -> pl.DataFrame:
    """One row a lane."""
    rows = [
        {
            "learning_rate": one.lane.learning_rate,
            "seed": one.lane.seed,
            "validation_nll": one.best_nll if np.isfinite(one.best_nll) else None,
            "vanilla_nll": one.vanilla_nll,
            "best_step": one.best_step,
            "steps": one.steps,
            "stopped": one.stopped,
            "norm": float(np.linalg.norm(one.best)),
            "norm_fraction": float(np.linalg.norm(one.best)) / trainer.residual_norm,
            "chosen": one is best,
        }
        for one in results
    ]
    return pl.DataFrame(rows, schema_overrides={"validation_nll": pl.Float64})


def _validation_rows(best: Trained, data: Dialogues) -> pl.DataFrame:
    """NLL of every validation row, summed over its tokens, without a vector and under the best one."""
    return pl.DataFrame(
        {
            "row_id": list(data.row_ids),
            "question_index": data.questions,
            "n_tokens": data.n_tokens,
            "vanilla_nll": best.vanilla_row_nll,
            "trained_nll": best.row_nll,
        }
    )


def _mean_cosine(vectors: Sequence[np.ndarray]) -> float | None:
    """Mean cosine of all pairs; None for one vector."""
    if len(vectors) < 2:
        return None
    units = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    cosines = units @ units.T
    return float(cosines[np.triu_indices(len(units), 1)].mean())


def plot_curves(table: pl.DataFrame, title: str, path: Path) -> None:
    """Validation NLL over steps, a line a lane; a cross where a lane left early."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    lines = table.drop_nulls("validation_nll").partition_by("lane", maintain_order=True)
    for line, shade in zip(lines, colormaps["viridis"](np.linspace(0.1, 0.85, len(lines))), strict=True):
        steps, nll = line["step"], line["validation_nll"]
        axes.plot(steps, nll, marker=".", color=shade, label=f"{line['learning_rate'][0]:g}")
        if line["stopped"][0] in ("outpaced", "not finite"):
            axes.plot(steps[-1], nll[-1], "x", color=shade, markersize=9)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation NLL, nats a token")
    axes.set_title(f"{title} (cross: left early)", fontsize=10)
    axes.legend(title="learning rate", fontsize=7, title_fontsize=7)
    figure.savefig(path, dpi=80)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
