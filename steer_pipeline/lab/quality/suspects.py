"""Rules that mark an output as suspect: three patterns of Janus, for comparison, and ours.

In: an output and the source that it was made from. Out: names of the rules that hit. Ours look at the
source too: what the news itself contains is not held against a rewrite.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import polars as pl

from steer_pipeline.lab.quality.loops import find_loop
from steer_pipeline.lab.quality.numbers import digit_values, reworded, source_values, writings
from steer_pipeline.lab.quality.text import words

JANUS_RULES: dict[str, str] = {
    "janus_latex": r"(\\\\|\\\[|\\\]|\\\(|\\\)|\\text|\\frac|\\sin|\\cos|\{|\})",
    "janus_digits": r"\d{7,}",
    "janus_repeat": r"(.)\1{4,}",
}
_JANUS = {name: re.compile(pattern) for name, pattern in JANUS_RULES.items()}
_SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask)>|</?(?:think|tool_call)>"
    r"|<(?:start|end)_of_turn>|<0x[0-9A-F]{2}>|\[/?INST\]|<</?SYS>>|[Ġ▁][a-z]"
)
_SCAFFOLD = re.compile(
    r"^\W*(?:rewrite|rewritten(?: text| article)?|paragraph|original(?: text)?)\s*:"
    r"|^(?:system|user|assistant)\s*(?::|$)|\bRewritten text:",
    re.IGNORECASE | re.MULTILINE,
)
MIN_ECHO_WORDS = 20
# Letters that look foreign and are units or marks of Latin text.
_COMMON_LETTERS = frozenset("µªºΩKÅ℮ℓ№™")


@dataclass(frozen=True)
class SuspectRule:
    """One rule. `origin` says whether the pattern is Janus's own, kept verbatim, or ours."""

    name: str
    origin: str
    description: str
    example: str
    hits: Callable[[str, str, Sequence[str]], bool]  # (output, source, special strings of the tokenizer)


def _prompt_echo(text: str, source: str, _: Sequence[str]) -> bool:
    if _SCAFFOLD.search(text) and not _SCAFFOLD.search(source):
        return True
    tokens = words(text)
    return len(tokens) >= MIN_ECHO_WORDS and f" {' '.join(tokens)} " in f" {' '.join(words(source))} "


def _special_tokens(text: str, source: str, special: Sequence[str]) -> bool:
    found = {match[0] for match in _SPECIAL.finditer(text)} | {token for token in special if token in text}
    return any(token not in source for token in found)


def _control_chars(text: str, source: str, _: Sequence[str]) -> bool:
    if text.isascii() and text.isprintable():
        return False
    odd = {c for c in text if c not in "\n\t\r" and _is_control(c)}
    return bool(odd - set(source))


@lru_cache(maxsize=4096)
def _is_control(char: str) -> bool:
    """Control, surrogate, private-use, unassigned, text-direction and byte-order characters, and U+FFFD."""
    if char in "\ufffd\ufeff" or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069":
        return True
    return unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn")


@lru_cache(maxsize=65536)
def _script(char: str) -> str | None:
    """`LATIN`, `CYRILLIC`, `CJK`, ... of a letter, from its Unicode name; None for what is no letter."""
    if not char.isalpha() or char in _COMMON_LETTERS or unicodedata.category(char) == "Lm":
        return None
    first, _, rest = unicodedata.name(char, "UNKNOWN").partition(" ")
    return rest.split(" ")[0] if first in ("FULLWIDTH", "HALFWIDTH") else first


def other_script_share(text: str, source: str) -> float:
    """Share of the text's letters whose script the source does not use; 0 where the source has no letter."""
    if text.isascii() and re.search("[a-zA-Z]", source):
        return 0.0
    known = {_script(char) for char in source} - {None}
    letters = [script for char in text if (script := _script(char))]
    return sum(script not in known for script in letters) / len(letters) if letters and known else 0.0


def foreign_digits(text: str, source: str) -> list[str]:
    """Digit strings of `text` whose value the source does not give, in digits or in words.

    "1,200", "1200" and "1.2 thousand" are one value, "twelve" allows "12", ":00" is a way of writing an hour,
    and a number cut off by the end of the text may be the beginning of one of the source ("$2." of "$2.5 million").

    Two kinds of known false alarm are left out here and found by `reworded_digits`: a percentage for a fraction
    ("25 percent" for "a quarter") and a time by another clock ("18:30" for "6:30 p.m."). False alarms that stay:
    what a rewrite has computed ("up 20" for "from 100 to 120"), converted ("5 miles" for "8 km") or concluded
    from a date ("aged 34").
    """
    return [match[0] for match in _ungiven(text, source) if not reworded(text, match, source)]


def reworded_digits(text: str, source: str) -> list[str]:
    """Digit strings that are not in the source and say what it says in another way; no ground for suspicion."""
    return [match[0] for match in _ungiven(text, source) if reworded(text, match, source)]


def _ungiven(text: str, source: str) -> list[re.Match[str]]:
    """Digit strings whose value the source does not give, but for those that the end of the text has cut."""
    given = digit_values(source)
    written: set[Decimal] = set().union(*(readings for _, readings in given))
    found = [(match, readings) for match, readings in digit_values(text) if not readings & written]
    if not found:
        return []
    allowed = source_values(source)
    whole = text.rstrip()
    cut = len(whole.rstrip("0123456789.,"))  # where digits begin that the end may have cut
    cut += len(whole[cut:]) - len(whole[cut:].lstrip(".,"))
    if cut < len(whole):
        tail = whole[cut:]
        forms = {match[0] for match, _ in given} | {match[0].replace(",", "") for match, _ in given}
        if not any(form.startswith(tail) for form in forms | writings(allowed)):
            cut = len(text)
    return [
        match
        for match, readings in found
        if match.start() < cut
        and not readings & allowed
        and not (match[0] == "00" and re.search(r"\d:\Z", text[max(0, match.start() - 2) : match.start()]))
    ]


RULES: dict[str, SuspectRule] = {
    rule.name: rule
    for rule in (
        SuspectRule(
            "janus_latex",
            "janus",
            "LaTeX commands, doubled backslashes, or any brace.",
            r"the \frac{1}{2} of it",
            lambda text, source, special: _JANUS["janus_latex"].search(text) is not None,
        ),
        SuspectRule(
            "janus_digits",
            "janus",
            "Seven or more digits in a row.",
            "call 5550123456 now",
            lambda text, source, special: _JANUS["janus_digits"].search(text) is not None,
        ),
        SuspectRule(
            "janus_repeat",
            "janus",
            "One character five times in a row.",
            "so good!!!!!",
            lambda text, source, special: _JANUS["janus_repeat"].search(text) is not None,
        ),
        SuspectRule(
            "empty",
            "ours",
            "No letter and no digit.",
            " ...\n",
            lambda text, source, special: not any(char.isalnum() for char in text),
        ),
        SuspectRule(
            "prompt_echo",
            "ours",
            "A part of the prompt's frame or a role name; or twenty words or more that stand in the "
            "source in just that order: a copy and no rewrite.",
            "Rewrite: The council met on Monday.",
            _prompt_echo,
        ),
        SuspectRule(
            "special_tokens",
            "ours",
            "A special token of the tokenizer, or what looks like one.",
            "The council met.<|im_end|>",
            _special_tokens,
        ),
        SuspectRule(
            "control_chars",
            "ours",
            "Control, private-use or replacement characters that the source does not have.",
            "The council\x00 met",
            _control_chars,
        ),
        SuspectRule(
            "loop",
            "ours",
            "Words or characters in a circle of any length, a sentence said three times, or mostly repeated "
            "word windows; what the source repeats is allowed.",
            "one two three four one two three four one two three four",
            lambda text, source, special: find_loop(text, source) is not None,
        ),
        SuspectRule(
            "other_script",
            "ours",
            "Letters of a script of which the source has none.",
            "The council 会议 met",
            lambda text, source, special: other_script_share(text, source) > 0,
        ),
        SuspectRule(
            "foreign_digits",
            "ours",
            "A number in digits that the source does not give, in digits or in words; percentages for its "
            "fractions, times by another clock and digits cut by the end of the text do not count.",
            "The council met 17 times (source: no number)",
            lambda text, source, special: bool(foreign_digits(text, source)),
        ),
    )
}
OUR_RULES = tuple(name for name, rule in RULES.items() if rule.origin == "ours")


def scan(text: str, source: str, *, special_tokens: Sequence[str] = ()) -> list[str]:
    """Names of the rules that `text` breaks, in the order of `RULES`.

    Args:
        text: the output.
        source: the article or prompt that it was made from.
        special_tokens: the tokenizer's special strings, such as `tokenizer.all_special_tokens`.
    """
    return [name for name, rule in RULES.items() if rule.hits(text, source, special_tokens)]


def scan_frame(
    frame: pl.DataFrame, *, text: str = "output", source: str = "prompt", special_tokens: Sequence[str] = ()
) -> pl.DataFrame:
    """The frame with a column `suspects` (list of rule names, empty for a clean row) added.

    Raises:
        ValueError: a column is missing, or an output is null (its row is named).
    """
    for column in (text, source):
        if column not in frame.columns:
            raise ValueError(f"scan_frame: no column {column!r}; the frame has {', '.join(frame.columns)}")
    if frame[text].null_count():
        row = int(frame[text].is_null().arg_true()[0])
        raise ValueError(f"scan_frame: row {row}: {text} is null; an output without text is the empty string")
    found = [
        scan(output, given or "", special_tokens=special_tokens)
        for output, given in zip(frame[text], frame[source], strict=True)
    ]
    return frame.with_columns(pl.Series("suspects", found, dtype=pl.List(pl.String)))


def count_suspects(frame: pl.DataFrame) -> dict[str, int]:
    """Rows of a scanned frame per rule, every rule named, and `any` and `any_ours` beside them."""
    counts = {name: int(frame["suspects"].list.contains(name).sum()) for name in RULES}
    ours = frame["suspects"].list.eval(pl.element().is_in(list(OUR_RULES))).list.any().fill_null(False)
    return counts | {"any": int((frame["suspects"].list.len() > 0).sum()), "any_ours": int(ours.sum())}


def rules_table() -> pl.DataFrame:
    """One row a rule: name, origin, description, example."""
    return pl.DataFrame(
        [
            {"rule": r.name, "origin": r.origin, "description": r.description, "example": r.example}
            for r in RULES.values()
        ]
    )
