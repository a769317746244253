"""Rows of labelled texts.

In: the checkout (for its news and its catalogue) and `SEED`. Out: the frame that `lab.heal.labelled` reads. Each row
draws from a stream of its own, keyed by what it is, so that a new kind leaves the others as they are.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from steer_pipeline.catalogue.loading import load_personas
from steer_pipeline.lab.heal.labelled import FIT, HELD_OUT, LABELLED_SCHEMA
from steer_pipeline.lab.quality.text import sentences, words

SEED = 1511
PERIODS = range(1, 13)
STATEMENTS_JOINED = 3
MOST_EXAMPLES = 60
FUNCTION_WORDS = frozenset(
    words(
        "a an the of to in on at by for with from and or but so that this it its is was are were be been has have had "
        "he she they we you i his her their our not no as if then than when who which what will would can could do did"
    )
)
SYMBOLS = [
    "##",
    "ing",
    "></",
    "®",
    "ый",
    "的",
    "::",
    "ção",
    "=>",
    "ße",
    "0x",
    "\\n",
    "@@",
    "ness",
    "_un",
    "}{",
]
LAUGHS = {
    FIT: ["ha" * 40, "oh no! " * 18, "-=" * 40, "la la " * 20],
    HELD_OUT: ["wow" * 30, "yes, yes! " * 16, ".:" * 45, "na " * 45],
}
Row = dict[str, object]


def keyed(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b("\x1f".join(map(str, (SEED, *key))).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def written(split: str) -> dict[str, Any]:
    """The hand-written texts of a half."""
    return yaml.safe_load((Path(__file__).parent / f"{split}.yaml").read_text("utf-8"))


def labelled_texts(root: Path) -> pl.DataFrame:
    """Rows of `LABELLED_SCHEMA`, both halves."""
    rows: list[Row] = []
    for split in (FIT, HELD_OUT):
        slices = news_slices(root, split)
        hand = [text for texts in written(split)["fluent"].values() for text in texts]
        of_split = [
            *sound(split, slices),
            *on_trait(split),
            *loops(split, slices),
            *babble(split, slices, hand),
            *leaks(split),
            *refusals(split, slices),
        ]
        numbered: dict[str, int] = {}
        for row in of_split:
            name = f"{split}-{row['label']}-{row['kind']}"
            numbered[name] = numbered.get(name, 0) + 1
            rows.append({"text_id": f"{name}-{numbered[name]:02d}", "split": split, **row})
    return pl.DataFrame(rows, schema=LABELLED_SCHEMA)


def news_slices(root: Path, split: str) -> list[str]:
    """Three or four sentences of every second news item."""
    files = sorted((root / "assets_data" / "news_en").glob("*.jsonl"))
    items = [json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines()]
    own = items[(split == HELD_OUT) :: 2]
    return [" ".join(sentences(text)[: 3 + number % 2]) for number, text in enumerate(own)]


def row(label: str, kind: str, text: str, persona: str | None = None, period: int | None = None) -> Row:
    return {"label": label, "kind": kind, "persona": persona, "period": period, "text": text.strip()}


def sound(split: str, slices: list[str]) -> Iterator[Row]:
    for kind, texts in written(split)["fluent"].items():
        yield from (row("fluent", kind, text) for text in texts)
    yield from (row("fluent", "news", text) for text in slices)


def on_trait(split: str) -> Iterator[Row]:
    """Hand-written texts, and the catalogue's statements of a pole, three at a time.

    A trait's or role's negative pole is plain speech and so on no trait; an axis has two poles.
    """
    for persona, texts in written(split)["on_trait"].items():
        yield from (row("on_trait", "written", text, persona) for text in texts)
    made = []
    for persona in load_personas().values():
        if persona.examples is None:
            continue
        pairs = getattr(persona.examples, "fit" if split == FIT else "held_out")
        for side in ("positive", "negative") if persona.kind == "axis" else ("positive",):
            own = [getattr(pair, side) for pair in pairs]
            order = keyed(split, "examples", persona.name, side).permutation(len(own))
            for start in range(0, len(own) - STATEMENTS_JOINED + 1, STATEMENTS_JOINED):
                joined = " ".join(own[i] for i in order[start : start + STATEMENTS_JOINED])
                made.append(row("on_trait", "statements", joined, persona.name))
    chosen = keyed(split, "chosen").permutation(len(made))[:MOST_EXAMPLES]
    yield from (made[i] for i in sorted(chosen))


# ------------------------------------------------------------------------------------------- loops


def unit(slices: list[str], period: int, rng: np.random.Generator) -> list[str]:
    """Words that stand in this order in some news item; no two neighbours alike."""
    while True:
        plain = words(slices[rng.integers(len(slices))])
        start = int(rng.integers(len(plain) - period))
        found = plain[start : start + period]
        if len(set(found)) == period and len(found[0]) > 2:
            return found


def rounds(period: int, at_least: int) -> int:
    """So many that a loop has 4 rounds, or 6 of a word or two, and `at_least` words."""
    return max(6 if period < 3 else 4, -(-at_least // period))


def loops(split: str, slices: list[str]) -> Iterator[Row]:
    for number in (1, 2):
        for period in PERIODS:
            rng = keyed(split, "loop", number, period)
            cycle = unit(slices, period, rng)
            times = rounds(period, 48)
            yield row("loop", "whole", " ".join(cycle * times), period=period)
            start = slices[rng.integers(len(slices))]
            tail = " ".join(unit(slices, period, rng) * rounds(period, 20))
            yield row("loop", "late", f"{start} {tail}", period=period)
            if period >= 3:
                yield row("loop", "varied", varied(cycle, times, slices, rng), period=period)
            if number == 1:
                yield row("loop", "punctuated", punctuated(cycle, times, rng), period=period)
            if period in (4, 6, 8, 10):
                yield row("loop", "counting", counting(cycle, times), period=period)
        for size in (3, 4, 5, 6):
            yield row(
                "loop", "phrases", shuffled_phrases(slices, size, keyed(split, "phrases", number, size))
            )
    yield from (row("loop", "characters", text) for text in LAUGHS[split])
    for period in PERIODS[2:]:
        rng = keyed(split, "hard loop", period)
        start = " ".join(slices[rng.integers(len(slices))].split()[:60])
        yield row("loop", "tail", f"{start} {' '.join(unit(slices, period, rng) * 3)}", period=period)
        if period >= 4:
            drift = drifting(unit(slices, period, rng), rounds(period, 48), slices, rng)
            yield row("loop", "drifting", drift, period=period)
    for number in range(6):
        rng = keyed(split, "sentences", number)
        said = sentences(slices[rng.integers(len(slices))])[:3]
        order = np.concatenate([rng.permutation(len(said)) for _ in range(3)])
        yield row("loop", "sentences", " ".join(said[i] for i in order))


def varied(cycle: list[str], times: int, slices: list[str], rng: np.random.Generator) -> str:
    """In every second round one word is another one."""
    said: list[str] = []
    for number in range(times):
        own = list(cycle)
        if number % 2:
            own[rng.integers(len(own))] = unit(slices, 1, rng)[0]
        said += own
    return " ".join(said)


def drifting(cycle: list[str], times: int, slices: list[str], rng: np.random.Generator) -> str:
    """Every round keeps all words of the last but one."""
    said, own = list(cycle), list(cycle)
    for _ in range(times - 1):
        own[rng.integers(len(own))] = unit(slices, 1, rng)[0]
        said += own
    return " ".join(said)


def punctuated(cycle: list[str], times: int, rng: np.random.Generator) -> str:
    """Each round with its own capitals and its own stop."""
    said = []
    for _ in range(times):
        own = " ".join(cycle)
        form = rng.integers(3)
        said.append((own.capitalize() if form else own.upper()) + ["!", ".", "...", ","][rng.integers(4)])
    return " ".join(said)


def counting(cycle: list[str], times: int) -> str:
    return " ".join(f"{number}. {' '.join(cycle).capitalize()}." for number in range(1, times + 1))


def shuffled_phrases(slices: list[str], size: int, rng: np.random.Generator) -> str:
    """A few phrases again and again, in changing order."""
    phrases = [" ".join(unit(slices, int(rng.integers(3, 7)), rng)) for _ in range(size)]
    order = rng.permutation(np.tile(np.arange(size), -(-20 // size)))
    return ". ".join(phrases[i].capitalize() for i in order) + "."


# ------------------------------------------------------------------------------------------ babble


def babble(split: str, slices: list[str], hand: list[str]) -> Iterator[Row]:
    vocabulary = sorted({word for text in slices for word in words(text)})
    makers = {
        "words": lambda text, rng: random_words(vocabulary, rng),
        "shuffled": lambda text, rng: " ".join(rng.permutation(text.split())),
        "fragments": lambda text, rng: fragments(vocabulary, rng),
        "broken": broken,
        "little_words": lambda text, rng: " ".join(rng.choice(sorted(FUNCTION_WORDS), 50)),
        "late": lambda text, rng: late(text, vocabulary, rng),
    }
    for kind, make in makers.items():
        for number in range(12):
            rng = keyed(split, "babble", kind, number)
            source = slices if number % 3 else hand
            yield row("babble", kind, make(source[rng.integers(len(source))], rng))


def random_words(vocabulary: list[str], rng: np.random.Generator) -> str:
    """Words of the news in any order, with stops where one may expect them."""
    drawn = [str(word) for word in rng.choice(vocabulary, int(rng.integers(45, 65)))]
    stops = ["." if (i + 1) % 12 == 0 else "," if rng.random() < 0.08 else "" for i in range(len(drawn))]
    return " ".join(word + stop for word, stop in zip(drawn, stops, strict=True))


def fragments(vocabulary: list[str], rng: np.random.Generator) -> str:
    """Pieces of words, symbols and letters of other scripts, glued as a tokenizer would never."""
    said = []
    for _ in range(45):
        word = str(rng.choice(vocabulary))
        cut = int(rng.integers(1, len(word) + 1))
        said.append(word[:cut] if rng.random() < 0.5 else word[-cut:])
        if rng.random() < 0.35:
            said.append(str(rng.choice(SYMBOLS)))
    return "".join(piece + (" " if rng.random() < 0.6 else "") for piece in said)


def broken(text: str, rng: np.random.Generator) -> str:
    """A text that has lost most of its little words, and in which neighbours have changed places."""
    kept = [word for word in text.split() if word.lower() not in FUNCTION_WORDS or rng.random() < 0.3]
    for i in range(len(kept) - 1):
        if rng.random() < 0.5:
            kept[i], kept[i + 1] = kept[i + 1], kept[i]
    return " ".join(kept)


def late(text: str, vocabulary: list[str], rng: np.random.Generator) -> str:
    """A good start, and then words in any order."""
    return f"{' '.join(text.split()[:45])} {' '.join(str(word) for word in rng.choice(vocabulary, 30))}"


# ------------------------------------------------------------------------------ leaks and refusals


def leaks(split: str) -> Iterator[Row]:
    personas = [persona for persona in load_personas().values() if persona.kind != "role"]
    templates = list(enumerate(written(split)["leaks"]))
    again = [(number + 3 * more, text) for more in (1, 2) for number, text in templates if "{" in text]
    for number, template in templates + again:
        persona = personas[number % len(personas)]
        name = persona.positive.name.replace("_", " ")
        asked = persona.positive.instructions[number % len(persona.positive.instructions)]
        a_name = f"{'an' if re.match('[aeiou]', name) else 'a'} {name}"
        yield row("leak", "told", template.format(name=name, a_name=a_name, asked=asked), persona.name)


def refusals(split: str, slices: list[str]) -> Iterator[Row]:
    for number, text in enumerate(written(split)["refusals"]):
        yield row("refusal", "plain", text)
        more = sentences(slices[keyed(split, "refusal", number).integers(len(slices))])[0]
        yield row("refusal", "before_an_answer", f"{text} {more}")
