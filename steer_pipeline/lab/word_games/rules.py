"""What a clue may not say, and how clues and guesses are read from replies.

A clue breaks a rule where one of its words has the Snowball stem of the target or of a related word, as in clembench's
taboo ("teas" for "tea", but not "organic" for "organ"). Function words say nothing and are left out. Beyond clembench,
a word that is spelled in pieces ("tea-pot", "t e a") counts as said.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

MIN_PREFIX = 4  # letters of a stem, for the prefix rule
BARE_WORDS = 3  # of a guess that is not marked as one

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_ARTICLES = ("a", "an", "the")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "‑": "-", "–": "-"})

STOPWORDS = frozenset(
    """a about above after again against all am an and any are aren't as at be because been before being below
    between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few
    for from further had hadn't has hasn't have haven't having he her here hers herself him himself his how i if in
    into is isn't it it's its itself just let's me more most mustn't my myself no nor not now of off on once only or
    other our ours ourselves out over own same shan't she should shouldn't so some such than that that's the their
    theirs them themselves then there these they they're this those through to too um under until up us very was
    wasn't we were weren't what when where which while who whom why will with won't would wouldn't you you're your
    yours yourself yourselves""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Violation:
    """What a clue said, and of which forbidden word it is a form."""

    said: str
    forbidden: str
    rule: str  # stem, spelled, prefix

    def __str__(self) -> str:
        return f"{self.said!r} ({self.rule} of {self.forbidden!r})"


def violations(
    clue: str, target: str, related: Sequence[str], *, prefix_rule: bool = False
) -> list[Violation]:
    """All rules that a clue breaks, in the order of its words; none for a sound clue.

    Args:
        prefix_rule: forbid words that begin with a stem of at least `MIN_PREFIX` letters, too.
    """
    said = _said(clue, target)
    pairs, spelled = _pieces(clue)
    found = []
    for forbidden in dict.fromkeys([target, *related]):
        for part in _parts(forbidden):
            if part in STOPWORDS and part != target.casefold():
                continue
            stem = _stem(part)
            found += [(word, forbidden, "stem") for word in said if _stem(word) == stem]
            if prefix_rule and len(stem) >= MIN_PREFIX:
                found += [(word, forbidden, "prefix") for word in said if word.startswith(stem)]
        joined = "".join(_parts(forbidden))
        in_pieces = joined in pairs or any(joined in run for run in spelled)
        if in_pieces and not any(one[1] == forbidden for one in found):
            found.append((joined, forbidden, "spelled"))
    first: dict[tuple[str, str], Violation] = {}
    for word, forbidden, rule in found:
        first.setdefault((word, forbidden), Violation(word, forbidden, rule))
    return list(first.values())


def read_clue(reply: str) -> str:
    """The clue of a describer's reply, on one line: what follows CLUE:, else its first line; "" where there is
    none.
    """
    return _marked("CLUE", reply)[0]


def read_guess(reply: str) -> str:
    """The word of a guesser's reply, lower case: the first after GUESS:, articles aside; "" where there is none.

    A reply without GUESS: is a guess only where its first line is one of at most `BARE_WORDS` words: else "I think it
    is" would guess "i", and rows would teach to.
    """
    text, marked = _marked("GUESS", reply)
    words = _words(text)
    if not marked and len(words) > BARE_WORDS:
        return ""
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return words[0] if words else ""


def has_words(text: str) -> bool:
    return bool(_words(text))


def same_stem(one: str, other: str) -> bool:
    """Whether two words are forms of one."""
    return _stem(one.casefold()) == _stem(other.casefold())


def is_one_word(text: str) -> bool:
    """Whether a guess can name it."""
    return read_guess(text) == text


def _marked(mark: str, reply: str) -> tuple[str, bool]:
    """What follows the mark on its line, and True; else the first line that says something, and False."""
    found = re.search(rf"{mark}[\s*_]*:[*_]*\s*([^\n\r]+)", reply, re.IGNORECASE)
    text = found[1] if found else next((line for line in reply.splitlines() if line.strip()), "")
    text = re.sub(rf"^[\s*_]*{mark}\s*:", "", text, flags=re.IGNORECASE)
    return " ".join(text.split()), found is not None


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold())


def _said(clue: str, target: str) -> list[str]:
    """Words of a clue and the parts of hyphenated ones, without function words."""
    said = [each for word in _words(clue) for each in dict.fromkeys([word, *word.split("-")]) if each]
    return [word for word in said if word not in STOPWORDS or word == target.casefold()]


def _pieces(clue: str) -> tuple[set[str], list[str]]:
    """What neighbouring words spell together, and what letters that stand alone do."""
    parts = [part for word in _words(clue) for part in word.split("-")]
    runs = re.findall(r"(?:\b\w\b ?){3,}", " ".join(parts))
    return {one + other for one, other in pairwise(parts)}, [run.replace(" ", "") for run in runs]


def _parts(forbidden: str) -> list[str]:
    return [part for word in _words(forbidden) for part in word.split("-")]


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _stemmer().stemWord(word)


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")
