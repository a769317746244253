"""Which dose teaches: iso-KL calibration and gate 1, then texts at the dose that the controller settles on.

In: a model and a task. Out: folders. `make_dose`: calibration, texts of every dose and of random directions, a verdict
on each. `make_samples`: what the model says by itself, at the settled dose, and as far as arms need it towards the
negative pole and along random directions of the same divergence.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.healing import HealControllerSpec
from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.corpus.identity import digest64
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.heal.calibration import MEAN, Calibration, calibrate, divergence
from steer_pipeline.lab.heal.controller import Settled, collect, settle, settled_claim
from steer_pipeline.lab.heal.filtering import sieve
from steer_pipeline.lab.heal.gate import GOOD, gate_rows, gate_table
from steer_pipeline.lab.heal.prompts import prompt_rows, spread
from steer_pipeline.lab.heal.samples import BASE_DOSE, sample_rows
from steer_pipeline.lab.heal.scores import with_losses
from steer_pipeline.lab.heal.task import Task
from steer_pipeline.lab.heal.teacher import Teacher
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.verdict import Verdict

CURVE, CALIBRATION, GATE_ROWS, GATE = "curve.parquet", "calibration.json", "gate_rows.parquet", "gate.parquet"
SAMPLES, PROBES, TESTED, DOSES = "samples.parquet", "probes.parquet", "tested.parquet", "doses.json"
BASE, PERSONA, NEGATIVE, RANDOM = SOURCES = ("base", "persona", "negative", "random")

Open = Callable[[str], Journal]


def random_source(number: int) -> str:
    """The source of the texts of one random direction."""
    return f"{RANDOM}_{number:02d}"


# ------------------------------------------------------------------------------------ heal_dose


@dataclass(frozen=True, eq=False)
class Dosed:
    """What is known of doses: the calibrated one, rows and table of gate 1."""

    calibration: Calibration
    rows: pl.DataFrame
    gate: pl.DataFrame


def make_dose(model: LoadedModel, task: Task, folder: Path) -> Dosed:
    """Calibrates, judges the doses of `heal.gate`, and writes both.

    Raises:
        HealError: no dose brackets the target, or too few prompts.
    """
    spec, teacher = task.heal, task.teacher
    first = prompt_rows(model, spread(task.pool, spec.calibration.n_prompts, spec.calibration.seed))
    calibration = calibrate(model, teacher, first, spec.calibration)
    rows = gate_rows(
        model, teacher, task.pool, spec.gate, task.scorer, task.off_target, spec.prompts.sampling()
    )
    table = gate_table(rows, spec.gate, task.profile.coherence)
    calibration.curve.write_parquet(folder / CURVE)
    told = {name: value for name, value in vars(calibration).items() if name != "curve"}
    (folder / CALIBRATION).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    rows.write_parquet(folder / GATE_ROWS)
    table.write_parquet(folder / GATE)
    return Dosed(calibration, rows, table)


def read_dose(folder: Path) -> Dosed:
    """What `make_dose` wrote."""
    told = json.loads((folder / CALIBRATION).read_text())
    told["blocks"] = tuple(told["blocks"])
    return Dosed(
        Calibration(**told, curve=pl.read_parquet(folder / CURVE)),
        pl.read_parquet(folder / GATE_ROWS),
        pl.read_parquet(folder / GATE),
    )


# ------------------------------------------------------------------------------------ heal_samples


@dataclass(frozen=True, eq=False)
class Sampled:
    """Texts to learn from.

    Attributes:
        rows: `samples.SAMPLE_SCHEMA` with `source` (`base`, `persona`, `negative`, `random_00`…), `losses` under the
            original model and, of the persona's, whether the text `survives` the filter.
        settled: the dose of the persona's texts and how it was found.
        doses: source -> dose, kl_p95, kl_mean, teacher, seed (of a random direction).
    """

    rows: pl.DataFrame
    settled: Settled
    doses: Mapping[str, Mapping[str, Any]]


def make_samples(
    model: LoadedModel,
    task: Task,
    gate: pl.DataFrame,
    folder: Path,
    *,
    sources: Sequence[str] = SOURCES,
    journal: Open | None = None,
) -> Sampled:
    """Samples every source, and writes it.

    Args:
        gate: table of gate 1: its largest good dose is the controller's ceiling.
        sources: those of `SOURCES` that arms need; base and persona always are.

    Raises:
        HealError: the smallest dose fails, or a random direction cannot have the divergence.
    """
    spec, teacher = task.heal, task.teacher
    desk = Desk(model, task, model, teacher, journal)
    base = desk.measured(BASE_DOSE, BASE)
    settled, own = desk.settle(base, ceiling(spec.controller, gate))
    doses: dict[str, dict[str, Any]] = {
        BASE: {"dose": BASE_DOSE, "kl_p95": 0.0, "kl_mean": 0.0, "teacher": BASE},
        PERSONA: desk.divergence(settled.dose),
    }
    parts = {BASE: base, PERSONA: own}
    if NEGATIVE in sources:
        parts[NEGATIVE] = desk.measured(-settled.dose, NEGATIVE)
        doses[NEGATIVE] = desk.divergence(-settled.dose)
    if RANDOM in sources:
        start = settled.dose
        for number in range(spec.n_random):
            name = random_source(number)
            parts[name], doses[name] = desk.random(number, doses[PERSONA]["kl_mean"], start)
            start = doses[name]["dose"]  # directions of one length need doses that are much alike
    rows = pl.concat(
        [part.select(pl.lit(source).alias("source"), pl.all()) for source, part in parts.items()],
        how="diagonal",
    )
    made = Sampled(rows, settled, doses)
    _write(made, folder)
    return made


def ceiling(spec: HealControllerSpec, gate: pl.DataFrame) -> HealControllerSpec:
    """The search for a dose, up to the largest that gate 1 calls good; as it is where none is."""
    good = gate.filter(pl.col("verdict") == GOOD, pl.col("dose") > 0)["dose"]
    if good.is_empty():
        return spec
    top = float(good.max())  # type: ignore[arg-type]
    return spec.model_copy(update={"max_dose": top, "min_dose": min(spec.min_dose, top)})


@dataclass(frozen=True, eq=False)
class Desk:
    """Where a teacher's texts are drawn and filtered.

    Attributes:
        model: what is steered: the original model, or a student.
        original: the model without any student, under which texts are judged.
    """

    model: LoadedModel
    task: Task
    original: LoadedModel
    teacher: Teacher
    journal: Open | None = None

    def said(self, dose: float, prompts: pl.DataFrame, name: str) -> pl.DataFrame:
        """Texts of a dose."""
        journal = None if self.journal is None else self.journal(name)
        return sample_rows(self.model, self.teacher, [dose], prompts, self.task.heal.prompts, journal=journal)

    def measured(self, dose: float, name: str) -> pl.DataFrame:
        """Texts of a dose for the whole pool, with the losses of their tokens under the original model."""
        return with_losses(self.said(dose, self.task.pool, name), self.original)

    def settle(self, base: pl.DataFrame, search: HealControllerSpec) -> tuple[Settled, pl.DataFrame]:
        """The controller's dose and all texts at it, as `measured`, with whether each `survives` the filter.

        Args:
            base: base's texts of the same prompts, measured: limits are relative to them.
        """

        def sample(dose: float, prompts: pl.DataFrame) -> pl.DataFrame:
            return self.said(dose, prompts, PERSONA)

        keep = sieve(
            self.original,
            base,
            self.task.heal.filter,
            told=self.task.told[0],
            special_tokens=self.original.tokenizer.all_special_tokens,
        )
        settled = settle(sample, keep, self.task.pool, search)
        rows = collect(sample, keep, self.task.pool, settled)
        return settled, with_losses(rows.drop("purpose").rename({"kept": "survives"}), self.original)

    def random(self, number: int, nats: float, start: float) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Texts of a random direction at the dose whose mean divergence is `nats`, `measured`, and that dose.

        Args:
            start: where the search begins.
        """
        spec = self.task.heal.calibration
        seed = digest64(f"{spec.seed}\x1f{self.teacher.name}\x1f{number}")
        other = replace(self, teacher=self.teacher.randomised(seed))
        start = min(max(start, spec.min_dose), spec.max_dose)
        wanted = spec.model_copy(update={"target_nats": nats, "start": start})
        dose = calibrate(self.model, other.teacher, other.first(), wanted, by=MEAN).dose
        return other.measured(dose, random_source(number)), other.divergence(dose) | {"seed": seed}

    def first(self) -> list[Any]:
        """The prompts that divergences are measured on."""
        spec = self.task.heal.calibration
        return prompt_rows(self.model, spread(self.task.pool, spec.n_prompts, spec.seed))

    def divergence(self, dose: float) -> dict[str, Any]:
        """How far a dose is from the model without it, as calibration measures it."""
        spec = self.task.heal.calibration
        sampling = SamplingSpec(
            temperature=spec.temperature, top_p=1.0, max_new_tokens=spec.n_tokens, seed=spec.seed
        )
        found = divergence(self.model, self.teacher.plan(dose), self.first(), sampling)
        return {
            "dose": dose,
            "kl_p95": found["kl_p95"],
            "kl_mean": found["kl_mean"],
            "teacher": self.teacher.name,
        }


def _write(made: Sampled, folder: Path) -> None:
    made.rows.write_parquet(folder / SAMPLES)
    made.settled.probes.write_parquet(folder / PROBES)
    made.settled.rows.write_parquet(folder / TESTED)
    told = {"sources": made.doses, "settled": _numbers(made.settled)}
    (folder / DOSES).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


def _numbers(settled: Settled) -> dict[str, Any]:
    return {name: value for name, value in vars(settled).items() if not isinstance(value, pl.DataFrame)}


def read_samples(folder: Path) -> Sampled:
    """What `make_samples` wrote."""
    told = json.loads((folder / DOSES).read_text())
    settled = Settled(
        **told["settled"],
        probes=pl.read_parquet(folder / PROBES),
        rows=pl.read_parquet(folder / TESTED),
    )
    return Sampled(pl.read_parquet(folder / SAMPLES), settled, told["sources"])


def settled_verdict(sampled: Sampled) -> Verdict:
    """Whether the settled dose keeps on all texts what its test promised."""
    own = sampled.rows.filter(source=PERSONA)
    return settled_claim(sampled.settled, own.rename({"survives": "kept"}))
