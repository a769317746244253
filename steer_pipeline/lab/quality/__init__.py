"""Whether an output is fit for use: suspect rules, loops, facts kept, overlap, alignment, the keep filter.

In: outputs and their sources, as text or polars frames. Out: rule names, shares, problems that name row and
field, and frames with a verdict a row. Knows nothing about models or vectors.
"""

from steer_pipeline.lab.quality.alignment import Alignment, Problem, alignment, frame_problems, jsonl_problems
from steer_pipeline.lab.quality.facts import facts_kept, kept_facts, lead_facts
from steer_pipeline.lab.quality.filter import REASONS, KeepCriteria, keep_filter, reason_counts
from steer_pipeline.lab.quality.loops import Cycle, duplicate_mass, find_cycle, find_loop
from steer_pipeline.lab.quality.suspects import (
    JANUS_RULES,
    OUR_RULES,
    RULES,
    SuspectRule,
    count_suspects,
    foreign_digits,
    other_script_share,
    rules_table,
    scan,
    scan_frame,
)
from steer_pipeline.lab.quality.suspects import scan as scan_suspects
from steer_pipeline.lab.quality.text import exact_match, length_ratio, multiset_jaccard, sentences, words

__all__ = [
    "JANUS_RULES",
    "OUR_RULES",
    "REASONS",
    "RULES",
    "Alignment",
    "Cycle",
    "KeepCriteria",
    "Problem",
    "SuspectRule",
    "alignment",
    "count_suspects",
    "duplicate_mass",
    "exact_match",
    "facts_kept",
    "find_cycle",
    "find_loop",
    "foreign_digits",
    "frame_problems",
    "jsonl_problems",
    "keep_filter",
    "kept_facts",
    "lead_facts",
    "length_ratio",
    "multiset_jaccard",
    "other_script_share",
    "reason_counts",
    "rules_table",
    "scan",
    "scan_frame",
    "scan_suspects",
    "sentences",
    "words",
]
