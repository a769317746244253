"""Facts that a rewrite should keep: known ones, or numbers and names found in the lead.

In: text. Out: a list of short strings, and the share of them that another text keeps. Matching ignores
case, line breaks, curly apostrophes and number formatting, and holds at word boundaries.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from steer_pipeline.lab.quality.numbers import DIGITS, digit_values, value, word_values
from steer_pipeline.lab.quality.text import sentences, straight

_PART = r"[A-Z](?:\.(?=\s+[A-Z])|[\w'&.-]*\w)?"
_NAME = re.compile(rf"\b{_PART}(?:\s+(?:of|the|de|la|von|van)(?:\s+(?:the|la))?(?=\s+[A-Z])|\s+{_PART})+")
# Capitalised because they open a sentence, or titles: not part of a name.
_OPENERS = frozenset((
    "a", "an", "the", "in", "on", "at", "as", "for", "from", "by", "with", "to", "of", "and", "but", "or",
    "if", "when", "while", "after", "before", "since", "until", "during", "under", "over", "he", "she",
    "it", "they", "we", "i", "you", "his", "her", "its", "their", "our", "your", "this", "that", "these",
    "those", "there", "here", "who", "what", "which", "where", "why", "how", "not", "no", "yes", "all",
    "some", "many", "most", "more", "one", "two", "three", "both", "each", "every", "mr", "mrs", "ms",
    "dr", "sir", "president", "minister", "mayor", "governor", "senator", "chief", "director", "chairman",
    "chairwoman", "spokesman", "spokeswoman", "police", "meanwhile", "however", "also", "now", "then",
    "today", "yesterday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday",
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
    "november", "december",
))  # fmt: skip


def lead_facts(text: str, n_sentences: int = 3) -> list[str]:
    """Numbers and capitalised names of two or more words in the first sentences, in order, each once.

    The rule: a number is a digit string with its separators ("1,200", "3.5"). A name is a run of capitalised
    words, joined by "of", "the" and their like; opening words, titles, weekdays and months are cut
    from its ends. What is left counts when it still has two words.
    """
    lead = straight(" ".join(sentences(text)[:n_sentences]))
    found: list[tuple[int, str]] = [(match.start(), match[0]) for match in DIGITS.finditer(lead)]
    for match in _NAME.finditer(lead):
        parts = match[0].split()
        while parts and parts[0].lower().rstrip(".") in _OPENERS:
            parts.pop(0)
        while parts and parts[-1].lower().rstrip(".") in _OPENERS:
            parts.pop()
        if len(parts) > 1:
            name = re.sub(r"'s$", "", " ".join(parts))
            found.append((match.start(), name))
    ordered = dict.fromkeys(fact for _, fact in sorted(found))
    return list(ordered)


def kept_facts(facts: Sequence[str], text: str) -> list[bool]:
    """Whether each fact stands in `text`; a number does when its value does ("1,200" as "1.2 thousand")."""
    plain = straight(text)
    folded = plain.casefold()
    values: set[Decimal] | None = None
    verdicts = []
    for fact in facts:
        needle = straight(fact).strip()
        if DIGITS.fullmatch(needle):
            if values is None:
                values = word_values(plain).union(*(readings for _, readings in digit_values(plain)))
            kept = value(needle) in values
        else:
            pattern = r"\s+".join(re.escape(part) for part in needle.casefold().split())
            kept = re.search(rf"(?<!\w){pattern}(?!\w)", folded) is not None
        verdicts.append(kept)
    return verdicts


def facts_kept(facts: Sequence[str], text: str) -> float:
    """Share of `facts` that `text` keeps; NaN when there is none to keep."""
    return sum(kept_facts(facts, text)) / len(facts) if len(facts) else float("nan")
