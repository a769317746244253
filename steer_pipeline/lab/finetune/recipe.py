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

    weight: float = Field(default=0.3, gt=0)
    direction: Literal["forward", "reverse"] = "reverse"
    over: Literal["mean", "rmse", "p95", "max"] = Field(
        default="mean", description="Aggregate over positions."
    )
    tau: float = Field(default=0.0, ge=0, description="Nats that cost nothing (hinge); 0: linear.")


class Recipe(Strict):
    """All of it. Two runs of one recipe, seed, data and model give the same adapter on one machine."""

    lora: LoraRecipe = LoraRecipe()
    nll: float = Field(default=1.0, ge=0, description="Weight of the completion's NLL, a mean over tokens.")
    kl: KlRecipe | None = None
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
        default=0, ge=0, description="Evaluations without progress before a stop; 0: never."
    )
    gradient_checkpointing: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _some_loss(self) -> "Recipe":
        if not self.nll and self.kl is None:
            raise ValueError("nll is 0 and there is no kl: nothing would be learned")
        if self.batch_rows % self.rows_at_once and self.rows_at_once < self.batch_rows:
            raise ValueError(
                f"batch_rows {self.batch_rows} is no multiple of rows_at_once {self.rows_at_once}"
            )
        return self
