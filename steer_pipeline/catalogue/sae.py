"""The profile's `sae`: features of training rows, and what they predict. Every field is documented here and nowhere
else.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_pipeline.catalogue.basis import Strict, each_once

Pooling = Literal["mean", "max", "presence"]


class SaeTrainingSpec(Strict):
    """A sparse autoencoder of our own, for a model that nobody has published one of."""

    kind: Literal["topk", "jumprelu"] = Field(
        default="topk",
        description="`topk`: as many features at each token; `jumprelu`: those above a threshold, as many on average.",
    )
    block: int | float = Field(
        default=0.5, description="Block whose output it reads: an index, or a fraction of the depth."
    )
    expansion: float = Field(default=4.0, gt=0, description="Features, as a multiple of the model's width.")
    l0: int = Field(default=16, ge=1, description="Features active at a token.")
    tokens: int = Field(
        default=50_000,
        ge=64,
        description="Of the pool's rows at most; their states lie in memory, width * 4 bytes each.",
    )
    epochs: int = Field(default=8, ge=1, description="Passes over these tokens.")
    batch_tokens: int = Field(default=512, ge=1, description="Tokens an optimiser step.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Of Adam; falls to zero over the last fifth."
    )
    seed: int = Field(default=100, description="Of the start and of the order of rows and tokens.")


class SaeFeaturesSpec(Strict):
    """What of a row is read."""

    span: Literal["sequence", "completion"] = Field(
        default="completion",
        description="Prompt and completion, or the completion alone: what a row teaches. The first position never "
        "counts.",
    )


class RankPredictorSpec(Strict):
    """How far a row's features tell its rank: ridge regression, judged on rows that it has not seen."""

    target: Literal["rank", "score"] = Field(
        default="rank", description="The share of rows that a row outranks, or the score as it is."
    )
    pooling: Pooling = Field(
        default="mean",
        description="Of a feature over a row's tokens: mean, maximum, or whether it is active at all.",
    )
    projection: int = Field(
        default=512,
        ge=1,
        description="More features than this are projected on as many random directions, drawn without a look at them.",
    )
    alphas: list[float] = Field(
        default=[1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0],
        min_length=1,
        description="Strengths of the ridge; within the rows that are learned, held-out groups choose one.",
    )
    folds: int = Field(default=5, ge=2, description="Parts that are predicted from the others.")
    group_by: list[str] = Field(
        default=["game", "game_role", "experiment", "task_id"],
        min_length=1,
        description="Columns of the rows. Those that agree in all of them, or say the same, are never learned and "
        "predicted at once.",
    )
    metadata: list[str] = Field(
        default=["reward_model_score", "difficulty", "quality", "category"],
        description="Columns that may know already what the features tell; one without a value is left out.",
    )
    k: int = Field(
        default=100, ge=1, description="Rows at the top whose overlap with the predicted top is counted."
    )
    shuffles: int = Field(
        default=20,
        ge=2,
        description="Times that targets are dealt out anew, whole groups at a time, as the floor.",
    )
    seed: int = Field(default=101, description="Of folds, projection, shuffles and resampling.")

    _different = field_validator("group_by", "metadata", "alphas")(each_once)


class SaeSpec(Strict):
    """The sparse autoencoder: a local directory, or one that is trained here."""

    folder: str | None = Field(
        default=None,
        description="Directory of a published one, in the layout of sae-lens or GemmaScope 2; relative ones start at "
        "the project root. null: one is trained.",
    )
    block: int | None = Field(
        default=None,
        description="Block whose output a published one reads, where its configuration does not say.",
    )
    training: SaeTrainingSpec = SaeTrainingSpec()
    fidelity_rows: int = Field(
        default=48, ge=2, description="Held-out rows on which reconstruction and loss are measured."
    )
    features: SaeFeaturesSpec = SaeFeaturesSpec()
    predictor: RankPredictorSpec = RankPredictorSpec()

    @model_validator(mode="after")
    def _one_site(self) -> Self:
        if self.block is not None and self.folder is None:
            raise ValueError("block: is of a published one; name its folder, or set training.block")
        return self
