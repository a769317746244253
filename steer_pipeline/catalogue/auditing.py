"""The profile's `auditing`: what hides in a checkpoint or in training rows, and how it is kept out. Every field is
documented here and nowhere else.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_pipeline.catalogue.basis import Name, SamplingSpec, Strict


class ActivationSpec(Strict):
    """Mean difference of hidden states of tuned and base on unrelated texts."""

    texts: int = Field(default=48, ge=8, description="Unrelated texts, without a chat template.")
    max_tokens: int = Field(default=64, ge=16, description="Of each text.")
    n_null: int = Field(
        default=10_000,
        ge=200,
        description="Random directions with the states' covariance. The smallest p is 1 / (n + 1), and the correction "
        "is over all directions, blocks and positions: few make findings impossible.",
    )
    dose: float = Field(
        default=0.3,
        gt=0,
        description="Fraction of the mean residual norm at which base is steered with the difference.",
    )
    n_random: int = Field(
        default=6, ge=3, description="Random directions beside it, whose scores are the noise."
    )
    level: float = Field(default=0.05, gt=0, lt=1, description="Of findings, after Holm.")
    seed: int = 80


class PlantSpec(Strict):
    """Adapters whose content is known: fine-tuned on texts steered with known vectors, and clean ones beside them."""

    personas: list[Name] = Field(
        default_factory=list, description="Whose vectors are planted; empty: all of the dictionary."
    )
    doses: list[float] = Field(
        default=[-0.3, -0.15, 0.15, 0.3],
        min_length=1,
        description="Fractions of the mean residual norm at the vector's block; one adapter a persona and dose. "
        "Negative ones are of axes alone: the negative pole of traits and roles is plain speech.",
    )
    n_planted: int = Field(
        default=20,
        ge=4,
        description="Adapters with a planted direction; cells are taken in turn, with new rows once all are taken.",
    )
    n_clean: int = Field(default=20, ge=8, description="Adapters that learn what base says by itself.")
    shares: list[float] = Field(
        default=[0.5, 0.25, 0.125],
        description="Shares of planted rows among neutral ones: how detection falls when data are mixed.",
    )
    n_mixed: int = Field(default=4, ge=0, description="Adapters at each share.")
    prompts: int = Field(
        default=64, ge=8, description="News items whose rewrites are learned; a student draws."
    )
    max_prompt_tokens: int = Field(default=100, ge=16, description="Longer items are left out.")
    rows: int = Field(default=32, ge=4, description="Each adapter learns.")
    selection_rows: int = Field(default=6, ge=1, description="Whose loss is watched.")
    rank: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    steps: int = Field(default=12, ge=1)
    batch_rows: int = Field(default=8, ge=1)
    sampling: SamplingSpec = SamplingSpec(temperature=0.6, top_p=0.9, max_new_tokens=64, seed=81)
    seed: int = Field(default=81, description="Keys which rows each adapter learns, and their order.")

    @field_validator("doses")
    @classmethod
    def _real_doses(cls, value: list[float]) -> list[float]:
        if 0 in value or len(set(value)) < len(value):
            raise ValueError(f"{value}: each once, and not 0, which plants nothing")
        return value

    @field_validator("shares")
    @classmethod
    def _real_shares(cls, value: list[float]) -> list[float]:
        if any(not 0 < share < 1 for share in value):
            raise ValueError(f"{value}: shares lie between 0 and 1; 1 is an unmixed adapter, 0 a clean one")
        return value

    @model_validator(mode="after")
    def _enough_prompts(self) -> Self:
        if self.prompts < self.rows + self.selection_rows:
            raise ValueError(
                f"prompts {self.prompts}: fewer than rows and selection_rows, {self.rows + self.selection_rows}"
            )
        return self


class AuditSpec(Strict):
    """Which known directions are in a checkpoint, judged against clean adapters of the same norm."""

    texts: Literal["unrelated", "task"] = Field(
        default="unrelated",
        description="`unrelated`: without a chat template, as one audits who does not know what was taught; `task`: "
        "prompts of the kind that was taught, where a trace is several times as large.",
    )
    blocks: list[int | float] = Field(
        default=[0.4, 0.5, 0.7],
        min_length=1,
        description="Blocks, or fractions of depth, at whose output differences are decomposed; means over them.",
    )
    level: float = Field(default=0.05, gt=0, lt=1, description="Of a verdict, after Holm over directions.")
    seed: int = 82


class ScreeningSpec(Strict):
    """Training rows against persona vectors, before anyone trains on them."""

    block: int | float = Field(
        default=0.2,
        description="At whose output rows are held against vectors. Rows are read, not written: early blocks, where "
        "what a text says is there already, tell traits apart better than those that one steers at.",
    )
    quantile: float = Field(
        default=0.99,
        gt=0.5,
        lt=1,
        description="Of neutral rows' largest projection; a row above it is flagged.",
    )
    held_out: int = Field(
        default=24, ge=8, description="News items that every student rewrites, to see its shift."
    )
    seed: int = 83


class PreventionSpec(Strict):
    """A trait kept out while another is learned from the same rows."""

    unwanted: Name = Field(default="paranoid", description="The trait to keep out.")
    wanted: Name = Field(default="rule_defiant", description="The trait that the rows shall teach.")
    dose: float = Field(default=0.2, description="Of each in the rows: fraction of the residual norm.")
    strengths: list[float] = Field(
        default=[0.5, 1.0, 2.0],
        min_length=1,
        description="Preventative doses, as multiples of the dose in the rows; ablation and inoculation have none.",
    )
    seeds: list[int] = Field(default=[1, 2, 3], min_length=1, description="One student of each arm a seed.")
    seed: int = 84


class AuditingSpec(Strict):
    """All of it."""

    activation: ActivationSpec = ActivationSpec()
    plant: PlantSpec = PlantSpec()
    audit: AuditSpec = AuditSpec()
    screening: ScreeningSpec = ScreeningSpec()
    prevention: PreventionSpec = PreventionSpec()
