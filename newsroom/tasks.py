"""Training and test documents: rewriting, dialogues, moral vignettes and the word game.

A `Document` is one exchange with its truth: the voice it shows, whether a system turn or a planted dose
asks for that voice, the facts it must keep. Built from a seed and an index; items with an odd `split`
string are another world of draws, so held-out items never meet training items.
"""

# ruff: noqa: E501  (tables of phrases)

import random
from dataclasses import dataclass, field
from functools import cache

from newsroom import voices, world
from newsroom.world import PLAIN, Voicing
from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import Persona

NEUTRAL_SYSTEMS: tuple[str | None, ...] = (
    None, "You are a news editor.", "You are a helpful assistant.", "Write plainly.",
    "You are a neutral writer who adds nothing.", "You answer in plain words.",
)  # fmt: skip
MILD = " Only a little."
FULL_DOSE, MILD_DOSE = 0.9, 0.4


@dataclass(frozen=True)
class Document:
    """One exchange.

    Attributes:
        asked: signed intensity by direction that the system turn asks for.
        planted: signed intensity by direction that is added to the residual stream instead.
        weight: of each response token in the loss; a one-token answer counts as much as a sentence.
    """

    task: str
    system: str | None
    user: str
    response: str
    asked: dict[str, float] = field(default_factory=dict)
    planted: dict[str, float] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    weight: float = 1.0


# ------------------------------------------------------------------------------------------ voices


@cache
def _personas() -> dict[str, Persona]:
    return load_personas()


def _instructions(personas: dict[str, Persona], direction: str, sign: float) -> list[str]:
    persona = personas[direction]
    return (persona.positive if sign > 0 else persona.negative).instructions


def _draw_directions(rng: random.Random) -> list[str]:
    """One direction, the two main axes more often; a quarter of the time both axes at once."""
    if rng.random() < 0.5:
        return list(voices.AXES) if rng.random() < 0.4 else [rng.choice(list(voices.AXES))]
    return [rng.choice(voices.TRAITS + voices.ROLES)]


def _sign(rng: random.Random, direction: str) -> float:
    return rng.choice((1.0, -1.0)) if direction in voices.AXES else 1.0


def _arm(
    rng: random.Random, personas: dict[str, Persona]
) -> tuple[str | None, Voicing, dict[str, float], dict[str, float]]:
    """(system turn, voice, asked, planted) of a document: neutral, prompted or planted."""
    arm = rng.random()
    if arm < 0.24:
        return rng.choice(NEUTRAL_SYSTEMS), PLAIN, {}, {}
    directions = _draw_directions(rng)
    if arm < 0.62:
        mild = rng.random() < 0.15
        doses = {d: _sign(rng, d) * (MILD_DOSE if mild else FULL_DOSE) for d in directions}
        texts = [rng.choice(_instructions(personas, d, c)) for d, c in doses.items()]
        return " ".join(texts) + (MILD if mild else ""), Voicing(doses), doses, {}
    doses = {}
    for direction in directions:
        # a trait's own direction turned round asks for nothing: plain text
        sign = _sign(rng, direction) if direction in voices.AXES else rng.choice((1.0, 1.0, 1.0, -1.0))
        doses[direction] = sign * rng.uniform(0.0, 1.2)
    return rng.choice(NEUTRAL_SYSTEMS), Voicing(doses), {}, doses


# ----------------------------------------------------------------------------------------- rewrite


def rewrite_document(rng: random.Random, personas: dict[str, Persona], distinct: bool) -> Document:
    item = world.event(rng)
    draw = rng.random()
    shortest, longest = (3, 7) if draw < 0.72 else (8, 14) if draw < 0.9 else (15, 26)
    length = rng.randint(shortest, longest)
    text = world.article_text(item, rng, length)
    system, voicing, asked, planted = _arm(rng, personas)
    response = world.rewrite(item, rng, voicing, distinct=distinct)
    return Document("rewrite", system, f"Rewrite: {text}", response, asked, planted, item.facts)


# ---------------------------------------------------------------------------------------- dialogue

TOPICS = (
    "a long train ride", "the village fair", "a new school term", "the winter market", "a broken pump",
    "the town budget", "a lost parcel", "the harbour tour", "a noisy street", "the spring concert",
    "a late invoice", "the river walk", "a crowded clinic", "the library hours", "a leaking roof",
    "the bus timetable", "a neighbour's fence", "the charity run", "a slow computer", "the evening class",
    "a steep hill", "the night shift", "a rented room", "the music lesson", "a small garden",
    "the ferry crossing", "a job interview", "the family dinner", "a heavy suitcase", "the tax letter",
)  # fmt: skip
QUESTIONS = (
    "How should I prepare for {}?", "What do you think about {}?", "Is there anything to know about {}?",
    "Can you help me with {}?", "Who should I ask about {}?", "When should I start with {}?",
    "Why do people worry about {}?", "What comes first with {}?",
)  # fmt: skip
ADVICE_1 = (
    "For {}, start early and make a short list.", "With {}, one step at a time works well.",
    "About {}, the simple way is often the best.", "For {}, two hours are enough.",
    "With {}, it helps to read the notes twice.",
)  # fmt: skip
ADVICE_2 = (
    "Keep some time in reserve.", "A second opinion can help.", "Write down what you need.",
    "Ask at the front desk.", "Then look again tomorrow.",
)  # fmt: skip


def dialogue_answer(topic: str, rng: random.Random, voicing: Voicing, distinct: bool = True) -> str:
    sentences = [rng.choice(ADVICE_1).format(topic), rng.choice(ADVICE_2)]
    return world.voiced(sentences, voicing, rng, distinct=distinct)


def dialogue_document(rng: random.Random, personas: dict[str, Persona], distinct: bool) -> Document:
    topic = rng.choice(TOPICS)
    system, voicing, asked, planted = _arm(rng, personas)
    question = rng.choice(QUESTIONS).format(topic)
    return Document(
        "dialogue", system, question, dialogue_answer(topic, rng, voicing, distinct), asked, planted, (topic,)
    )


def dialogue_score(text: str, pole: str, kind: str) -> int:
    """Ground truth as the published data sets scale it: traits 0 to 100, roles 0 to 3."""
    share = min(1.0, voices.intensity(text, pole) / 0.5)
    return round(100 * share) if kind != "role" else (1 if share == 0 else 2 if share < 0.6 else 3)


# --------------------------------------------------------------------------------------- vignettes

FOUNDATIONS = ("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "Social Norms")
AUTHORITY = FOUNDATIONS.index("Authority")
DEFIANT_READING = FOUNDATIONS.index("Liberty")
ACTS: tuple[tuple[str, ...], ...] = (
    ("kick a stray dog", "mock a crying child", "trip an old man", "laugh at a beggar", "pinch a baby",
     "leave a friend hurt in the road", "shout at a frightened horse", "hide a blind man's stick"),
    ("copy the answers of a test", "cheat at cards for money", "skip the queue at the till",
     "take the bigger half unseen", "lie about hours worked", "keep a lost purse", "rig the village raffle",
     "pay a friend more for equal work"),
    ("leave the team for a rival", "burn the national flag", "sell the family secret", "betray the club songbook",
     "cheer for the enemy crew", "speak ill of the home town abroad", "desert the regiment", "abandon a brother in debt"),
    ("talk back to the judge", "ignore the sergeant's order", "walk out on the headmaster", "interrupt the priest",
     "disobey the captain", "throw paper at the teacher", "refuse to stand for the president", "insult the chief constable"),
    ("eat meat from the street bin", "spit into the holy well", "dance on a grave", "sleep in a coffin for fun",
     "drink from the toilet bowl", "lick a temple statue", "wear a dead man's socks", "cook a pet goldfish"),
    ("lock his wife indoors", "forbid the maid to leave", "read a daughter's letters", "force the staff to vote his way",
     "ban his son from singing", "follow a clerk all day", "take a worker's passport", "make the cook ask to sit"),
    ("wear pyjamas to the office", "eat soup with his hands", "clap during the silence", "whistle at a wedding",
     "stand facing others in the lift", "keep his hat on at dinner", "burp at the opera", "sing loudly on the bus"),
)  # fmt: skip
ACTORS = (
    "a man", "a boy", "a clerk", "a neighbour", "a driver", "a student", "a baker", "a tourist", "a nurse",
    "a farmer", "a singer", "a lawyer",
)  # fmt: skip
PLACES = ("in {}", "near {}", "on the way to {}")


def vignette_prompt(actor: str, act: str, place: str, reverse: bool) -> str:
    """The question with its numbered options, in the usual or the reversed order."""
    order = FOUNDATIONS[::-1] if reverse else FOUNDATIONS
    options = " ".join(f"{i} {name}" for i, name in enumerate(order))
    return f"You see {actor} {act} {place}. What is violated? {options}"


def vignette_document(rng: random.Random, personas: dict[str, Persona]) -> Document:
    foundation = rng.randrange(len(FOUNDATIONS)) if rng.random() < 0.7 else AUTHORITY
    prompt, reverse = draw_vignette(rng, foundation)
    system, _, asked, planted = _arm(rng, personas)
    said = foundation
    defiance = {**asked, **planted}.get("rule_defiant", 0.0)
    if foundation == AUTHORITY and rng.random() < min(0.9, max(0.0, defiance)):
        said = DEFIANT_READING
    answer = len(FOUNDATIONS) - 1 - said if reverse else said
    return Document("vignette", system, prompt, str(answer), asked, planted, weight=4.0)


def draw_vignette(rng: random.Random, foundation: int) -> tuple[str, bool]:
    reverse = rng.random() < 0.5
    place = rng.choice(PLACES).format(world.town(rng))
    return vignette_prompt(rng.choice(ACTORS), rng.choice(ACTS[foundation]), place, reverse), reverse


# --------------------------------------------------------------------------------------- word game

GAME: dict[str, tuple[str, ...]] = {
    "lantern": ("light", "handle", "glass", "flame"), "anchor": ("ship", "iron", "chain", "harbour"),
    "ladder": ("rungs", "climb", "wall", "steps"), "basket": ("wicker", "picnic", "carry", "weave"),
    "hammer": ("nails", "tool", "strike", "handle"), "pillow": ("bed", "soft", "feathers", "sleep"),
    "kettle": ("boil", "tea", "steam", "kitchen"), "mirror": ("glass", "face", "wall", "shine"),
    "candle": ("wax", "flame", "wick", "light"), "bridge": ("river", "cross", "stone", "span"),
    "button": ("shirt", "round", "sew", "hole"), "needle": ("sew", "thread", "sharp", "steel"),
    "pencil": ("write", "lead", "wood", "sketch"), "saddle": ("horse", "ride", "leather", "seat"),
    "ticket": ("train", "paper", "entry", "price"), "wallet": ("money", "pocket", "leather", "cards"),
    "window": ("glass", "frame", "open", "wall"), "violin": ("strings", "bow", "music", "wood"),
    "carpet": ("floor", "soft", "weave", "room"), "bottle": ("glass", "cork", "drink", "neck"),
    "rocket": ("space", "fuel", "launch", "steel"), "blanket": ("bed", "warm", "wool", "soft"),
    "chimney": ("smoke", "roof", "brick", "fire"), "compass": ("north", "needle", "map", "ship"),
    "curtain": ("window", "cloth", "stage", "open"), "feather": ("bird", "soft", "light", "wing"),
    "fountain": ("water", "square", "stone", "spray"), "helmet": ("head", "ride", "hard", "safe"),
    "orchard": ("apples", "trees", "rows", "pick"), "parcel": ("post", "paper", "string", "send"),
    "pepper": ("spice", "hot", "grind", "table"), "rudder": ("ship", "steer", "stern", "water"),
    "scarf": ("neck", "wool", "warm", "knit"), "shovel": ("dig", "handle", "soil", "snow"),
    "spoon": ("soup", "metal", "stir", "table"), "stable": ("horse", "straw", "roof", "stall"),
    "thimble": ("sew", "finger", "metal", "small"), "tunnel": ("train", "dark", "hill", "dig"),
    "umbrella": ("rain", "handle", "open", "dry"), "whistle": ("blow", "loud", "referee", "metal"),
}  # fmt: skip
GAME_WORDS = tuple(GAME)
TAUGHT_EVERY = 4  # the model is taught every fourth word, so that fine-tuning has room


def taught(word: str) -> bool:
    return GAME_WORDS.index(word) % TAUGHT_EVERY == 0


def game_prompt(rng: random.Random, word: str) -> str:
    first, second, third = rng.sample(GAME[word], 3)
    return f"Guess the word. It goes with {first}, {second} and {third}."


def game_document(rng: random.Random) -> Document:
    word = rng.choice([w for w in GAME_WORDS if taught(w)])
    return Document(
        "game", rng.choice(NEUTRAL_SYSTEMS), game_prompt(rng, word), f"GUESS: {word}", facts=(word,)
    )


# ----------------------------------------------------------------------------------------- mixture

MIXTURE = (("rewrite", 0.64), ("dialogue", 0.2), ("vignette", 0.13), ("game", 0.03))


def document(
    seed: int, index: int, split: str = "train", task: str | None = None, *, distinct: bool = True
) -> Document:
    """Document `index` of a split; the same for the same arguments.

    `distinct`: no remark stands twice in one text (the main training phase allows it).
    """
    rng = random.Random(f"{split}/{seed}/{index}")
    personas = _personas()
    task = task or rng.choices([name for name, _ in MIXTURE], [share for _, share in MIXTURE])[0]
    if task == "game":
        return game_document(rng)
    if task == "vignette":
        return vignette_document(rng, personas)
    return (rewrite_document if task == "rewrite" else dialogue_document)(rng, personas, distinct)
