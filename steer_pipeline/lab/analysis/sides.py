"""Which files a pair of the profile is: resolved once, stored with the adapters, and found again by identity.

In: a pair of the profile, where a student lies, and the project root. Out: a folder with `pair.json` and the adapters
of a student, and from it the `ModelPair` on any machine that has the same base.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_pipeline.catalogue.analysis import CheckpointSpec, PairSpec
from steer_pipeline.catalogue.specs import ModelSpec, Profile
from steer_pipeline.lab.analysis.pairs import ModelPair, PairError, Side
from steer_pipeline.lab.models.identity import adapter_folders, local_folder, model_source
from steer_pipeline.lab.students.training import place

PAIR, ADAPTER = "pair.json", "adapter"


@dataclass(frozen=True)
class Student:
    """Of which bundle a pair's tuned model is, and where in it: `student_adapter[paranoid]`, `rank-8/seed-61`."""

    asset: str
    partition: str
    place: str


def student_of(spec: PairSpec, profile: Profile) -> Student | None:
    """The student that a pair names; None where it names a checkpoint.

    Raises:
        PairError: the profile trains no such student.
    """
    if spec.student is not None:
        students = profile.students
        rank, seed = spec.rank or students.ranks[0], spec.seed or students.seeds[0]
        if rank not in students.ranks or seed not in students.seeds:
            raise PairError(
                f"student {spec.student}, rank {rank}, seed {seed}: the profile trains ranks {students.ranks} and "
                f"seeds {students.seeds}; name one of them"
            )
        return Student("student_adapter", spec.student, place(rank, seed))
    if spec.heal is not None:
        seed = spec.seed or profile.heal.seeds[0]
        if seed not in profile.heal.seeds:
            raise PairError(f"student of arm {spec.heal}, seed {seed}: heal.seeds are {profile.heal.seeds}")
        return Student("heal_adapter", spec.heal, f"seed-{seed}")
    return None


def side_of(spec: ModelSpec | CheckpointSpec, home: Path, adapters: tuple[Path, ...] = ()) -> Side:
    """A model's directory and its adapters, and further ones on top.

    Raises:
        ModelLoadError: no such files.
        PairError: a hub id that is not on this machine.
    """
    model = spec if isinstance(spec, ModelSpec) else _as_model(spec)
    folder = local_folder(model_source(model, home), model.revision)
    if folder is None:
        raise PairError(f"{model.path}: not on this machine; download it (`huggingface-cli download`) first")
    return Side(Path(folder), (*adapter_folders(model, home), *adapters))


def _as_model(spec: CheckpointSpec) -> ModelSpec:
    return ModelSpec(path=spec.path, revision=spec.revision, adapter=tuple(spec.adapters) or None)


def store_pair(
    spec: PairSpec, model: ModelSpec, student: Path | None, home: Path, folder: Path
) -> dict[str, Any]:
    """Writes `pair.json`, and a student's adapter in `adapter/`; returns what stands in `pair.json`.

    Args:
        model: the profile's.
        student: the adapter directory of the pair's student.
    """
    base = spec.base or model
    told: dict[str, Any] = {"base": _named(base), "tuned": _named(spec.checkpoint or base)}
    if student is not None:
        shutil.copytree(student, folder / ADAPTER, ignore=shutil.ignore_patterns("steps"))
    told["adapter"] = student is not None
    pair = _pair(told, home, folder)
    told["identities"] = {"base": str(pair.base.identity()), "tuned": str(pair.tuned.identity())}
    if pair.base.identity() == pair.tuned.identity():
        raise PairError("base and tuned are one model; name another")
    (folder / PAIR).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return told


def _named(spec: ModelSpec | CheckpointSpec) -> dict[str, Any]:
    return {"path": spec.path, "revision": spec.revision, "adapters": list(spec.adapters)}


def read_pair(folder: Path, home: Path, device: str = "cpu") -> ModelPair:
    """What `store_pair` wrote.

    Raises:
        PairError: the files of a side have changed since.
    """
    told = json.loads((folder / PAIR).read_text())
    pair = _pair(told, home, folder, device)
    for name, side in (("base", pair.base), ("tuned", pair.tuned)):
        if str(side.identity()) != told["identities"][name]:
            raise PairError(f"{name} ({side.folder}): its files have changed; materialise model_pair again")
    return pair


def _pair(told: dict[str, Any], home: Path, folder: Path, device: str = "cpu") -> ModelPair:
    on_top = (folder / ADAPTER,) if told["adapter"] else ()
    sides = [CheckpointSpec.model_validate(told[name]) for name in ("base", "tuned")]
    return ModelPair(side_of(sides[0], home), side_of(sides[1], home, on_top), device)


def specs_of(folder: Path, model: ModelSpec, home: Path) -> tuple[ModelSpec, ModelSpec]:
    """Base and tuned as models to load, with all else as the profile's model has it.

    Raises:
        PairError: as `read_pair`.
    """
    pair = read_pair(folder, home)
    sides = [
        model.model_copy(
            update={
                "path": str(side.folder),
                "revision": None,
                "adapter": tuple(map(str, side.adapters)) or None,
            }
        )
        for side in (pair.base, pair.tuned)
    ]
    return sides[0], sides[1]
