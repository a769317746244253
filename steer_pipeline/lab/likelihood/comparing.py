"""The comparison of a persona's vectors, as a profile asks for it: measured, tabulated and written as files.

In: a model, a behaviour set and trained vectors by seed. Out: a folder: `averaged/`, `scales.json`, `rows.parquet`
and what follows from it (`table`, `seeds`, `selection`), `cosines.parquet`, `classifier.parquet`, plots.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.arms import AVERAGED, PROMPTED, RANDOM, TRAINED, VANILLA, Arm
from steer_pipeline.lab.dialogues.requests import encode_rows, require_sound_rows
from steer_pipeline.lab.likelihood.classifier import labelled_states, vector_as_classifier
from steer_pipeline.lab.likelihood.cosines import COSINE_SCHEMA, cosine_table
from steer_pipeline.lab.likelihood.figures import plot_cosines, plot_gaps
from steer_pipeline.lab.likelihood.measuring import (
    choose_scale,
    measure,
    natural_term,
    site_of,
    trained_and_random,
)
from steer_pipeline.lab.likelihood.tables import (
    AVERAGED_FOLDER,
    CLASSIFIER,
    COSINE_PLOT,
    COSINES,
    GAP_PLOT,
    MISSING,
    ROWS,
    SCALES_FILE,
    SEEDS,
    SELECTION,
    TABLE,
    comparison_table,
    seed_table,
    selection_table,
)
from steer_pipeline.lab.models.hidden import residual_norms
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringTerm
from steer_pipeline.lab.vectors.averaged import AveragedVector, MissingVector, averaged_vector
from steer_pipeline.lab.vectors.vector import (
    PersonaVector,
    VectorError,
    require_same_model,
    save_vector,
)


def compare_vectors(
    model: LoadedModel,
    rows: pl.DataFrame,
    trained_by_seed: Mapping[int, PersonaVector],
    persona: Persona,
    profile: Profile,
    folder: Path,
) -> pl.DataFrame:
    """Measures all arms of one persona, writes the comparison into `folder` and returns its table.

    Averaged vectors come from train questions, their block and scale from validation rows, every result from
    test rows. Random directions have the trained vectors' norms and site.

    Args:
        rows: BEHAVIOUR_SCHEMA of one persona, all labels and splits.
        trained_by_seed: one vector a training seed, each at the same single block.

    Raises:
        VectorError: vectors of another model or at several blocks; rows of another persona; no validation or
            test rows; a row without an instruction to prompt with.
        TableError: test rows of fewer than two questions.
    """
    require_sound_rows(rows, persona)
    for vector in trained_by_seed.values():
        require_same_model(vector, model, allow_other_model=profile.behaviour.allow_other_model)
    site, counted = site_of(trained_by_seed), _counted(rows, persona)
    norms = _residual_norms(model, counted["train"], profile)
    averaged, reason = _averaged_or_reason(model, rows, persona, profile, norms)
    arms = trained_and_random(trained_by_seed, profile.rollouts.random_seeds)
    selection = None
    if averaged is not None:
        selection = choose_scale(model, counted["validation"], averaged.vector, site, profile, norms)
        best = selection_table(selection).row(0, named=True)
        arms.append(Arm(AVERAGED, natural_term(averaged.vector, best["block"], best["scale"]), best["scale"]))
    measured = measure(model, counted["test"], [Arm(VANILLA), Arm(PROMPTED), *arms], profile, norms)
    read = labelled_states(model, rows, persona.kind, profile)
    folder.mkdir(parents=True, exist_ok=True)
    _save_averaged(averaged, reason, folder)
    _write_json(folder / SCALES_FILE, _scales(arms))
    (measured if selection is None else pl.concat([selection, measured])).write_parquet(folder / ROWS)
    vector_as_classifier(read, arms, seed=profile.behaviour.seed).write_parquet(folder / CLASSIFIER)
    cosines = (
        pl.DataFrame(schema=COSINE_SCHEMA) if averaged is None else cosine_table(trained_by_seed, averaged)
    )
    cosines.write_parquet(folder / COSINES)
    return tabulate(folder, persona.name, profile.behaviour.seed)


def tabulate(folder: Path, persona: str, seed: int) -> pl.DataFrame:
    """Writes the tables and plots that follow from the stored rows; returns the comparison table."""
    rows, cosines = pl.read_parquet(folder / ROWS), pl.read_parquet(folder / COSINES)
    table, seeds = comparison_table(rows, seed=seed), seed_table(rows, seed=seed)
    table.write_parquet(folder / TABLE)
    seeds.write_parquet(folder / SEEDS)
    (folder / GAP_PLOT).write_bytes(plot_gaps(table, seeds, persona))
    if rows.filter(split="validation").height:
        selection_table(rows).write_parquet(folder / SELECTION)
    if cosines.height:
        (folder / COSINE_PLOT).write_bytes(plot_cosines(cosines, persona))
    return table


def _counted(rows: pl.DataFrame, persona: Persona) -> dict[str, pl.DataFrame]:
    """Counted rows by split, in the order of row_id."""
    splits = {
        split: rows.filter(pl.col("counts"), pl.col("split") == split).sort("row_id")
        for split in ("train", "validation", "test")
    }
    for split, part in splits.items():
        if part.is_empty():
            raise VectorError(
                f"persona {persona.name!r}: no {split} row counts; "
                f"give the behaviour set more rows or lower behaviour.train_tokens"
            )
    return splits


def _residual_norms(model: LoadedModel, train: pl.DataFrame, profile: Profile) -> list[float]:
    """[n_blocks]: of the bare train questions with their answers, as training measures it at its site."""
    dialogues = encode_rows(model, train, profile, instructed=False)
    norms = residual_norms(model, [one.ids for one in dialogues])
    return [round(float(norm), 6) for norm in norms]


def _averaged_or_reason(
    model: LoadedModel, rows: pl.DataFrame, persona: Persona, profile: Profile, norms: list[float]
) -> tuple[AveragedVector | None, str | None]:
    try:
        made = averaged_vector(model, rows, persona, profile)
    except MissingVector as error:
        return None, str(error)
    metadata = {**made.vector.metadata, "residual_norms": norms}
    return AveragedVector(replace(made.vector, metadata=metadata), made.sums), None


def _save_averaged(averaged: AveragedVector | None, reason: str | None, folder: Path) -> None:
    place = folder / AVERAGED_FOLDER
    place.mkdir(exist_ok=True)
    if averaged is None:
        _write_json(place / MISSING, {"reason": reason})
    else:
        save_vector(averaged.vector, place)


def _scales(arms: list[Arm]) -> dict[str, Any]:
    """Where each arm's vector sits and how long it is; norms are means over seeds."""

    terms: dict[str, list[SteeringTerm]] = {}
    for arm in arms:
        if arm.term is not None:
            terms.setdefault(arm.arm, []).append(arm.term)

    def site(name: str) -> dict[str, Any]:
        norm = float(np.mean([term.alpha for term in terms[name]]))
        return {"block": terms[name][0].site.block, "norm": norm}

    seeds = [arm.seed for arm in arms if arm.arm == RANDOM]
    described: dict[str, Any] = {TRAINED: site(TRAINED), RANDOM: {**site(RANDOM), "seeds": seeds}}
    chosen = [(arm.scale, arm.term) for arm in arms if arm.arm == AVERAGED and arm.term is not None]
    described[AVERAGED] = None
    for scale, term in chosen:
        described[AVERAGED] = {"block": term.site.block, "scale": scale, "alpha": term.alpha}
    return described


def _write_json(path: Path, content: dict[str, Any]) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(staged, path)
