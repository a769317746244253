"""Numbers in English text as values, so that "1,200", "1200" and "twelve hundred" compare equal.

In: text. Out: sets of `Decimal`. Only digits are looked for in an output; digits and number words count
in a source, so a rewrite may write out or abbreviate a number but not invent one.
"""

import re
from decimal import Decimal

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
