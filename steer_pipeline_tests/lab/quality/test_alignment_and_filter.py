"""Missing, extra, doubled and malformed rows are named; the filter keeps every row and says why not."""

import polars as pl
import pytest
from pydantic import BaseModel

from steer_pipeline.lab.quality import (
    REASONS,
    KeepCriteria,
    alignment,
    frame_problems,
    jsonl_problems,
    keep_filter,
    reason_counts,
)

BASE = "The Thornmere council met on Monday and approved 40 homes after a long debate."
SOURCE = "Rewrite: The council of Thornmere approved 40 homes on Monday, Ada Bell said."


class Row(BaseModel):
    row_id: str
    output: str
    n_new_tokens: int


def frame(outputs: dict[str, str], truncated: bool = False) -> pl.DataFrame:
    return pl.DataFrame(
        [{"row_id": k, "prompt": SOURCE, "output": v, "truncated": truncated} for k, v in outputs.items()]
    )


def test_alignment_goes_by_row_id_and_not_by_order_or_count():
    base = pl.DataFrame({"row_id": ["a", "b", "c", "d"]})
    assert alignment(pl.DataFrame({"row_id": ["d", "c", "b", "a"]}), base).aligned
    found = alignment(pl.DataFrame({"row_id": ["a", "b", "b", "x"]}), base)
    assert (found.missing, found.extra, found.duplicated) == (("c", "d"), ("x",), ("b",))
    assert found.describe() == "2 missing (c, d); 1 extra (x); 1 duplicated (b)"
    with pytest.raises(ValueError, match="no column 'row_id'"):
        alignment(pl.DataFrame({"id": ["a"]}), base)


def test_a_malformed_row_is_named_with_its_field():
    rows = pl.DataFrame({"row_id": ["a", "b"], "output": ["x", None], "n_new_tokens": [1, 2]})
    problems = frame_problems(rows, Row)
    assert [str(p) for p in problems] == [
        "row 1 (row_id b): output: Input should be a valid string (got None)"
    ]


def test_a_torn_json_line_is_named(tmp_path):
    path = tmp_path / "pack.jsonl"
    path.write_bytes(
        b'{"row_id": "a", "output": "x", "n_new_tokens": 1}\n\n{"row_id": "b", "out\n'
        b'{"row_id": "c", "output": "x", "n_new_tokens": "many"}\n[1]\n\xff\n'
    )
    problems = jsonl_problems(path, Row)
    assert [(p.row, p.row_id, p.field) for p in problems] == [
        (3, None, "(line)"), (4, "c", "n_new_tokens"), (5, None, "(line)"), (6, None, "(line)"),
    ]  # fmt: skip


def test_the_filter_keeps_every_row_with_its_reasons():
    pack = frame(
        {
            "good": "Hidden hands pushed 40 homes through the Thornmere council on Monday, Ada Bell warned.",
            "same": BASE,
            "loop": "They are watching all of us now. " * 6 + "40 homes in Thornmere, Ada Bell said.",
            "lost": "Somebody somewhere did something to someone and nobody will ever say what.",
            "short": "Thornmere: 40. Ada Bell.",
            "janus": "Hidden hands pushed 40 homes through the Thornmere council, Ada Bell said, noooooo.",
        }
    )
    base = frame(dict.fromkeys(pack["row_id"], BASE))
    facts = {row_id: ["Thornmere", "40", "Ada Bell"] for row_id in pack["row_id"]} | {"janus": []}
    kept = keep_filter(pack, base, facts)
    assert kept["row_id"].to_list() == pack["row_id"].to_list()
    reasons = dict(zip(kept["row_id"], kept["reasons"].to_list(), strict=True))
    assert reasons == {
        "good": [], "same": ["same_as_base"], "loop": ["suspect", "too_long"], "lost": ["facts_lost"],
        "short": ["too_short"], "janus": [],
    }  # fmt: skip
    assert kept["keep"].to_list() == [not r for r in reasons.values()]
    assert kept.filter(row_id="janus")["suspects"].to_list() == [["janus_repeat"]]  # comparison only
    assert kept.filter(row_id="janus")["facts_kept"].to_list() == [None]
    assert kept.filter(row_id="same")["facts_kept"][0] == pytest.approx(2 / 3)
    counts = reason_counts(kept)
    assert set(counts) == set(REASONS)
    assert counts["suspect"] == 1
    assert counts["unfinished"] == 0


def test_a_cut_row_is_not_kept():
    kept = keep_filter(frame({"a": "Another 40 homes for Thornmere were approved by the"}, True), None, {})
    assert kept["reasons"].to_list() == [["unfinished"]]


def test_base_itself_is_compared_with_nothing():
    kept = keep_filter(frame({"a": BASE}), None, {"a": ["40"]})
    assert kept["keep"].to_list() == [True]
    assert kept["same_as_base"].to_list() == [None]


def test_perplexity_has_two_tails_and_trait_counts_in_the_wanted_direction():
    pack = frame({key: f"Hidden hands moved 40 homes to Thornmere, plan {key}." for key in "abcd"})
    criteria = KeepCriteria(perplexity_bounds=(1.5, 50.0), min_trait=0.1)
    kept = keep_filter(
        pack,
        None,
        {},
        criteria,
        perplexity=[1.01, 9.0, float("inf"), float("nan")],
        trait=[0.5, 0.0, 0.5, 0.5],
    )
    assert kept["reasons"].to_list() == [
        ["perplexity_low"],
        ["trait_weak"],
        ["perplexity_high"],
        ["perplexity_high"],
    ]


def test_missing_inputs_of_the_filter_are_named():
    pack = frame({"a": BASE})
    with pytest.raises(ValueError, match="pass trait="):
        keep_filter(pack, None, {}, KeepCriteria(min_trait=0.2))
    with pytest.raises(ValueError, match="row_id a is not in base"):
        keep_filter(pack, frame({"b": BASE}), {})
    with pytest.raises(ValueError, match="2 values of perplexity for 1 rows"):
        keep_filter(pack, None, {}, perplexity=[1.0, 2.0])
