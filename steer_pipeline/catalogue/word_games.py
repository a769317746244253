"""The profile's `word_games`: one player describes a word, another guesses it. Every field is documented here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from steer_pipeline.catalogue.basis import Strict


class PlayerSpec(Strict):
    """Who describes or guesses."""

    kind: Literal["local", "endpoint", "hints"] = Field(
        default="local",
        description="`local`: the profile's model; `endpoint`: a model behind an OpenAI-compatible endpoint; `hints`, "
        "for describers: clues put together of what goes with a word, by no model.",
    )
    model: str = Field(default="", description="`endpoint`: its name there.")
    url: str | None = Field(
        default=None, description="`endpoint`: base address, without a key in it; default: STEER_GAMES_URL."
    )
    key_variable: str = Field(
        default="STEER_GAMES_KEY",
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="`endpoint`: environment variable that holds its key.",
    )
    temperature: float = Field(default=0.2, ge=0, description="0 is greedy.")
    max_tokens: int = Field(default=40, ge=1, description="Of one clue or guess.")
    requests_per_second: float = Field(default=10.0, gt=0)
    timeout_s: float = Field(default=90.0, gt=0, description="Of one attempt.")
    max_retries: int = Field(default=5, ge=0)
    usd_per_million_prompt: float | None = Field(
        default=None,
        ge=0,
        description="Price of its input where the endpoint does not tell what replies cost.",
    )
    usd_per_million_completion: float | None = Field(default=None, ge=0, description="Price of its output.")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.kind == "endpoint") != bool(self.model):
            raise ValueError(f"kind {self.kind}: give `model` for an endpoint, and for nothing else")
        return self


class WordGamesSpec(Strict):
    """Games in which a word is described without being said: rows that teach to guess."""

    describer: PlayerSpec = PlayerSpec(kind="hints")
    guessers: list[PlayerSpec] = Field(
        default=[PlayerSpec()],
        min_length=1,
        description="Each plays `n_games` games, on words of its own draw.",
    )
    n_games: int = Field(default=40, ge=1, description="Games a guesser.")
    max_turns: int = Field(default=3, ge=1, description="Clues, each with a guess, before a game is lost.")
    describer_repairs: int = Field(
        default=2,
        ge=0,
        description="How often a clue that breaks a rule may be replaced before the game is aborted.",
    )
    guesser_repairs: int = Field(
        default=1, ge=0, description="How often a guess that is none may be replaced, at temperature 0."
    )
    prefix_rule: bool = Field(
        default=False,
        description="Also forbid words that begin with the stem of a forbidden word: stricter than the game's "
        "own rule, which compares stems, and with false alarms (organ, organic).",
    )
    placeholders: list[str] = Field(
        default=["guess", "word", "unknown", "none"],
        description="Guesses that are no guess, unless they are the word to be guessed.",
    )
    words: dict[str, list[str]] | None = Field(
        default=None,
        description="Target -> what goes with it, strongest first; null: the list that comes with the package.",
    )
    instances: str | None = Field(
        default=None,
        description="Instead of `words`: instances.json of clembench's taboo, by a path from the project's root.",
    )
    n_related: int = Field(
        default=3, ge=0, description="Of what goes with a word, how much nobody may say; the rest are hints."
    )
    n_hints: int = Field(default=3, ge=1, description="`hints`: words of one clue.")
    system: str | None = Field(default=None, description="System turn of guessers.")
    describer_prompt: str = Field(
        default="Describe the word {target} so that somebody else can guess it. Say one short sentence. You may not "
        "say {target}, nor {related}, nor other forms of these words. This is clue {turn} of {turns}.{history} Answer "
        "with CLUE: and the sentence, nothing else.",
        description="Asked of the describer; holds {target}, {related}, {turn}, {turns} and {history}.",
    )
    guesser_prompt: str = Field(
        default="I think of a word and describe it in a sentence. Guess the word. Answer with GUESS: and one word, "
        "nothing else. Where you are wrong I describe it once more.\n\n{clue}",
        description="The guesser's first turn; holds {clue}.",
    )
    clue_line: str = Field(default="CLUE: {clue}", description="A clue as guessers see it; holds {clue}.")
    hint_clue: str = Field(
        default="It goes with {hints}.",
        description="`hints`: a clue; holds {hints}, a list such as 'a, b and c'.",
    )
    games_at_once: int = Field(default=64, ge=1, description="Games that are under way together.")
    seed: int = Field(
        default=80,
        description="Of words, of what is forbidden, of who plays when, and of all that players draw.",
    )

    @model_validator(mode="after")
    def _plays(self) -> Self:
        if any(guesser.kind == "hints" for guesser in self.guessers):
            raise ValueError("guessers: `hints` describes and cannot guess; give `local` or `endpoint`")
        if self.words is not None and self.instances is not None:
            raise ValueError("give words or instances, not both")
        if self.describer.kind == "hints" and self.instances is not None:
            raise ValueError("instances hold no hints; give a describer of kind local or endpoint")
        for field, marks in _MARKS.items():
            lacking = [mark for mark in marks if f"{{{mark}}}" not in getattr(self, field)]
            if lacking:
                raise ValueError(f"{field} lacks {{{lacking[0]}}}")
        return self


_MARKS = {
    "describer_prompt": ("target", "related"),
    "guesser_prompt": ("clue",),
    "clue_line": ("clue",),
    "hint_clue": ("hints",),
}
