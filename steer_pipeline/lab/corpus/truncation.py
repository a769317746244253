"""Cuts articles after their last whole sentence within a token cap.

In: rows of the corpus and the profile's tokenizer. Out: rows whose `text` is the start of the article, with
token and sentence counts measured on the text that is kept. Sentences come from pysbd; its boundaries are
then checked against the text itself (see `sentence_ends`), so that a cut never falls inside an
abbreviation, number, url, quotation or parenthesis.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import polars as pl
import pysbd

CONTEXT_CHARS = 200  # of text behind the cap that the segmenter still sees
TOKENIZER_BATCH = 256

TRUNCATED_SCHEMA = pl.Schema(
    {
        "row_id": pl.String(),
        "source_index": pl.Int64(),
        "title": pl.String(),
        "text": pl.String(),
        "domain": pl.String(),
        "date": pl.String(),
        "url": pl.String(),
        "n_tokens": pl.Int64(),
        "n_tokens_full": pl.Int64(),
        "n_sentences": pl.Int64(),
        "was_cut": pl.Boolean(),
        "ends_on_sentence": pl.Boolean(),
    }
)

_TERMINATORS = ".!?…‼⁇⁈⁉。．！？｡।॥؟۔።፧։՞။"
_UNSPACED = "。．！？｡"  # after these the next sentence may follow without white space
_QUOTES = "\"'”’»›"
_CLOSERS = _QUOTES + ")]}」』）"
_PAIRS = {"(": ")", "[": "]", "“": "”", "«": "»", "「": "」", "『": "』", "（": "）"}
_MARKS = re.compile(f'["{re.escape("".join([*_PAIRS, *_PAIRS.values()]))}]')
_END = re.compile(f"[{re.escape(_TERMINATORS)}][{re.escape(_CLOSERS)}]*\\Z")
# Characters that pysbd uses internally as stand-ins for punctuation; in a text they lose it the place.
_RESERVED = dict.fromkeys(map(ord, "∯♨☝ȸȹ☉☇☈☄♬♭☏ƪ♟♝∮ᓰᓱᓳᓴᓷᓸ✂⌬⎋"), "_") | {ord("\r"): " "}
# A line break within a sentence (hard-wrapped text): no sentence ends before it, none starts after it.
_WRAP = re.compile(f"(?<=[^\\s{re.escape(_TERMINATORS)}{re.escape(_CLOSERS)}])\n(?=\\S)")

# English abbreviations at which pysbd may end a sentence. After a title a name follows, always.
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
# In other languages, whose lists in pysbd have gaps ("Sr.", "Mme."), a short capitalised word is in doubt.
_SHORT_CAPITALISED = re.compile(r"(?<![\w.])(?=[^\W\d_]+\.\Z)[^\W\da-z_]\w{0,3}\.\Z")
# '"Stop!" Smith said.' goes on after the quotation; '"Why?" He left.' does not.
_ASKED = re.compile(f"[!?][{re.escape(_QUOTES)}]+\\Z")
# An end beyond doubt: splitting here first keeps the pieces that pysbd sees short, as its time grows faster.
_SURE_END = re.compile(f"(?<=[a-z]{{5}}[.!?])(?= (?:{_STARTERS})\\b)")
_QUOTATION_END = re.compile(f'[{re.escape(_TERMINATORS)}][{re.escape(_CLOSERS)}]+(?=\\s+["“‘«(\\[])')
_PARAGRAPH = re.compile(r"[^\s][^\n]*")
_INNER_END = re.compile(f"[{re.escape(_TERMINATORS)}][{re.escape(_CLOSERS)}]*(?=\\s)|[{_UNSPACED}]")
_CLOSING = re.compile(f"[{re.escape(_CLOSERS)}]*")
_BLANK_LINE = re.compile(r"[^\S\n]*\n\s*\n")
_NEXT_WORD = re.compile(r"[\s\"'“‘«„(\[¿¡]*(\w*)")


def truncate_news(rows: pl.DataFrame, tokenizer: Any, max_tokens: int, language: str = "en") -> pl.DataFrame:
    """Each row cut after the last whole sentence that fits into `max_tokens`; order and row count stay.

    White space around the article goes first. Of the prefixes that end with a sentence the longest
    whose own tokens (no special tokens added; special-token text counts as plain text) fit is kept.
    Where there is none, because the first sentence alone is too long or the text has no sentence
    end at all, the row has `ends_on_sentence` False, `n_sentences` 0 and the text up to the last white
    space that fits: a caller leaves such rows out.

    Args:
        rows: at least `row_id`, `source_index`, `title`, `text`, `domain`, `date`, `url`.
        tokenizer: a transformers tokenizer.
        max_tokens: cap of `n_tokens`, at least 1.
        language: ISO 639-1 code that pysbd knows.

    Returns:
        `TRUNCATED_SCHEMA`: `n_tokens` counts the tokens of the kept text, `n_tokens_full` the article's.
    """
    texts = [text.strip() for text in rows["text"]]
    full = _encode(tokenizer, texts)
    n_full = [len(ids) for ids in full]
    reach = [_reach(tokenizer, text, ids, max_tokens) for text, ids in zip(texts, full, strict=True)]
    ends = [
        sentence_ends(text, language, near + CONTEXT_CHARS) for text, near in zip(texts, reach, strict=True)
    ]
    n_sentences, n_tokens = _longest_fitting(texts, ends, reach, tokenizer, max_tokens)
    cuts = [each[n - 1] if n else 0 for each, n in zip(ends, n_sentences, strict=True)]

    without = [i for i, n in enumerate(n_sentences) if not n]
    words = [[m.end() for m in re.finditer(r"\S+", texts[i][: reach[i] + CONTEXT_CHARS])] for i in without]
    n_words, counts = _longest_fitting(
        [texts[i] for i in without], words, [reach[i] for i in without], tokenizer, max_tokens
    )
    for i, each, n, count in zip(without, words, n_words, counts, strict=True):
        cuts[i], n_tokens[i] = each[n - 1] if n else 0, count

    return rows.with_columns(
        pl.Series("text", [text[:end] for text, end in zip(texts, cuts, strict=True)], dtype=pl.String),
        pl.Series("n_tokens", n_tokens, dtype=pl.Int64),
        pl.Series("n_tokens_full", n_full, dtype=pl.Int64),
        pl.Series("n_sentences", n_sentences, dtype=pl.Int64),
        pl.Series("was_cut", [end < len(t) for t, end in zip(texts, cuts, strict=True)], dtype=pl.Boolean),
        pl.Series("ends_on_sentence", [n > 0 for n in n_sentences], dtype=pl.Boolean),
    ).select(TRUNCATED_SCHEMA.names())


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text: no special tokens added, special-token text counted as plain text."""
    return [len(ids) for ids in _encode(tokenizer, texts)]


def _reach(tokenizer: Any, text: str, ids: list[int], max_tokens: int) -> int:
    """Characters that the first `max_tokens` tokens cover; all where decoding does not give the text back."""
    if len(ids) <= max_tokens:
        return len(text)
    start = tokenizer.decode(ids[:max_tokens], clean_up_tokenization_spaces=False)
    return len(start) if text.startswith(start[:-4]) else len(text)  # its last character may be torn


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), TOKENIZER_BATCH):
        ids += tokenizer(
            list(texts[start : start + TOKENIZER_BATCH]),
            add_special_tokens=False,
            split_special_tokens=True,  # "<|im_end|>" in an article is text
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
    return ids


def _longest_fitting(
    texts: Sequence[str],
    ends: Sequence[list[int]],
    reach: Sequence[int],
    tokenizer: Any,
    max_tokens: int,
) -> tuple[list[int], list[int]]:
    """For each text, how many of its `ends` fit into the cap, and the tokens of the last prefix that does.

    The search starts at the end nearest to `reach` and measures each prefix that it tries, all texts at
    once; that the token count grows with the prefix is the only assumption.
    """
    low, high = [0] * len(texts), [len(each) + 1 for each in ends]  # low fits, high does not
    probe = [max(1, bisect_right(each, near)) for each, near in zip(ends, reach, strict=True)]
    n_tokens = [0] * len(texts)
    first = True
    while open_rows := [i for i in range(len(texts)) if high[i] - low[i] > 1]:
        prefixes = _encode(tokenizer, [texts[i][: ends[i][probe[i] - 1]] for i in open_rows])
        for i, ids in zip(open_rows, prefixes, strict=True):
            fits = len(ids) <= max_tokens
            if fits:
                low[i], n_tokens[i] = probe[i], len(ids)
            else:
                high[i] = probe[i]
            neighbour = low[i] + 1 if fits else high[i] - 1
            probe[i] = neighbour if first else (low[i] + high[i]) // 2
        first = False
    return low, n_tokens


# ------------------------------------------------------------------------------------------- sentences


def ends_on_sentence(text: str, language: str = "en") -> bool:
    """Whether the last character closes a sentence: a terminator, or a closing mark after one.

    A title such as "Dr." does not close one.
    """
    return _is_end(text, len(text), language)


def sentence_ends(text: str, language: str = "en", limit: int | None = None) -> list[int]:
    """Offsets just behind each sentence of `text` (behind its closing quotes, before white space), ascending.

    pysbd proposes; a proposal stands if a terminator and closing marks precede it, white space or the
    end follows (so that urls, decimals and abbreviated names stay whole), the next word is not in lower
    case, it is outside quotations and parentheses that close later in the paragraph, and, in
    English, the last word is no title ("Dr.") and no abbreviation in mid-sentence ("the U.S. Senate",
    "8 a.m. Monday"). Where this is in doubt two sentences count as one.

    Args:
        text: a paragraph ends at a line break; a hard-wrapped line does not end one.
        language: ISO 639-1 code that pysbd knows.
        limit: consider the sentences that end before this offset only.

    Raises:
        ValueError: pysbd does not know the language.
    """
    seen = _WRAP.sub(" ", text.translate(_RESERVED))  # as long as text, like everything made from it
    stop = len(text) if limit is None else min(limit, len(text))
    ends: list[int] = []
    for match in _PARAGRAPH.finditer(seen):
        start = match.start()
        if start >= stop:
            break
        paragraph = match.group().rstrip()
        enclosed, paragraph = _enclosed(paragraph)
        part = paragraph[: stop - start]
        for end in sorted(_proposals(part, enclosed, len(part) == len(paragraph), language)):
            if not _inside(end, enclosed) and _is_end(text, start + end, language):
                ends.append(start + end)
    return ends


@lru_cache(maxsize=4)
def _segmenter(language: str) -> pysbd.Segmenter:
    try:
        return pysbd.Segmenter(language=language, clean=False, char_span=True)
    except ValueError as error:
        known = ", ".join(sorted(pysbd.languages.LANGUAGE_CODES))
        raise ValueError(f"corpus.language: no sentence rules for {language!r}; known: {known}") from error


def _enclosed(paragraph: str) -> tuple[list[tuple[int, int]], str]:
    """Spans (opening mark, closing mark), and the paragraph with other marks for quotes without partner.

    pysbd pairs straight quotes by their order, so an inch mark or the opening quote of a quotation that
    runs on in the next paragraph would turn the rest inside out.
    """
    spans: list[tuple[int, int]] = []
    opened: dict[str, list[int]] = {}
    lonely: dict[int, str] = {}
    for match in _MARKS.finditer(paragraph):
        mark, at = match.group(), match.start()
        if mark == '"':
            pending = opened.setdefault(mark, [])
            if _opens(paragraph, at):
                lonely |= dict.fromkeys(pending, "_")
                opened[mark] = [at]
            elif pending:
                spans.append((pending.pop(), at))
            else:
                lonely[at] = "”"
        elif mark in _PAIRS:
            opened.setdefault(_PAIRS[mark], []).append(at)
        elif opened.get(mark):
            spans.append((opened[mark].pop(), at))
    lonely |= dict.fromkeys(opened.get('"', ()), "_")
    characters = list(paragraph)
    for at, mark in lonely.items():
        characters[at] = mark
    # "--" and the apostrophe of '90s would make pysbd treat what lies between two of them as a unit.
    return spans, re.sub(r"(?<=\s)'(?=\d)", "_", "".join(characters).replace("--", "__"))


def _opens(paragraph: str, at: int) -> bool:
    """Whether the straight quote at this offset opens: after a space or bracket, before a character."""
    before, after = paragraph[at - 1 : at] if at else " ", paragraph[at + 1 : at + 2]
    return (before.isspace() or before in "([{-—–“‘'") and bool(after) and not after.isspace()


def _proposals(part: str, enclosed: list[tuple[int, int]], whole: bool, language: str) -> set[int]:
    """Where sentences may end: pysbd's ends, behind closing marks, and the end of a `whole` paragraph."""
    segmenter = _segmenter(language)
    ends = {len(part)} if whole else set()
    for pattern in (_QUOTATION_END, _SURE_END) if language == "en" else (_QUOTATION_END,):
        ends |= {m.end() for m in pattern.finditer(part) if not _inside(m.end(), enclosed)}
    found = set(ends)
    start = 0
    for stop in sorted(ends | {len(part)}):
        piece = part[start:stop]
        at = 0
        # Not through char_span: that compiles a pattern for each sentence, which doubles the time.
        for sentence in segmenter.processor(piece).process() if _INNER_END.search(piece) else ():
            place = piece.find(sentence.strip(), at)
            if place >= 0:
                at = place + len(sentence.strip())
                found.add(start + at + len(_CLOSING.match(piece, at).group()))  # type: ignore[union-attr]
        start = stop
    return found


def _inside(end: int, enclosed: list[tuple[int, int]]) -> bool:
    return any(opened < end <= closed for opened, closed in enclosed)


def _is_end(text: str, end: int, language: str) -> bool:
    tail = text[max(0, end - 24) : end]
    match = _END.search(tail)
    if not match:
        return False
    following = text[end : end + 1]
    if following and not following.isspace() and not set(match.group()) & set(_UNSPACED):
        return False
    word = _NEXT_WORD.match(text, end).group(1)  # type: ignore[union-attr]
    if word[:1].islower():
        return False
    open_ended = following and not _BLANK_LINE.match(text, end)
    if language != "en":
        return not (open_ended and _SHORT_CAPITALISED.search(tail))
    if _TITLE.search(tail):
        return False
    if open_ended and (_UNSURE.search(tail) or _ASKED.search(tail)):
        return bool(_STARTER.match(word))
    return True
