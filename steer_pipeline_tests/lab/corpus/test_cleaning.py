import time

import pytest

from steer_pipeline.lab.corpus.cleaning import ENTITIES, LEFT, MENDED, TAGS, clean_text


@pytest.mark.parametrize(
    ("text", "clean", "done"),
    [
        ("Smith &amp; Sons said &quot;no&quot;.", 'Smith & Sons said "no".', {ENTITIES}),
        ("It&#8217;s &#x2013; &euro;5&nbsp;now.", "It’s – €5 now.", {ENTITIES}),
        ("A&amp;amp;#39;s B&amp;nbsp;C.", "A's B C.", {ENTITIES}),
        ("Soft&shy;ware.", "Software.", {ENTITIES}),
        ("Lock &amp Key", "Lock & Key", {ENTITIES}),
        ("Over.<br/>The end.", "Over.\nThe end.", {TAGS}),
        ("<p>One.</p>\n<p class='x'>Two <a href='u'>links</a>.</p>", "One.\n\nTwo links.", {TAGS}),
        ("&lt;p&gt;One.&lt;/p&gt;&lt;p&gt;Two.", "One.\n\nTwo.", {ENTITIES, TAGS}),
        ("One.<script>var a = '<b>';</script> Two.<!-- x --><STYLE>p {}</STYLE>", "One. Two.", {TAGS}),
        ("One.<script>var a", "One.var a", {TAGS}),
        ("The cafÃ© said itâ€™s Â£5.", "The café said it’s £5.", {MENDED}),
        ("Good café.\nschÃ¶n", "Good café.\nschön", {MENDED}),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет", {MENDED}),
        ("It was\ufffdover.", "It was\ufffdover.", {LEFT}),
    ],
)
def test_html_and_mojibake_go(text, clean, done):
    assert clean_text(text) == (clean, done)


@pytest.mark.parametrize(
    "text",
    [
        "AT&T and R&D, 3 < 4 > 2, a <grin> and <3, x<y, <https://a.example/?a=1&copy=2&lt=3>",
        "“Naïve” café – Müller, Łódź, 5°C, £5, Å, 日本語, привет, 😀",
        "&unknown; &; &#; & x; &#99999999999;",
        " two  blanks\n\n\n\nand lines \n",
    ],
)
def test_a_sound_text_stays_as_it_is(text):
    assert clean_text(text) == (text, set())


SHAPES = [
    "<", "<a ", "<p>", "</p", "<!--", "<script>", "<style", "&", "&#9", "&#99999999", "&amp;", "&lt;", "a<b ", "< >",
    "&amp;amp;", "Ã©", "â€™", "Â ", "Ã©漢", "\ufffd", " ", "\n", " \n", "<br>", "é\u0301\u0323", "ƒaÃ", "<a href='",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_time_is_linear_in_the_text(shape):
    """40 microseconds a character at most; a quadratic rule would need a thousand times as much here."""
    text = shape * (100_000 // len(shape))
    start = time.perf_counter()
    clean_text(text)
    assert time.perf_counter() - start < 4
