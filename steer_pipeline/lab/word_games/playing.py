"""One game: clues and guesses by turns, under the rules.

In: a match and two players. Out: the game with all that was said. A clue that breaks a rule goes back to the describer
with what is wrong; a guess that is none goes back to the guesser, at temperature 0. Where no repair helps, or a player
does not answer, the game is aborted: it was neither won nor lost, and nobody learns from it.
"""

import re
from dataclasses import dataclass
from typing import Literal

from steer_pipeline.catalogue.word_games import PlayerSpec, WordGamesSpec
from steer_pipeline.lab.endpoints import Reply, Usage
from steer_pipeline.lab.word_games.players import Message, Player, Request, listed
from steer_pipeline.lab.word_games.rules import has_words, read_clue, read_guess, violations
from steer_pipeline.lab.word_games.words import Match

Outcome = Literal["success", "failure", "aborted"]
MIN_REPAIR_TEMPERATURE = 0.2  # of describers: at 0 the same clue would come again


@dataclass(frozen=True)
class Turn:
    """A clue that was accepted and the guess that it got. `turn` counts from 1."""

    turn: int
    clue: str
    guess: str
    guess_word: str


@dataclass(frozen=True)
class Rejected:
    """What a player said that did not count, and why."""

    turn: int
    role: str
    text: str
    why: str


@dataclass(frozen=True)
class Game:
    """A game that was played.

    Attributes:
        error: why it was aborted; "" else.
        describer_used, guesser_used: of all replies, those that did not count included.
        last_clue: of the turn in which it was aborted, where one was accepted.
    """

    match: Match
    describer: str
    guesser: str
    outcome: Outcome
    error: str
    turns: tuple[Turn, ...]
    rejected: tuple[Rejected, ...]
    last_clue: str
    describer_used: Usage
    guesser_used: Usage

    @property
    def aborted(self) -> bool:
        return self.outcome == "aborted"


class _Abort(Exception):
    """The message is the reason."""


class _Table:
    """A game under way."""

    def __init__(self, match: Match, spec: WordGamesSpec, describer: Player, guesser: Player) -> None:
        self.match, self.spec = match, spec
        self.players = {"describer": describer, "guesser": guesser}
        self.specs = {"describer": spec.describer, "guesser": spec.guessers[match.guesser]}
        self.used = {"describer": Usage(), "guesser": Usage()}
        self.turns: list[Turn] = []
        self.rejected: list[Rejected] = []
        self.clue = ""

    async def play(self) -> Game:
        word, outcome, error = self.match.word, "failure", ""
        try:
            for number in range(1, self.spec.max_turns + 1):
                self.clue = await self.clue_of(number)
                guess = await self.guess_of(number)
                self.turns.append(Turn(number, self.clue, guess_line(guess), guess))
                self.clue = ""
                if guess == word.target:
                    outcome = "success"
                    break
        except _Abort as reason:
            outcome, error = "aborted", str(reason)
        return Game(
            self.match,
            self.players["describer"].name,
            self.players["guesser"].name,
            outcome,  # type: ignore[arg-type]
            error,
            tuple(self.turns),
            tuple(self.rejected),
            self.clue,
            self.used["describer"],
            self.used["guesser"],
        )

    async def clue_of(self, number: int) -> str:
        """A clue that keeps the rules."""
        word, own = self.match.word, self.specs["describer"]
        messages = [user(self._describer_prompt(number))]
        temperature = own.temperature
        for attempt in range(self.spec.describer_repairs + 1):
            reply = await self._ask("describer", number, attempt, messages, temperature, own)
            clue = read_clue(reply)
            broken = violations(clue, word.target, word.related, prefix_rule=self.spec.prefix_rule)
            if has_words(clue) and not broken:
                return clue
            why = f"rule violation: {', '.join(map(str, broken))}" if broken else "empty clue"
            self.rejected.append(Rejected(number, "describer", reply, why))
            said = ", ".join(repr(one.said) for one in broken)
            told = f"That clue says {said}, which is forbidden." if broken else "That is no clue."
            again = f"{told} Describe the word anew, without {self._forbidden()}. Answer with CLUE: and the sentence."
            messages = [*messages, assistant(reply), user(again)]
            temperature = max(MIN_REPAIR_TEMPERATURE, own.temperature)
        raise _Abort(f"describer: {why}")

    async def guess_of(self, number: int) -> str:
        """A guess that is one."""
        own = self.specs["guesser"]
        messages = guesser_messages(self.spec, [*((t.clue, t.guess) for t in self.turns), (self.clue, None)])
        temperature = own.temperature
        for attempt in range(self.spec.guesser_repairs + 1):
            reply = await self._ask("guesser", number, attempt, messages, temperature, own)
            guess = read_guess(reply)
            if guess and (guess not in self.spec.placeholders or guess == self.match.word.target):
                return guess
            why = f"placeholder: {guess}" if guess else "empty guess"
            self.rejected.append(Rejected(number, "guesser", reply, why))
            messages = [
                *messages,
                assistant(reply),
                user("That names no word. Answer with GUESS: and one word of your own."),
            ]
            temperature = 0.0
        raise _Abort(f"guesser: {why}")

    async def _ask(
        self,
        role: str,
        number: int,
        attempt: int,
        messages: list[Message],
        temperature: float,
        own: PlayerSpec,
    ) -> str:
        key = f"{self.match.game_id}/{number}/{role}/{attempt}"
        request = Request(
            key, tuple(messages), self.match.word, number, temperature, own.max_tokens, self.spec.seed
        )
        reply: Reply = await self.players[role].ask(request)
        self.used[role] += reply.usage
        if reply.text is None:
            raise _Abort(f"{role}: no answer ({reply.failure})")
        return reply.text

    def _describer_prompt(self, number: int) -> str:
        word, turns = self.match.word, self.turns
        told = "; ".join(f"to {turn.clue!r} the answer was {turn.guess_word}" for turn in turns)
        fields = {
            "target": word.target,
            "related": " or ".join(word.related) or word.target,
            "turn": str(number),
            "turns": str(self.spec.max_turns),
            "history": f" So far, {told}, which is wrong: say something else." if turns else "",
        }
        return filled(self.spec.describer_prompt, fields)

    def _forbidden(self) -> str:
        return listed([self.match.word.target, *self.match.word.related])


async def play(match: Match, spec: WordGamesSpec, describer: Player, guesser: Player) -> Game:
    """Plays one game to its end."""
    return await _Table(match, spec, describer, guesser).play()


def guesser_messages(spec: WordGamesSpec, said: list[tuple[str, str | None]]) -> list[Message]:
    """What a guesser has before it: the instruction with the first clue in one turn, as in clembench, then guesses
    and clues. The last pair's guess is None: it is asked for.
    """
    messages = [{"role": "system", "content": spec.system}] if spec.system else []
    for place, (clue, guess) in enumerate(said):
        line = filled(spec.clue_line, {"clue": clue})
        messages.append(user(line if place else filled(spec.guesser_prompt, {"clue": line})))
        if guess is not None:
            messages.append(assistant(guess))
    return messages


def guess_line(word: str) -> str:
    """A guess as it is said and learned."""
    return f"GUESS: {word}"


def filled(template: str, fields: dict[str, str]) -> str:
    """The template with its fields; braces in a text stay as they are."""
    return re.sub(
        "|".join(rf"\{{{name}\}}" for name in fields), lambda found: fields[found[0][1:-1]], template
    )


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
