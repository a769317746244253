"""Who a row is: its stable id, and the normal form in which two texts count as the same.

In: url and text as the source has them. Out: short strings and integers that depend on nothing else, so
that a row keeps its id when files move, split or grow.
"""

import hashlib
import re
import unicodedata

_SPACE = re.compile(r"\s+")
# Scripts without spaces between words: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def row_id(url: str, text: str) -> str:
    """16 hex digits of the SHA-256 of `url + "\\n" + text`, both verbatim in UTF-8."""
    return hashlib.sha256(f"{url}\n{text}".encode()).hexdigest()[:16]


def normal_form(text: str) -> str:
    """NFKC, case folded, each run of white space one blank, none at the ends."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def digest64(text: str) -> int:
    """The first 8 bytes of the BLAKE2b of `text`, as an unsigned integer."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def shingles(normal: str, width: int = 3) -> list[bytes]:
    """Word `width`-grams of a normal form, as UTF-8; a shorter text is one shingle of all its words."""
    words = _WORD.findall(normal)
    if len(words) <= width:
        return [" ".join(words).encode()]
    return [" ".join(words[i : i + width]).encode() for i in range(len(words) - width + 1)]
