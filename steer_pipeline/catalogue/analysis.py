"""The profile's `analysis`: what tuning changed in weights. Every field is documented here and nowhere else."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_pipeline.catalogue.basis import Name, Strict, each_once


class CheckpointSpec(Strict):
    """A model by its files."""

    path: str = Field(description="Hub id or directory; relative ones start at the project root.")
    revision: str | None = None
    adapters: list[str] = Field(
        default_factory=list, description="PEFT directories on top, in order; merged block by block."
    )


class PairSpec(Strict):
    """The tuned model of a pair; base is the profile's model, or `base`. Exactly one of three names it."""

    student: Name | None = Field(
        default=None, description="Variant of which a student is the tuned model, on base."
    )
    heal: Name | None = Field(default=None, description="Arm of the heal loop of which a student is.")
    checkpoint: CheckpointSpec | None = Field(default=None, description="Any other model of base's shape.")
    rank: int | None = Field(
        default=None, ge=1, description="Of `student`; default: the first of students.ranks."
    )
    seed: int | None = Field(
        default=None, description="Of `student` or `heal`; default: the first of the profile's."
    )
    base: CheckpointSpec | None = Field(default=None, description="In place of the profile's model.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = [name for name in ("student", "heal", "checkpoint") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"{named or 'nothing'}: name one of student, heal and checkpoint")
        if self.base is not None and self.checkpoint is None:
            raise ValueError(
                "base: students stand on the profile's model; name another base for a checkpoint only"
            )
        return self


class AnalysisSpec(Strict):
    """Where tuned models react to directions, within nulls that say what chance and mere training would show."""

    pairs: dict[Name, PairSpec] = Field(
        default_factory=dict, description="Pairs by name, one partition each; none: nothing is analysed."
    )
    personas: list[Name] | None = Field(
        default=None,
        description="Whose vectors are the dictionary; null: those that variants add. Trained vectors of the store "
        "stand beside them.",
    )
    published: str | None = Field(
        default=None,
        description="Folder of published role and trait vectors of this model (`roles_240`, `traits_240`) that join "
        "the dictionary.",
    )
    components: int = Field(
        default=3,
        ge=0,
        description="Principal components in the dictionary: of neutral states, and of published sets.",
    )
    texts: int = Field(
        default=64, ge=4, description="Neutral news that mean states and covariances are read on."
    )
    n_null: int = Field(
        default=1000,
        ge=200,
        description="Null directions, with the covariance of the states; as many isotropic ones beside them.",
    )
    level: float = Field(default=0.05, gt=0, lt=0.5, description="Of verdicts, over a whole pair.")
    fraction: float = Field(
        default=0.2,
        gt=0,
        description="Length of a direction on the mean state, as a share of the stream's length.",
    )
    distances: list[int] = Field(
        default=[1, 16], min_length=1, description="Positions from key to query at which attention is asked."
    )
    top: int = Field(default=10, ge=1, description="Crossed interactions of a block that are kept.")
    clean_pairs: int = Field(
        default=24,
        ge=0,
        description="Pairs of two clean students at most, drawn by `seed`: how often nothing is found in them is the "
        "level of the verdicts. 0: no clean students are trained, and random directions alone decide.",
    )
    experiments: list[Literal["checkpoint_audit", "data_screening", "preventative_steering"]] = Field(
        default=["checkpoint_audit", "data_screening", "preventative_steering"],
        description="What is tried on adapters of our own (`auditing`), dozens of which are trained for it.",
    )
    seed: int = Field(default=80, description="Keys null directions, texts and the draw of clean pairs.")

    @field_validator("distances")
    @classmethod
    def _apart(cls, value: list[int]) -> list[int]:
        if min(value) < 0 or len(set(value)) < len(value):
            raise ValueError(f"{value}: different numbers of positions, none below 0")
        return value

    _different = field_validator("personas", "experiments")(each_once)
