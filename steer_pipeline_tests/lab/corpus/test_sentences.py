"""Sentences in several languages, and time that grows with the text and no faster."""

import random
import time

import pytest

from steer_pipeline.lab.corpus.sentences import ends_on_sentence, sentence_ends
from steer_pipeline.lab.corpus.truncation import truncate_news

# "|" marks the ends.
TEXTS = [
    ("en", "J. A. Smith and J. R. R. Doe met.| I saw Vitamin C. It helped.| It was him and I.| He left.|"),
    ("en", "1. First item.| 2. Second item.| See Fig. 3.| It is on p. 5.| Sec. 5 says so.|"),
    ("en", "He paused. . . .| Then he spoke.| Wait ...| She left.| Play Yahoo! Games.| It is no. 5 in line.|"),
    ("en", "'Yes. No.' he said.| ‘I see. You see.’| They left.| The players’ union agreed.| Rock 'n' roll died.|"),
    ("en", "Acme Corp. President Li spoke.| In the U.K.| The vote passed.| They met at approx. (5) points.|"),
    ("de", "Am 3. Oktober 1990 war es so weit.| Dr. Müller sagte: „Ja. Das ist gut.“| Er ging z. B. heim.|"),
    ("de", "»Ich gehe. Du bleibst.«| Er ging.| Das war bzw. Ist gut.| Ca. 50 Leute kamen.| Im Jahr 1984.| Ja.|"),
    ("de", "Er machte den B.A. in Köln und die Lizenz B(asis) Stufe zwei.| Danach kam das Festessen.| Alle kamen.|"),
    ("fr", "M. Dupont est arrivé.| « Je pars. Tu restes. » Il est parti.| Voilà tout.|"),
    ("es", "¿Quién es?| El Sr. Pérez no lo sabe.| Se fue a EE. UU. Con su hermano.| Fin.|"),
    ("it", "Ieri l’avv. Rossi ha parlato con l’avv. Verdi e con avv. Bianchini.| Poi piovve.|"),
    ("de", "„Ja. Gut.“| Dann: „Nein. Schlecht.“| Ein “Wort. Zwei.” hier.| Aus dem Haus.|"),
    ("ru", "Я приехал в г. Москву.| Это был я. Он сказал: «Да. Нет».| А. С. Пушкин писал.|"),
    ("ja", "これは「テストです。はい。」と言った。|次の文です。|（注。これ。）|終わり！|本当？|はい。|"),
    ("zh", "他说：“好的。我去。”|然后他走了。|下一句！|"),
    ("sk", "Firma A s. r. o. Bratislava.| Koniec.| Dňa 3. Januára prišiel.| Ing. Novák odišiel.|"),
    ("hi", "यह एक वाक्य है।| क्या यह है?| हाँ।|"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "marked"), TEXTS, ids=lambda value: value[:24])
def test_sentences_end_at_the_marks(language, marked):
    pieces = marked.split("|")
    text = "".join(pieces)
    expected = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces) - 1)]
    assert sentence_ends(text, language) == expected


UNITS = [
    "a", "B", " ", "\n", "\n\n", "\r", "\t", ".", "?", "!", "…", "。", '"', "'", "“", "”", "‘", "’", "«", "»", "„",
    "(", ")", "[", "]", "「", "」", "（", "）", "--", "1", "12", "101, ", "[1]", ".[1, 2]", "1. ", "2) ", "U.S. ",
    "Mr. ", "Dr.", "e.g. ", "iv) ", "...", ". . . ", "!!!", "?!", "\u00a0", "e\u0301", "\u0301\u0323", "&", "<b>",
    "http://a.b/c?d=", "a@b.c ", "$2.", "1,000", "'90s ", '" (x) "', "I. ", "。「", "B(", "\\", "{", "|", "漢", "😀",
]  # fmt: skip
LANGUAGES = ["en", "de", "ja", "ru", "fr", "sk", "ar", "zh", "da", "es"]


def seconds(text: str, language: str) -> float:
    start = time.perf_counter()
    sentence_ends(text, language)
    return time.perf_counter() - start


def test_no_shape_of_text_costs_more_than_linear_time():
    """40 microseconds a character are several times what the worst shape needs; anything quadratic needs more.

    Shapes are repeated units and pairs of units, open and closed, in ten languages.
    """
    rng = random.Random(4)
    shapes = UNITS + ["".join(rng.choices(UNITS, k=rng.randint(2, 5))) for _ in range(60)]
    for shape in shapes:
        for frame in ("{}", "It rained ({}", '"{}" The end.'):
            text = frame.replace("{}", shape * (10_000 // len(shape)))
            language = rng.choice(LANGUAGES)
            taken = seconds(text, language)
            assert taken < 0.4, (shape, frame, language, taken)


@pytest.mark.parametrize("shape", ["。「", "I. ", "。", ".[1, 2]", "(", '" (x) "a', "e.g. |1. )", ". ", ".”"])
def test_four_times_the_text_takes_about_four_times_as_long(shape):
    base = shape * (10_000 // len(shape))
    once = min(seconds(base, "en") for _ in range(3))
    assert min(seconds(4 * base, "en") for _ in range(3)) < 8 * once + 0.05


def test_a_list_of_citations_after_a_full_stop_ends(news, tokenizer):
    """pysbd's own expression takes ten times as long with every number, 48 s for nine."""
    numbers = ", ".join(map(str, range(101, 400)))
    text = f"It rained. The effect was known.[{numbers}]\nThe end came later."
    start = time.perf_counter()
    (row,) = truncate_news(news([text]), tokenizer, 8000).to_dicts()
    assert time.perf_counter() - start < 2
    assert row["text"] == text


def test_what_is_an_end_is_an_end_of_the_cut_text_too():
    rng = random.Random(8)
    for _ in range(400):
        text = "".join(rng.choices([*UNITS, "It rained. ", "The end. "], k=30)).strip()
        language = rng.choice(LANGUAGES)
        ends = sentence_ends(text, language)
        assert ends == sorted(set(ends))
        assert all(ends_on_sentence(text[:end], language) for end in ends)


def test_ends_before_a_limit_are_those_of_the_whole_text():
    text = (
        'It rained. He said, "It is over. It was long." Then (so. It was) they left. The U.S. Army came. Yes.'
    )
    whole = sentence_ends(text)
    for limit in range(len(text) + 1):
        assert sentence_ends(text, limit=limit) == [end for end in whole if end <= limit]
