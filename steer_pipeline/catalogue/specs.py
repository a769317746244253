"""The catalogue's schema. Every field is documented here and nowhere else.

Doses come in three units and always say which: `alpha` (absolute length added to the residual
stream), `fraction` (of the mean residual norm at the site) and `recommended` (a multiple of the dose
that `dose_curve` recommends for the persona).
"""

import datetime
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from steer_pipeline.catalogue.analysis import AnalysisSpec
from steer_pipeline.catalogue.attribution import AttributionSpec
from steer_pipeline.catalogue.auditing import AuditingSpec
from steer_pipeline.catalogue.basis import Name, SamplingSpec, Strict, each_once
from steer_pipeline.catalogue.healing import HealSpec
from steer_pipeline.catalogue.sae import SaeSpec
from steer_pipeline.catalogue.scale import SCALES, ScoreScale
from steer_pipeline.catalogue.word_games import WordGamesSpec

# --------------------------------------------------------------------------------------- personas


class Pole(Strict):
    """One end of a persona: how it is asked for and how it is recognised."""

    name: Name = Field(description="What a reader calls this pole, e.g. `paranoid` or `trusting`.")
    instructions: list[str] = Field(
        min_length=1, description="System turns that ask for this pole, in different words."
    )
    lexicon: list[str] = Field(
        default_factory=list,
        description="Marker words and phrases; matched case-insensitively at word boundaries. Those of one model stand "
        "in its profile's `lexicons`.",
    )


Statement = Annotated[
    str, Field(description="What a speaker of the pole answers or comments, in natural English.")
]
MIN_FIT, MIN_HELD_OUT = 16, 8


class StatementPair(Strict):
    """The two poles on one subject, about as long as each other: neither subject nor length may tell them apart."""

    positive: Statement
    negative: Statement


class Examples(Strict):
    """How each pole sounds in plain English: what a scorer and a vector of any model can be fitted on.

    Pairs and not two lists, so that a reader sees the match, and so that what is shuffled or resampled is a subject.
    """

    prompts: list[str] = Field(
        min_length=1,
        description="Questions that leave room for both poles; every statement can stand as an answer to each.",
    )
    fit: list[StatementPair] = Field(description=f"What is learned from; at least {MIN_FIT} pairs.")
    held_out: list[StatementPair] = Field(
        description=f"What it is judged on, never learned from; at least {MIN_HELD_OUT} pairs on other subjects."
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for split, least in (("fit", MIN_FIT), ("held_out", MIN_HELD_OUT)):
            if (count := len(getattr(self, split))) < least:
                raise ValueError(f"{split} has {count} pairs; at least {least} are needed")
        seen: dict[str, str] = {}
        for place, text in self._texts():
            plain = " ".join(re.findall(r"\w+", text.casefold()))
            if not plain:
                raise ValueError(f"{place} is empty")
            if plain in seen:
                raise ValueError(f"{place} says the same as {seen[plain]}: {text!r}; write another")
            seen[plain] = place
        return self

    def _texts(self) -> Iterator[tuple[str, str]]:
        """(where it stands, text) of every prompt and statement."""
        yield from ((f"prompts.{number}", prompt) for number, prompt in enumerate(self.prompts))
        for split in ("fit", "held_out"):
            for number, pair in enumerate(getattr(self, split)):
                yield f"{split}.{number}.positive", pair.positive
                yield f"{split}.{number}.negative", pair.negative


class ImportedVector(Strict):
    """Where a persona's vector comes from when it is imported and not computed."""

    format: Literal["janus", "gguf", "repeng", "llama.cpp", "persona_vectors", "chatspace", "easysteer"]
    path: str = Field(description="File in that format; relative paths start at the project root.")
    block: int | None = Field(default=None, description="Block index, where the format does not say.")
    made_with: Literal["torch", "mlx"] = Field(
        default="torch", description="Back end that built it: Janus MLX files mislabel their layer."
    )


class Persona(Strict):
    """One direction of study: an axis with two poles, a trait, or a role."""

    name: Name
    kind: Literal["axis", "trait", "role"]
    summary: str = Field(description="One line for the UI.")
    positive: Pole
    negative: Pole
    questions: list[str] = Field(default_factory=list, description="Persona-specific questions.")
    examples: Examples | None = Field(
        default=None,
        description="Pairs of statements of the two poles, and prompts; a role's negative pole is a plain speaker.",
    )
    judge_rubric: str = Field(
        default="",
        description="Judge prompt with `{question}` and `{answer}`; scores as `catalogue/scale.py` has them.",
    )
    vector: ImportedVector | Literal["computed"] = Field(
        default="computed", description="`computed`, or where to import the vector from."
    )

    @field_validator("judge_rubric")
    @classmethod
    def _rubric_has_fields(cls, value: str) -> str:
        if value and not {"{question}", "{answer}"} <= set(re.findall(r"\{\w+\}", value)):
            raise ValueError("must contain {question} and {answer}")
        return value

    @property
    def scale(self) -> ScoreScale:
        """On which its answers are scored.

        Raises:
            ValueError: an axis has none.
        """
        if self.kind not in SCALES:
            raise ValueError(f"persona {self.name}: an {self.kind} has no score scale; use a trait or a role")
        return SCALES[self.kind]


# --------------------------------------------------------------------------------------- variants


class Dose(Strict):
    """Exactly one of three units."""

    recommended: float | None = Field(
        default=None, description="Multiple of the recommended dose; negative steers to the other pole."
    )
    fraction: float | None = Field(
        default=None, description="Fraction of the mean residual norm at the site."
    )
    alpha: float | None = Field(default=None, description="Absolute length of the added vector.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("recommended", "fraction", "alpha") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of recommended, fraction, alpha; got {given or 'none'}")
        return self


class VariantTerm(Strict):
    """A vector at a site with a dose. `random`: seeded random directions of the same norm and site take its place."""

    persona: Name
    dose: Dose
    block: int | float | None = Field(
        default=None,
        description="Block index (negative counts from the end, a float is a fraction of depth); "
        "default: the block that dose_curve recommends.",
    )
    direction: Literal["persona", "random"] = "persona"
    directions: int = Field(
        default=10,
        ge=1,
        description="`random`: how many directions are drawn; each row takes one of them. One direction says little "
        "about random directions.",
    )
    site: Literal["output", "attention", "mlp", "logits"] = Field(
        default="output",
        description="`output`: added to the residual stream after the block. `attention`, `mlp`: added to what these "
        "add to it, for vectors collected there (`vector.site` in the profile). `logits`: the block's vector through "
        "final norm and output embedding, added to the logits; dosed as alpha or a fraction of the last block's norm.",
    )

    @model_validator(mode="after")
    def _measured_at_its_site(self) -> Self:
        if self.site == "logits" and self.dose.recommended is not None:
            raise ValueError(
                "recommended doses are measured at block outputs; give a fraction or alpha for logits"
            )
        return self


class VariantSpec(Strict):
    """One way of rewriting every row."""

    name: Name
    role: Literal["base", "steered", "prompted", "control"] = Field(
        description="`control`: must show nothing, and a run in which it does is no evidence; `prompted`: shows what a "
        "prompt achieves."
    )
    summary: str
    terms: list[VariantTerm] = Field(default_factory=list)
    scope: Literal["all", "generated"] | None = Field(
        default=None,
        description="Steer every position, or only generated tokens; null: the profile's `rewrites.scope`.",
    )
    stream: str | None = Field(
        default=None,
        description="Name of the random stream; variants that share one draw the same numbers. "
        "Default: the variant's own name.",
    )
    prompted_by: Name | None = Field(
        default=None, description="Prompt-only arm: this persona's positive instruction as system turn."
    )
    targets: dict[Name, Literal["up", "down"]] = Field(
        default_factory=dict, description="Persona -> direction in which its trait score must move."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.role == "base" and (self.terms or self.prompted_by):
            raise ValueError("the base variant is not steered and not prompted")
        if self.role == "steered" and not self.terms:
            raise ValueError("a steered variant needs at least one term")
        if (self.role == "prompted") != (self.prompted_by is not None and not self.terms):
            raise ValueError("role prompted, prompted_by and no terms belong together")
        return self


# --------------------------------------------------------------------------------------- profiles


class ModelSpec(Strict):
    """Which language model, and how it is loaded."""

    path: str = Field(
        description="Hub id, directory or GGUF file; relative ones start at the project root. A chat template beside a "
        "GGUF file (NAME.jinja or chat_template.jinja) takes the place of the one in it."
    )
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    backend: Literal["torch", "mlx"] = "torch"
    adapter: str | tuple[str, ...] | None = Field(
        default=None,
        description="PEFT adapter directory on top, or several that add up; relative ones start at the project root.",
    )
    chat_template: bool = Field(default=True, description="False: raw prompts, as Janus had them.")
    date: datetime.date = Field(
        default=datetime.date(2026, 1, 1),
        description="Today, for chat templates that write the date into the prompt; pinned, so that prompts stay the "
        "same tomorrow.",
    )
    batch_tokens: int = Field(default=16384, ge=1, description="Token budget of one generation batch.")
    compile: bool = Field(
        default=False,
        description="Decode through torch.compile over a static cache. Meant for long runs on CUDA, unmeasured.",
    )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Directories of all adapters."""
        return (self.adapter,) if isinstance(self.adapter, str) else self.adapter or ()

    @model_serializer(mode="wrap")
    def _without_default_date(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Hashes of profiles from before there was a date stay what they were."""
        fields: dict[str, Any] = handler(self)
        if (
            self.__dict__["date"] == type(self).model_fields["date"].default
        ):  # no reading of it that lineage would note
            fields.pop("date", None)
        return fields

    @model_validator(mode="after")
    def _compiles_torch(self) -> "ModelSpec":
        if self.compile and self.backend != "torch":
            raise ValueError(
                "model.compile is of the torch back end; leave it out, or set model.backend: torch"
            )
        return self


class NewsSource(Strict):
    """Where news comes from."""

    kind: Literal["sample", "news_en", "files", "directory", "hub"] = Field(
        default="sample",
        description="`sample`: the newsroom's articles; `news_en`: news in plain English that come with the checkout; "
        "`files`, `directory`, `hub`: at `path`.",
    )
    path: str | None = Field(default=None, description="JSONL/Parquet path or glob, directory, or hub id.")
    split: str = "train"
    limit: int | None = Field(default=None, ge=1, description="First N accepted rows.")
    min_chars: int = Field(default=0, ge=0, description="Rows with shorter text are quarantined.")


class CorpusSpec(Strict):
    source: NewsSource = NewsSource()
    max_tokens: int = Field(default=380, ge=8, description="Cap of truncated_news, in model tokens.")
    language: str = Field(default="en", description="Language of the sentence segmenter.")
    near_duplicate_threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard of word shingles.")


Source = Literal["generated", "pairs", "prefill"]
Readout = Literal["response_tokens", "last_prompt_token", "last_token"]
Choice = TypeVar("Choice", Source, Readout)


def _several(value: Any) -> Any:
    """One name is a list of one; `auto` is every read-out."""
    if value == "auto":
        return get_args(Readout)
    return (value,) if isinstance(value, str) else value


Sources = Annotated[
    tuple[Source, ...], Field(min_length=1), BeforeValidator(_several), AfterValidator(each_once)
]
Readouts = Annotated[
    tuple[Readout, ...], Field(min_length=1), BeforeValidator(_several), AfterValidator(each_once)
]


class ContrastSpec(Strict):
    """Where the two sides of a persona come from, and how many there are."""

    source: Sources = Field(
        default=("generated",),
        description="`generated`: the model answers under both poles' instructions. `pairs`: given texts of both poles "
        "as its answers; works on models that do not follow instructions. `prefill`: the same text, cut at several "
        "places, under both poles' instructions. A list: the evidence chooses.",
    )
    contexts: Literal["news", "general"] = Field(
        default="general",
        description="`generated`: `news`: rewrite prompts over corpus rows; `general`: our own contexts.",
    )
    n_contexts: int = Field(default=256, ge=8, description="`generated`: contexts that both sides answer.")
    max_new_tokens: int = Field(default=64, ge=1, description="`generated`: of an answer.")
    temperature: float = Field(default=0.7, ge=0, description="`generated`: 0 is greedy.")
    seed: int = Field(default=11, description="`generated`: of contexts and answers.")
    filter: bool = Field(
        default=True,
        description="`generated`: leave out pairs in which a side does not show its pole, by a scale fitted on the "
        "persona's examples, else by the judge; a persona that has neither is not filtered.",
    )
    pairs: str | None = Field(
        default=None,
        description="`pairs`: JSONL of texts instead of the personas' examples; relative paths start at the project "
        "root, `{persona}` stands for the persona's name. Lines: prompt (or question), positive, negative, and split "
        "(train, held_out) in all or none; or question, answer_matching_behavior, answer_not_matching_behavior.",
    )
    pair_prompts: int = Field(
        default=3, ge=1, description="`pairs` of examples: prompts that each pair answers."
    )
    prefill_cuts: int = Field(
        default=3,
        ge=1,
        le=8,
        description="`prefill`: places at which each text is cut, in tokens evenly apart.",
    )


class VectorSpec(Strict):
    method: Literal["mean_difference", "pca"] = "mean_difference"
    readout: Readouts = Field(
        default=("response_tokens",),
        description="`response_tokens`: mean over the answer; `last_prompt_token`: before it; `last_token`: its last. "
        "A list, or `auto` for all: the evidence chooses. Prefilled texts are always read at their last token.",
    )
    site: Literal["output", "attention", "mlp"] = Field(
        default="output",
        description="Where directions are collected, and so where they are added: the residual stream after each "
        "block, or what its attention or MLP adds to it.",
    )
    held_out_fraction: float = Field(default=0.25, gt=0, lt=1)
    seed: int = 12


class CoherenceSpec(Strict):
    """What a steered text may lose against base on the same rows, as means of paired differences; null: not judged.

    A loss beyond its limit counts when its interval leaves zero out: few rows stop nothing by one odd text.
    """

    max_extra_suspects: float | None = Field(default=0.05, ge=0, le=1, description="Share of texts.")
    max_lost_facts: float | None = Field(default=0.1, ge=0, le=1, description="Share of the source's facts.")
    max_extra_loops: float | None = Field(default=0.05, ge=0, le=1, description="Share of texts.")
    max_length_ratio: float | None = Field(
        default=2.0, gt=1, description="Words against base's, either way, as a geometric mean."
    )
    max_extra_nll: float | None = Field(
        default=0.6, gt=0, description="Nats a token under the unsteered model, either way."
    )


class DoseSpec(Strict):
    """The sweep of dose_curve: blocks x dose fractions, on held-out rows."""

    blocks: list[int | float] = Field(
        default=[0.4, 0.5, 0.6], description="Block indices, or fractions of depth."
    )
    fractions: list[float] = Field(default=[-0.4, -0.2, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 1.2])
    n_rows: int = Field(default=24, ge=4, description="Held-out news items.")
    n_random: int = Field(
        default=10, ge=1, description="Random directions that a dose is compared with, at its block and norm."
    )
    kl_rows: int = Field(
        default=8,
        ge=0,
        description="Rows, drawn at random by `seed`, whose KL to base is measured in every cell: two passes each; 0: "
        "none. The interval in the table is over these rows.",
    )
    max_kl_nats: float | None = Field(
        default=None,
        gt=0,
        description="Mean KL to base a token up to this; null: not judged, like the next two.",
    )
    max_suspect_rate: float | None = Field(default=None, ge=0, le=1, description="Share of texts.")
    min_facts_kept: float | None = Field(
        default=None, ge=0, le=1, description="Mean share of the source's facts."
    )
    refine: bool = Field(
        default=False,
        description="Sweep the whole grid on `coarse_rows`, and only the best blocks and doses there on all rows.",
    )
    coarse_rows: int = Field(default=8, ge=4, description="`refine`: rows of the first pass.")
    both_poles: list[Name] | None = Field(
        default=None,
        description="Personas whose vector is also used with its sign turned, so that their dose must hold both ways; "
        "default: every axis.",
    )
    seed: int = 13

    def holds_both_ways(self, persona: "Persona") -> bool:
        """Whether the negative dose of the persona must be coherent, too."""
        return persona.kind == "axis" if self.both_poles is None else persona.name in self.both_poles

    @model_validator(mode="after")
    def _measures_what_it_judges(self) -> Self:
        if self.max_kl_nats is not None and not self.kl_rows:
            raise ValueError("max_kl_nats judges by KL, and kl_rows is 0; set kl_rows, or max_kl_nats: null")
        return self


class Lexicon(Strict):
    """Marker words of a persona in one model's texts, as `Pole.lexicon` has them; both empty: it has none there."""

    positive: list[str] = Field(default_factory=list, description="Of the positive pole.")
    negative: list[str] = Field(default_factory=list, description="Of the negative pole.")

    @model_validator(mode="after")
    def _has_a_positive_side(self) -> Self:
        if self.negative and not self.positive:
            raise ValueError("negative without positive; a scale needs markers of the positive pole")
        return self


class ScaleSpec(Strict):
    """What persona scales are made of, beside lexicons."""

    minilm: Literal["examples", "contrast_set"] = Field(
        default="examples",
        description="What the MiniLM scale is fitted on: the persona's `examples`, the same for any model, or its "
        "contrast set, in the model's own words. A persona without examples is fitted on the latter.",
    )


class RewriteSpec(Strict):
    system: str | None = Field(default=None, description="Neutral system turn; none: no system turn.")
    prompt: str = Field(default="Rewrite: {text}", description="User turn (or raw prompt); has {text}.")
    pilot_rows: int = Field(default=50, ge=1)
    full_rows: int = Field(default=1000, ge=1)
    scope: Literal["all", "generated"] = Field(
        default="all",
        description="Steer every position, or only generated tokens: dose sweeps, and variants that say nothing else.",
    )
    band_directions: int = Field(
        default=10,
        ge=0,
        description="Random directions that random_band adds with the norms of the strongest variant; 0: no band.",
    )
    band_rows: int = Field(default=16, ge=2, description="First news items that each of them rewrites.")
    sampling: SamplingSpec = SamplingSpec()

    @field_validator("prompt")
    @classmethod
    def _has_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("must contain {text}")
        return value


class DiagnosisSpec(Strict):
    """What is looked at before anything expensive: whether base does the job at all."""

    n_rows: int = Field(default=8, ge=1, description="News items that base rewrites, four times each.")
    min_facts_kept: float | None = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Mean share of a lead's numbers and names below which the model is taken not to follow the rewrite "
        "prompt, and `steer make pilot` stops; null: it goes on whatever base says.",
    )


class GateSpec(Strict):
    """Thresholds of the release gates."""

    max_suspect_rate: float | None = Field(
        default=0.01, ge=0, le=1, description="Largest share of suspect rows; null: not judged by itself."
    )
    max_extra_suspects: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of suspect rows beyond base's, on the same rows; null: not judged against base. "
        "For models whose base is itself often suspect.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Level of the paired test that something changed, against base_resample.",
    )
    min_kept_fraction: float = Field(default=0.5, ge=0, le=1)


class DialogueSource(Strict):
    """Where the scored dialogues of traits and roles come from."""

    kind: Literal["newsroom", "responses", "processed", "generate"] = Field(
        default="generate",
        description="`newsroom`: those that come with the checkout; `responses`: responses/{name}.jsonl with "
        "extract_scores/{name}.json; `processed`: {model}__{role|trait}__{name} as Parquet or save_to_disk; "
        "`generate`: asked of the profile's model.",
    )
    path: str | None = Field(default=None, description="Root of a published layout.")
    scores: Literal["lexicon", "judge"] = Field(
        default="lexicon", description="`generate`: who scores the answers."
    )
    n_questions: int = Field(default=240, ge=8, description="`generate`: questions asked of every side.")
    n_prompts: int = Field(default=5, ge=1, description="`generate`: instructions a pole, at most.")
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    seed: int = 30


class BehaviourSpec(Strict):
    """Which dialogues count, and how they are split; budgets are supervised response tokens."""

    source: DialogueSource = DialogueSource()
    role_min_score: int = Field(
        default=3, ge=0, le=SCALES["role"].top, description="A role row counts from this score."
    )
    trait_min_score: int = Field(
        default=75, ge=0, le=SCALES["trait"].top, description="A positive trait row counts from it."
    )
    score_gap: int = Field(
        default=50, ge=0, le=SCALES["trait"].top, description="Averaged trait pairs differ by more."
    )
    min_count: int = Field(default=50, ge=2, description="An averaged vector of fewer rows is missing.")
    train_tokens: int = Field(default=100_000, ge=1)
    validation_tokens: int = Field(default=10_000, ge=1)
    test_tokens: int = Field(default=10_000, ge=1)
    max_response_tokens: int = Field(
        default=1024, ge=1, description="Longer responses are cut, in every arm."
    )
    allow_other_model: bool = Field(
        default=False, description="Accept dialogues and vectors of a model with another name or depth."
    )
    seed: int = 31


class TrainingSpec(Strict):
    """How trained vectors are learned. `residual` units are fractions of the mean residual norm at the site."""

    block: int | float = Field(default=0.5, description="Site: block index, or fraction of depth.")
    units: Literal["residual", "absolute"] = Field(
        default="residual", description="Of learning rates, init and clip."
    )
    learning_rates: list[float] = Field(
        default=[0.002, 0.005, 0.01, 0.02, 0.05],
        min_length=1,
        description="In residual units the length of a full AdamW step: lr * norm / sqrt(hidden) a coordinate.",
    )
    init: float = Field(default=0.0, ge=0, description="Length of a random start; 0 starts at zero.")
    clip: float = Field(default=0.0, ge=0, description="Largest gradient norm before the step; 0: none.")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=5, ge=1)
    batch_rows: int = Field(
        default=8, ge=1, description="Rows an optimizer step; rows of one question come two by two."
    )
    patience: int = Field(
        default=2, ge=0, description="Evaluations without progress before a stop; 0: never."
    )
    min_delta: float = Field(default=0.0, ge=0, description="Nats a token that count as progress.")
    prune: bool = Field(
        default=True, description="Learning rates that fall behind on validation leave the sweep early."
    )
    seeds: list[int] = Field(default=[41, 42, 43], min_length=1)
    gradient_checkpointing: bool = False
    cache_gb: float = Field(default=2.0, gt=0, description="Cached states beyond this are memory-mapped.")


class RolloutSpec(Strict):
    """Behaviour rollouts. Scales are multiples: of the learned vector, and of the averaged one's best scale."""

    n_questions: int = Field(default=20, ge=2, description="Held-out questions of the persona, at most.")
    n_samples: int = Field(default=1, ge=1, description="Answers an arm and question.")
    trained_scales: list[float] = Field(default=[-1.0, 0.5, 1.0, 1.5], min_length=1)
    averaged_scales: list[float] = Field(default=[-1.0, 0.5, 1.0, 1.5], min_length=1)
    random_seeds: list[int] = Field(
        default=[51, 52, 53, 54, 55, 56, 57, 58, 59, 60],
        min_length=1,
        description="Of random directions of the trained vector's length, others for every persona; ten tell what "
        "directions do, one or two do not.",
    )
    sampling: SamplingSpec = SamplingSpec(temperature=0.7, top_p=0.9, max_new_tokens=256, seed=50)
    minilm_texts: int = Field(default=600, ge=20, description="Training texts a side, at most.")


ArmName = Literal["filtered", "shuffled", "masked", "paraphrased", "in_context", "other_init"]


class StudentSpec(Strict):
    """Students: LoRA adapters that learn a variant's kept rewrites under the neutral prompt, and what they then do."""

    ranks: list[int] = Field(
        default=[8, 32],
        min_length=1,
        description="LoRA ranks; every student and every control has each of them.",
    )
    seeds: list[int] = Field(
        default=[61, 62, 63],
        min_length=1,
        description="Of the rows drawn, start and data order; one student a seed.",
    )
    controls: list[Name] = Field(
        default=["base_resample", "random_direction"],
        min_length=1,
        description="Variants whose students must stand beside every other, with those of base. Leave one out only "
        "where too few of its rows are kept to learn from: effects are then judged without its band.",
    )
    rows: int = Field(
        default=400,
        ge=2,
        description="Kept rows that each student learns from: exactly as many for all, so that they compare.",
    )
    selection_rows: int = Field(
        default=40, ge=1, description="Kept rows beside them that nobody learns; their loss is watched."
    )
    epochs: float = Field(default=2.0, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    batch_rows: int = Field(default=16, ge=1, description="Rows an optimiser step.")
    rows_at_once: int = Field(
        default=8, ge=1, description="Rows in memory at once; halved where they do not fit."
    )
    evaluations: int = Field(
        default=4,
        ge=1,
        description="Times in training at which the watched loss is measured, and the adapter kept to see which way it "
        "moves the stream.",
    )
    held_out_rows: int = Field(
        default=100, ge=2, description="News items, in no pack and like none in it, that students rewrite."
    )
    read_blocks: list[int | float] = Field(
        default=[0.5, 0.75],
        min_length=1,
        description="Blocks, or fractions of depth, at whose output the unsteered model reads rewrites; the "
        "projection is taken at the one that tells steered from base best on rows left out of the fit.",
    )
    arm_variants: list[Name] = Field(
        default_factory=list,
        description="Variants whose pack goes through the arms of hidden transfer, beside base's pack as their "
        "control; at the first rank, with the seeds of the other students.",
    )
    arms: list[ArmName] = Field(
        default=["filtered", "shuffled", "masked", "paraphrased", "in_context", "other_init"],
        description="`filtered`: rows in which no scorer sees the trait; `shuffled`: tokens of a completion in another "
        "order; `masked`: no loss where the teacher's likeliest token is not base's; `paraphrased`: rewritten once "
        "more by the unsteered model; `in_context`: rows of the pack before the news, nothing is trained; "
        "`other_init`: students of `other_model`.",
    )
    other_model: ModelSpec | None = Field(
        default=None, description="Another model of the same tokenizer, for the arm `other_init`."
    )
    context_rows: int = Field(
        default=8,
        ge=1,
        description="Rows of the pack in context, at most; fewer where the window is too small.",
    )
    seed: int = Field(
        default=60,
        description="Keys, beside a student's own seed, which rows are learned; which are held out; all resampling.",
    )

    _different = field_validator("ranks", "seeds", "arm_variants", "arms")(each_once)


class TransportSpec(Strict):
    """Vectors carried to another model, and what they do there beside that model's own vector."""

    model: ModelSpec = Field(description="The model that vectors are carried to.")
    profile: str | None = Field(
        default=None,
        description="Profile by whose `contrast`, `vector`, `dose`, `rewrites`, `scales` and `lexicons` that model's "
        "own vector is made and its texts are scored; default: this one.",
    )
    personas: list[Name] = Field(
        default=["paranoid", "rule_defiant"], min_length=1, description="Whose vectors are carried."
    )
    ways: list[Literal["procrustes", "subspace", "embeddings", "ridge"]] = Field(
        default=["procrustes", "subspace", "embeddings", "ridge"],
        min_length=1,
        description="`procrustes`: a rotation of the whole space; `subspace`: of its first principal components; "
        "`embeddings`: one fitted on the input embeddings of shared tokens; `ridge`: any linear map, regularised.",
    )
    texts: list[Literal["news", "others", "own"]] = Field(
        default=["news", "others", "own"],
        min_length=1,
        description="Texts that maps are fitted on, each with those before it. `news`: neutral rewrites of news; "
        "`others`: answers of the other personas' contrast sets; `own`: those of the persona itself, which no claim "
        "is judged by: it shows what a map could do that knows the trait.",
    )
    mapping: Literal["depth", "fit"] = Field(
        default="depth",
        description="From which block of the source a vector comes: `depth`: the same fraction of depth as the block "
        "it is added at; `fit`: of the blocks within a quarter of depth, the one whose map predicts best.",
    )
    components: int = Field(default=64, ge=1, description="`subspace`: principal components of either model.")
    fit_texts: int = Field(
        default=200, ge=4, description="News items, and answers a persona, that maps are fitted on."
    )
    rows: int = Field(default=48, ge=4, description="News items that the target rewrites in every arm.")
    n_random: int = Field(
        default=10, ge=10, description="Random rotations of the vector: what a map that knows nothing does."
    )
    seed: int = Field(default=70, description="Keys texts, rows, rotations and all resampling.")

    _different = field_validator("personas", "ways", "texts")(each_once)


class JudgeSpec(Strict):
    """The judge behind an OpenAI-compatible endpoint; where it is comes from the environment."""

    model: str = "gpt-4.1-mini"
    max_tokens: int = Field(default=10, ge=1)
    requests_per_second: float = Field(default=10.0, gt=0)
    concurrency: int = Field(default=8, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    max_retries: int = Field(default=5, ge=0)


class Profile(Strict):
    """One model, one corpus, one set of sizes and doses: what `STEER_PROFILE` names."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    summary: str
    model: ModelSpec
    without_personas: list[Name] = Field(
        default_factory=list,
        description="Personas of the catalogue that mean nothing to this model: the profile studies neither them nor "
        "variants that name them.",
    )
    corpus: CorpusSpec = CorpusSpec()
    diagnosis: DiagnosisSpec = DiagnosisSpec()
    contrast: ContrastSpec = ContrastSpec()
    vector: VectorSpec = VectorSpec()
    dose: DoseSpec = DoseSpec()
    coherence: CoherenceSpec = CoherenceSpec()
    scales: ScaleSpec = ScaleSpec()
    lexicons: dict[Name, Lexicon] = Field(
        default_factory=dict,
        description="Persona -> marker words that take the place of those in its file: what is planted in this model, "
        "or how its texts say it. `{}` for a persona: it has no lexicon here.",
    )
    rewrites: RewriteSpec = RewriteSpec()
    gates: GateSpec = GateSpec()
    behaviour: BehaviourSpec = BehaviourSpec()
    training: TrainingSpec = TrainingSpec()
    rollouts: RolloutSpec = RolloutSpec()
    students: StudentSpec = StudentSpec()
    transport: TransportSpec | None = Field(
        default=None, description="Another model that vectors are carried to; null: they are not."
    )
    heal: HealSpec = HealSpec()
    attribution: AttributionSpec = AttributionSpec()
    sae: SaeSpec = SaeSpec()
    word_games: WordGamesSpec = WordGamesSpec()
    analysis: AnalysisSpec = AnalysisSpec()
    auditing: AuditingSpec = AuditingSpec()
    judge: JudgeSpec = JudgeSpec()
    variants: dict[Name, list[VariantTerm]] = Field(
        default_factory=dict, description="Terms that replace those of variants.yaml for this profile."
    )

    @model_validator(mode="after")
    def _reads_what_differs(self) -> Self:
        if "pairs" in self.contrast.source and self.vector.readout == ("last_prompt_token",):
            raise ValueError(
                "vector.readout last_prompt_token: under contrast.source pairs both sides answer the same prompt, and "
                "do not differ there; give response_tokens, last_token or auto"
            )
        return self
