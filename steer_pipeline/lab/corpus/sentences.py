"""Where sentences end, in time that grows no faster than the text, whatever the text is.

In: a text and its language. Out: offsets behind the closing mark of each sentence. Abbreviations and
sentence starters of 23 languages are pysbd's data; its regular expressions are not used, since some take
exponential time (a dozen bracketed numbers after a full stop) and some cannot be compiled from the text
("B(" in German). Here every candidate is looked at once, through windows of bounded width.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pysbd.languages import LANGUAGE_CODES

_TERMINATORS = ".!?…‼⁇⁈⁉。．！？｡।॥؟۔።፧։՞။"
_UNSPACED = "。．！？｡"  # after these the next sentence may follow without white space
_QUOTES = "\"'”’»›"
_CLOSERS = _QUOTES + ")]}」』）"
_CLOSING_BY_CONTEXT = _QUOTES + "“«"  # „so“ and »so« close in German
_PAIRS = {"(": ")", "[": "]", "“": "”", "„": "“", "«": "»", "「": "」", "『": "』", "（": "）", "‘": "’"}
_MARKS = re.compile(f"[\"'{re.escape(''.join(sorted({*_PAIRS, *_PAIRS.values()})))}]")
_ENDING = f"[{re.escape(_TERMINATORS)}][{re.escape(_CLOSERS + '“«')}]*"
_END = re.compile(f"{_ENDING}\\Z")
_CANDIDATE = re.compile(f"{_ENDING}(?=\\s)|[{_UNSPACED}][{re.escape(_CLOSERS)}]*")
# A line break within a sentence (hard-wrapped text): no sentence ends before it, none starts after it.
_WRAP = re.compile(f"(?<=[^\\s{re.escape(_TERMINATORS)}{re.escape(_CLOSERS)}])\n(?=\\S)")
_PARAGRAPH = re.compile(r"[^\s][^\n]*")
_BLANK_LINE = re.compile(r"[^\S\n]*\n\s*\n")
_NEXT_WORD = re.compile(r"[\s\"'“‘«»„(\[¿¡]*(\w{0,40})")
_TAIL_CHARS = 48  # of text before an end: longer than any abbreviation with its closing marks
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘’«„¿¡]+\Z")  # l’avv. is avv.

# English abbreviations at which a sentence may seem to end. After a title a name follows, always.
_TITLE = re.compile(
    r"(?<![\w.])(?:Mr|Mrs|Ms|Messrs|Dr|Drs|Prof|Rev|Hon|Fr|Sgt|Cpl|Pvt|Pfc|Lt|Capt|Cmdr|Cdr|Maj|Col|Gen|Brig|"
    r"Adm|Sens?|Reps?|Govs?|Pres|Supt|Insp|Det|Amb|Atty|vs|v|cf|e\.g|i\.e|viz|approx|Figs?|Vol|pp?)\.\Z"
)
# These may end a sentence or stand inside one: the next word decides.
_UNSURE = re.compile(
    r"(?<![\w.])(?:[A-Za-z](?:\.[A-Za-z])*|Inc|Corp|Cos?|Ltd|LLC|Bros|Jr|Sr|Esq|Ph\.D|Assn|Univ|Ave|Blvd|Rd|St|Ste|"
    r"Mt|Ft|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thurs?|Fri|Sat|Sun|Ala|Ariz|Ark|Calif|"
    r"Colo|Conn|Del|Fla|Ga|Ill|Ind|Kan|Ky|La|Md|Mass|Mich|Minn|Miss|Mo|Mont|Neb|Nev|Okla|Ore|Pa|Tenn|Tex|Va|Vt|"
    r"Wash|Wis|Wyo|[Nn]os?|al|etc|est|[Dd]ept)\.\Z"
)
_STARTERS = (
    "A|About|According|Additionally|After|All|Also|Although|Among|An|And|Another|Any|Are|As|At|"
    "Because|Before|Both|But|By|Can|Despite|Did|Do|Does|During|Each|Earlier|Either|Even|Every|Few|"
    "Finally|First|For|Former|From|Further|He|Her|Here|Hers|His|How|However|I|If|In|Instead|Is|It|"
    "Its|Just|Last|Late|Later|Like|Many|Maybe|Meanwhile|More|Moreover|Most|Much|My|Neither|"
    "Nevertheless|No|Nobody|None|Nor|Not|Nothing|Now|Of|Officials|On|Once|One|Only|Or|Other|Others|"
    "Our|Over|People|Perhaps|Police|Previously|Recent|Recently|Several|She|Since|So|Some|Still|Such|"
    "Than|That|The|Their|Then|There|These|They|Things|This|Those|Though|Three|Through|Thus|To|Two|"
    "Under|Unlike|Until|Up|Was|We|Were|What|When|Where|Whether|Which|While|Who|Why|Will|With|Within|"
    "Without|Would|Yet|You|Your"
)
_STARTER = re.compile(f"(?:{_STARTERS})\\Z")
# In other languages, whose lists have gaps ("Sr.", "Mme."), a short capitalised word is in doubt.
_SHORT_CAPITALISED = re.compile(r"(?<![\w.])(?=[^\W\d_]+\.\Z)[^\W\da-z_]\w{0,3}\.\Z")
# '"Stop!" Smith said.' goes on after the quotation; '"Why?" He left.' does not.
_ASKED = re.compile(f"[!?][{re.escape(_QUOTES)}]+\\Z")
_PARTICLE = re.compile(r"[\u3041-\u309f]")  # 「…。」と言った: the sentence goes on after the quotation
_PARENTHESIS = re.compile(r"\s+\(")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])+\Z")  # "U.S", "z.B", without the last full stop
_BRAND = re.compile(r"(?<!\w)(?:Yahoo|Yum|Jeopardy)!\Z")
_ORDINALS = frozenset({"da", "de", "sk"})  # languages that write "3." for "third"
_NEVER_AT_ABBREVIATION = frozenset({"ar", "bg", "de", "fa", "kk", "ru", "sk"})  # as pysbd has it


@dataclass(frozen=True)
class _Rules:
    """pysbd's data of one language, in lower case and without the last full stop."""

    language: str
    abbreviations: frozenset[str]
    titles: frozenset[str]  # a name follows
    starters: frozenset[str]


@lru_cache(maxsize=32)
def _rules(language: str) -> _Rules:
    known = LANGUAGE_CODES.get(language)
    if known is None:
        names = ", ".join(sorted(LANGUAGE_CODES))
        raise ValueError(f"corpus.language: no sentence rules for {language!r}; known: {names}")
    words, replacer = known.Abbreviation, getattr(known, "AbbreviationReplacer", None)
    abbreviations, titles = (
        frozenset(each.strip().rstrip(".").lower() for each in getattr(words, name, ()))
        for name in ("ABBREVIATIONS", "PREPOSITIVE_ABBREVIATIONS")
    )
    return _Rules(language, abbreviations, titles, frozenset(getattr(replacer, "SENTENCE_STARTERS", ())))


def check_language(language: str) -> None:
    """Raises a ValueError that names the known languages, where this one is not among them."""
    _rules(language)


def ends_on_sentence(text: str, language: str = "en") -> bool:
    """Whether the last character closes a sentence: a terminator, or a closing mark after one.

    A title such as "Dr." does not close one.
    """
    return _is_end(text, len(text), _rules(language))


def sentence_ends(text: str, language: str = "en", limit: int | None = None) -> list[int]:
    """Offsets behind each sentence: text[:end] ends with a whole one. Ascending, and linear in the text.

    A sentence ends at a terminator and its closing marks if white space or the end follows (so that urls,
    decimals and abbreviated names stay whole), the next word is not in lower case, the place is outside
    quotations and parentheses that close later in the paragraph, and the last word is no title ("Dr."),
    initial or ordinal and no abbreviation in mid-sentence ("the U.S. Senate", "8 a.m. Monday", "approx. 5").
    Where this is in doubt two sentences count as one.

    Args:
        text: a paragraph ends at a line break; a hard-wrapped line does not end one.
        language: ISO 639-1 code that pysbd knows.
        limit: consider the sentences that end before this offset only.

    Raises:
        ValueError: the language is not known.
    """
    rules = _rules(language)
    seen = _WRAP.sub(" ", text.replace("\r", " "))  # as long as text
    stop = len(text) if limit is None else min(limit, len(text))
    ends: list[int] = []
    for match in _PARAGRAPH.finditer(seen):
        start = match.start()
        if start >= stop:
            break
        paragraph = match.group().rstrip()
        spans = _enclosed(paragraph)
        for end in _candidates(paragraph):
            if start + end > stop:
                break
            if not spans.hold(end) and _is_end(text, start + end, rules, start):
                ends.append(start + end)
    return ends


def _candidates(paragraph: str) -> Iterator[int]:
    """Offsets behind each terminator and its closing marks, and the end of the paragraph; ascending."""
    end = 0
    for match in _CANDIDATE.finditer(paragraph):
        end = match.end()
        yield end
    if end < len(paragraph):
        yield len(paragraph)


@dataclass(frozen=True)
class _Spans:
    """Disjoint stretches between an opening and a closing mark, ascending."""

    opened: list[int]
    closed: list[int]

    def hold(self, end: int) -> bool:
        """Whether the offset lies behind an opening mark and not behind the closing one."""
        at = bisect_left(self.opened, end) - 1
        return at >= 0 and end <= self.closed[at]


def _enclosed(paragraph: str) -> _Spans:
    """What lies in quotations and parentheses; marks without a partner enclose nothing.

    An inch mark, an apostrophe or the opening quote of a quotation that runs on in the next paragraph has none.
    """
    pairs: list[tuple[int, int]] = []
    opened: dict[str, list[int]] = {}  # closing mark -> places where one of its opening marks waits
    for match in _MARKS.finditer(paragraph):
        mark, at = match.group(), match.start()
        if mark in "\"'":
            pending = opened.setdefault(mark, [])
            if _opens(paragraph, at) and not (mark == "'" and paragraph[at + 1].isdigit()):  # '90s
                opened[mark] = [at]
            elif pending and not (mark == "'" and paragraph[at + 1 : at + 2].isalnum()):
                pairs.append((pending.pop(), at))
        elif mark in "«»":
            # French «so», German »so«.
            opens = _opens(paragraph, at) if mark == "»" else at == 0 or not paragraph[at - 1].isalnum()
            partner = "«" if mark == "»" else "»"
            if opened.get(mark) and not (opens and mark == "»"):
                pairs.append((opened[mark].pop(), at))
            elif opens:
                opened[partner] = [at]
        elif mark == "’":
            if opened.get(mark) and not paragraph[at + 1 : at + 2].isalnum():  # no apostrophe
                pairs.append((opened[mark].pop(), at))
        elif opened.get(mark):
            pairs.append((opened[mark].pop(), at))
        elif mark in _PAIRS and not (mark == "‘" and paragraph[at + 1 : at + 2].isdigit()):
            opened.setdefault(_PAIRS[mark], []).append(at)
    starts: list[int] = []
    stops: list[int] = []
    for start, stop in sorted(pairs):
        if stops and start < stops[-1]:
            stops[-1] = max(stops[-1], stop)
        else:
            starts.append(start)
            stops.append(stop)
    return _Spans(starts, stops)


def _opens(paragraph: str, at: int) -> bool:
    """Whether the quote at this offset opens: after a space or bracket, before a character."""
    before, after = paragraph[at - 1 : at] if at else " ", paragraph[at + 1 : at + 2]
    return (before.isspace() or before in "([{-—–“‘'\"") and bool(after) and not after.isspace()


def _is_end(text: str, end: int, rules: _Rules, start: int = 0) -> bool:
    """Whether a sentence ends at `end`; `start` is where its paragraph begins."""
    tail = text[max(start, end - _TAIL_CHARS) : end]
    match = _END.search(tail)
    if not match:
        return False
    following = text[end : end + 1]
    if following and not following.isspace() and not set(match.group()) & set(_UNSPACED):
        return False
    after = _NEXT_WORD.match(text, end)
    word = after.group(1)  # type: ignore[union-attr]
    if word[:1].islower():
        return False
    open_ended = bool(following) and not _BLANK_LINE.match(text, end)
    if open_ended and _inside_sentence(text, tail, end, start, rules):
        return False
    if rules.language != "en":
        return not (open_ended and _SHORT_CAPITALISED.search(tail))
    if _TITLE.search(tail):
        return False
    if open_ended and (_UNSURE.search(tail) or _ASKED.search(tail)):
        return bool(_STARTER.match(word))
    return True


def _inside_sentence(text: str, tail: str, end: int, start: int, rules: _Rules) -> bool:
    """Whether the last word, by pysbd's data, belongs to what follows; `tail` is the text before `end`."""
    after = _NEXT_WORD.match(text, end)
    follows = text[after.start(1) : after.start(1) + 1]  # type: ignore[union-attr]
    if follows and follows in _TERMINATORS:  # ". . ."
        return True
    if _BRAND.search(tail) or (tail[-1] in "」』" and _PARTICLE.match(text, end)):
        return True
    if not tail.endswith("."):
        return False
    last = _last_word(tail[:-1])
    if last.isdigit() and len(last) <= 2:
        before = tail[: -len(last) - 1].rstrip()
        numbered = (
            end - len(last) - 1 <= start
            or (  # "1. First item. 2. Second item."; not "on Jan. 5. The"
                before[-1:] in set(_TERMINATORS)
                and _last_word(before[:-1]).lower() not in rules.abbreviations
            )
        )
        return numbered or rules.language in _ORDINALS
    if len(last) == 1 and (last.isupper() or rules.language in _ORDINALS) and last.isalpha():
        return not (last == "I" and after.group(1) in rules.starters)  # type: ignore[union-attr]
    lower = last.lower()
    if rules.language != "en" and _INITIALS.match(last):
        return after.group(1) not in rules.starters  # type: ignore[union-attr]
    if lower not in rules.abbreviations:
        return False
    if lower in rules.titles or rules.language in _NEVER_AT_ABBREVIATION:
        return True
    return follows.isdigit() or bool(_PARENTHESIS.match(text, end))


def _last_word(tail: str) -> str:
    found = _LAST_WORD.search(tail)
    return found.group() if found else ""
