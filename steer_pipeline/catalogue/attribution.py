"""The profile's `attribution`: which training rows help. Every field is documented here and nowhere else."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec
from steer_pipeline.catalogue.basis import Name, Strict, each_once

PREDICTED = "predicted"  # ranking that features tell
UNTRAINED = ("base", "base_adapter")  # players that are no arms


class CardsSpec(Strict):
    """Our own word game: the word is the last of three clues. Which rows help is planted, and known."""

    kind: Literal["cards"] = "cards"
    informative: int = Field(default=60, ge=2, description="Games won by the rule.")
    useless: int = Field(default=80, ge=0, description="Rows of other games, about as long.")
    misled: int = Field(default=50, ge=0, description="Games lost: the guess follows the wrong rule.")
    mislabelled: int = Field(default=30, ge=0, description="Games logged as won whose guess is another word.")
    duplicates: int = Field(
        default=20, ge=0, description="Second copies of won and lost games, under other ids."
    )
    held_out_words: int = Field(
        default=100, ge=5, description="Words of the held-out games; none of them stands in the pool."
    )
    games_per_word: int = Field(default=2, ge=1, description="Held-out games a word.")
    lost_share: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description="Of the held-out games: their logged guess is wrong, so that agreement with the log is not truth.",
    )
    seed: int = 90


class InteractionsSpec(Strict):
    """Games in the published layout: `messages` and `meta`, one a line."""

    kind: Literal["interactions"]
    train: str = Field(
        description="JSONL or Parquet file of the pool; relative paths start at the project root."
    )
    validation: str = Field(description="The same for what is held out.")
    game: str = Field(default="taboo", description="`meta.game` of the rows that are taken.")
    game_role: str = Field(default="WordGuesser", description="`meta.game_role` of the rows that are taken.")
    targets: str | None = Field(
        default=None,
        description="JSON of game instances (experiments, game_instances with game_id and target_word): the logs do "
        "not say which word was to be guessed, and of lost games it is not the one that was guessed.",
    )


class ChatSpec(Strict):
    """A chat corpus in the SmolTalk layout: messages, category, difficulty, quality, reward_model_score."""

    kind: Literal["smoltalk"]
    train: str = Field(
        description="JSONL or Parquet file of the pool; relative paths start at the project root."
    )
    validation: str = Field(description="The same for what is held out.")
    rows: int = Field(
        default=8000, ge=1, description="Of the pool, drawn with equal shares of the categories."
    )
    held_out_rows: int = Field(default=1000, ge=4, description="The same of what is held out.")
    seed: int = 91


class PackSpec(Strict):
    """The released rewrites of a variant: prompt and rewrite of the kept rows."""

    kind: Literal["pack"]
    variant: Name = Field(description="Whose rewrites.")
    held_out_share: float = Field(default=0.3, gt=0, lt=1, description="Of the news items.")
    seed: int = 92


class GamesSpec(Strict):
    """The games of `word_games`, as the profile's generator played them."""

    kind: Literal["word_games"]
    held_out_share: float = Field(
        default=0.4, gt=0, lt=1, description="Of the target words: all of their games are held out."
    )
    seed: int = 93


Source = Annotated[
    CardsSpec | InteractionsSpec | ChatSpec | PackSpec | GamesSpec, Field(discriminator="kind")
]


class SplitSpec(Strict):
    """How rows that are held out by their source are divided; groups stay whole."""

    query_share: float = Field(
        default=0.4, gt=0, lt=1, description="Of the held-out groups: what rankings ask for."
    )
    selection_share: float = Field(
        default=0.2, gt=0, lt=1, description="Of the held-out groups: checkpoints are chosen on them."
    )
    failures: Literal["keep", "drop"] = Field(
        default="drop",
        description="Lost games in the pool. Kept, they are learned like any other row: only to study rankings.",
    )
    eval_words: Literal["drop", "keep"] = Field(
        default="drop",
        description="`drop`: rows of the pool whose target or guess is a word of selection or eval leave it. `keep`: "
        "games repeat their words, and accuracy is partly memory; rows with the very text of a held-out one leave it "
        "all the same.",
    )
    max_tokens: int = Field(default=1024, ge=16, description="Longer rows leave the pool, and are counted.")
    seed: int = 94

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.query_share + self.selection_share >= 1:
            raise ValueError("query_share and selection_share leave nothing for eval; lower one of them")
        return self


class LearnSpec(Strict):
    """How an adapter is trained, completions only."""

    rank: int = Field(default=8, ge=1, description="Of the LoRA.")
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(
        default=None, ge=1, description="Instead of epochs: arms of another k are then trained as long."
    )
    batch_rows: int = Field(default=16, ge=1, description="Rows an optimiser step.")
    rows_at_once: int = Field(
        default=8, ge=1, description="Rows in memory at once; halved where they do not fit."
    )
    evaluations: int = Field(default=3, ge=1, description="Times at which the loss on selection is measured.")
    patience: int = Field(
        default=0,
        ge=0,
        description="Evaluations without progress on selection before a stop; the checkpoint that is best there is "
        "then taken. 0: the last one.",
    )


Pick = Literal["top", "bottom", "window", "random", "matched"]


class SubsetSpec(Strict):
    """Which rows of the pool an arm learns."""

    pick: Pick = Field(
        description="`top`, `bottom`: the k rows of highest or lowest rank; `window`: ranks from to; `random`: any k; "
        "`matched`: k rows of the outcomes and lengths of another arm's, and of its number of tokens."
    )
    ranking: Name | None = Field(
        default=None, description="Method whose ranks are meant; none for random ones."
    )
    k: int | None = Field(default=None, ge=2, description="Rows; default: `attribution.k`.")
    ranks: tuple[int, int] | None = Field(
        default=None, description="`window`: first and last rank, counted from 1, both included."
    )
    like: Name | None = Field(default=None, description="`matched`: the arm that is matched.")
    overlap: bool = Field(
        default=False,
        description="`random`, `matched`: rows of the arm that stands in `like` may be drawn again.",
    )
    mode: Literal["scratch", "continued"] = Field(
        default="scratch",
        description="`scratch`: a new adapter on the model; `continued`: one on top of the base adapter.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ranked = self.pick in ("top", "bottom", "window")
        if ranked != (self.ranking is not None):
            raise ValueError(f"pick {self.pick}: {'name a ranking' if ranked else 'has no ranking'}")
        if (self.pick == "window") != (self.ranks is not None):
            raise ValueError("ranks and pick: window belong together")
        if self.pick == "matched" and self.like is None:
            raise ValueError("pick matched: name the arm in `like`")
        if self.ranks is not None and not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ValueError(f"ranks {self.ranks}: the first must be at least 1 and not above the last")
        return self


class SanitySpec(Strict):
    """Which methods are put to the sanity tests that any sound attribution passes, and how faults are planted."""

    methods: list[Name] | None = Field(
        default=None,
        min_length=1,
        description="Of scoring.methods; null: the one that features are to tell (`predict`), and a random ranking: it "
        "shows what the tests say of scores that know nothing.",
    )
    share: float = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Of the pool's rows: given a wrong completion, copied, or taught a shortcut.",
    )
    seed: int = Field(default=97, description="Of which rows, and of the shuffled weights.")


def _default_arms() -> dict[str, SubsetSpec]:
    return {
        "top_gradient": SubsetSpec(pick="top", ranking="gradient"),
        "bottom_gradient": SubsetSpec(pick="bottom", ranking="gradient"),
        "matched": SubsetSpec(pick="matched", like="top_gradient"),
        "random": SubsetSpec(pick="random"),
        "top_length": SubsetSpec(pick="top", ranking="length"),
        "top_loss": SubsetSpec(pick="top", ranking="loss"),
        "top_rds": SubsetSpec(pick="top", ranking="rds"),
    }


class AttributionSpec(Strict):
    """Rows, methods, arms and how they are judged."""

    sources: list[Source] = Field(
        default=[CardsSpec()], min_length=1, description="Read one after the other."
    )
    splits: SplitSpec = SplitSpec()
    learn: LearnSpec = LearnSpec()
    scoring: AttributionScoringSpec = AttributionScoringSpec()
    sanity: SanitySpec | None = Field(
        default=SanitySpec(), description="null: methods are not tested; of a large model that takes long."
    )
    direction: Name | None = Field(
        default=None,
        description="Persona whose vector the method `direction` asks for; null: no such method.",
    )
    predict: Name = Field(default="gradient", description="Method whose ranks features are to tell.")
    k: int = Field(default=256, ge=2, description="Rows that an arm learns, where it does not say.")
    token_budget: float = Field(
        default=0.01, gt=0, lt=1, description="Share by which the tokens of a matched arm may differ."
    )
    arms: dict[Name, SubsetSpec] = Field(
        default_factory=_default_arms,
        description="What is trained; {}: rows are ranked and features predict, and nothing is trained on the ranks.",
    )
    seeds: list[int] = Field(
        default=[81, 82, 83, 84, 85],
        min_length=1,
        description="Of adapters: start, data order, and what random arms draw.",
    )
    max_new_tokens: int = Field(default=16, ge=1, description="Of a guess.")
    references: list[Name] = Field(
        default=["base", "base_adapter", "random", "matched", "top_length", "top_loss", "top_rds"],
        min_length=1,
        description="With which every other arm is compared; those that are no arms here are left out.",
    )
    seed: int = Field(default=96, description="Of the base adapter and of all resampling.")

    _different = field_validator("seeds", "references")(each_once)

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        for name, arm in self.arms.items():
            if name in UNTRAINED:
                raise ValueError(f"arms.{name}: is what arms stand beside; rename the arm")
            if arm.ranking not in (None, PREDICTED, *self.scoring.methods):
                raise ValueError(
                    f"arms.{name}: ranking {arm.ranking} is none of scoring.methods; add it there"
                )
            if arm.like is not None and (arm.like not in self.arms or self.arms[arm.like].like is not None):
                raise ValueError(f"arms.{name}: like {arm.like} is no arm of its own rows; name another")
        if self.predict not in self.scoring.methods:
            raise ValueError(f"predict: {self.predict} is none of scoring.methods; add it there")
        if unknown := [
            name for name in (self.sanity and self.sanity.methods) or () if name not in self.scoring.methods
        ]:
            raise ValueError(f"sanity.methods: {unknown[0]} is none of scoring.methods; add it there")
        aimed = [name for name, method in self.scoring.methods.items() if method.kind == "direction"]
        if aimed and self.direction is None:
            raise ValueError(
                f"scoring.methods.{aimed[0]}: name the persona in attribution.direction, or leave it out"
            )
        return self


def tried(spec: AttributionSpec) -> list[str]:
    """Methods that are put to the sanity tests; none where the profile has no tests."""
    if spec.sanity is None:
        return []
    if spec.sanity.methods is not None:
        return spec.sanity.methods
    blind = [name for name, method in spec.scoring.methods.items() if method.kind == "random"][:1]
    return list(dict.fromkeys([spec.predict, *blind]))


def compared(spec: AttributionSpec) -> list[str]:
    """Players that every arm is compared with: those of `references` that there are."""
    return [name for name in spec.references if name in UNTRAINED or name in spec.arms]
