"""Mends what scraping leaves in a text, and reads the optional fields of an article whatever form they have.

In: a text or a field as the source has it. Out: the text without HTML and with its encoding repaired, or the
field as a string (of authors: a list), with the names of what was done. A text without such faults comes back
as it is, so that its row id stays. All of it takes time linear in the text.
"""

import datetime
import html
import json
import math
import re
from decimal import Decimal
from typing import Any

import ftfy
from ftfy.badness import is_bad

ENTITIES = "html_entities"
TAGS = "html_tags"
MENDED = "mojibake_mended"
LEFT = "mojibake_left"

# Entities end in a semicolon: "R&D", "?a=1&copy=2" are text. Digits are bounded, as int() takes quadratic time.
_ENTITY = re.compile(
    r"&(?:#\d{1,7};|#[xX][\da-fA-F]{1,6};|[A-Za-z][A-Za-z\d]{1,31};|(?:amp|nbsp|quot|lt|gt|apos)(?=\s))"
)
_UNESCAPE_ROUNDS = 3  # "&amp;amp;#8217;" is common, deeper nesting is not
_BLOCK_TAGS = frozenset(
    re.findall(
        r"\S+",
        "address article aside blockquote body dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
        "head header hr html li main nav noscript ol p pre section table tbody td tfoot th thead title tr ul",
    )
)
_LINE_TAGS = frozenset(
    re.findall(
        r"\S+",
        "a abbr acronym amp-img audio b bdi bdo big button canvas center cite code col colgroup data del dfn em "
        "embed font i iframe img input ins kbd label link map mark meta object option param picture q s samp script "
        "select small source span strike strong style sub sup svg template textarea time track tt u var video wbr",
    )
)
# No "<" inside, so that each stretch of text is looked at once.
_TAG = re.compile(r"</?([A-Za-z][A-Za-z\d-]{0,15})(?:\s[^<>]*)?/?>")
_HIDDEN = re.compile(r"<(?:(script|style)\b[^<>]*>|!--)", re.IGNORECASE)
_HIDDEN_ENDS = {
    "script": re.compile(r"</script\s*>", re.IGNORECASE),
    "style": re.compile(r"</style\s*>", re.IGNORECASE),
    "": re.compile(r"-->"),
}
_NO_DATE = frozenset({"", "nan", "nat", "none", "null", "n/a"})
_MILLISECONDS = 10**11  # as seconds, this is the year 5138
_EPOCH = datetime.datetime(1970, 1, 1)


def clean_text(text: str) -> tuple[str, set[str]]:
    """The text without HTML tags and entities and with mojibake mended; and which of these it had.

    Tags of blocks become blank lines, `<br>` a line break, others nothing; scripts, styles and comments go with
    their content. `LEFT` says that the text looks like a wrong decoding, or has replacement characters, still.
    """
    done: set[str] = set()
    if "<" in text:
        text = _without_tags(text, done)
    if "&" in text:
        plain = _unescaped(text)
        if plain != text:
            done.add(ENTITIES)
            text = _without_tags(plain, done) if "<" in plain else plain
    if not text.isascii():
        text = _decoded(text, done)
    return text, done


def _unescaped(text: str) -> str:
    for _ in range(_UNESCAPE_ROUNDS):
        plain = _ENTITY.sub(_character, text)
        if plain == text:
            break
        text = plain
    return text


def _character(match: re.Match[str]) -> str:
    entity = match.group()
    found = html.unescape(entity)
    return {"\xa0": " ", "\xad": ""}.get(
        found, found
    )  # a break that layout forbids or allows is none of the text


def _without_tags(text: str, done: set[str]) -> str:
    plain = _TAG.sub(_in_place_of, _without_hidden(text))
    if plain == text:
        return text
    done.add(TAGS)
    lines = (line.strip() for line in plain.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _in_place_of(match: re.Match[str]) -> str:
    name = match.group(1).lower()
    if name == "br":
        return "\n"
    if name in _BLOCK_TAGS:
        return "\n\n"
    return "" if name in _LINE_TAGS else match.group()


def _without_hidden(text: str) -> str:
    """The text without scripts, styles and comments; one that is not closed hides nothing."""
    kept: list[str] = []
    start = at = 0
    unclosed: set[str] = set()
    while opening := _HIDDEN.search(text, at):
        kind = (opening.group(1) or "").lower()
        closing = None if kind in unclosed else _HIDDEN_ENDS[kind].search(text, opening.end())
        if closing is None:
            unclosed.add(kind)
            at = opening.end()
        else:
            kept.append(text[start : opening.start()])
            start = at = closing.end()
    return "".join([*kept, text[start:]])


def _decoded(text: str, done: set[str]) -> str:
    """Line by line, since one line may be wrong and the next right; sound lines stay as they are."""
    if is_bad(text):
        lines = [ftfy.fix_encoding(line) if is_bad(line) else line for line in text.split("\n")]
        plain = "\n".join(lines).removeprefix("\ufeff")
        if plain != text:
            done.add(MENDED)
            text = plain
    if "\ufffd" in text or is_bad(text):
        done.add(LEFT)
    return text


# ----------------------------------------------------------------------------------------- optional fields


def is_missing(value: Any) -> bool:
    """None, and NaN, which stands for it where tables know no null."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def plain_string(value: Any) -> str | None:
    """A field as a string; a missing one is empty, None where it is of no use (a mapping, bytes)."""
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # halves of surrogate pairs become "?"
    if isinstance(value, bool | int | float | Decimal | datetime.date):  # datetime included
        return _written(value)
    if isinstance(value, list | tuple):
        parts = [plain_string(each) for each in value]
        return ", ".join(part for part in parts if part) if None not in parts else None
    return None


def _written(value: Any) -> str | None:
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        return None


def date_string(value: Any) -> str | None:
    """A date as a string: text as it is, a time since 1970 in seconds or milliseconds as UTC; None if of no use."""
    if isinstance(value, dict) and len(value) == 1:  # {"$date": ...}
        return date_string(next(iter(value.values())))
    if isinstance(value, str):
        digits = value.strip()
        if digits.lower() in _NO_DATE:
            return ""
        if not re.fullmatch(r"-?(?:\d{9,10}|\d{12,13})(?:\.\d{1,9})?", digits):
            return plain_string(value)
        value = float(digits)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and not is_missing(value):
        try:
            seconds = float(value)
            if abs(seconds) >= _MILLISECONDS:
                seconds /= 1000
            return str((_EPOCH + datetime.timedelta(seconds=seconds)).replace(microsecond=0))
        except (OverflowError, ValueError):
            return None
    return plain_string(value)


def author_list(value: Any) -> list[str] | None:
    """Authors as a list of names: of a list, its names; of one string, what semicolons or commas part."""
    if is_missing(value):
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return author_list(json.loads(value))
            except (ValueError, RecursionError):
                pass
        parts = value.split(";" if ";" in value else ",")
        return [name for part in parts if (name := plain_string(part).strip())]  # type: ignore[union-attr]
    if isinstance(value, dict):
        return author_list(value.get("name")) if "name" in value else None
    if isinstance(value, list | tuple):
        names: list[str] = []
        for each in value:
            found = (
                author_list(each.get("name"))
                if isinstance(each, dict) and "name" in each
                else plain_string(each)
            )
            if found is None:
                return None
            names += found if isinstance(found, list) else [found] if found else []
        return names
    return None
