"""Rewrite packs: what to generate, which gates a pack must pass, how variants compare.

What the gates claim stands here, free of imports, so that the graph's definition can read it.
"""

from typing import NamedTuple

AGAIN = "materialise rewrite_raw and rewrite_pack of this variant again"

ROW_COUNT = "row_count_is_right"
SCHEMA = "schema_is_valid"
UNIQUE = "rows_are_unique"
ALIGNED = "index_is_aligned_with_base"
SUSPECTS = "suspect_rate_is_low"
SAME = "made_as_base_was"
CHANGED = "something_changed"


class Gate(NamedTuple):
    """What must hold of a pack, and how to go on where it does not."""

    says: str
    cure: str


GATES = {
    ROW_COUNT: Gate(
        "One row for each of the first N news items of the requested size.",
        f"{AGAIN}, in the size that is wanted",
    ),
    SCHEMA: Gate(
        "Every row is a valid `RewriteRow`; a broken one is named with its field.",
        f"{AGAIN}; what is wrong every time is a fault of the code that writes it",
    ),
    UNIQUE: Gate(
        "No row id and no source index occurs twice.",
        f"{AGAIN}; if it stays, look at the check ids_are_unique of cc_news",
    ),
    ALIGNED: Gate(
        "The same news items as base, with the same source index.",
        "materialise rewrite_raw of base and of this variant again, in one size and from the same news "
        "(`make pilot` does), then rewrite_pack",
    ),
    SAME: Gate(
        "Made from the same news, by the same model, with the same prompt and decoding as base.", AGAIN
    ),
    SUSPECTS: Gate(
        "At most the profile's share of rows trips one of the pipeline's suspect rules: of all rows, beyond base's on "
        "the same rows, or both.",
        "read the check's examples; lower the variant's dose, or raise gates.max_suspect_rate (where base itself is "
        "often suspect, judge by gates.max_extra_suspects alone)",
    ),
    CHANGED: Gate(
        "Something changed: the rewrites' word distance to base is larger than the resample's, by a one-sided paired "
        "test at the level gates.alpha. It says that steering took effect and not that it is the persona's: a random "
        "direction passes it too.",
        "raise the variant's dose, or the number of rows (rewrites.pilot_rows of the profile)",
    ),
}


# Gates that say how good a pack is: a person may release it all the same and say why. The others say that it is not
# what it claims to be, which no reason mends.
MATTERS_OF_JUDGEMENT = (SUSPECTS, CHANGED)


class Refused(ValueError):
    """What was asked may not be done yet; the message lists why and what to do."""
