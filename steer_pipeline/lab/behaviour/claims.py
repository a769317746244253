"""What must hold of rollouts, of their scores and of the behaviour table. In: stored rows. Out: verdicts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.arms import RANDOM, VANILLA
from steer_pipeline.lab.behaviour.judging import SKIPPED, scale_problems
from steer_pipeline.lab.behaviour.report import ARMS, LEARNED_ARM
from steer_pipeline.lab.behaviour.rollouts import known_questions, leaks, missing_answers
from steer_pipeline.lab.behaviour.schema import MINILM, TRUTH, UP
from steer_pipeline.lab.behaviour.scoring import score_by_length
from steer_pipeline.lab.controls import Place, controls_verdict, place_among, read_controls
from steer_pipeline.lab.evaluation.judgement import NOT_ASKED
from steer_pipeline.lab.limits import MAX_LENGTH_AUC, MAX_LENGTH_SHIFT, MAX_UNREADABLE, MIN_AGREEMENT
from steer_pipeline.lab.verdict import Verdict

SHOWN = 3


def _listed(problems: Sequence[str], allowed: str = "none is allowed") -> str:
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{'; '.join(problems[:SHOWN])}{more} ({allowed})"


# ----------------------------------------------------------------------------------------- rollouts


def no_leak(rows: pl.DataFrame, tokenizer: Any, persona: Persona, chat_template: bool) -> Verdict:
    """No response begins with the end of its prompt."""
    leaking = leaks(rows, tokenizer, persona.positive.instructions, chat_template)
    good = f"{rows.height} responses, none begins with its prompt"
    message = _listed(leaking) if leaking else good
    return Verdict("prompt_is_not_in_the_response", not leaking, message, {"leaks": len(leaking)})


def all_arms(
    rows: pl.DataFrame, names: Sequence[str], missing: str, n_questions: int, n_samples: int
) -> Verdict:
    """Every arm has one answer to each question and sample.

    Args:
        missing: why there are no averaged arms; "" where there are.
    """
    lacking = missing_answers(rows, names, n_questions, n_samples)
    good = f"{len(names)} arms, {n_questions * n_samples} answers each"
    good += f"; no averaged arms: {missing}" if missing else ""
    numbers = {"arms": len(names), "incomplete_arms": len(lacking)}
    return Verdict("all_arms_present", not lacking, _listed(lacking) if lacking else good, numbers)


def questions_held_out(rows: pl.DataFrame, behaviour_set: pl.LazyFrame) -> Verdict:
    """No question stands in the behaviour set."""
    asked = rows["question"].unique().sort().to_list()
    known = known_questions(asked, behaviour_set)
    message = _listed(known) if known else f"{len(asked)} questions, none in the behaviour set"
    return Verdict("questions_are_held_out", not known, message, {"known_questions": len(known)})


# ------------------------------------------------------------------------------------ minilm_scores


def score_verdicts(scores: pl.DataFrame, rollouts: pl.DataFrame) -> Iterator[Verdict]:
    """Whether the scores are whole, and whether they measure the persona and not the length."""
    same = sorted(scores["row_id"]) == sorted(rollouts["row_id"])
    inside = int(scores["score"].is_between(0, 1).fill_null(False).sum())
    yield Verdict(
        "every_rollout_is_scored",
        same and inside == scores.height > 0,
        f"{inside} scores from 0 to 1 for {rollouts.height} rollouts"
        + ("" if same else "; not the same rows"),
        {"scores": inside, "rollouts": rollouts.height},
    )
    facts = scores.row(0, named=True)
    yield Verdict(
        "scorer_separates",
        facts["auc_low"] > 0.5 and facts["auc"] > facts["shuffled_high"],
        f"held-out AUC {facts['auc']:.3f} [{facts['auc_low']:.3f}, {facts['auc_high']:.3f}]; must lie above 0.5, "
        f"and the AUC above {facts['shuffled_high']:.3f}, under which 95% of shuffled fits stay",
        {name: facts[name] for name in ("auc", "auc_low", "shuffled_mean", "shuffled_high")},
    )
    yield length_does_not_tell(scores, rollouts)


def length_does_not_tell(scores: pl.DataFrame, rollouts: pl.DataFrame) -> Verdict:
    """Neither matched excerpts nor plain answers give the persona away by their length."""
    plain = rollouts.filter(pl.col("arm").is_in([VANILLA, RANDOM])).join(scores, on="row_id")
    shift = score_by_length(plain["score"].to_numpy(), plain["response"].to_list())
    before, matched = scores["length_auc_before"][0], scores["length_auc_after"][0]
    return Verdict(
        "length_does_not_tell",
        abs(matched - 0.5) <= MAX_LENGTH_AUC - 0.5 and shift <= MAX_LENGTH_SHIFT,
        f"length AUC {before:.2f} of whole texts, {matched:.2f} of matched ones (at most {MAX_LENGTH_AUC}); longer "
        f"plain answers score {shift:+.3f} above shorter ones (at most {MAX_LENGTH_SHIFT})",
        {"length_auc_before": before, "length_auc_after": matched, "length_shift": shift},
    )


# ------------------------------------------------------------------------------------- judge_scores


def judge_verdicts(scores: pl.DataFrame, persona: Persona) -> Iterator[Verdict]:
    """Whether scores are on the persona's scale, and whether the judge answered as the rubric asks."""
    problems = scale_problems(scores, persona)
    good = f"{scores['score'].count()} scores, all from {persona.scale}"
    message = _listed(problems) if problems else good
    yield Verdict("scores_fit_the_scale", not problems, message, {"problems": len(problems)})
    asked = scores.filter(pl.col("status") != NOT_ASKED.status)
    invalid, missing = (asked.filter(status=status).height for status in ("invalid", "missing"))
    share = (invalid + missing) / asked.height if asked.height else 0.0
    counted = (
        f"{invalid} unreadable and {missing} missing replies of {asked.height} ({share:.1%}), less than "
        f"{MAX_UNREADABLE:.0%} is wanted"
    )
    yield Verdict(
        "judge_answers_are_readable",
        share < MAX_UNREADABLE,
        counted if asked.height else SKIPPED,
        {"asked": asked.height, "invalid": invalid, "missing": missing, "unreadable_share": share},
    )


# ---------------------------------------------------------------------------------- behaviour_table


def table_verdicts(folder: Path, personas: Sequence[str]) -> Iterator[Verdict]:
    """Whether what should move the trait does, and what should not does not; persona by persona.

    Args:
        folder: of a behaviour_table.
        personas: those that the catalogue has.
    """
    arms = pl.read_parquet(folder / ARMS)
    present = set(arms["persona"])
    absent = [name for name in personas if name not in present]
    message = f"{len(present)} of {len(personas)} personas" + (
        f"; no rollouts: {', '.join(absent)}" if absent else ""
    )
    yield Verdict("every_persona_is_in_the_table", not absent, message, {"personas": len(present)})
    yield steering_moves(arms)
    yield controls_verdict("random_moves_nothing", read_controls(folder))
    yield scales_agree(pl.read_parquet(folder / "agreement.parquet"))


def steering_moves(arms: pl.DataFrame) -> Verdict:
    """The trained vector at its learned scale raises the trait score of every persona, beyond random directions."""
    learned = {row["persona"]: row for row in arms.filter(arm_name=LEARNED_ARM).iter_rows(named=True)}
    shifts = {name: row["difference"] for name, row in learned.items()}
    places = {name: _place(arms.filter(persona=name), shift) for name, shift in shifts.items()}
    still = []
    for name in sorted(set(arms["persona"])):
        place = places.get(name)
        if name not in learned:
            still.append(f"{name} (no trained arm)")
        elif learned[name]["verdict"] != UP or (place is not None and not place.beyond):
            still.append(f"{name} ({_shift(learned[name])}{f'; {place}' if place else ''})")
    worst = max((place.spread_p for place in places.values() if place), default=None)
    good = f"all {len(shifts)} personas move, by {min(shifts.values(), default=0):+.3f} at least"
    good += (
        ""
        if worst is None
        else f", beyond all random directions (against their spread p {worst:.2g} at most)"
    )
    message = f"do not move up: {', '.join(still)}" if still else good
    numbers = {f"shift_{name}": shift for name, shift in shifts.items()}
    return Verdict("steering_moves_the_trait", not still, message, numbers)


def _place(own: pl.DataFrame, shift: float | None) -> Place | None:
    """Where a shift stands among those of one persona's random directions; None where there are not two."""
    drawn = own.filter(pl.col("arm") == RANDOM, ~pl.col("pooled"))["difference"].drop_nulls()
    return None if shift is None or len(drawn) < 2 else place_among(shift, drawn.to_numpy(), 1)


def scales_agree(agreement: pl.DataFrame) -> Verdict:
    """MiniLM finds the persona where the lexicon does."""
    areas = dict(
        agreement.filter(first=MINILM, second=TRUTH).drop_nulls("auc").select("persona", "auc").iter_rows()
    )
    low = [f"{name} ({area:.2f})" for name, area in areas.items() if area < MIN_AGREEMENT]
    good = f"{len(areas)} personas compared with the lexicon, AUC {min(areas.values(), default=1.0):.2f} at least"
    message = f"AUC below {MIN_AGREEMENT}: {', '.join(low)}" if low else good
    numbers = {f"auc_{name}": area for name, area in areas.items()}
    return Verdict("scales_agree", not low, message, numbers)


def _shift(row: dict[str, Any]) -> str:
    """`+0.012 [-0.010, +0.034], p 0.42`"""
    if row["difference"] is None:
        return "no score"
    low, high, p = row["difference_low"], row["difference_high"], row["p_holm"]
    test = "" if p is None else f", p {p:.2g}"
    return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]{test}"
