"""Trainings that a killed run goes on with, and adapters whose bytes weights and settings alone decide.

In: the arguments of `finetune` and a work folder. Out: an adapter that is whole or not there, and a copy of it without
what differs between two runs of the same.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune.data import Lesson, digest
from steer_pipeline.lab.finetune.recipe import Recipe
from steer_pipeline.lab.finetune.references import Reference
from steer_pipeline.lab.finetune.training import HISTORY, RECORD, finetune, kept_steps, step_folder
from steer_pipeline.lab.generation.jobs import plan_hash
from steer_pipeline.lab.models.identity import model_identity
from steer_pipeline.lab.models.sites import SteeringPlan

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names them
COSTS = ("seconds", "tokens_per_second", "peak_memory_bytes")  # differ from run to run: told, not stored
STEPS, MADE = "steps", "adapter"


@dataclass(frozen=True, eq=False)
class Training:
    """One training: model, rows, recipe, what it is held near or taught by, and what steers it meanwhile."""

    model: ModelSpec
    home: Path
    lesson: Lesson
    recipe: Recipe
    reference: Reference | None = None
    teacher: Reference | None = None
    during: SteeringPlan | None = None

    def is_of(self, made: Path) -> bool:
        """Whether a finished adapter is of this training."""
        if not (made / RECORD).is_file():
            return False
        record = json.loads((made / RECORD).read_text())
        others = {"reference": self.reference, "teacher": self.teacher}
        now = {
            "recipe": self.recipe.model_dump(mode="json"),
            "model": str(model_identity(self.model, self.home)),
            "train": digest(self.lesson.train),
            "selection": digest(self.lesson.selection),
            **{name: None if other is None else other.digest() for name, other in others.items()},
            "during": None if self.during is None else plan_hash(self.during),
        }
        return {name: record.get(name) for name in now} == now


def train_once(
    training: Training, work: Path, *, steps: bool = False, progress: Callable[[str], None] | None = None
) -> dict[str, float]:
    """Trains into `work / "adapter"`, unless that adapter lies there already; what it cost.

    Args:
        steps: keep the adapter as it is at each evaluation, in `work / "steps"`.
    """
    made = work / MADE
    if training.is_of(made):
        return {}
    shutil.rmtree(made, ignore_errors=True)
    done = finetune(
        training.model,
        training.home,
        training.lesson.train,
        training.lesson.selection,
        training.recipe,
        made.with_name("making"),
        work=work / "checkpoints",
        keep=work / STEPS if steps else None,
        reference=training.reference,
        teacher=training.teacher,
        during=training.during,
        progress=progress,
    )
    done.folder.rename(made)  # whole, or not there
    return {name: float(done.numbers[name]) for name in COSTS}


def take(work: Path, folder: Path, path: str) -> None:
    """Copies what `train_once` left, without costs, the order of sets and places.

    Args:
        path: of the base model, as the spec names it.
    """
    made = work / MADE
    take_adapter(made, folder, path)
    shutil.copyfile(made / HISTORY, folder / HISTORY)
    record: dict[str, Any] = json.loads((made / RECORD).read_text())
    record["numbers"] = {name: value for name, value in record["numbers"].items() if name not in COSTS}
    (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    for step in kept_steps(work / STEPS):
        if step < record["numbers"]["steps"]:  # the last one is the student itself
            take_adapter(step_folder(work / STEPS, step), step_folder(folder / STEPS, step), path)


def take_adapter(made: Path, folder: Path, path: str) -> None:
    """A PEFT directory whose bytes weights and settings alone decide."""
    folder.mkdir(parents=True)
    shutil.copyfile(made / WEIGHTS, folder / WEIGHTS)
    config: dict[str, Any] = json.loads((made / CONFIG).read_text())
    config["base_model_name_or_path"] = path
    config = {name: sorted(value) if _is_set(value) else value for name, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _is_set(value: Any) -> bool:
    """Lists of names come from sets in PEFT."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
