"""What a fine-tuning is made with: the LoRA, its losses, its optimiser and when it stops."""

from typing import Literal

from pydantic import Field, model_validator

from steer_pipeline.catalogue.specs import Strict


class LoraRecipe(Strict):
    """The adapter."""

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(
        default=None, gt=0, description="Scaling is alpha / rank; default: twice the rank."
    )
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Names of linear modules; `all-linear` alone means every one in the blocks.",
    )
    depth: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Band of blocks, as fractions of depth: from, up to."
    )

    @model_validator(mode="after")
    def _band(self) -> "LoraRecipe":
        low, high = self.depth
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"depth {self.depth}: give two fractions from 0 to 1, the first below the second"
            )
        return self


class KlRecipe(Strict):
    """A divergence from the reference: the model below the adapter, or whatever the caller puts in its place."""

    weight: float = Field(
        default=0.3,
        ge=0,
        description="In the loss; 0: the divergence is measured on the selection rows only.",
    )
    direction: Literal["forward", "reverse"] = "reverse"
    over: Literal["mean", "rmse", "p95", "max"] = Field(
        default="mean",
        description="Aggregate over the supervised positions of the rows that are in memory at once.",
    )
    tau: float = Field(
        default=0.0,
        ge=0,
        description="Nats that cost nothing (hinge); 0: linear. Of one aggregate, not of another.",
    )
    ratio_every: int = Field(
        default=10,
        ge=0,
        description="Steps between two measurements of the gradient ratio, which cost two backward passes each; "
        "0: none.",
    )


class OnPolicyRecipe(Strict):
    """On-policy distillation: the student's own samples, under the divergence from a teacher that is steered."""

    beta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="As in TRL: 0 is the forward KL (teacher to student), 1 the reverse one; between them the "
        "generalised Jensen-Shannon divergence, whose scale depends on beta.",
    )
    max_new_tokens: int = Field(default=50, ge=1, le=50, description="Length of a sample.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling; the divergence is at 1.")
    fresh_every: int = Field(
        default=1,
        ge=1,
        description="Steps whose samples are drawn together, from the student as it is before the first of them.",
    )


class Recipe(Strict):
    """All of it. Two runs of one recipe, seed, data and model give the same adapter on one machine."""

    lora: LoraRecipe = LoraRecipe()
    nll: float = Field(default=1.0, ge=0, description="Weight of the completion's NLL, a mean over tokens.")
    kl: KlRecipe | None = None
    on_policy: OnPolicyRecipe | None = Field(
        default=None,
        description="In place of the rows' completions, of which only prompts are used; with nll: 0.",
    )
    spectral: float = Field(
        default=0.0, ge=0, description="Weight of the mean largest singular value of the update."
    )
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled, as AdamW has it.")
    clip: float = Field(default=1.0, ge=0, description="Largest gradient norm; 0: none.")
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="Instead of epochs.")
    batch_rows: int = Field(
        default=16, ge=1, description="Rows an optimiser step, whatever fits into memory at once."
    )
    rows_at_once: int = Field(default=8, ge=1, description="Halved when memory runs out.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Longest example; the end of a longer completion is cut."
    )
    evaluations: int = Field(
        default=4, ge=1, description="Of the selection rows, over the run; also checkpoints."
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="Evaluations without progress before a stop; 0: never. Progress is of the selection rows' "
        "NLL, or on policy of their divergence from the teacher.",
    )
    gradient_checkpointing: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _some_loss(self) -> "Recipe":
        if not self.nll and self.on_policy is None and (self.kl is None or not self.kl.weight):
            raise ValueError(
                "nll is 0, and there is neither kl with a weight nor on_policy: nothing would be learned"
            )
        if self.nll and self.on_policy is not None:
            raise ValueError("on_policy with nll would teach the student what it says anyway; set nll: 0")
        if self.batch_rows % self.rows_at_once and self.rows_at_once < self.batch_rows:
            raise ValueError(
                f"batch_rows {self.batch_rows} is no multiple of rows_at_once {self.rows_at_once}"
            )
        return self
