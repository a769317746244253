"""Cuts articles after their last whole sentence within a token cap.

In: rows of the corpus and the profile's tokenizer. Out: rows whose `text` is the start of the article, with
token and sentence counts measured on the text that is kept (see `sentence_ends` for what a sentence is).
The whole article is tokenised once, what the cap covers a few times more: time is linear in its length.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import polars as pl

from steer_pipeline.lab.corpus.sentences import check_language, sentence_ends

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


def truncate_news(rows: pl.DataFrame, tokenizer: Any, max_tokens: int, language: str = "en") -> pl.DataFrame:
    """Each row cut after the last whole sentence that fits into `max_tokens`; order and row count stay.

    White space around the article goes first. Of the prefixes that end with a sentence the longest
    whose own tokens (no special tokens added; special-token text counts as plain text) fit is kept.
    Where there is none, because the first sentence alone is too long or the text has no sentence
    end at all, the row has `ends_on_sentence` False, `n_sentences` 0 and the text up to the last white
    space that fits: a caller leaves such rows out. A row that the tokenizer or the segmenter cannot take
    has the empty text and no tokens; `cut_news` says why.

    Args:
        rows: at least `row_id`, `source_index`, `title`, `text`, `domain`, `date`, `url`.
        tokenizer: a transformers tokenizer.
        max_tokens: cap of `n_tokens`, at least 1.
        language: ISO 639-1 code that pysbd knows.

    Returns:
        `TRUNCATED_SCHEMA`: `n_tokens` counts the tokens of the kept text, `n_tokens_full` the article's.

    Raises:
        ValueError: the language is not known.
    """
    return cut_news(rows, tokenizer, max_tokens, language)[0]


def cut_news(
    rows: pl.DataFrame, tokenizer: Any, max_tokens: int, language: str = "en"
) -> tuple[pl.DataFrame, list[str | None]]:
    """What `truncate_news` returns, and for each row why it could not be taken; None where it could."""
    check_language(language)
    problems: list[str | None] = [None] * rows.height
    texts = [text.strip() for text in rows["text"]]
    n_full, reach = _measure(tokenizer, texts, max_tokens, problems)
    ends = [_ends(text, language, reach[i] + CONTEXT_CHARS, i, problems) for i, text in enumerate(texts)]
    for i, problem in enumerate(problems):
        if problem:
            texts[i], ends[i], n_full[i], reach[i] = "", [], 0, 0
    n_sentences, n_tokens = _longest_fitting(texts, ends, reach, tokenizer, max_tokens)
    cuts = [each[n - 1] if n else 0 for each, n in zip(ends, n_sentences, strict=True)]

    without = [i for i, n in enumerate(n_sentences) if not n]
    words = [[m.end() for m in re.finditer(r"\S+", texts[i][: reach[i] + CONTEXT_CHARS])] for i in without]
    n_words, counts = _longest_fitting(
        [texts[i] for i in without], words, [reach[i] for i in without], tokenizer, max_tokens
    )
    for i, each, n, count in zip(without, words, n_words, counts, strict=True):
        cuts[i], n_tokens[i] = each[n - 1] if n else 0, count

    cut = rows.with_columns(
        pl.Series("text", [text[:end] for text, end in zip(texts, cuts, strict=True)], dtype=pl.String),
        pl.Series("n_tokens", n_tokens, dtype=pl.Int64),
        pl.Series("n_tokens_full", n_full, dtype=pl.Int64),
        pl.Series("n_sentences", n_sentences, dtype=pl.Int64),
        pl.Series("was_cut", [end < len(t) for t, end in zip(texts, cuts, strict=True)], dtype=pl.Boolean),
        pl.Series("ends_on_sentence", [n > 0 for n in n_sentences], dtype=pl.Boolean),
    ).select(TRUNCATED_SCHEMA.names())
    return cut, problems


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text: no special tokens added, special-token text counted as plain text."""
    return [len(ids) for ids in _encode(tokenizer, texts)]


def _ends(text: str, language: str, limit: int, row: int, problems: list[str | None]) -> list[int]:
    """Sentence ends before `limit`; one odd text fills its place in `problems` and does not stop the others."""
    try:
        return sentence_ends(text, language, limit)
    except Exception as error:
        problems[row] = f"sentence segmenter failed: {type(error).__name__}: {error}"
        return []


def _measure(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, problems: list[str | None]
) -> tuple[list[int], list[int]]:
    """Tokens of each text, and the characters that its first `max_tokens` tokens cover.

    A text that the tokenizer refuses counts as empty, and its place in `problems` is filled.
    """
    found: list[tuple[int, int]] = []
    for start in range(0, len(texts), TOKENIZER_BATCH):
        batch = texts[start : start + TOKENIZER_BATCH]
        try:
            found += _reaches(tokenizer, batch, max_tokens)
        except Exception:  # which of them it was, a second try tells
            for i, text in enumerate(batch, start):
                try:
                    found += _reaches(tokenizer, [text], max_tokens)
                except Exception as error:
                    problems[i] = f"tokenizer failed: {type(error).__name__}: {error}"
                    found.append((0, 0))
    return [count for count, _ in found], [near for _, near in found]


def _reaches(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[tuple[int, int]]:
    """(tokens, characters that the first `max_tokens` of them cover) of each text of one batch.

    The tokenizer says where a token stands in the text as given. Decoding would not: it gives what the
    tokenizer has normalised, and a place that is not found means measuring the whole text many times.
    """
    encoded = _encode_batch(tokenizer, texts)
    found = []
    for i, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        near = len(text)
        if len(ids) > max_tokens:
            span = encoded.token_to_chars(i, max_tokens - 1) if encoded.is_fast else None
            near = span.end if span else _reach_by_doubling(tokenizer, text, max_tokens)
        found.append((len(ids), near))
    return found


def _reach_by_doubling(tokenizer: Any, text: str, max_tokens: int) -> int:
    """Characters of a prefix with more than `max_tokens` tokens, at most twice the shortest."""
    near = max_tokens
    while near < len(text) and len(_encode(tokenizer, [text[:near]])[0]) <= max_tokens:
        near *= 2
    return min(near, len(text))


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), TOKENIZER_BATCH):
        ids += _encode_batch(tokenizer, texts[start : start + TOKENIZER_BATCH])["input_ids"]
    return ids


def _encode_batch(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,  # "<|im_end|>" in an article is text
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


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
