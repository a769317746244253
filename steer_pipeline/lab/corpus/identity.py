"""Who a row is: its stable id, and the normal form in which two texts count as the same.

In: url and text as the corpus stores them. Out: short strings and integers that depend on nothing else, so
that a row keeps its id when files move, split or grow.
"""

import hashlib
import re
import unicodedata

PIECE_CHARS = 1024
_SPACE = re.compile(r"\s+")
# Scripts without spaces between words: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def row_id(url: str, text: str) -> str:
    """16 hex digits of the SHA-256 of `url + "\\n" + text`, both verbatim in UTF-8.

    `text` is what is stored, after HTML and mojibake are mended: a text that comes out differently is another
    row, so that no rewrite of the one is taken for a rewrite of the other. A text with nothing to mend has the
    id of the source's own text.
    """
    return hashlib.sha256(f"{url}\n{text}".encode()).hexdigest()[:16]


def normal_form(text: str) -> str:
    """NFKC, case folded, each run of white space one blank, none at the ends."""
    return _SPACE.sub(" ", _nfkc(text).casefold()).strip()


def _nfkc(text: str) -> str:
    """NFKC in linear time: CPython sorts a run of combining marks in quadratic time, so pieces are bounded."""
    if text.isascii() or len(text) <= PIECE_CHARS:
        return unicodedata.normalize("NFKC", text)
    pieces: list[str] = []
    start = 0
    while start < len(text):
        stop = start + PIECE_CHARS
        while stop > start + PIECE_CHARS // 2 and stop < len(text) and not _apart(text[stop - 1], text[stop]):
            stop -= 1
        pieces.append(unicodedata.normalize("NFKC", text[start:stop]))
        start = stop
    return "".join(pieces)


def _apart(left: str, right: str) -> bool:
    """Whether normalising two neighbours apart gives what normalising them together does."""
    if unicodedata.combining(right) or "\u1160" <= right <= "\u11ff":  # Hangul composes in threes
        return False
    together = unicodedata.normalize("NFKC", left + right)
    return together == unicodedata.normalize("NFKC", left) + unicodedata.normalize("NFKC", right)


def digest64(text: str) -> int:
    """The first 8 bytes of the BLAKE2b of `text`, as an unsigned integer."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def shingles(normal: str, width: int = 3) -> list[bytes]:
    """Word `width`-grams of a normal form, as UTF-8; a shorter text is one shingle of all its words."""
    words = _WORD.findall(normal)
    if len(words) <= width:
        return [" ".join(words).encode()]
    return [" ".join(words[i : i + width]).encode() for i in range(len(words) - width + 1)]
