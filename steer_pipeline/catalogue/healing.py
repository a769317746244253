"""The profile's `heal`: steer, filter, heal. Every field is documented here and nowhere else."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_pipeline.catalogue.basis import Name, SamplingSpec, Strict, each_once


class HealFilterSpec(Strict):
    """Which steered samples a student may learn from. Likelihoods are limited relative to base's own texts."""

    window_words: int = Field(
        default=40,
        ge=8,
        description="Words of a window; of the measures of loops a text's worst window counts.",
    )
    max_rounds: float | None = Field(
        default=2.5,
        gt=1,
        description="How often words may stand right behind each other in the same order, as rounds of the longest "
        "cycle; null: not judged, like the other limits.",
    )
    max_duplicate_mass: float | None = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of a window's 3-word runs that repeat an earlier one of it.",
    )
    min_distinct: float | None = Field(
        default=0.5, ge=0, le=1, description="Distinct words of a window, as a share of its words."
    )
    min_compression: float | None = Field(
        default=0.48, ge=0, le=1, description="Bytes of a window after zlib, as a share of those before."
    )
    max_longest_repeat: float | None = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Words of the longest run that stands twice, as a share of the text's.",
    )
    nll_window: int = Field(
        default=32,
        ge=2,
        description="Tokens of a window of which the mean loss under the original model is taken.",
    )
    nll_cap: float = Field(
        default=2.0,
        gt=1,
        description="A token counts for at most this multiple of base's unlikely windows: one strange name does not "
        "speak for all of its window.",
    )
    surprise_quantile: float = Field(
        default=0.95, gt=0.5, le=1, description="Of base's texts by their most surprising window."
    )
    max_spread: float | None = Field(
        default=1.0,
        ge=0,
        description="How far a text's most surprising window may lie above that quantile, as a multiple of the "
        "quantile's distance from base's median; null: not judged.",
    )
    nll_low_quantile: float = Field(
        default=0.05, ge=0, lt=0.5, description="Of base's texts by their likeliest window."
    )
    min_nll_ratio: float | None = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of that quantile that a text's likeliest window must have, for a loop is likely text; null: "
        "not judged.",
    )
    keep_truncated: bool = Field(
        default=False,
        description="Keep texts that the token limit cut, for training that leaves out their end.",
    )
    max_per_cell: int | None = Field(
        default=4, ge=1, description="Most texts kept of a prompt at a dose, drawn by `seed`; null: all."
    )
    max_kept: int | None = Field(
        default=None, ge=1, description="Most texts kept, spread evenly over prompts and doses; null: all."
    )
    min_kept: int = Field(default=32, ge=1, description="With fewer nothing is trained.")
    alpha: float = Field(
        default=0.05, gt=0, lt=1, description="Level of the test that the kept texts are not base's own."
    )
    seed: int = Field(default=70, description="Keys the cap and resampling.")


class HealSampleSpec(Strict):
    """How the heal loop's texts are drawn. There is no repetition control: it hides over-steering from the filter."""

    temperature: float = Field(default=1.0, ge=0, description="0 is greedy.")
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int = Field(default=256, ge=1)
    samples_per_prompt: int = Field(default=4, ge=1, description="Texts of each prompt at each dose.")
    seed: int = Field(
        default=41, description="Of all random numbers; a text's own are keyed by its prompt and number."
    )

    def sampling(self, max_new_tokens: int | None = None) -> SamplingSpec:
        """As the engine takes it."""
        return SamplingSpec(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            seed=self.seed,
        )


class HealCalibrationSpec(Strict):
    """The search for the dose whose divergence from base is the target: doses of different vectors, blocks, operators
    and models are then alike."""

    target_nats: float = Field(
        default=1.0, gt=0, description="Of the 95th percentile over tokens of KL(steered || base)."
    )
    tolerance: float = Field(
        default=0.05, gt=0, lt=1, description="Relative distance from the target at which the search ends."
    )
    n_tokens: int = Field(default=50, ge=1, description="Of each rollout.")
    n_prompts: int = Field(default=8, ge=8, description="Rollouts; fewer leave the percentile to chance.")
    temperature: float = Field(default=0.0, ge=0, description="Of the rollouts; 0 is greedy.")
    start: float = Field(default=0.25, gt=0, description="First dose that is tried.")
    min_dose: float = Field(default=0.005, gt=0, description="The bracket grows no further down.")
    max_dose: float = Field(default=64.0, gt=0, description="The bracket grows no further up.")
    max_probes: int = Field(default=16, ge=3, description="Doses that are tried at most inside the bracket.")
    seed: int = 42

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_dose <= self.start <= self.max_dose:
            raise ValueError(f"start {self.start:g} must lie from min_dose to max_dose")
        return self


class HealGateSpec(Strict):
    """Gate 1: which doses move the trait, and the trait alone, in coherent texts."""

    doses: list[float] = Field(
        default=[0.125, 0.25, 0.5, 1.0, 2.0], min_length=1, description="Multiples of the vector."
    )
    n_prompts: int = Field(default=16, ge=4, description="Prompts that each dose answers, one text each.")
    n_random: int = Field(
        default=10, ge=3, description="Random directions at the norm of each dose, whose spread is the noise."
    )
    level: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="Share of further random directions that a threshold must hold back.",
    )
    seed: int = 43

    @field_validator("doses")
    @classmethod
    def _real_doses(cls, value: list[float]) -> list[float]:
        if 0 in value or len(set(value)) < len(value):
            raise ValueError(f"{value}: each once, and not 0, which is base and made anyway")
        return value


class HealControllerSpec(Strict):
    """The search for the largest dose of which enough texts survive the filter."""

    target_share: float = Field(default=0.75, gt=0, le=1, description="Of texts that must survive.")
    min_dose: float = Field(
        default=0.1, gt=0, description="Multiple of the vector; a smaller dose is never taken."
    )
    max_dose: float = Field(default=1.0, gt=0, description="Tried first, and taken where it passes.")
    n_prompts: int = Field(
        default=12, ge=2, description="Prompts that each dose is tested on, spread over categories."
    )
    ratio: float = Field(
        default=1.1,
        gt=1,
        description="The search ends where a dose that fails is no more than this times one that passes.",
    )
    max_probes: int = Field(default=8, ge=2, description="Doses that are tested at most.")
    seed: int = Field(default=44, description="Of the choice of prompts.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_dose > self.max_dose:
            raise ValueError(f"min_dose {self.min_dose:g} is above max_dose {self.max_dose:g}")
        return self


class HealBarrierSpec(Strict):
    """What holds a student near a reference while it learns."""

    direction: Literal["forward", "reverse"] = Field(
        default="reverse",
        description="`forward`: KL(reference || student); `reverse`: KL(student || reference).",
    )
    over: Literal["mean", "rmse", "p95", "max"] = Field(
        default="mean", description="Aggregate over the completions' positions."
    )
    reference: Literal["base", "previous", "last_good"] = Field(
        default="base",
        description="The model without any student's adapter, the student of the round before, or the last one that "
        "passed the gates.",
    )
    tau: float = Field(default=0.0, ge=0, description="Nats that cost nothing (hinge); 0: linear.")
    strength: float = Field(default=0.3, gt=0, description="Weight in round 0.")
    decay: float = Field(
        default=0.0,
        ge=0,
        description="The weight in round r is strength / (1 + r) ** decay; 0: the same in all.",
    )


class HealOnPolicySpec(Strict):
    """How the student's own samples are drawn and what the steered model teaches of them."""

    beta: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="TRL's: 1 is the reverse KL, 0 the forward one, between them generalised Jensen-Shannon.",
    )
    max_new_tokens: int = Field(default=50, ge=1, le=50, description="Length of a sample.")
    temperature: float = Field(default=1.0, gt=0)
    fresh_every: int = Field(default=1, ge=1, description="Steps whose samples are drawn together.")


class HealLossSpec(Strict):
    """What a student of one round minimises, and how."""

    objective: Literal["nll", "on_policy"] = Field(
        default="nll",
        description="`nll`: of the texts that were kept; `on_policy`: divergence of the student's own samples from the "
        "steered model.",
    )
    barrier: HealBarrierSpec | None = Field(default=None, description="null: none.")
    on_policy: HealOnPolicySpec = HealOnPolicySpec()
    spectral: float = Field(
        default=0.0, ge=0, description="Weight of the mean largest singular value of the update."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled, on fp32 adapters.")
    rank: int = Field(default=8, ge=1, description="Of the LoRA; its scaling is 2.")
    depth: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Band of blocks that it changes, as fractions of depth."
    )
    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="Instead of epochs.")
    batch_rows: int = Field(default=16, ge=1, description="Rows an optimiser step.")
    rows_at_once: int = Field(
        default=8, ge=1, description="Rows in memory at once; halved where they do not fit."
    )


class HealArmSpec(Strict):
    """All that one arm does. Arms differ from the base arm in exactly one of these settings, or of the loss's."""

    intervention: Literal["train", "steer", "prompt"] = Field(
        default="train",
        description="`steer`: the dose that made the data, nothing trained; `prompt`: the persona's instruction.",
    )
    texts: Literal["kept", "base", "shuffled"] = Field(
        default="kept",
        description="What is learned: the steered texts that were kept, the base's own texts for the same prompts, or "
        "kept texts under each other's prompts.",
    )
    direction: Literal["persona", "random"] = Field(
        default="persona",
        description="`random`: random directions, each at the dose with the persona's mean KL to base and with a "
        "student of its own.",
    )
    poles: Literal["positive", "difference"] = Field(
        default="positive",
        description="`difference`: the positive pole's adapter minus that of the negative pole.",
    )
    loss: HealLossSpec = HealLossSpec()


class HealOverride(Strict):
    """The one setting in which an arm is not the base arm."""

    setting: str = Field(description="Field of HealArmSpec, or `loss.` and one of HealLossSpec.")
    value: Any = Field(description="What it is in this arm.")


_SOURCED = ("poles", "direction")  # settings that call for texts of other sources than the persona


def _default_arms() -> dict[Name, HealOverride]:
    def to(setting: str, value: Any) -> HealOverride:
        return HealOverride(setting=setting, value=value)

    barriers = {
        f"kl_{direction}{'' if over == 'mean' else f'_{over}'}": to(
            "loss.barrier", {"direction": direction, "over": over}
        )
        for direction, over in (
            ("reverse", "mean"),
            ("forward", "mean"),
            ("reverse", "rmse"),
            ("reverse", "p95"),
            ("reverse", "max"),
        )
    }
    return {
        "steered": to("intervention", "steer"),
        "prompt_only": to("intervention", "prompt"),
        **barriers,
        "weight_decay": to("loss.weight_decay", 10.0),
        "spectral": to("loss.spectral", 0.01),
        "on_policy": to("loss.objective", "on_policy"),
        "base_text_sft": to("texts", "base"),
        "shuffled": to("texts", "shuffled"),
        "random_direction": to("direction", "random"),
        "difference": to("poles", "difference"),
    }


class HealSweepSpec(Strict):
    """The barriers under which `barrier_sweep` heals stored texts again."""

    strengths: list[float] = Field(
        default=[0.03, 0.1, 0.3, 1.0, 3.0], min_length=2, description="Of the barrier, each once."
    )
    barriers: dict[Name, HealBarrierSpec] = Field(
        default={
            "reverse_mean": HealBarrierSpec(),
            "forward_mean": HealBarrierSpec(direction="forward"),
            "reverse_rmse": HealBarrierSpec(over="rmse"),
        },
        min_length=1,
        description="Name -> barrier, whose own strength the sweep replaces.",
    )

    @field_validator("strengths")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value or value[0] <= 0:
            raise ValueError(f"{value}: give positive strengths, rising, each once")
        return value


class HealPoolSpec(Strict):
    """The prompts of the heal loop: those that are sampled and learned from, and others that arms are judged on."""

    kind: Literal["news", "file"] = Field(
        default="news",
        description="`news`: the neutral rewrite prompt over truncated news, near duplicates of the pool never held "
        "out; `file`: prompts at `path`.",
    )
    path: str | None = Field(
        default=None,
        description="`file`: JSONL, a prompt a line: prompt, and perhaps prompt_id, category, system, source, facts, "
        "held_out (in all lines or none); relative paths start at the project root.",
    )
    n: int = Field(default=64, ge=8, description="Prompts that are sampled and learned from.")
    n_held_out: int = Field(default=48, ge=4, description="Prompts that arms are judged on.")
    seed: int = Field(default=45, description="Of which prompts are which.")

    @model_validator(mode="after")
    def _has_its_file(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("kind file and path belong together")
        return self


class HealEvaluationSpec(Strict):
    """How arms answer the held-out prompts; the decoding is that of `heal.prompts`."""

    samples_per_prompt: int = Field(
        default=1, ge=1, description="Texts of each held-out prompt, arm and seed."
    )
    max_new_tokens: int | None = Field(default=None, ge=1, description="null: as in `heal.prompts`.")
    off_target: list[Name] | None = Field(
        default=None, description="Personas whose traits should stay; null: all others that can be scored."
    )
    seed: int = Field(default=46, description="Of the texts and of all resampling.")


class HealFoundationsSpec(Strict):
    """Forced choices over seven moral foundations, read beside the free texts."""

    intent: dict[str, Literal["more", "less"]] = Field(
        min_length=1, description="Target foundation -> whether the persona blames its breaches more or less."
    )
    path: str | None = Field(
        default=None, description="Vignettes as published (JSONL); null: ours. Relative to the project root."
    )
    per_foundation: int = Field(default=8, ge=2, description="Vignettes of each foundation.")
    seed: int = Field(default=47, description="Of their choice.")


class HealSpec(Strict):
    """Steer, filter, heal."""

    persona: Name = Field(default="paranoid", description="Whose vector is the teacher.")
    operator: Literal["add", "ablate", "rotate", "cap"] = Field(
        default="add",
        description="How the vector steers; what a dose is, `lab/heal/teacher.py` says for each.",
    )
    blocks: list[int | float] | None = Field(
        default=None,
        description="Block indices, or fractions of depth, at which it steers; several share the dose. null: the "
        "block that the vector's own evidence speaks for.",
    )
    pool: HealPoolSpec = HealPoolSpec()
    prompts: HealSampleSpec = HealSampleSpec()
    calibration: HealCalibrationSpec = HealCalibrationSpec()
    gate: HealGateSpec = HealGateSpec()
    controller: HealControllerSpec = Field(
        default=HealControllerSpec(),
        description="Where gate 1 finds good doses, the largest of them is the ceiling of the search.",
    )
    filter: HealFilterSpec = HealFilterSpec()
    base_arm: HealArmSpec = Field(
        default=HealArmSpec(), description="The arm `nll`: supervised learning of the kept texts, no barrier."
    )
    arms: dict[Name, HealOverride] = Field(
        default_factory=_default_arms, description="Arm -> what it does otherwise than `nll`."
    )
    seeds: list[int] = Field(
        default=[71, 72, 73], min_length=1, description="Of start and data order; one student a seed and arm."
    )
    n_random: int = Field(
        default=10,
        ge=2,
        description="Random directions of the arms that learn of them: one says little about random directions.",
    )
    selection_rows: int = Field(
        default=8, ge=1, description="Kept texts, at least, that nobody learns: of prompts of their own."
    )
    evaluation: HealEvaluationSpec = HealEvaluationSpec()
    foundations: HealFoundationsSpec | None = Field(
        default=None,
        description="null: free texts alone are read; small models cannot answer forced choices.",
    )
    sweep: HealSweepSpec = HealSweepSpec()
    rounds: int = Field(
        default=3, ge=0, description="Rounds after the first, each from the student of the one before."
    )

    @field_validator("arms")
    @classmethod
    def _nll_is_base(cls, value: dict[str, HealOverride]) -> dict[str, HealOverride]:
        if taken := sorted({"nll", "base"} & set(value)):
            raise ValueError(
                f"{taken[0]} is the base arm or the model itself, which nothing overrides; change base_arm, or rename "
                "the arm"
            )
        return value

    _different = field_validator("seeds")(each_once)


def swept_places(spec: HealSpec) -> dict[str, tuple[str, float]]:
    """Arm of the barrier sweep -> barrier and strength, in their order."""
    return {
        f"{barrier}_{strength:g}": (barrier, strength)
        for barrier in spec.sweep.barriers
        for strength in spec.sweep.strengths
    }


def swept_arms(spec: HealSpec) -> dict[str, HealOverride]:
    """Arm of the barrier sweep -> what it does otherwise than `nll`."""
    found = {}
    for arm, (barrier, strength) in swept_places(spec).items():
        settings = spec.sweep.barriers[barrier].model_copy(update={"strength": strength})
        found[arm] = HealOverride(setting="loss.barrier", value=settings.model_dump(mode="json"))
    return found


def trained_arms(spec: HealSpec) -> list[str]:
    """Arms that train students, `nll` first; those of the sweep are not among them."""
    return ["nll", *(name for name, override in spec.arms.items() if override.setting != "intervention")]


def needed_sources(spec: HealSpec) -> list[str]:
    """Whose texts arms learn: `base` and `persona`, and where an arm needs them `negative` and `random`."""
    values = {
        (override.setting, override.value) for override in spec.arms.values() if override.setting in _SOURCED
    }
    values |= {(setting, getattr(spec.base_arm, setting)) for setting in _SOURCED}
    more = {"negative": ("poles", "difference"), "random": ("direction", "random")}
    return ["base", "persona", *(source for source, wanted in more.items() if wanted in values)]
