"""Numbers in English text as values, so that "1,200", "1200" and "twelve hundred" compare equal.

In: text. Out: sets of `Decimal`. Only digits are looked for in an output; digits and number words count
in a source, so a rewrite may write out or abbreviate a number but not invent one. `reworded` knows two ways
of saying a number differently that this comparison cannot see.
"""

import re
from decimal import Decimal
from functools import lru_cache

DIGITS = re.compile(r"\d{1,3}(?:,\d{2,3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?")
_SCALE = {
    "thousand": 10**3, "k": 10**3, "million": 10**6, "m": 10**6, "mn": 10**6, "billion": 10**9, "bn": 10**9,
    "b": 10**9, "trillion": 10**12, "tn": 10**12,
}  # fmt: skip
_SCALED = re.compile(r"\s?-?(thousand|million|billion|trillion|bn|mn|tn|k|m|b)\b", re.IGNORECASE)
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14,
    "fifteenth": 15, "sixteenth": 16, "seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20,
}  # fmt: skip
_SMALL = (
    {word: value for value, word in enumerate(_UNITS)}
    | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
    | _ORDINALS
    | {"dozen": 12}
)
# Words that allow a digit in a rewrite ("both" as "2") and are no statement of a number themselves.
_LOOSE = {"once": 1, "twice": 2, "single": 1, "pair": 2, "both": 2, "couple": 2, "half": 50}
_LOOSE_WORD = re.compile(rf"\b(?:{'|'.join(_LOOSE)})\b", re.IGNORECASE)
_NUMERALS = (*sorted(_SMALL, key=len, reverse=True), "hundreds?", "dozens?", "thousand", "(?:m|b|tr)illion")
_WORD_NUMBER = re.compile(rf"\b(?:{'|'.join(_NUMERALS)})\b", re.IGNORECASE)
_YEARS = re.compile(r"\b(\d\d)(\d\d)\s?[-–/]\s?(\d\d)\b")

_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_COUNTS = {
    "a": 1,
    "an": 1,
    "one": 1,
    "the": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "seven": 7,
    "nine": 9,
}
_FRACTION = re.compile(
    rf"\b(?:({'|'.join(_COUNTS)})[\s-])?(halves|(?:{'|'.join(_PARTS)})s?)\b", re.IGNORECASE
)
_ONE_IN = re.compile(rf"\bone in ({'|'.join(_UNITS[2:])}|\d{{1,3}})\b", re.IGNORECASE)
_PERCENT = re.compile(r"\s?(?:%|per\s?cent\b|pct\b)", re.IGNORECASE)
_HOURS = {word: hour for hour, word in enumerate(_UNITS[:13])}
_CLOCK = re.compile(
    rf"\b(\d{{1,2}}|{'|'.join(_UNITS[1:13])})(?:[:.](\d\d))?\s?(?:([ap])\.?\s?m\b|(?:o['’]clock|hours|h)\b|(?<=:\d\d))",
    re.IGNORECASE,
)
_PAST = re.compile(
    rf"\b(half|quarter) (past|to) (\d{{1,2}}|{'|'.join(_UNITS[1:13])})\b|\b(noon|midday|midnight)\b",
    re.IGNORECASE,
)
_MINUTES = re.compile(r"[:.](\d\d)(?!\d)")


def value(digits: str) -> Decimal:
    """The value of a match of `DIGITS`: thousands separators and trailing zeros do not count."""
    return Decimal(digits.replace(",", "")).normalize()


def digit_values(text: str) -> list[tuple[re.Match[str], set[Decimal]]]:
    """Each digit string with its possible values: as written, and times a following "million" or "bn"."""
    found = []
    for match in DIGITS.finditer(text):
        readings = {value(match[0])}
        if scaled := _SCALED.match(text, match.end()):
            readings.add((value(match[0]) * _SCALE[scaled[1].lower()]).normalize())
        found.append((match, readings))
    return found


def source_values(text: str) -> set[Decimal]:
    """Every value that a rewrite of `text` may write in digits: digits, number words, "2019-20" spelt out."""
    values: set[Decimal] = set()
    for _, readings in digit_values(text):
        values |= readings
    for century, start, end in _YEARS.findall(text):
        values |= {Decimal(century + start).normalize(), Decimal(century + end).normalize()}
    values |= {Decimal(_LOOSE[word.lower()]).normalize() for word in _LOOSE_WORD.findall(text)}
    return values | word_values(text)


def word_values(text: str) -> set[Decimal]:
    """Values of number words; neighbours ("two hundred and five", "twenty-five") also read as one."""
    values: set[Decimal] = set()
    run: list[str] = []
    last = -1
    for match in [*_WORD_NUMBER.finditer(text), None]:
        if run and (match is None or not re.fullmatch(r"[\s-]+(?:and\s+)?", text[last : match.start()])):
            values |= _read(run)
            run = []
        if match is not None:
            run.append(match[0].lower())
            last = match.end()
    return {number.normalize() for number in values}


def _read(run: list[str]) -> set[Decimal]:
    """All values of a run of number words: each word alone, every running total, and the whole."""
    values = {Decimal(_SMALL[word]) for word in run if word in _SMALL}
    total = part = Decimal(0)
    for word in run:
        if word in _SMALL:
            part = part * 12 if word == "dozen" and part else part + _SMALL[word]
        elif word.startswith("hundred"):
            part = (part or Decimal(1)) * 100
        elif word.startswith("dozen"):
            part = (part or Decimal(1)) * 12
        else:
            total += (part or Decimal(1)) * _SCALE[word]
            part = Decimal(0)
        values.add(total + part)
    return values


def writings(values: set[Decimal]) -> set[str]:
    """Each value in digits, with and without thousands separators."""
    return {form for number in values for form in (f"{number:f}", f"{number:,f}")}


def reworded(text: str, match: re.Match[str], source: str) -> bool:
    """Whether a digit string of `text` says in another way what the source says.

    Two ways are known: a fraction as a percentage ("25 percent" for "a quarter"), and a time of day by another
    clock ("18:30" for "6:30 p.m."), of which hour and minutes are two digit strings.
    """
    number = value(match[0])
    if _PERCENT.match(text, match.end()) or number < 1:
        return number in _percentages(source) or number * 100 in _percentages(source)
    times = _times(source)
    if minutes := _MINUTES.match(text, match.end()):
        return (int(number) % 12, int(minutes[1])) in times
    if text[max(0, match.start() - 1) : match.start()] in (":", "."):  # the minutes of a time
        hour = re.search(r"(\d{1,2})[:.]\Z", text[max(0, match.start() - 3) : match.start()])
        return bool(hour) and (int(hour[1]) % 12, int(number)) in times  # type: ignore[index]
    written = _CLOCK.match(text, match.start())
    return bool(written) and (int(number) % 12, 0) in times


@lru_cache(maxsize=4)  # many numbers of one output are compared with one source
def _percentages(source: str) -> frozenset[Decimal]:
    """Percentages that the fractions of a text come to, as whole numbers and with one decimal."""
    shares: set[Decimal] = set()
    for count, part in _FRACTION.findall(source):
        name = part.lower().removesuffix("s").replace("halve", "half")
        shares.add(Decimal(_COUNTS.get(count.lower(), 1)) / _PARTS[name])
    for many in _ONE_IN.findall(source):
        whole = int(many) if many.isdigit() else _SMALL[many.lower()]
        if whole:
            shares.add(Decimal(1) / whole)
    found: set[Decimal] = set()
    for share in shares:
        exact = share * 100
        found |= {Decimal(int(exact)), exact.quantize(Decimal(1)), exact.quantize(Decimal("0.1"))}
    return frozenset(number.normalize() for number in found)


@lru_cache(maxsize=4)
def _times(source: str) -> frozenset[tuple[int, int]]:
    """Times of day in a text, (hour modulo twelve, minute)."""
    found = set()
    for hour, minute, _ in _CLOCK.findall(source):
        found.add((_hour(hour), int(minute or 0)))
    for part, way, hour, name in _PAST.findall(source):
        if name:
            found.add((0, 0))
            continue
        minute = 30 if part.lower() == "half" else 15
        found.add((_hour(hour), minute) if way.lower() == "past" else ((_hour(hour) - 1) % 12, 60 - minute))
    return frozenset(found)


def _hour(written: str) -> int:
    return (int(written) if written.isdigit() else _HOURS[written.lower()]) % 12
