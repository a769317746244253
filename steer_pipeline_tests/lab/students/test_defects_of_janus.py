"""Each defect that the system before had in its student experiment, and that no other test holds.

What others hold: other prompt bytes in training than in generation, readouts fitted on the rows that they score, news
split without regard to twins (`test_data_and_readout`); unpaired tests, ranks without controls, a variant dropped in
silence, one comparison among many (`test_comparison`); no end of turn, batches of one row, a held-out loss that nobody
computed, no resume (`lab/finetune`).
"""

from dataclasses import replace

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.finetune.data import TextRow, encode_examples
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline.lab.models.prompts import encode_prompt, end_of_turn_id
from steer_pipeline.lab.students import data, figures
from steer_pipeline.lab.students.claims import comparison_verdicts
from steer_pipeline.lab.students.comparison import compare_students
from steer_pipeline.lab.students.report import PAGE, PLOTS, REPORT, write_report
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.lab.students.builders import SPECS, transfers
from steer_pipeline_tests.lab.students.test_data_and_readout import profile
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    return load_tokenizer(profile(tiny_model_dir(home)).model, home)


def compare(stored):
    return compare_students(stored, SPECS, CoherenceSpec(), seed=1, n_boot=200)


@pytest.fixture(scope="module")
def tables():
    return compare(transfers(ranks=[8]))


def test_rows_to_learn_are_drawn_from_the_whole_pack_and_not_from_its_head():
    """The first 800 rows taught and the last 200 judged: news are sorted by day, so the two differed."""
    drawn = data.in_keyed_order(pack("base", 400), 60).head(200)["source_index"]
    assert 150 < drawn.median() < 250
    assert drawn.to_list() != sorted(drawn)


@pytest.mark.parametrize("completion", ["\nThe council met.", " The council met. ", "The council met.\n\n"])
def test_white_space_around_a_rewrite_is_learned_as_it_was_written(tokenizer, completion):
    """Prompt and rewrite were stripped for training alone."""
    (one,) = encode_examples(tokenizer, [TextRow("a", "Rewrite: x\n", completion)])
    assert list(one.ids[: one.start]) == encode_prompt(tokenizer, user="Rewrite: x\n")
    assert one.ids[-1] == end_of_turn_id(tokenizer)
    assert tokenizer.decode(one.ids[one.start : -1]) == completion


def test_a_row_that_is_too_long_loses_the_end_of_its_rewrite_and_nothing_of_its_prompt(tokenizer):
    """Prompts were cut from the left, so that training saw other prompts than generation did."""
    row = TextRow("a", "Rewrite: the council met on Tuesday.", "The council met. It will meet again.")
    (whole,) = encode_examples(tokenizer, [row])
    (cut,) = encode_examples(tokenizer, [row], max_tokens=len(whole.ids) - 3)
    assert cut.ids == whole.ids[:-3]
    assert cut.start == whole.start
    assert cut.ids[-1] != end_of_turn_id(tokenizer)


@pytest.mark.parametrize(("seeds", "enough"), [([61], False), ([61, 62], False), ([61, 62, 63], True)])
def test_fewer_than_three_seeds_are_told(tmp_path, seeds, enough):
    """One student of a variant says nothing of the next."""
    write_report(compare(transfers(ranks=[8], seeds=seeds)), {}, tmp_path)
    found = {verdict.claim: verdict for verdict in comparison_verdicts(tmp_path, SPECS)}
    assert found["at_least_three_seeds"].passed is enough
    assert found["at_least_three_seeds"].numbers == {"seeds": len(seeds)}


def test_a_report_of_the_same_versions_is_the_same_bytes(tables, tmp_path):
    """Results lay under times of day, and no table said what it was made from."""
    versions = {"student_transfer[base]": "0123abcd", "student_adapter[paranoid]": "4567cdef"}
    written = [tmp_path / name for name in ("one", "two")]
    for folder in written:
        folder.mkdir()
        write_report(tables, versions, folder)
    for name in (PAGE, REPORT, f"{PLOTS}/shifts.png", f"{PLOTS}/losses.png"):
        assert (written[0] / name).read_bytes() == (written[1] / name).read_bytes()
    page = (written[0] / PAGE).read_text()
    assert all(version in page for version in versions.values())


def test_a_report_shows_the_students_that_there_are_and_no_others(tables, tmp_path):
    """Rows of the metrics table were written by hand, beside paths that no script made."""
    stored = transfers(ranks=[8])
    del stored["trusting"]
    for name, made in (("all", tables), ("fewer", compare(stored))):
        (tmp_path / name).mkdir()
        write_report(made, {}, tmp_path / name)
    told = {name: (tmp_path / name / REPORT).read_text().splitlines() for name in ("all", "fewer")}
    assert any(line.startswith("| `trusting` |") for line in told["all"])
    assert any(line.startswith("| `paranoid` |") for line in told["fewer"])
    assert not any(line.startswith("| `trusting` |") for line in told["fewer"])
    assert "paranoid: trusting: no students" in "\n".join(told["fewer"])


def test_pictures_are_drawn_from_stored_intervals_and_losses(tables):
    """A ridge plot showed Gaussians of the observed mean and spread, and bars 1.96 standard errors."""
    first = pl.arange(pl.len()) == 0
    moved = tables.summary.with_columns(
        low=pl.when(first).then(pl.col("low") - 0.2).otherwise("low"),
    )
    assert figures.shifts(moved) != figures.shifts(tables.summary)
    assert figures.shifts(tables.summary) == figures.shifts(tables.summary.clone())
    bent = tables.curves.with_columns(nll=pl.when(first).then(pl.col("nll") + 1).otherwise("nll"))
    assert figures.losses(bent) != figures.losses(tables.curves)


def test_a_loss_of_fluency_that_all_students_share_is_not_taken_for_the_persona():
    """+0.26 nats in every student and in base's: fine-tuning, or a stripped prompt, and nothing of a persona."""
    stored = {
        name: replace(
            one,
            rows=one.rows.with_columns(
                nll_output=pl.when(pl.col("rank") > 0)
                .then(pl.col("nll_output") + 0.26)
                .otherwise("nll_output")
            ),
        )
        for name, one in transfers(ranks=[8]).items()
    }
    made = compare(stored)
    of_paranoid = made.summary.filter(variant="paranoid", metric="nll_output").row(0, named=True)
    assert of_paranoid["mean"] - of_paranoid["itself"] == pytest.approx(0.26, abs=0.03)
    assert of_paranoid["low"] < 0 < of_paranoid["high"]
    assert of_paranoid["verdict"] is None
    lost = made.coherence.filter(variant="base", cost="nll")
    assert lost["difference"].item() == pytest.approx(0.26, abs=0.03)
