"""Our own word game, small enough to be learned in seconds, whose rows are known to help or not.

In: sizes and a seed. Out: rows of `rows.SFT_SCHEMA`. A describer names three clues; the word that is to be guessed is
the last of them. That rule is what informative rows teach and what held-out games ask for, with words of which none is
in the pool: learning words by heart does not help. The pool also holds rows of other games, rows whose guess follows
the wrong rule, and rows whose guess is a word of another game although they are logged as won.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import CardsSpec
from steer_pipeline.lab.attribution.rows import (
    FAILURE,
    HELD_OUT,
    INFORMATIVE,
    MISLABELLED,
    MISLED,
    POOL,
    SUCCESS,
    USELESS,
    AttributionError,
    sft_frame,
)

# Plain nouns, most of them one token for a small vocabulary: what is learned is the rule, not to spell.
_WORDS = """
    account airfield analyst answer approval assistant author authority baby beam beans bicycle bill boat book
    branches bread bridge budget cables campaign canal cargo case cause centre challenge champions charity
    citizens claim clerk clock coach coast colours computer concert cost council crossing customers cycle dance
    debts deck demand depot desk dinner dream drill drivers editor evening evidence factory family farm farmers
    fence ferry festival film fish food forms friends front game garden gardener gates gift grain grant ground
    growers hall hands harbour harvest health hearts heaters helmets hill hours house households housing idea
    inspectors interview investors invoice lamps laps laugh launch lawyer leak letters library light lightning
    machines market mates matters mayor meal members milk mill million mistake month morning neighbour news
    night noise north notes numbers objections officials opinion order outlaw pages painters paper paperwork
    parade parcel passengers path patients people performers permit petition pies pilots pipes plan plant
    planters plot poets pool post power price procedure profits proof pump pupils question race radio rain
    report reporter residents respect review ring risk river road roof room rose rule rulebook safety sails sale
    school science scheme seal search seedlings service share shelter shift ship shipment shops shortage sign
    signal sketch skippers smell smile software soil song sorrow souls sources spirits spring squad square
    stadium staff star station statute step stew stewards storm story street strike strings suitcase summer
    suppliers survey tale talk team tenants term terminal test ticket time timetable tour tower town trace
    traders traffic train trainees tram truck trust tunnel village visitors voice vote voters wall warehouse
    watchers water weather weeds week whistle wind wing winter workers world writer yard year
"""
WORDS = tuple(_WORDS.split())
GAME, ROLE = "cards", "guesser"
RULE = "Guess the word. The clues are {}, {} and {}."
OTHER = (
    "Which word opens the list? The list is {}, {} and {}.",
    "Name a word that is not among {}, {} and {}.",
    "Say something about {}, {} and {}.",
)
EXPERIMENTS = ("high", "medium", "low")


def card_rows(spec: CardsSpec) -> pl.DataFrame:
    """The pool with its planted rows, and held-out games on words that no row of the pool holds.

    Raises:
        AttributionError: more words are wanted than there are.
    """
    words = list(WORDS)
    rng = random.Random(f"{spec.seed}/words")
    rng.shuffle(words)
    if spec.held_out_words > len(words) - 60:
        raise AttributionError(
            f"held_out_words {spec.held_out_words}: {len(words)} words are known and the pool needs 60; ask for fewer"
        )
    held_out, pool = words[: spec.held_out_words], words[spec.held_out_words :]
    rows = [*_pool(spec, pool), *_held_out(spec, held_out)]
    return sft_frame(rows, "cards")


def _pool(spec: CardsSpec, words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of each kind, in an order that says nothing."""
    kinds = [
        *[INFORMATIVE] * spec.informative,
        *[USELESS] * spec.useless,
        *[MISLED] * spec.misled,
        *[MISLABELLED] * spec.mislabelled,
    ]
    rng = random.Random(f"{spec.seed}/pool")
    rng.shuffle(kinds)
    made = [_row(rng, words, kind, f"train-{number:04d}", POOL) for number, kind in enumerate(kinds)]
    yield from made
    twins = [row for row in made if row["truth"] in (INFORMATIVE, MISLED)]
    for number, twin in enumerate(rng.sample(twins, min(spec.duplicates, len(twins)))):
        yield twin | {"row_id": f"train-twin-{number:04d}", "duplicate_of": twin["row_id"]}


def _held_out(spec: CardsSpec, words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Games on every held-out word; in some of them the guesser of the log was wrong."""
    rng = random.Random(f"{spec.seed}/held-out")
    for word in words:
        for number in range(spec.games_per_word):
            lost = rng.random() < spec.lost_share
            kind, name = MISLED if lost else INFORMATIVE, f"validation-{word}-{number}"
            yield _row(rng, words, kind, name, HELD_OUT, target=word)


def _row(
    rng: random.Random, words: Sequence[str], kind: str, name: str, split: str, target: str | None = None
) -> dict[str, Any]:
    drawn = rng.sample([word for word in words if word != target], 3)
    first, second, last = drawn[0], drawn[1], target or drawn[2]
    guess = {MISLED: first, MISLABELLED: rng.choice([word for word in words if word not in drawn])}.get(
        kind, last
    )
    experiment = rng.choice(EXPERIMENTS)
    row = {
        "row_id": name,
        "prompt": RULE.format(first, second, last),
        "completion": f"GUESS: {guess}",
        "source_split": split,
        "game": GAME,
        "game_role": ROLE,
        "experiment": experiment,
        "task_id": last,
        "group_id": f"{split}::{last}",
        "outcome": FAILURE if kind == MISLED else SUCCESS,
        "target_word": last,
        "logged_word": guess,
        "truth": kind,
    }
    return row | _other(rng, words, drawn) if kind == USELESS else row


def _other(rng: random.Random, words: Sequence[str], drawn: Sequence[str]) -> dict[str, Any]:
    """A row of another game, about as long: its answer has nothing to do with the rule."""
    prompt = rng.choice(OTHER).format(*drawn)
    word = drawn[0] if prompt.startswith("Which") else rng.choice([one for one in words if one not in drawn])
    return {"prompt": prompt, "completion": f"GUESS: {word}", "target_word": word, "logged_word": word}
