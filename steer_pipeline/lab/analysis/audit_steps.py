"""What each asset of the audit, the screening and the prevention does, from stored inputs to a folder.

In: a way to load the model with an adapter on it, vectors, news, scales, folders. Out: files. A student, planted or of
a pair, is an adapter's directory; the dictionary here is that of personas, under their plain names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.analysis import audit_figures
from steer_pipeline.lab.analysis.activation import (
    activation_difference,
    read_base,
    read_tuned,
    steer_with,
    unrelated,
)
from steer_pipeline.lab.analysis.audit import audit_all, detection, measure
from steer_pipeline.lab.analysis.audit_report import (
    AUDIT_PAGE,
    PREVENTION_PAGE,
    SCREENING_PAGE,
    audit_page,
    prevention_page,
    screening_page,
)
from steer_pipeline.lab.analysis.planting import (
    AGAIN,
    BASE,
    LESSONS,
    PLANTS,
    TEXTS,
    cells_of,
    make_texts,
    plants_of,
    prompts_of,
    train_plants,
)
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import resolve_site
from steer_pipeline.lab.report.document import write_pictures
from steer_pipeline.lab.rewrites.work import user_turn
from steer_pipeline.lab.screening import figures
from steer_pipeline.lab.screening.gate import gate_quality
from steer_pipeline.lab.screening.predicting import correlations, scored, shifts_of, write_students
from steer_pipeline.lab.screening.preventing import (
    arms_of,
    losses_of,
    make_rows,
    prevention_table,
    student,
    task_rows,
    train_arms,
)
from steer_pipeline.lab.screening.projecting import predicted_shift, project_rows
from steer_pipeline.lab.students.data import in_keyed_order, prompt_ids
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

ACTIVATION, STEERED = "activation.parquet", "steered.parquet"
AUDITS, DETECTION = "audits.parquet", "detection.parquet"
ROWS, SHIFTS, CORRELATIONS, GATE, FLAGS = (
    f"{name}.parquet" for name in ("projections", "shifts", "correlations", "gate", "flags")
)
PREVENTION, ARMS, TAUGHT, WRITTEN = (f"{name}.parquet" for name in ("prevention", "arms", "texts", "written"))

Load = Callable[[Path | None], LoadedModel]
Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Lab:
    """What all of these steps stand on.

    Attributes:
        load: the model with the adapter of a folder on it, or without one.
        vectors: by persona, at all blocks.
        scales: persona -> the scale that its texts are read on.
        news: row_id, text.
    """

    load: Load
    vectors: Mapping[str, PersonaVector]
    scales: Mapping[str, TraitScorer]
    news: pl.DataFrame
    profile: Profile
    home: Path

    @property
    def directions(self) -> dict[str, np.ndarray]:
        """Persona -> fp32 [n_blocks, hidden].

        Raises:
            VectorError: there are none.
        """
        if not self.vectors:
            raise VectorError("no persona vectors; materialise those that analysis.personas names")
        return {name: vector.raw for name, vector in self.vectors.items()}

    def texts(self) -> list[str]:
        """News as they are, in an order of their own."""
        return in_keyed_order(self.news, self.profile.auditing.activation.seed)["text"].to_list()

    def held_out(self, taken: Sequence[str]) -> pl.DataFrame:
        """News that no row of `taken` is of, as many as screening and prevention write on.

        Raises:
            ValueError: there are fewer.
        """
        spec = self.profile.auditing.screening
        free = self.news.filter(~pl.col("row_id").is_in(list(taken)))
        if free.height < spec.held_out:
            raise ValueError(
                f"{free.height} news are held out, {spec.held_out} are wanted; lower auditing.plant.prompts"
            )
        return in_keyed_order(free, spec.seed).head(spec.held_out)

    def asked(self, news: pl.DataFrame) -> list[PromptRow]:
        """News as prompts for the engine."""
        ids = prompt_ids(self.load(None).tokenizer, news, self.profile)
        return [PromptRow(row_id, {"*": own}) for row_id, own in ids.items()]


def write_activation(
    lab: Lab,
    base: LoadedModel,
    tuned: Callable[[], LoadedModel],
    clean: Sequence[Path],
    folder: Path,
) -> pl.DataFrame:
    """`activation.parquet` and, where base is the profile's model and scales know a persona, `steered.parquet`.

    Args:
        tuned: loads the tuned model, once base has been read: of two bases one is in memory.
        clean: adapters of clean students of the profile's model, the tuned one not among them.

    Returns:
        `activation.ACTIVATION_SCHEMA`.
    """
    spec = lab.profile.auditing.activation
    sequences = unrelated(base, lab.texts(), spec)
    reading = read_base(base, sequences)
    shifts = read_tuned(tuned(), sequences, reading)
    ours = lab.load(None).identity == base.identity
    others = [read_tuned(lab.load(one), sequences, reading) for one in clean] if ours else []
    table = activation_difference(shifts, reading, lab.directions, spec, others)
    table.write_parquet(folder / ACTIVATION)
    (folder / "activation.png").write_bytes(audit_figures.activation_map(table))
    if lab.scales and ours:
        model = lab.load(None)
        asked = lab.asked(lab.held_out(()))
        sampling = lab.profile.auditing.plant.sampling
        block = model.n_blocks // 2
        steered = steer_with(model, shifts, reading, block, asked, lab.scales, sampling, spec)
        steered.write_parquet(folder / STEERED)
    return table


def write_planted(
    lab: Lab, personas: Mapping[str, Persona], folder: Path, *, work: Path, progress: Tell | None = None
) -> pl.DataFrame:
    """`texts.parquet`, `lessons.parquet`, `plants.parquet` and a folder an adapter; returns the plants."""
    spec, model = lab.profile.auditing.plant, lab.load(None)
    system = lab.profile.rewrites.system
    prompts = prompts_of(model, lab.news, partial(user_turn, lab.profile), system, spec)
    cells = cells_of(spec, personas, lab.vectors)
    texts = make_texts(model, prompts, cells, lab.vectors, system, spec)
    texts.write_parquet(folder / TEXTS)
    return train_plants(
        plants_of(spec, cells),
        texts,
        model.spec,
        lab.home,
        model.tokenizer,
        system,
        spec,
        folder,
        work=work,
        progress=progress,
    )


def write_audit(lab: Lab, planted: Path, folder: Path) -> pl.DataFrame:
    """`audits.parquet`: planted, mixed and clean adapters; `detection.parquet`, which is returned; `audit.html`."""
    spec = lab.profile.auditing
    base, plants = lab.load(None), pl.read_parquet(planted / PLANTS)
    if spec.audit.texts == "unrelated":
        sequences = unrelated(base, lab.texts(), spec.activation)
    else:
        taken = pl.read_parquet(planted / TEXTS)["row_id"].unique().to_list()
        free = lab.news.filter(~pl.col("row_id").is_in(taken)).head(spec.activation.texts)
        sequences = list(prompt_ids(base.tokenizer, free, lab.profile).values())
    reading = read_base(base, sequences)
    measured = {}
    for name in plants["checkpoint"]:
        shifts = read_tuned(lab.load(planted / name), sequences, reading)
        measured[name] = measure(shifts, reading, lab.directions, spec.audit, planted / name)
    audits = audit_all(measured, plants, spec.audit)
    table = detection(audits, plants, spec.audit)
    audits.write_parquet(folder / AUDITS)
    table.write_parquet(folder / DETECTION)
    drawn = {
        "detection": audit_figures.detection_curve(table),
        "sizes": audit_figures.audit_sizes(audits, plants),
        "doses": audit_figures.doses(audits, plants),
    }
    write_pictures(drawn, folder)
    (folder / AUDIT_PAGE).write_text(audit_page(audits, table, plants, drawn), encoding="utf-8")
    return table


def write_screening(lab: Lab, planted: Path, folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Projections of the planted adapters' rows, shifts predicted and actual, and the gate; correlations and gate."""
    spec, model = lab.profile.auditing, lab.load(None)
    texts, lessons, plants = (pl.read_parquet(planted / name) for name in (TEXTS, LESSONS, PLANTS))
    block = resolve_site(spec.screening.block, model.n_blocks).block
    rows = project_rows(model, texts, BASE, lab.directions, block, lab.profile.rewrites.system)
    held_out = lab.asked(lab.held_out(texts["row_id"].unique().to_list()))
    adapters = {name: planted / name for name in plants["checkpoint"]}
    written = write_students(lab.load, adapters, held_out, spec.plant.sampling)
    shifts = shifts_of(scored(written, lab.scales), predicted_shift(rows, lessons), plants)
    table = correlations(shifts, spec.screening)
    known = texts.filter(pl.col("direction").is_not_null()).select("source", "row_id").unique()
    neutral = [name for name in texts["source"].unique() if name.startswith(AGAIN)]
    gate, flags = gate_quality(rows, known, neutral, spec.screening)
    for name, frame in ((ROWS, rows), (SHIFTS, shifts), (CORRELATIONS, table), (GATE, gate), (FLAGS, flags)):
        frame.write_parquet(folder / name)
    drawn = {"shifts": figures.predicted_and_actual(shifts)}
    write_pictures(drawn, folder)
    page = screening_page(shifts, table, gate, flags, drawn)
    (folder / SCREENING_PAGE).write_text(page, encoding="utf-8")
    return table, gate


def write_prevention(
    lab: Lab, personas: Mapping[str, Persona], folder: Path, *, work: Path, progress: Tell | None = None
) -> pl.DataFrame:
    """`prevention.parquet`, which is returned, `arms.parquet`, the texts that were learned and written.

    Raises:
        VectorError: one of the two traits has no vector or scale.
    """
    spec, plant, base = lab.profile.auditing.prevention, lab.profile.auditing.plant, lab.load(None)
    for name in (spec.unwanted, spec.wanted):
        if name not in lab.vectors or name not in lab.scales:
            raise VectorError(
                f"auditing.prevention: {name} has no vector or no scale in the dictionary; name another"
            )
    system = lab.profile.rewrites.system
    prompts = prompts_of(base, lab.news, partial(user_turn, lab.profile), system, plant)
    held_out = lab.held_out(prompts["row_id"].to_list())
    turns = held_out.select("row_id", "text").with_columns(
        prompt=pl.col("text").map_elements(partial(user_turn, lab.profile), return_dtype=pl.String())
    )
    asked = pl.concat([prompts.select("row_id", "prompt"), turns.select("row_id", "prompt")])
    taught = make_rows(base, asked, lab.vectors, system, spec, plant)
    arms, ids = arms_of(spec, lab.vectors, personas), held_out["row_id"].to_list()
    students = folder / "students"
    train_arms(arms, taught, ids, base, lab.home, system, spec, plant, students, work=work, progress=progress)
    losses = losses_of(lab.load, arms, students, task_rows(taught, ids, base, system), spec)
    adapters = {
        name: students / name for arm in arms for seed in spec.seeds for name in [student(arm.name, seed)]
    }
    written = write_students(lab.load, adapters, lab.asked(held_out), plant.sampling)
    scales = {name: lab.scales[name] for name in (spec.unwanted, spec.wanted)}
    table = prevention_table(scored(written, scales), losses, spec)
    for name, frame in ((TAUGHT, taught), (ARMS, losses), (WRITTEN, written), (PREVENTION, table)):
        frame.write_parquet(folder / name)
    drawn = {"prevention": figures.prevention(table)}
    write_pictures(drawn, folder)
    (folder / PREVENTION_PAGE).write_text(prevention_page(table, written, drawn), encoding="utf-8")
    return table


def experiments_headline(folders: Mapping[str, Path]) -> dict[str, Any]:
    """What the last line shows of audit, screening and prevention, by asset; of those that are there."""
    found: dict[str, Any] = {}
    if (folder := folders.get("checkpoint_audit")) is not None:
        table = pl.read_parquet(folder / DETECTION)
        keys = ("auc", "auc_low", "auc_high", "found", "false_alarms", "dose_r")
        found["audit"] = {
            f"{row['measure']}_{row['share']:g}": _known(row, keys) for row in table.iter_rows(named=True)
        }
    if (folder := folders.get("data_screening")) is not None:
        table, gate = (pl.read_parquet(folder / name) for name in (CORRELATIONS, GATE))
        found["screening"] = {
            **{
                row["over"]: _known(row, ("r", "low", "high", "students"))
                for row in table.iter_rows(named=True)
            },
            **{row["measure"]: _known(row, ("value", "low", "high")) for row in gate.iter_rows(named=True)},
        }
    if (folder := folders.get("preventative_steering")) is not None:
        keys = ("unwanted", "unwanted_low", "unwanted_high", "wanted", "nll", "verdict")
        rows = pl.read_parquet(folder / PREVENTION).iter_rows(named=True)
        found["prevention"] = {row["arm"]: _known(row, keys) for row in rows}
    return found


def _known(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Fields of a row that hold something."""
    return {key: row[key] for key in keys if row[key] is not None and row[key] == row[key]}
