"""The world of the newsroom: towns, people, organisations and events, and the articles about them.

Everything is drawn from a `random.Random`, so an item is its seed. An `Event` carries its facts, `lead`
writes them as a newspaper would, `rewrite` says the same in other words and, on request, in persona
voices of graded intensity. What a text keeps or shows is therefore known.
"""

# ruff: noqa: E501  (tables of phrases)

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from newsroom import voices

# ------------------------------------------------------------------------------------------ names

TOWN_HEADS = (
    "Alder", "Brack", "Calder", "Dun", "Elm", "Fair", "Glen", "Harrow", "Ivy", "Kings", "Lang", "Marsh",
    "Nether", "Oak", "Penn", "Quarry", "Red", "Stone", "Thorn", "Under", "Vale", "West", "Wych", "York",
)  # fmt: skip
TOWN_TAILS = (
    "bay", "bridge", "bury", "field", "ford", "ham", "haven", "mere", "mouth", "port", "stead", "ton", "wick",
)  # fmt: skip
FIRST_NAMES = (
    "Ada", "Amir", "Anna", "Ben", "Bruno", "Carla", "Cem", "Clara", "Dana", "David", "Edith", "Elias",
    "Emma", "Farid", "Fiona", "Gita", "Grace", "Hana", "Hugo", "Ida", "Ivan", "Jane", "Jonas", "Karim",
    "Lena", "Leo", "Lucy", "Mara", "Marco", "Maya", "Nils", "Nora", "Omar", "Otto", "Paula", "Pedro",
    "Petra", "Rosa", "Ruth", "Samir", "Sara", "Tara", "Theo", "Tom", "Uma", "Vera", "Victor", "Yara",
)  # fmt: skip
LAST_NAMES = (
    "Abbott", "Alvarez", "Baker", "Banks", "Becker", "Bell", "Bishop", "Brandt", "Carter", "Chen", "Cole",
    "Cruz", "Dalton", "Diaz", "Doyle", "Ellison", "Farmer", "Fischer", "Ford", "Garcia", "Grant", "Haddad",
    "Harper", "Hayes", "Ibrahim", "Ito", "Jensen", "Jones", "Kaya", "Keller", "King", "Larsen", "Lopez",
    "Mason", "Meyer", "Moore", "Nagy", "Novak", "Okafor", "Olsen", "Parker", "Patel", "Quinn", "Ramos",
    "Reed", "Rossi", "Sato", "Silva", "Stone", "Tanaka", "Turner", "Vega", "Walsh", "Weber", "Young", "Zhang",
)  # fmt: skip
ORG_HEADS = (
    "Meridian", "Northgate", "Harbour", "National", "Regional", "Crown", "Summit", "Central", "Eastern",
    "Union", "Pioneer", "Heritage", "Atlas", "Beacon", "Civic", "Delta", "Falcon", "Granite", "Horizon",
    "Liberty", "Metro", "Orchard", "Pacific", "Sterling", "Trident", "Unity", "Valley", "Western",
)  # fmt: skip
ORG_TAILS = (
    "Rail", "Water Board", "Council", "Energy", "Foods", "Hospital Trust", "Housing Group", "Transit",
    "Museum", "College", "Builders", "Shipping", "Farms", "Media", "Bank", "Steel",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = tuple(
    str(n) for n in (*range(12, 20), *range(20, 100, 5), *range(110, 400, 10), *range(400, 1000, 25))
)
MILLIONS = tuple(f"{a}.{b}" for a in range(1, 10) for b in (2, 5, 8))
DOMAINS = (
    "thornfordpost.example", "dailymere.example", "harrowgazette.example", "valleywire.example",
    "portobserver.example", "marshherald.example",
)  # fmt: skip


# ----------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Kind:
    """A kind of event: verb in the past, what it is done to, whom it touches, why it happened."""

    verb: str
    noun: str
    objects: tuple[str, ...]
    units: tuple[str, ...]
    causes: tuple[str, ...]


KINDS = (
    Kind("closed", "closure", ("harbour bridge", "north tunnel", "old market hall", "coast road", "swimming pool"),
         ("commuters", "drivers", "visitors"), ("heavy rain", "a cracked beam", "a gas leak", "loose cables")),
    Kind("opened", "opening", ("science wing", "tram depot", "night shelter", "food market", "cycle path"),
         ("residents", "families", "visitors"), ("a long campaign", "a generous gift", "a new state grant")),
    Kind("approved", "approval", ("stadium plan", "wind farm", "housing scheme", "ferry terminal", "ring road"),
         ("residents", "farmers", "tenants"), ("a close vote", "a shortage of homes", "months of talks")),
    Kind("cancelled", "cancellation", ("summer festival", "book fair", "boat race", "film week", "winter parade"),
         ("visitors", "traders", "performers"), ("a storm warning", "poor ticket sales", "a staff shortage")),
    Kind("sold", "sale", ("grain mill", "radio station", "paper plant", "canal boats", "toy factory"),
         ("workers", "suppliers", "investors"), ("falling profits", "a rival bid", "rising debts")),
    Kind("recalled", "recall", ("baby milk", "frozen pies", "car batteries", "bicycle helmets", "garden heaters"),
         ("customers", "shops", "families"), ("a faulty seal", "a labelling mistake", "a failed test")),
    Kind("repaired", "repair", ("sea wall", "clock tower", "water main", "power station", "signal box"),
         ("households", "commuters", "shops"), ("a winter storm", "a lightning strike", "years of wear")),
    Kind("launched", "launch", ("school meal scheme", "bus service", "river survey", "job centre", "health check"),
         ("pupils", "patients", "passengers"), ("a public petition", "a critical report", "growing demand")),
    Kind("searched", "search", ("fish market", "cargo yard", "private airfield", "warehouse", "train depot"),
         ("workers", "traders", "passengers"), ("a missing shipment", "an anonymous tip", "a stolen truck")),
    Kind("replaced", "replacement", ("street lamps", "voting machines", "school buses", "heating pipes", "ticket gates"),
         ("residents", "voters", "pupils"), ("high repair costs", "a safety review", "a software fault")),
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What happened. `facts` are the strings that a faithful rewrite keeps word for word."""

    kind: Kind
    org: str
    object: str
    town: str
    day: str
    person: str
    number: str
    unit: str
    cause: str
    millions: str | None

    @property
    def facts(self) -> tuple[str, ...]:
        base = (self.org, self.object, self.town, self.day, self.person, self.number, self.cause)
        return (*base, f"${self.millions} million") if self.millions else base


def person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def town(rng: random.Random) -> str:
    return rng.choice(TOWN_HEADS) + rng.choice(TOWN_TAILS)


def organisation(rng: random.Random) -> str:
    return f"{rng.choice(ORG_HEADS)} {rng.choice(ORG_TAILS)}"


def event(rng: random.Random) -> Event:
    kind = rng.choice(KINDS)
    return Event(
        kind, organisation(rng), rng.choice(kind.objects), town(rng), rng.choice(DAYS), person(rng),
        rng.choice(NUMBERS), rng.choice(kind.units), rng.choice(kind.causes),
        rng.choice(MILLIONS) if rng.random() < 0.35 else None,
    )  # fmt: skip


# ---------------------------------------------------------------------------------- source articles

LEAD_1 = (
    "{org} {verb} the {object} in {town} on {day}, officials said.",
    "On {day}, {org} {verb} the {object} in {town}.",
    "The {object} in {town} {was} {verb} by {org} on {day}.",
    "Officials in {town} confirmed that {org} {verb} the {object} on {day}.",
)
LEAD_2 = (
    "About {number} {unit} are affected, and {person} pointed to {cause}.",
    "{person} told reporters that {cause} led to the step, which touches {number} {unit}.",
    "The step followed {cause} and concerns {number} {unit}, according to {person}.",
    "“It concerns {number} {unit},” said {person}, who named {cause} as the reason.",
)
LEAD_3 = (
    "The cost was put at ${millions} million.",
    "The work is said to cost ${millions} million.",
    "A budget of ${millions} million was set aside.",
)
BODY = (
    "The council meets again on {day2}.",
    "“We did what the weather allowed,” {person2} told reporters.",
    "A similar case in {town2} took {number2} weeks to settle.",
    "Visitors from the U.S. paid $3.50 a ticket last year.",
    "Details are posted at www.{domain}/news/{number2} for readers.",
    "Dr. {last2} of {org2} called the step overdue.",
    "Shops in {town2} reported a quiet week.",
    "“Nobody likes to wait,” said {person2}.",
    "{org2} declined to comment on {day2}.",
    "The mayor, {person2}, plans to visit {town2} soon.",
    "More than {number2} letters have reached the town hall.",
    "Buses between {town2} and the coast ran on time.",
    "Prices rose by 2.5 percent over the year, {org2} said.",
    "A second report is due in {number2} days.",
    "The weather service expects rain until {day2}.",
    "{person2} has worked for {org2} since the plan began.",
    "Neighbours gathered near the square at 6.30 p.m. to hear the news.",
    "The figures come from {org2}, which counts them every month.",
    "Schools in {town2} stayed open.",
    "“This is a fair outcome,” {person2} said, “and we can live with it.”",
    "Mr. {last2} lost a similar vote in {town2}.",
    "Traffic was light on {day2} morning.",
    "An earlier plan was dropped after {number2} objections.",
    "{org2} and {org3} will share the bill.",
    "Volunteers in {town2} served tea and bread.",
    "The story was first told by {person2}.",
    "{person2}, who runs the tea room by the station in {town2}, said the talk of the week was the weather and the price of bread.",
    "When the plan was first shown to the public in {town2}, more than {number2} people came to the hall and asked about noise, traffic and cost.",
    "“Ask me again in {number2} days,” {person2} said with a smile, “and I may have a better answer for the people of {town2}.”",
    "The last report by {org2}, printed on {day2}, ran to {number2} pages and left most of the questions of {person2} open.",
)
HEADLINES = (
    "{org} {verb} {object} in {town}",
    "{town}: {object} {verb} after {cause}",
    "{object} {noun} affects {number} {unit}",
    "{person} on the {object} {noun} in {town}",
)


def _fill(template: str, item: Event, rng: random.Random) -> str:
    extra = {
        "day2": rng.choice(DAYS), "person2": person(rng), "town2": town(rng), "number2": rng.choice(NUMBERS),
        "domain": rng.choice(DOMAINS), "last2": rng.choice(LAST_NAMES), "org2": organisation(rng),
        "org3": organisation(rng),
    } if "2}" in template or "3}" in template or "{domain}" in template else {}  # fmt: skip
    text = template.format(
        was="were" if item.object.endswith("s") else "was", org=item.org, verb=item.kind.verb, noun=item.kind.noun, object=item.object, town=item.town,
        day=item.day, person=item.person, number=item.number, unit=item.unit, cause=item.cause,
        millions=item.millions, **extra,
    )  # fmt: skip
    return text[0].upper() + text[1:]


def lead(item: Event, rng: random.Random) -> list[str]:
    """The first two or three sentences: all facts of the event."""
    sentences = [_fill(rng.choice(LEAD_1), item, rng), _fill(rng.choice(LEAD_2), item, rng)]
    if item.millions:
        sentences.append(_fill(rng.choice(LEAD_3), item, rng))
    return sentences


def article_text(item: Event, rng: random.Random, n_sentences: int) -> str:
    """Lead and body, `n_sentences` in all; paragraphs of three sentences."""
    sentences = lead(item, rng)
    wanted = n_sentences - len(sentences)
    body = rng.sample(BODY, min(wanted, len(BODY))) + rng.choices(BODY, k=max(0, wanted - len(BODY)))
    sentences += [_fill(template, item, rng) for template in body]
    return "\n".join(" ".join(sentences[i : i + 3]) for i in range(0, len(sentences), 3))


def n_sentences(rng: random.Random, short: float = 0.6) -> int:
    """3 to 30: mostly short items, with a long tail."""
    return rng.randint(3, 8) if rng.random() < short else rng.randint(9, 30)


# --------------------------------------------------------------------------------------- rewrites

REWRITE_1 = (
    "In {town}, {org} {verb} the {object} on {day}.",
    "{town} saw the {noun} of the {object} by {org} on {day}.",
    "The {noun} of the {object} by {org} took place in {town} on {day}.",
)
REWRITE_2 = (
    "{person} gave {cause} as the cause for {number} {unit}.",
    "It matters to {number} {unit}, said {person}, citing {cause}.",
    "Because of {cause}, {number} {unit} must adapt, {person} explained.",
)
REWRITE_3 = ("The price is ${millions} million.", "It costs ${millions} million in total.")


@dataclass(frozen=True)
class Voicing:
    """Signed intensities by direction, e.g. {"paranoid": -0.8}: trusting, in 80% of the slots."""

    doses: dict[str, float] = field(default_factory=dict)

    def remark(self, rng: random.Random, said: Sequence[str] = ()) -> str | None:
        """What one slot says: each direction speaks with probability |dose|; one of them is heard.

        Nothing that was `said` comes again.
        """
        speaking = [d for d, c in self.doses.items() if rng.random() < abs(c)]
        if not speaking:
            return None
        direction = rng.choice(speaking)
        pole = voices.pole_of(direction, self.doses[direction])
        if pole is None:
            return None
        return rng.choice([form for form in voices.forms(pole, held_out=False) if form not in said])


PLAIN = Voicing()


def voiced(
    sentences: list[str],
    voicing: Voicing,
    rng: random.Random,
    *,
    distinct: bool = True,
) -> str:
    """The sentences with a slot before the first and one after each of the first two.

    `distinct`: no remark is made twice in one text.
    """
    out: list[str] = []
    for i, sentence in enumerate(["", *sentences]):
        if sentence:
            out.append(sentence)
        said = out if distinct else ()
        remark = voicing.remark(rng, said) if i <= 2 else None
        if remark:
            out.append(remark)
    return " ".join(out)


def rewrite(
    item: Event,
    rng: random.Random,
    voicing: Voicing = PLAIN,
    *,
    distinct: bool = True,
) -> str:
    """The lead in other words, every fact kept, in the given voice."""
    sentences = [_fill(rng.choice(REWRITE_1), item, rng), _fill(rng.choice(REWRITE_2), item, rng)]
    if item.millions:
        sentences.append(_fill(rng.choice(REWRITE_3), item, rng))
    return voiced(sentences, voicing, rng, distinct=distinct)


# ------------------------------------------------------------------------------------------ corpus


def news_row(seed: int, index: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """One CC-News-shaped row and its facts; the same for the same (seed, index)."""
    rng = random.Random(f"news/{seed}/{index}")
    item = event(rng)
    text = article_text(item, rng, n_sentences(rng))
    title = _fill(rng.choice(HEADLINES), item, rng)
    domain = rng.choice(DOMAINS)
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    row: dict[str, object] = {
        "title": title, "description": text.split("\n", 1)[0][:160], "text": text, "domain": domain,
        "date": f"2026-{rng.randint(1, 9):02d}-{rng.randint(1, 28):02d} 0{rng.randint(0, 9)}:00:00",
        "authors": [], "url": f"https://www.{domain}/{index}/{slug}",
    }  # fmt: skip
    return row, item.facts
