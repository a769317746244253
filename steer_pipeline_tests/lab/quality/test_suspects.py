"""Each rule hits what it is for, leaves sound news alone, and looks at the source."""

import time

import polars as pl
import pytest

from steer_pipeline.lab.quality import (
    JANUS_RULES,
    OUR_RULES,
    RULES,
    count_suspects,
    foreign_digits,
    other_script_share,
    rules_table,
    scan,
    scan_frame,
    scan_suspects,
)
from steer_pipeline.lab.quality.suspects import reworded_digits

NEWS = (
    "The council of Thornmere met on Monday, officials said. It approved 1,200 homes worth $3.50 million "
    "after twelve hearings. Mayor Ada Bell called the vote, which passed by 9 to 4, a fair result for all."
)
REWRITE = (
    "On Monday the Thornmere council passed a plan for 1200 homes after 12 hearings. The vote was 9 to 4, "
    "and the mayor, Ada Bell, said that the result was fair to the people of the town."
)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_hits_its_own_example(name):
    assert name in scan(RULES[name].example, "The council met on Monday.")


def test_a_sound_rewrite_breaks_no_rule():
    assert scan(REWRITE, NEWS) == []
    assert scan(NEWS.split(". ")[0] + ".", NEWS) == []
    assert scan_suspects is scan


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (r"half is \frac{1}{2}", "janus_latex"),
        ("a set {x}", "janus_latex"),
        (r"\[ x \]", "janus_latex"),
        ("ring 5551234 now", "janus_digits"),
        ("no!!!!!", "janus_repeat"),
        ("-----", "janus_repeat"),
    ],
)
def test_janus_patterns_are_verbatim(text, rule):
    assert rule in scan(text, text)


def test_janus_patterns_do_not_see_newline_runs_or_dollar_math():
    assert not {"janus_latex", "janus_repeat"} & set(scan("one\n\n\n\n\n\ntwo $x^2$", "one two x"))
    assert JANUS_RULES["janus_repeat"] == r"(.)\1{4,}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("…\n -- ", "empty"),
        ("Rewrite: The council met.", "prompt_echo"),
        ("It met.\n\nRewritten text:\nIt met.", "prompt_echo"),
        ("assistant\nThe council met.", "prompt_echo"),
        (NEWS, "prompt_echo"),
        ("It met.<|im_end|>", "special_tokens"),
        ("<s> It met. </s>", "special_tokens"),
        ("<think>\n\n</think>It met.", "special_tokens"),
        ("<start_of_turn>model", "special_tokens"),
        ("It\x07 met.", "control_chars"),
        ("It met \ufffd\ufffd.", "control_chars"),
        ("It \u202emet.", "control_chars"),
        ("The council 会议 met.", "other_script"),
        ("The сouncil met.", "other_script"),
        ("It approved 1,300 homes.", "foreign_digits"),
    ],
)
def test_ours_see_what_janus_did_not(text, rule):
    found = scan(text, NEWS)
    assert rule in found
    assert not any(name in JANUS_RULES for name in found)


def test_the_tokenizers_own_special_strings_are_searched():
    assert "special_tokens" not in scan("It met. [EOT]", NEWS)
    assert "special_tokens" in scan("It met. [EOT]", NEWS, special_tokens=["[EOT]"])


def test_what_the_source_contains_is_not_held_against_the_rewrite():
    source = "Die Zeitung «Правда» wrote <s> 7 \x85 times. Rewrite: the law."
    assert scan("«Правда» wrote <s> 7 \x85 times, they said. Rewrite: the law.", source) == []
    assert other_script_share("Правда wrote", "It wrote") == pytest.approx(6 / 11)
    assert other_script_share("anything", "") == 0.0


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("1200 homes", "1,200 homes"),
        ("1,200 homes", "1200 homes"),
        ("1.2 thousand homes", "1,200 homes"),
        ("$3,500,000", "$3.5 million"),
        ("$3.5m", "$3,500,000"),
        ("3.5 dollars", "$3.50"),
        ("12 hearings", "twelve hearings"),
        ("25 people", "twenty-five people"),
        ("205 people", "two hundred and five people"),
        ("the 21st time", "the twenty-first time"),
        ("2 sides", "both sides"),
        ("3:00 p.m.", "3 p.m."),
        ("from 2019 to 2020", "in the 2019-20 season"),
        ("6 July", "06 July"),
        ("nobody", "12 people"),
        ("it cost 12", "it cost 1250"),
    ],
)
def test_formatting_of_numbers_is_no_invention(text, source):
    assert foreign_digits(text, source) == []


@pytest.mark.parametrize(
    ("text", "source", "found"),
    [
        ("1,300 homes", "1,200 homes", ["1,300"]),
        ("13 of 12", "twelve", ["13"]),
        ("5% of 1200", "1,200 homes", ["5"]),
        ("it cost 12 dollars", "it cost 1250", ["12"]),
        ("3:15 p.m.", "3 p.m.", ["15"]),
    ],
)
def test_invented_numbers_are_named(text, source, found):
    assert foreign_digits(text, source) == found


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("The price is $2.", "The price is $2.5 million."),
        ("The price is $2. ", "The price is $2.5 million."),
        ("The price is $2.5", "The price is $2.54 million."),
        ("It drew 1,", "It drew 1,250 people."),
        ("It drew 1,2", "It drew 1,250 people."),
        ("It drew 1,2", "It drew 1250 people."),
        ("It cost 2,5", "It cost $2.5 million."),
        ("It cost 12,0", "It cost twelve thousand."),
    ],
)
def test_digits_cut_by_the_end_of_the_text_are_not_foreign(text, source):
    assert scan(text, source) == []
    assert foreign_digits(text + " more", source) != []


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("The price is $3.", "The price is $2.5 million."),
        ("The price is $25.", "The price is $2.5 million."),
        ("It drew 2,", "It drew 1,250 people."),
        ("It came to 7. In the end it was 1,", "It drew 1,250 people."),
    ],
)
def test_other_digits_at_the_end_are(text, source):
    assert foreign_digits(text, source)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("25 percent of homes", "a quarter of homes"),
        ("25% of homes", "one-quarter of homes"),
        ("75 per cent of homes", "three quarters of homes"),
        ("33 percent, or 33.3%", "a third of homes"),
        ("67 percent of homes", "two-thirds of homes"),
        ("20 percent of homes", "one in five homes"),
        ("0.25 of it", "a quarter of it"),
        ("It began at 18:30.", "It began at 6:30 p.m."),
        ("It began at 6:30 p.m.", "It began at 18:30."),
        ("It began at 18:00.", "It began at six p.m."),
        ("It began at 20:15.", "It began at quarter past eight."),
        ("It began at 7:45.", "It began at quarter to eight."),
        ("It began at 12:00.", "It began at noon."),
    ],
)
def test_another_way_of_writing_is_counted_apart(text, source):
    assert foreign_digits(text, source) == []
    assert scan(text, source) == []
    frame = scan_frame(pl.DataFrame({"prompt": [source, source], "output": [text, "nothing"]}))
    assert count_suspects(frame)["any"] == 0
    assert reworded_digits(text, source)
    assert not reworded_digits("nothing", source)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("25 homes", "a quarter of homes"),
        ("35 percent of homes", "a third of homes"),
        ("It began at 18:45.", "It began at 6:30 p.m."),
        ("It began at 17:30.", "It began at 6:30 p.m."),
        ("18 people came", "It began at 6:30 p.m."),
        ("It cost 18.30 euros", "It cost 7 euros and 6 men"),
    ],
)
def test_what_only_looks_so_is_foreign(text, source):
    assert foreign_digits(text, source)
    assert reworded_digits(text, source) == []


@pytest.mark.parametrize(
    "shape", ["1", "1,", "1.", "1:", "1 in ", "one in ", "a quarter ", "6:30 p.m. ", "12:"]
)
def test_numbers_take_linear_time(shape):
    text = shape * (20_000 // len(shape))
    start = time.perf_counter()
    foreign_digits(text + " 77 x", text + "2")
    foreign_digits("25% at 18:30 or 3.33 " * 1000, text)
    assert time.perf_counter() - start < 5


def test_ten_thousand_rows_scan_in_seconds():
    frame = pl.DataFrame({"prompt": [NEWS] * 10_000, "output": [REWRITE] * 9_999 + [""]})
    start = time.perf_counter()
    scanned = scan_frame(frame)
    assert time.perf_counter() - start < 20
    counts = count_suspects(scanned)
    assert counts["empty"] == counts["any"] == counts["any_ours"] == 1
    assert set(counts) == {*RULES, "any", "any_ours"}


def test_janus_only_hits_are_counted_apart():
    scanned = scan_frame(pl.DataFrame({"prompt": ["He said no"], "output": ["He said noooooo"]}))
    assert scanned["suspects"].to_list() == [["janus_repeat"]]
    assert (count_suspects(scanned)["any"], count_suspects(scanned)["any_ours"]) == (1, 0)


def test_a_null_output_or_missing_column_is_named():
    with pytest.raises(ValueError, match="row 1: output is null"):
        scan_frame(pl.DataFrame({"prompt": ["a", "b"], "output": ["x", None]}))
    with pytest.raises(ValueError, match="no column 'prompt'"):
        scan_frame(pl.DataFrame({"output": ["x"]}))


def test_the_table_of_rules_explains_each():
    table = rules_table()
    assert table["rule"].to_list() == list(RULES)
    assert set(table.filter(origin="ours")["rule"]) == set(OUR_RULES)
    assert table["description"].str.len_chars().min() > 10
