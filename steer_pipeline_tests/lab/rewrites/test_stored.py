"""Packs of several sizes are compared on what they share; a folder of an older comparison is named, not guessed."""

import pytest

from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.comparison import compare_variants
from steer_pipeline.lab.rewrites.stored import Compared, PackSize, on_common_rows, read_tables, write_tables
from steer_pipeline_tests.lab.rewrites.compared_packs import ROLES, SCORERS, make_packs
from steer_pipeline_tests.lab.rewrites.packs import pack, resample


def test_packs_are_cut_to_the_rows_that_all_have():
    packs = {"base": pack("base", n=32, size="full"), "base_resample": resample(24)[3:]}
    cut = on_common_rows(packs)
    assert list(cut) == ["base", "base_resample"]
    assert all(rows["source_index"].to_list() == list(range(3, 24)) for rows in cut.values())
    with pytest.raises(Refused, match="no news item in common"):
        on_common_rows({"base": pack("base").head(3), "paranoid": pack("paranoid").tail(3)})


def test_a_comparison_is_read_as_it_was_written(tmp_path):
    packs, facts = make_packs(n=12)
    tables = compare_variants(packs, facts, SCORERS, ROLES, seed=5)
    sizes = {"base": PackSize("full", 32), "paranoid": PackSize("pilot", 12)}
    write_tables(Compared(tables, {"base": "v1"}, {"trusting": "why"}, sizes), tmp_path)
    again = read_tables(tmp_path)
    assert (again.versions, again.left_out, again.sizes) == ({"base": "v1"}, {"trusting": "why"}, sizes)
    assert again.tables.summary.equals(tables.summary)
    assert again.description() == (
        "packs of several sizes, compared on the 12 news items that all have: base full (32 rows), paranoid pilot "
        "(12 rows)"
    )
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(Refused, match=r"no sizes.json: materialise rewrite_comparison again"):
        read_tables(tmp_path)
