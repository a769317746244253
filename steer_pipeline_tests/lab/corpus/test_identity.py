import hashlib

import pytest

from steer_pipeline.lab.corpus.identity import digest64, normal_form, row_id, shingles


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
