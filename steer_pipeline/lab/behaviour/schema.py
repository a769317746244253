"""The values of the behaviour table: its metrics, what an effect is, stored rows and the frames made of them.

Metrics of the trait are `minilm` (calibrated probability), `truth` (lexicon) and `judge` (share of its scale); of the
text `base_nll` (nats a token under the unsteered model), `loop` and `new_tokens`.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import polars as pl

from steer_pipeline.lab.columns import described

Effect = Literal["effect up", "effect down", "no effect"]
UP, DOWN, NONE = EFFECTS = get_args(Effect)
MINILM, TRUTH, JUDGE = TRAIT_METRICS = ("minilm", "truth", "judge")
NLL, LOOP, TOKENS = COHERENCE_METRICS = ("base_nll", "loop", "new_tokens")

ROLLOUT_SCHEMA, ROLLOUT_COLUMNS = described(
    row_id=(pl.String(), "hash of persona, arm, question and sample"),
    persona=(pl.String(), "name in the catalogue"),
    kind=(pl.String(), "trait | role"),
    arm=(pl.String(), "vanilla | prompted_<i> | trained | averaged | random"),
    scale=(pl.Float64(), "multiple of the vector; null for vanilla and prompted"),
    seed=(pl.Int64(), "of the random direction, or of the trained vector"),
    prompt_index=(pl.Int64(), "which positive instruction stands in the system turn; null for none"),
    question_index=(pl.Int64(), "place in the persona's questions"),
    question=(pl.String(), "as it was asked"),
    sample=(pl.Int64(), "which answer of the arm to this question"),
    response=(pl.String(), "what was generated, without special tokens"),
    n_prompt_tokens=(pl.Int64(), "instruction and chat template included"),
    n_new_tokens=(pl.Int64(), "tokens generated, the end token included"),
    finish_reason=(pl.String(), "eos | length"),
    truncated=(pl.Boolean(), "stopped by the token limit"),
    block=(pl.Int64(), "where the vector is added; null for none"),
    alpha=(pl.Float64(), "length added to the residual stream"),
    dose_fraction=(pl.Float64(), "alpha over the mean residual norm at the block"),
    vector_version=(pl.String(), "content hash of the vector that was added"),
    base_nll=(pl.Float64(), "nats, sum over base_tokens: the unsteered model, given the bare question"),
    base_tokens=(pl.Int64(), "tokens that base_nll stands on"),
    perplexity=(pl.Float64(), "exp of base_nll a token; null for an empty answer"),
    loop=(pl.Boolean(), "the answer ends in a loop"),
    loop_score=(pl.Float64(), "share of 4-word windows that repeat an earlier one"),
    trait_truth=(pl.Float64(), "lexicon score in [-1, 1]; null without a lexicon"),
    decoding_hash=(pl.String(), "of the sampling settings and the model"),
    sampling_seed=(pl.Int64(), "of the sampling settings"),
    stream=(pl.String(), "name of the random stream"),
)
MINILM_SCHEMA, MINILM_COLUMNS = described(
    row_id=(pl.String(), "of the rollout"),
    persona=(pl.String(), "name in the catalogue"),
    arm=(pl.String(), "vanilla | prompted_<i> | trained | averaged | random"),
    scale=(pl.Float64(), "multiple of the vector; null for vanilla and prompted"),
    question_index=(pl.Int64(), "place in the persona's questions"),
    score=(pl.Float64(), "calibrated probability that the answer shows the persona; 0 for an empty one"),
    auc=(pl.Float64(), "of the scorer, on questions that it was not trained on, excerpts of equal length"),
    auc_low=(pl.Float64(), "95% interval, questions resampled"),
    auc_high=(pl.Float64(), "95% interval, questions resampled"),
    shuffled_mean=(pl.Float64(), "mean AUC of the same procedure on shuffled labels"),
    shuffled_high=(pl.Float64(), "95th percentile of it"),
    auc_whole=(pl.Float64(), "on whole texts, length and all"),
    length_auc_before=(pl.Float64(), "AUC of the number of words alone, whole texts"),
    length_auc_after=(pl.Float64(), "the same of the excerpts that it is trained on"),
    brier=(pl.Float64(), "mean squared error of the calibrated probability; 0.25 knows nothing"),
    calibration_error=(pl.Float64(), "expected calibration error over ten equal bins"),
    n_pairs=(pl.Int64(), "pairs of texts that the scorer stands on"),
    n_training_questions=(pl.Int64(), "their questions"),
)
JUDGE_SCHEMA, JUDGE_COLUMNS = described(
    row_id=(pl.String(), "of the rollout"),
    persona=(pl.String(), "name in the catalogue"),
    judge_model=(pl.String(), "null: not asked"),
    scale_max=(pl.Int64(), "highest score of the persona's scale; the lowest is 0"),
    score=(pl.Int64(), "null unless scored"),
    status=(pl.String(), "scored | refusal | invalid | missing | not_asked"),
    answer=(pl.String(), "the judge's reply, cut; null without one"),
    cached=(pl.Boolean(), "the reply was on disk from an earlier run"),
)
SUMMARY_SCHEMA, SUMMARY_COLUMNS = described(
    persona=(pl.String(), "name in the catalogue"),
    kind=(pl.String(), "trait | role"),
    metric=(pl.String(), "minilm, truth, judge: trait; base_nll (nats a token), loop, new_tokens: coherence"),
    arm_name=(pl.String(), "trained@0.5; prompted and random alone are means over their arms"),
    arm=(pl.String(), "vanilla | prompted_<i> | trained | averaged | random"),
    scale=(pl.Float64(), "multiple of the vector"),
    seed=(pl.Int64(), "of the vector"),
    pooled=(pl.Boolean(), "a mean over several arms"),
    n_questions=(pl.Int64(), "what the numbers stand on"),
    mean=(pl.Float64(), "over questions"),
    low=(pl.Float64(), "95% interval over questions"),
    high=(pl.Float64(), ""),
    difference=(pl.Float64(), "to vanilla on the same questions"),
    difference_low=(pl.Float64(), ""),
    difference_high=(pl.Float64(), ""),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    simultaneous_low=(pl.Float64(), "of the difference, for all arms of the persona at once"),
    simultaneous_high=(pl.Float64(), ""),
    p=(pl.Float64(), "test of the mean over questions"),
    p_holm=(pl.Float64(), "p, Holm's correction over the arms of the persona"),
    verdict=(pl.String(), "trait metrics: effect up | effect down | no effect; null for vanilla"),
    trait_gap_closed=(
        pl.Float64(),
        "of what prompting does to the trait: (arm - vanilla) / (prompted - vanilla); null if it does nothing",
    ),
    trait_gap_low=(pl.Float64(), ""),
    trait_gap_high=(pl.Float64(), ""),
)


class TableError(ValueError):
    """Stored rows that do not go together. The message names persona, arm or row, and the cure."""


@dataclass(frozen=True, eq=False)
class PersonaRows:
    """What is stored of one persona. `judge` is None where nothing was judged."""

    rollouts: pl.DataFrame
    minilm: pl.DataFrame
    judge: pl.DataFrame | None = None


@dataclass(frozen=True, eq=False)
class BehaviourTables:
    """Frames that can be stored as they are.

    Attributes:
        rows: one row an answer with all its scores; judge scores as shares of their scale.
        summary: `SUMMARY_SCHEMA`.
        agreement: one row a persona and pair of scales.
        judged: one row a persona and arm: answers scored, refusal, invalid, missing, not_asked.
        scorers: one row a persona: the MiniLM scorer's report.
        control_shifts: random directions of all personas on every trait metric, judged together
            (`controls.CONTROL_SCHEMA`).
        corrected: `correction.CORRECTED_SCHEMA`: what the judge says, corrected by gold; empty without judge or truth.
    """

    rows: pl.DataFrame
    summary: pl.DataFrame
    agreement: pl.DataFrame
    judged: pl.DataFrame
    scorers: pl.DataFrame = field(default_factory=pl.DataFrame)
    control_shifts: pl.DataFrame = field(default_factory=pl.DataFrame)
    corrected: pl.DataFrame = field(default_factory=pl.DataFrame)

    @property
    def personas(self) -> list[str]:
        return self.summary["persona"].unique(maintain_order=True).to_list()

    def of(self, persona: str, metric: str) -> pl.DataFrame:
        """The summary of one persona and metric, in the order of the arms."""
        return self.summary.filter(persona=persona, metric=metric)

    def arm(self, persona: str, metric: str, arm_name: str) -> dict:
        """One row of the summary.

        Raises:
            KeyError: there is no such row.
        """
        rows = self.of(persona, metric).filter(arm_name=arm_name)
        if rows.is_empty():
            raise KeyError(f"{persona}: no arm {arm_name!r} with metric {metric!r} in the summary")
        return rows.row(0, named=True)
