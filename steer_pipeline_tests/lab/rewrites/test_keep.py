"""The keep set says of every row whether it is kept, and why not."""

import polars as pl

from steer_pipeline.lab.rewrites.keep import KEEP_SCHEMA, REASONS, keep_rows
from steer_pipeline_tests.lab.rewrites.packs import pack

VOICE = " Somebody surely hides the real story."


def test_every_reason_is_given_and_the_rest_is_kept():
    candidate = pack("paranoid", tail=VOICE).with_columns(
        truncated=pl.col("source_index") == 1,
        output=pl.when(pl.col("source_index") == 3)
        .then(pl.col("output").get(2))
        .when(pl.col("source_index") == 4)
        .then(pl.lit(pack("base")["output"][4]))
        .otherwise("output"),
    )
    suspects = [["loop"]] + [["janus_latex"]] + [[]] * 22
    facts = [1.0, 1.0, 0.4, 1.0, None] + [1.0] * 19
    rows = keep_rows(candidate, pack("base"), suspects, facts)
    assert rows.schema == pl.Schema(KEEP_SCHEMA)
    assert rows["reasons"].to_list()[:5] == [["suspect"], ["truncated"], ["facts_lost"], ["duplicate"], []]
    assert set(rows["reasons"].explode().drop_nulls()) == set(REASONS)
    assert rows["kept"].sum() == 20
    assert rows["same_as_base"].to_list().index(True) == 4
