"""Rewrite packs: what to generate, which gates a pack must pass, how variants compare.

The names of the gates stand here, free of imports, so that the graph's definition can read them.
"""

ROW_COUNT = "row_count_is_right"
SCHEMA = "schema_is_valid"
UNIQUE = "rows_are_unique"
ALIGNED = "index_is_aligned_with_base"
SUSPECTS = "suspect_rate_is_low"
SAME = "made_as_base_was"
DIFFERS = "differs_from_base"
GATES = {
    ROW_COUNT: "One row for each of the first N news items of the requested size.",
    SCHEMA: "Every row is a valid `RewriteRow`; a broken one is named with its field.",
    UNIQUE: "No row id and no source index occurs twice.",
    ALIGNED: "The same news items as base, with the same source index.",
    SAME: "Made from the same news, by the same model, with the same prompt and decoding as base.",
    SUSPECTS: "At most the profile's share of rows trips one of the pipeline's suspect rules.",
    DIFFERS: "The rewrites differ from base more than base's resample does (paired sign-flip test).",
}
