"""The report says what the rows say, in Markdown and in one self-contained page, beside both controls."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from steer_pipeline.lab.rewrites.comparison import compare_variants
from steer_pipeline.lab.rewrites.report import render_vector_eval_report
from steer_pipeline.lab.rewrites.report_inputs import (
    DoseInfo,
    ReportContext,
    ReportInputs,
    VectorInfo,
    size_in_words,
)
from steer_pipeline.lab.rewrites.sections import overview
from steer_pipeline.lab.vectors.doses import Recommendation
from steer_pipeline_tests.lab.rewrites.compared_packs import EFFECTS, ROLES, SCORERS, make_packs

TARGETS = {
    "paranoid": {"paranoid": "up"},
    "trusting": {"paranoid": "down"},
    "rule_defiant": {"paranoid": "up"},
}
VECTOR = VectorInfo(
    "paranoid",
    "a" * 64,
    {
        "model": "tiny",
        "method": "mean_difference",
        "readout": "response_tokens",
        "n_train": 12,
        "n_held_out": 4,
        "held_out_auc": [0.6, 0.9, 0.98, 0.97],
        "auc_null_95th": [0.6, 0.61, 0.6, None],
        "split_half_cosine": [0.2, 0.7, 0.9, 0.95],
        "raw_norms": [1.0, 1.5, 2.0, 2.2],
        "residual_norms": [4.0, 6.0, 8.0, 9.0],
    },
)


def sweep() -> pl.DataFrame:
    def row(direction: str, fraction: float, shift: float) -> dict:
        return {
            "direction": direction, "block": 2, "fraction": fraction, "alpha": 8 * fraction, "n": 24,
            "shift": shift, "shift_low": shift - 0.1, "shift_high": shift + 0.1, "shown_rate": abs(shift),
            "opposite_rate": 0.0, "suspect_rate": 0.0, "facts_kept": None, "kl": fraction**2, "coherent": fraction < 1,
            "beyond": "" if fraction < 1 else "nll +2 nats a token [1, 3], limit 0.6", "frontier": fraction > 0,
            **{
                f"extra_{cost}{edge}": fraction**2
                for cost in ("nll", "suspects", "loops", "facts_lost")
                for edge in ("", "_low", "_high")
            },
        }  # fmt: skip

    steered = [row("persona", f, min(f, 0.8)) for f in (-0.4, 0.0, 0.3, 1.2)]
    return pl.DataFrame([*steered, row("random", 0.3, 0.01)])


ADVICE = Recommendation(
    "paranoid", 2, 0.3, 2.4, "smallest coherent dose that moves the trait", 1, 0.01, 0.01, 0.01, 0.5, None
)
DOSE = DoseInfo("paranoid", "b" * 64, sweep(), ADVICE)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict:
    def spoil(variant: str, row_id: str, text: str) -> str:
        return text + " <|im_end|> | <b>bold</b>" if variant == "trusting" and row_id.endswith("3") else text

    packs, facts = make_packs(n=40, change=spoil)
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    context = ReportContext(
        versions={f"rewrite_pack/{name}": f"{i:064x}" for i, name in enumerate(packs)},
        facts={"profile": "tiny", "size": "pilot"},
        targets=TARGETS,
    )
    out = tmp_path_factory.mktemp("report")
    files = render_vector_eval_report(ReportInputs(tables, packs, [VECTOR], [DOSE], context), out)
    return {
        "tables": tables,
        "packs": packs,
        "context": context,
        "files": files,
        "md": files.markdown.read_text(encoding="utf-8"),
        "html": files.html.read_text(encoding="utf-8"),
    }


def table_under(markdown: str, heading: str, first_column: str) -> list[dict[str, str]]:
    """The first table after `heading` whose first column has that name, as dictionaries."""
    body = markdown.split(f"# {heading}\n", 1)[1]
    lines = body.split(f"| {first_column} |", 1)[1].splitlines()
    columns = [first_column, *(c.strip() for c in lines[0].strip(" |").split(" | "))]
    found = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        found.append(dict(zip(columns, (c.strip(" `") for c in line.strip("|").split(" | ")), strict=True)))
    return found


def test_every_table_of_the_janus_report_is_there(written):
    for heading in (
        "Traits", "Keyword hits", "Largest changes in keywords", "Content and form", "Validation",
        "Suspects by rule", "Differs from base more than a resample does", "Doses", "Vectors and scorers",
        "Side by side", "How to read this", "Made from",
    ):  # fmt: skip
        assert f"# {heading}\n" in written["md"]
    assert {p.stem for p in written["files"].plots} == {
        "trait_shifts", "trait_rows", "text_distributions", "dose_response", "vectors",
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written["files"].plots)


def test_without_a_lexicon_nothing_is_said_of_lexicons(tmp_path):
    packs, facts = make_packs(n=8)
    scorers = {name: {"minilm": scales["lexicon"]} for name, scales in SCORERS.items()}
    tables = compare_variants(packs, facts, scorers, ROLES, seed=5)
    tables = replace(tables, rows=tables.rows.drop(pl.selectors.starts_with("hits_")))
    context = ReportContext(versions={"rewrite_pack/base": "0" * 64}, facts={}, targets=TARGETS)
    written = render_vector_eval_report(ReportInputs(tables, packs, [VECTOR], [DOSE], context), tmp_path)
    page = written.markdown.read_text(encoding="utf-8")
    assert "# Traits\n" in page
    assert "lexicon" not in page.lower()
    assert "keyword" not in page.lower()


def test_numbers_are_those_of_the_tables(written):
    row = written["tables"].of("paranoid", "trait_paranoid_lexicon")
    line = next(
        r
        for r in table_under(written["md"], "Traits", "trait")
        if r["trait"] == "paranoid, lexicon" and r["variant"] == "paranoid"
    )
    assert line["N"] == "40"
    assert float(line["mean"]) == pytest.approx(row["mean"], abs=5e-4)
    assert line["shift [CI95]"] == f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    assert line["resample"].startswith("0.000")


def test_keyword_hits_stand_beside_the_controls_for_every_lexicon(written):
    lines = table_under(written["md"], "Keyword hits", "lexicon")
    assert {(r["lexicon"], r["variant"]) for r in lines} == {
        (p, v) for p in SCORERS for v in EFFECTS if v != "base"
    }
    rows = written["tables"].rows
    steered = next(r for r in lines if (r["lexicon"], r["variant"]) == ("paranoid", "paranoid"))
    expected = rows.filter(variant="paranoid")["hits_paranoid_positive"].mean()
    assert float(steered["delta"]) == pytest.approx(expected, abs=0.006)
    assert (steered["resample's"], steered["random's"]) == ("0.00", "0.00")


def test_each_variants_examples_compare_the_same_row(written):
    packs = written["packs"]
    found = re.findall(
        r"\*\*(\w+), \w+ lexicon, ([+-]\d) markers \(row (\w+)\)\*\*\n\n(.*?)(?=\n\n[^>])",
        written["md"],
        re.S,
    )
    assert len([f for f in found if f[0] == "paranoid"]) == 3
    for variant, _, row_id, quoted in found:
        for name in ("base", variant):
            text = packs[name].filter(row_id=row_id)["output"][0]
            assert text.split(".")[0] in quoted


def test_verdicts_follow_the_intervals(written):
    short = written["md"].split("## How to read this")[0]
    assert "`paranoid` moves paranoid up" in short
    assert "`trusting` moves paranoid down" in short
    assert "`rule_defiant` does **not** move paranoid up" in short
    assert "no control moves beyond its margin: " in short


def test_a_control_that_moves_is_said_first(written, tmp_path):
    packs, facts = make_packs(
        n=30, change=lambda v, r, text: text + " Hidden hands." if v == "random_direction" else text
    )
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    files = render_vector_eval_report(ReportInputs(tables, packs, [], [], written["context"]), tmp_path)
    text = files.markdown.read_text(encoding="utf-8")
    assert "**random_direction moves trait_paranoid_lexicon by " in text
    assert "no evidence before that is explained" in text
    assert "No vector was handed to this report." in text
    assert "No dose sweep was handed to this report." in text


def test_suspects_are_counted_by_rule_with_examples(written):
    line = next(
        r for r in table_under(written["md"], "Suspects by rule", "rule") if r["rule"] == "special_tokens"
    )
    n = written["packs"]["trusting"].filter(pl.col("output").str.contains("im_end"))["row_id"].len()
    assert (line["trusting"], line["base"]) == (str(n), "0")
    assert (
        "**Suspects: special\\_tokens**" in written["md"] or "**Suspects: special_tokens**" in written["md"]
    )


def test_doses_name_alpha_and_its_share_of_the_residual_norm(written):
    lines = table_under(written["md"], "Doses", "variant")
    paranoid = next(r for r in lines if r["variant"] == "paranoid")
    assert (paranoid["block"], paranoid["alpha"], paranoid["residual norm"]) == ("2", "+2.400", "8.00")
    assert paranoid["alpha / norm"] == "30.0%"
    random = next(r for r in lines if r["variant"] == "random_direction")
    assert (random["vector"], random["alpha / norm"]) == ("random:paranoid", "30.0%")
    assert len([r for r in lines if r["variant"] == "paranoid_rule_defiant"]) == 2
    assert next(r for r in lines if r["variant"] == "base")["vector"] == "nothing added"


def test_a_recommended_dose_stands_beside_random_directions_and_its_costs(written):
    (advice,) = table_under(written["md"], "Doses", "persona")
    assert (advice["random, most"], advice["rank p"], advice["rank p, turned"]) == ("+0.010", "0.500", "–")
    cells = table_under(written["md"], "Sweep of paranoid", "direction")
    stopped = next(cell for cell in cells if cell["dose"] == "+1.20")
    assert stopped["extra NLL"].startswith("+1.440")
    assert "limit 0.6" in stopped["beyond its limit"]


def test_versions_are_named(written):
    for sha in written["context"].versions.values():
        assert sha in written["md"]
        assert sha in written["html"]


class Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.outside += [
            v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#"))
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(written):
    parser = Loads()
    parser.feed(written["html"])
    assert parser.outside == []
    assert parser.open == []
    assert written["html"].count("data:image/png;base64,") == 5
    assert "<script" not in written["html"]


def test_model_output_cannot_change_the_page(written):
    assert "<b>bold</b>" not in written["html"]
    assert "&lt;b&gt;bold&lt;/b&gt;" in written["html"]
    assert "<b>bold</b>" not in written["md"]


def test_the_same_tables_give_the_same_bytes(written, tmp_path):
    inputs = ReportInputs(written["tables"], written["packs"], [VECTOR], [DOSE], written["context"])
    files = render_vector_eval_report(inputs, tmp_path)
    assert files.html.read_text(encoding="utf-8") == written["html"]
    assert files.markdown.read_text(encoding="utf-8") == written["md"]


def test_missing_packs_or_versions_are_named(written):
    some = {k: v for k, v in written["packs"].items() if k != "trusting"}
    with pytest.raises(ValueError, match="no pack for variant trusting"):
        ReportInputs(written["tables"], some, [], [], written["context"])
    with pytest.raises(ValueError, match="name the versions"):
        ReportInputs(written["tables"], written["packs"], [], [], ReportContext({}))


def test_the_summary_is_whole_and_says_what_moved_and_what_did_not(written):
    summary = written["files"].summary
    assert len(summary) < 6000
    assert "`rule_defiant` does **not** move paranoid up" in summary
    assert "no control moves beyond its margin: " in summary
    assert [line["variant"] for line in table_under(summary, "In short", "variant")] == list(EFFECTS)


def test_packs_of_several_sizes_are_never_called_one(written):
    sized = {
        name: pack.with_columns(size=pl.lit("full" if name == "base" else "pilot"))
        for name, pack in written["packs"].items()
    }
    inputs = ReportInputs(written["tables"], sized, [], [], written["context"])
    rows = {one["variant"]: one for one in table_under(overview.summary(inputs), "In short", "variant")}
    assert (rows["base"]["pack"], rows["paranoid"]["pack"]) == ("full, 40", "pilot, 40")
    assert "Packs are of **several sizes**: every number is of the 40 news items" in overview.summary(inputs)
    assert size_in_words(inputs.sizes, 40) == "mixed: compared on the 40 rows that all packs have"


def test_the_best_block_is_the_lowest_of_those_with_the_highest_auc():
    """It was block 0 in the UI and 5 in the report, ties at 1.0."""
    assert VectorInfo("x", "v", {"held_out_auc": [None, 0.9, 1.0, 1.0]}).best_block == 2
    assert VectorInfo("x", "v", {}).best_block is None


def test_titles_of_columns_say_what_they_hold(written):
    assert '<th class="n" title="Paired difference to base.">shift [CI95]</th>' in written["html"]
