"""The contexts over which a persona is contrasted: user turns of many kinds, all of our own making.

In: a number and a seed, or corpus rows. Out: `Context` values, balanced over categories, unique, and
split into train and held_out by context, so that both sides of a contrast stay on one side of the split.
Knows nothing about personas or models.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import RewriteSpec

TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Context:
    """One user turn. `context_id` is a hash of category and text, stable across seeds and sizes."""

    context_id: str
    category: str
    user: str
    split: str = TRAIN


def _context(category: str, user: str) -> Context:
    return Context(hashlib.sha256(f"{category}\n{user}".encode()).hexdigest()[:16], category, user)


# Sentence frames by category. A frame's slots are filled from SLOTS; a slot named twice in one frame, as in
# {place} and {place2}, takes different values.
FRAMES: Mapping[str, tuple[str, ...]] = {
    "email": (
        "Write a short email to {person} asking to move {meeting} from {day} to {day2}.",
        "Reply to {person}, who wants to know when {document} will be ready. It needs another week.",
        "Draft a message to {person} that thanks them for {favour} and proposes lunch on {day}.",
        "Write to {person} and say that {document} has a mistake on page {number}.",
        "Answer this email: 'Hi, could you look over {document} before {day}? Best, {person}'",
        "Write a note to all staff: {meeting} now starts at {hour} on {day}.",
        "{person} has not answered for two weeks about {document}. Write a polite reminder.",
    ),
    "fact_question": (
        "Why does {phenomenon}?",
        "What is the difference between {thing_a} and {thing_b}?",
        "How was {invention} first used, and by whom?",
        "What should a visitor know about the climate of {place} in {month}?",
        "Explain to a child why {phenomenon}.",
        "Which came first, {invention} or {invention2}?",
        "In one paragraph: what do people in {place} mostly live from?",
    ),
    "reasoning": (
        "{name} buys {number} {goods} at {price} dollars each and pays with a {note} dollar bill. "
        "How much change is left?",
        "A train leaves {place} at {hour} and arrives {number} hours later. {name} is at the station "
        "half an hour early. How long does {name} wait and travel in all?",
        "{name} is taller than {name2}, and {name2} is taller than the neighbour. Who is the shortest?",
        "If {number} workers pack {goods} in {price} hours, how long do twice as many need? Show the steps.",
        "{name} has {number} {goods} and gives a third of them to {name2}. How many remain, roughly?",
        "Every shop on the street that sells {goods} closes on {day}. This shop is open on {day}. "
        "What follows?",
    ),
    "dialogue": (
        "Continue the conversation.\n{name}: Have you heard about {happening}?\n{name2}: No, what happened?\n"
        "{name}:",
        "{name} and {name2} meet {spot}. {name} is late. Write what they say to each other.",
        "Write six lines of talk between a {job} and a {job2} who wait {spot}.",
        "{name}: I think we should sell {belonging}.\n{name2}: Why now?\n{name}:",
        "Play a {job}. I come in on {day} and ask about {happening}. What do you answer?",
        "Two old friends, {name} and {name2}, argue about {happening}. Write the scene.",
    ),
    "story": (
        "Tell a short story that begins: 'On {day}, {name} found {belonging} {spot}.'",
        "Write the opening paragraph of a novel about a {job} in {place}.",
        "Write a bedtime story about {animal} that wants to see {place}.",
        "Continue: The last {job} of {place} closed the door and",
        "A {job} and a {job2} are stuck {spot} for one night. What happens? Five sentences.",
        "Write a fable in which {animal} and {animal2} learn something about {theme}.",
    ),
    "encyclopedic": (
        "Write the first paragraph of an encyclopedia entry about {thing_a}.",
        "Summarise the history of {invention} in {number} sentences.",
        "Write an entry for a travel encyclopedia: {place} in {month}.",
        "Describe the life cycle of {animal} for a reference book, and that of {animal2} beside it.",
        "Define {theme} as a dictionary of ideas would, and give an example.",
        "Write an entry on the work of a {job} in {place} in the nineteenth century.",
    ),
    "code": (
        "Write a {language} function that {task}.",
        "Explain what could be wrong when a {language} program that {task} returns nothing.",
        "Review this idea: a {language} script that {task}, run every {day}. What would you change?",
        "Write a unit test in {language} for a function that {task}.",
        "Which data structure would you use in {language} for code that {task}, and why?",
        "Write the documentation comment of a {language} function that {task}.",
    ),
    "technology": (
        "My {device} {fault}. What should I check first?",
        "Should a small firm of {number} people buy a {device} or rent one?",
        "Compare a cheap and an expensive {device} for a {job}.",
        "Explain in plain words how a {device} works.",
        "What will change for a {job} when every {device} is connected?",
        "Write a short review of a {device} that {fault} after two months.",
    ),
    "advice": (
        "My neighbour {habit}. How do I bring it up?",
        "I start as a {job} on {day}. What should I prepare?",
        "How can I get better at {skill} in {number} weeks?",
        "I have saved {price}00 dollars. Should I spend it on {belonging} or on learning {skill}?",
        "My friend {name} {habit}. Should I say something?",
        "I am moving to {place} in {month}. Give me five tips.",
        "What is a good present for a {job} who likes {skill}?",
    ),
    "ethics": (
        "Is it fair that a {job} {dilemma}?",
        "{name} finds {belonging} {spot} and keeps it. Was that wrong?",
        "May a {job} stay silent about {happening} to protect a friend?",
        "A {job} {dilemma}. A {job2} finds out. What should happen next?",
        "Give one argument for and one against: a town may forbid {skill} on {day}.",
        "{name} promised {name2} help with {document}, then got a better offer. What now?",
    ),
    "news": (
        "Write a headline and two sentences about {happening} in {place}.",
        "Summarise for a morning bulletin: {happening} in {place} on {day}; {number} people took part.",
        "A local paper reports {happening} near {place}. Write the lead.",
        "Write a neutral report: the council of {place} votes on {day} about {happening}.",
        "Interview a {job} from {place} about {happening}. Two questions and answers.",
        "Correct this headline so that it says what is known: 'All changes in {place} after {happening}!'",
    ),
}

SLOTS: Mapping[str, tuple[str, ...]] = {
    "person": (
        "my landlord", "the head of accounts", "Ms Okafor", "Professor Lindqvist", "our new intern",
        "the caterer", "Mr Delgado", "the library", "my sister's teacher", "Dr Hanley",
    ),
    "meeting": (
        "the budget meeting", "our weekly call", "the choir rehearsal", "the site visit", "the job interview",
        "the parents' evening", "the product demo",
    ),
    "document": (
        "the annual report", "the floor plan", "the lease", "the grant proposal", "the translation",
        "the seating chart", "the safety checklist", "the invoice",
    ),
    "favour": (
        "watering the plants", "the loan of the van", "proofreading the speech", "covering the late shift",
        "the introduction", "fixing the projector",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "March", "May", "July", "September", "November"),
    "hour": ("7:45", "9 o'clock", "11:30", "noon", "14:10", "half past four", "18:20"),
    "number": ("3", "4", "6", "8", "9", "12", "15", "18", "24"),
    "price": ("2", "3", "4", "5", "7", "11"),
    "note": ("100", "200", "500"),
    "name": (
        "Amara", "Bjorn", "Celia", "Dmitri", "Esther", "Farid", "Greta", "Hiro", "Ines", "Jonas",
        "Kavya", "Leo",
    ),
    "goods": ("candles", "notebooks", "apples", "roof tiles", "tickets", "lamps", "seedlings", "bricks"),
    "place": (
        "Lisbon", "the Faroe Islands", "Nairobi", "a mountain village", "Osaka", "the port of Valdivia",
        "Winnipeg", "a border town", "Tbilisi", "the old mill district", "Cork", "Hanoi",
    ),
    "phenomenon": (
        "bread rise", "the moon keep one face to us", "metal feel colder than wood", "a river bend",
        "salt melt ice", "an echo fade", "the sky turn red at dusk", "honey never spoil", "a cat purr",
        "iron rust",
    ),
    "thing_a": ("a canal", "a comet", "a bond", "a glacier", "a virus", "a guild", "a fresco", "a tariff"),
    "thing_b": (
        "a river", "an asteroid", "a share", "an ice sheet", "a bacterium", "a union", "a mosaic", "a fee",
    ),
    "invention": (
        "the compass", "the zip fastener", "the telegraph", "concrete", "the sewing machine", "the barometer",
        "paper money", "the bicycle", "the lighthouse",
    ),
    "happening": (
        "a bridge closure", "the new bus lanes", "a record harvest", "the theatre's reopening", "a power cut",
        "the sale of the shipyard", "a missing painting", "the school merger", "a flooded underpass",
        "the night market",
    ),
    "spot": (
        "in a waiting room", "on the last ferry", "under a market awning", "in a stairwell", "at a bus stop",
        "behind the bakery", "in a stuck lift", "on a park bench",
    ),
    "job": (
        "beekeeper", "night nurse", "tram driver", "tax adviser", "lighthouse keeper", "pastry cook",
        "surveyor", "locksmith", "piano tuner", "harbour pilot", "librarian", "crane operator",
    ),
    "belonging": (
        "the old boat", "a silver watch", "the family piano", "an unposted letter", "a box of tools",
        "the allotment", "a folding bicycle", "a wallet",
    ),
    "animal": ("a hedgehog", "a heron", "a snail", "an otter", "a moth", "a donkey", "a salmon", "a crow"),
    "theme": ("patience", "luck", "thrift", "courage", "forgetting", "fairness", "curiosity"),
    "language": ("Python", "Rust", "SQL", "JavaScript", "Go", "Kotlin"),
    "task": (
        "counts the words of a file", "merges two sorted lists", "finds duplicate invoices",
        "turns dates into week numbers", "checks whether brackets match", "rounds prices to five cents",
        "groups orders by customer", "reads temperatures from a sensor",
    ),
    "device": (
        "printer", "wireless router", "heat pump", "laptop", "hearing aid", "electric van", "weather station",
        "door lock with a keypad",
    ),
    "fault": ("restarts by itself", "gets hot", "makes a clicking noise", "loses its signal", "stays dark"),
    "habit": (
        "plays the trumpet at six in the morning", "parks across two spaces",
        "borrows tools and forgets them",
        "feeds the pigeons", "talks through every film", "leaves the gate open", "cancels at the last minute",
    ),
    "skill": ("chess", "swimming", "public speaking", "carpentry", "cooking", "drawing", "the accordion"),
    "dilemma": (
        "takes home what would be thrown away", "charges friends less than strangers",
        "works two jobs and tells neither", "corrects a form after the deadline",
        "refuses a customer who was rude", "reads a letter that came to the wrong address",
        "lets the last guest in without a ticket",
    ),
}  # fmt: skip


def general_contexts(n: int, seed: int) -> list[Context]:
    """`n` distinct user turns, balanced over the categories of `FRAMES` (counts differ by at most one).

    Deterministic in (n, seed); frames take turns within a category, so that each is used about equally.

    Raises:
        ValueError: fewer than one context a category, or more than a category's frames can yield.
    """
    categories = list(FRAMES)
    if n < len(categories):
        raise ValueError(f"n_contexts is {n}; {len(categories)} categories need at least one context each")
    quotas = [n // len(categories) + (i < n % len(categories)) for i in range(len(categories))]
    rng = np.random.default_rng(seed)
    streams = {}
    for category, quota in zip(categories, quotas, strict=True):
        turns = list(itertools.islice(_fill_in_turn(FRAMES[category], rng), quota))
        if len(turns) < quota:
            raise ValueError(
                f"category {category!r} yields {len(turns)} contexts, {quota} are needed; ask for fewer"
            )
        streams[category] = [_context(category, turn) for turn in turns]
    # Interleaved, so that any prefix is balanced too.
    interleaved = itertools.chain.from_iterable(itertools.zip_longest(*streams.values()))
    return [context for context in interleaved if context is not None]


def _fill_in_turn(frames: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Distinct filled frames, one of each frame in turn, until a frame's combinations are used up."""
    seen: set[str] = set()
    misses = 0
    for frame in itertools.cycle(frames):
        text = _fill(frame, rng)
        misses = misses + 1 if text in seen else 0
        if misses > 200 * len(frames):
            return
        if text not in seen:
            seen.add(text)
            yield text


def _fill(frame: str, rng: np.random.Generator) -> str:
    values = {}
    for slot, options in SLOTS.items():
        if "{" + slot in frame:
            first, second = rng.choice(len(options), size=2, replace=False)
            values[slot], values[f"{slot}2"] = options[first], options[second]
    text = frame.format(**values)
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)  # "a union", "a unit" stay


def news_contexts(rows: pl.DataFrame, rewrite: RewriteSpec) -> list[Context]:
    """One context a corpus row: the rewrite prompt that the variants will use, over that row's text.

    Args:
        rows: columns `row_id` and `text`; equal texts count once.
        rewrite: gives the prompt; its neutral system turn is not part of a context.
    """
    texts = rows.unique("text", keep="first", maintain_order=True)
    return [
        Context(row_id, "rewrite", rewrite.prompt.replace("{text}", text))
        for row_id, text in texts.select("row_id", "text").iter_rows()
    ]


def split_contexts(contexts: Sequence[Context], held_out_fraction: float, seed: int) -> list[Context]:
    """The same contexts in the same order, each assigned to train or held_out, stratified by category.

    At least two contexts land on either side.

    Raises:
        ValueError: fewer than four contexts, or one context given twice.
    """
    if len({context.context_id for context in contexts}) < len(contexts):
        raise ValueError("a context is given twice; the split would leak between train and held_out")
    if len(contexts) < 4:
        raise ValueError(f"{len(contexts)} contexts; a split needs at least 4")
    rng = np.random.default_rng(seed)
    by_category: dict[str, list[int]] = {}
    for index, context in enumerate(contexts):
        by_category.setdefault(context.category, []).append(index)
    # One shuffled list, category after category: a regular stride through it is a stratified sample.
    order = [int(i) for members in by_category.values() for i in rng.permutation(members)]
    n_held_out = min(max(2, round(held_out_fraction * len(contexts))), len(contexts) - 2)
    stride = (np.arange(n_held_out) + 0.5) * len(order) / n_held_out
    held_out = {order[int(position)] for position in stride}
    return [replace(c, split=HELD_OUT if i in held_out else TRAIN) for i, c in enumerate(contexts)]


def reserved_rows(
    rows: pl.DataFrame, n_dose: int, n_contrast: int, first_free: int, seed: int
) -> pl.DataFrame:
    """Corpus rows for the dose sweep and for news contexts: disjoint, and outside the rewritten rows.

    Args:
        rows: columns `row_id`, `source_index`, `text` and more.
        n_dose, n_contrast: how many rows are wanted for either purpose.
        first_free: rows before this position, in order of `source_index`, will be rewritten by the
            variants; they are used only as far as the corpus is too small to do without them.
        seed: keys the order in which rows are drawn; equal texts count once.

    Returns:
        The chosen rows with a column `purpose` ("dose" or "contrast"); dose rows are served first, and
        `overlaps_rewrites` says which rows lie before `first_free`.

    Raises:
        ValueError: the corpus has fewer distinct rows than are wanted.
    """
    wanted = n_dose + n_contrast
    distinct = (
        rows.sort("source_index").with_row_index("position").unique("text", keep="first", maintain_order=True)
    )
    if distinct.height < wanted:
        raise ValueError(
            f"the corpus has {distinct.height} distinct rows, {wanted} are needed "
            f"({n_dose} for dose.n_rows and {n_contrast} for contrast.n_contexts); add news or lower them"
        )
    keys = [
        hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest() for row_id in distinct.get_column("row_id")
    ]
    return (
        distinct.with_columns(
            pl.Series("key", keys), overlaps_rewrites=pl.col("position").cast(pl.Int64) < first_free
        )
        .sort("overlaps_rewrites", "key")
        .head(wanted)
        .with_columns(purpose=pl.Series(["dose"] * n_dose + ["contrast"] * n_contrast))
        .drop("position", "key")
    )
