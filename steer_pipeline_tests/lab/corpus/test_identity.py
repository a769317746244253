import hashlib
import random
import time
import unicodedata

import pytest

from steer_pipeline.lab.corpus.identity import PIECE_CHARS, digest64, normal_form, row_id, shingles


def test_row_id_is_the_hash_of_url_and_text_and_nothing_else():
    expected = hashlib.sha256("https://a.example/é\nZwölf Boxkämpfer.".encode()).hexdigest()[:16]
    assert row_id("https://a.example/é", "Zwölf Boxkämpfer.") == expected
    assert row_id("u", "text") != row_id("u", "text ")
    assert row_id("u", "text") != row_id("v", "text")


def test_normal_form_forgets_case_width_and_white_space_only():
    assert normal_form("  The\u00a0CITY\n\nvoted ﬁrst. ") == "the city voted first."
    assert normal_form("The city, voted.") != normal_form("The city voted.")


def test_digests_are_stable_across_processes():
    assert digest64("the city voted.") == int.from_bytes(
        hashlib.blake2b(b"the city voted.", digest_size=8).digest(), "little"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d", [b"a b c", b"b c d"]),
        ("one, two", [b"one two"]),
        ("市は可決", ["市 は 可".encode(), "は 可 決".encode()]),
        ("...", [b""]),
    ],
)
def test_shingles_are_word_triples(text, expected):
    assert shingles(text) == expected


def test_normal_form_takes_linear_time_for_any_run_of_marks():
    start = time.perf_counter()
    normal_form("a" + "\u0301\u0323" * 75_000)
    assert time.perf_counter() - start < 5  # sorted as one run: minutes


def test_normal_form_in_pieces_is_that_of_the_whole():
    rng = random.Random(3)
    letters = ["e\u0301", "か\u3099", "\u1100\u1161\u11a8", "ﬁ", "é", "漢", "x", " ", "a\u0323\u0301"]
    for _ in range(20):
        text = "".join(rng.choices(letters, k=2 * PIECE_CHARS))
        assert normal_form(text) == " ".join(unicodedata.normalize("NFKC", text).casefold().split())
