"""How training rows are ranked, and how a ranking is judged. Every field is documented here and nowhere else."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from steer_pipeline.catalogue.basis import Name, Strict

BackEnd = Literal["native", "bergson"]


class LearnedMethod(Strict):
    """A method that reads a model which has learned the pool."""

    model: Literal["adapter", "replay"] = Field(
        default="adapter",
        description="`adapter`: base with the base adapter, as it is used; `replay`: the end of `scoring.replay`, the "
        "training that rankings are judged by, which is another one.",
    )


class GradientMethod(LearnedMethod):
    """Similarity of a row's gradient with that of the queries, as TracIn and LESS have it, randomly projected."""

    kind: Literal["gradient"] = "gradient"
    back_end: BackEnd = "native"
    projection: int = Field(
        default=16,
        ge=0,
        description="Side of the projected gradient of a module, which then has its square as many numbers; 0: the "
        "gradient as it is.",
    )
    query: Literal["mean", "nearest"] = Field(
        default="mean",
        description="A row's similarity with the mean of the queries, or with the nearest of them.",
    )
    unit_norm: bool = Field(
        default=True, description="Gradients of rows and queries at length one: cosines, not products."
    )
    preconditioning: Literal["none", "query", "mixed"] = Field(
        default="query",
        description="Whose second moment of gradients is inverted: the queries', or theirs and the pool's mixed.",
    )
    sides: Literal["one", "two"] = Field(
        default="two",
        description="Its inverse on the query alone, or its inverse root on query and row, before the norm.",
    )
    mixing: float = Field(default=0.99, gt=0, lt=1, description="Share of the queries' moment, where mixed.")
    damping: float = Field(
        default=0.1, gt=0, description="Added to the eigenvalues, as a multiple of their mean."
    )
    seed: int = Field(default=0, ge=0, description="Of the projection.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.preconditioning != "none" and self.sides == "two" and not self.unit_norm:
            raise ValueError(
                "sides: two without unit_norm gives the scores of sides: one; set one of both otherwise"
            )
        return self


class TrackstarMethod(LearnedMethod):
    """TrackStar (Chang et al. 2024), by Bergson: projected, two-sided, its own choice of the mixing."""

    kind: Literal["trackstar"] = "trackstar"
    projection: int = Field(default=16, ge=1, description="Side of the projected gradient of a module.")
    downweighted: int = Field(
        default=1000, ge=1, description="Components of the gradient, common to all queries, that count less."
    )


class EkfacMethod(LearnedMethod):
    """Influence functions with an EK-FAC Hessian (Grosse et al. 2023), by Bergson; not projected."""

    kind: Literal["ekfac"] = "ekfac"
    damping: float = Field(
        default=0.1, gt=0, description="Added to the eigenvalues, as a multiple of their mean."
    )


class MagicMethod(Strict):
    """MAGIC (Ilyas and Engstrom 2025): the derivative of the queries' loss through the training, of a row's weight."""

    kind: Literal["magic"] = "magic"
    back_end: BackEnd = "native"
    fd_step: float = Field(
        default=0.1, gt=0, description="Of the weights, between the trainings of the metasmoothness check."
    )
    min_metasmoothness: float = Field(
        default=0.5,
        ge=-1,
        le=1,
        description="Below it a training answers to its weights in no smooth way, and nothing is scored.",
    )


class DirectionMethod(Strict):
    """Influence on a direction: the gradient's similarity, where the query is the projection instead of a loss."""

    kind: Literal["direction"] = "direction"
    projection: int = Field(default=16, ge=0, description="As of `gradient`.")
    unit_norm: bool = Field(default=True, description="As of `gradient`.")
    seed: int = Field(default=0, ge=0, description="Of the projection.")


class RdsMethod(LearnedMethod):
    """RDS+ (Ivison et al. 2025): cosine of the last block's states, later positions weighing more."""

    kind: Literal["rds"] = "rds"
    query: Literal["mean", "nearest"] = Field(default="nearest", description="As of `gradient`.")


class Bm25Method(Strict):
    """BM25 of a row's ids for those of the queries, mean over queries."""

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(default=1.5, ge=0, description="How soon further occurrences of a token count no more.")
    b: float = Field(default=0.75, ge=0, le=1, description="How much a long row is discounted.")


class LossMethod(LearnedMethod):
    """A row's mean loss under the model, the hardest first."""

    kind: Literal["loss"] = "loss"


class LengthMethod(Strict):
    """A row's tokens, the longest first."""

    kind: Literal["length"] = "length"


class RandomMethod(Strict):
    """The floor of all of them."""

    kind: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, description="Another one is another order.")


ScoringMethod = Annotated[
    GradientMethod
    | TrackstarMethod
    | EkfacMethod
    | MagicMethod
    | DirectionMethod
    | RdsMethod
    | Bm25Method
    | LossMethod
    | LengthMethod
    | RandomMethod,
    Field(discriminator="kind"),
]


class ReplaySpec(Strict):
    """A training that can be run again with other weights of its rows, step by step the same: AdamW, no dropout."""

    rank: int = Field(default=8, ge=1, description="Of the LoRA, whose scaling is 2.")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Names of linear modules.",
    )
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps; the first step's rate is then zero."
    )
    epochs: int = Field(default=2, ge=1)
    batch_rows: int = Field(default=16, ge=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, ge=0, description="Beside the root of Adam's second moment.")
    eps_root: float = Field(
        default=1e-8,
        ge=0,
        description="Inside that root: what makes a training smooth where gradients are near zero.",
    )
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=0.0, ge=0, description="Largest gradient norm; 0: none.")
    seed: int = Field(default=0, ge=0, description="Of the start and of the order of rows.")


class QualitySpec(Strict):
    """How rankings are judged: by trainings without some of the rows."""

    n_subsets: int = Field(default=64, ge=8, description="Trainings of each protocol.")
    small_drop: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Share of the rows that the first protocol leaves out; the second: half.",
    )
    halves: bool = Field(default=True, description="Whether the second protocol runs, too.")
    top: float = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Share of rows, first in a ranking, that the queries' losses are compared without.",
    )
    seed: int = Field(default=0, ge=0, description="Of the subsets and of the bootstrap.")


def _all_methods() -> dict[str, ScoringMethod]:
    return {
        "gradient": GradientMethod(),
        "gradient_plain": GradientMethod(preconditioning="none"),
        "gradient_nearest": GradientMethod(query="nearest", preconditioning="none"),
        "magic": MagicMethod(),
        "rds": RdsMethod(),
        "bm25": Bm25Method(),
        "loss": LossMethod(),
        "length": LengthMethod(),
        "random": RandomMethod(),
    }


class AttributionScoringSpec(Strict):
    """Rankings of one pool of training rows for one set of queries."""

    batch_tokens: int = Field(
        default=2048, ge=1, description="Of one pass of model and gradients, padding included."
    )
    loss: Literal["mean", "sum"] = Field(
        default="mean", description="A row's loss whose gradient counts: over its supervised tokens."
    )
    methods: dict[Name, ScoringMethod] = Field(
        default_factory=_all_methods, description="Rankings by name, each with how it is made."
    )
    replay: ReplaySpec = Field(
        default=ReplaySpec(), description="What MAGIC differentiates, and what judges all."
    )
    quality: QualitySpec = QualitySpec()
