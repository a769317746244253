"""Words, sentences and overlap of short English texts. In: strings. Out: lists and shares."""

import re
from collections import Counter

_JANUS_WORD = re.compile(r"[a-zA-Z']+")
_BREAK = re.compile(r"(?P<end>[.!?…]+[\"'”’)\]]*)\s+(?=[\"'“‘(\[]*[A-Z0-9“‘])|\n\s*\n|\n(?=[A-Z\"“])")
# A full stop after one of these does not end a sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“‘])(?:Mr|Mrs|Ms|Dr|Prof|Sen|Rep|Gov|Gen|Col|Lt|Sgt|Capt|St|Mt|Jr|Sr|No|vs|etc|Inc|Ltd|Co|Corp"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z])\.$"
)
_STARTER = re.compile(r"[\"'“‘(\[]*(?:The|A|An|It|He|She|They|We|In|On|At|But|And|This|That|These|His|Her)\b")


_STRAIGHT = {0x2018: "'", 0x2019: "'", 0x02BC: "'", 0x201C: '"', 0x201D: '"'}


def straight(text: str) -> str:
    """Curly quotes and apostrophes as plain ones, so that "don’t" and "don't" are one word."""
    return text if text.isascii() else text.translate(_STRAIGHT)


def words(text: str) -> list[str]:
    """Words of any script with inner apostrophes, lower-cased."""
    return re.findall(r"\w+(?:'\w+)*", straight(text).lower())


def sentences(text: str) -> list[str]:
    """Sentences, stripped and not empty. "U.S.", "Mr. Bell", "$3.50" and initials do not end one.

    A regular expression and a short list of abbreviations: made for scoring thousands of short rewrites.
    """
    found, start = [], 0
    for match in _BREAK.finditer(text):
        cut = match.end("end") if match["end"] else match.start()
        piece = text[start:cut]
        dotted = (
            match["end"] and match["end"].startswith(".") and _ABBREVIATION.search(piece.rstrip("\"'”’)]"))
        )
        if dotted and not _ends_after_all(piece, text[match.end() : match.end() + 12]):
            continue
        if piece.strip():
            found.append(piece.strip())
        start = match.end()
    if text[start:].strip():
        found.append(text[start:].strip())
    return found


def _ends_after_all(piece: str, following: str) -> bool:
    """Whether a sentence ends though it closes with an abbreviation: "… in the U.S. The …", "… No. He …"."""
    if re.search(r"\bNo\.$", piece):
        return not following[:1].isdigit()
    return bool(re.search(r"(?:\b[A-Za-z]\.)+$", piece) and _STARTER.match(following))


def multiset_jaccard(a: str, b: str) -> float:
    """Sum of minima over sum of maxima of word counts; words are `[a-zA-Z']+`, lower-cased. Both empty: 1."""
    first, second = (Counter(word.lower() for word in _JANUS_WORD.findall(text)) for text in (a, b))
    union = sum((first | second).values())
    return sum((first & second).values()) / union if union else 1.0


def length_ratio(text: str, reference: str) -> float:
    """Words of `text` per word of `reference`; infinite when only the reference is empty, 1 when both are."""
    n, m = len(words(text)), len(words(reference))
    if m:
        return n / m
    return 1.0 if n == 0 else float("inf")


def exact_match(a: str, b: str) -> bool:
    """Equal but for white space at the ends."""
    return a.strip() == b.strip()
