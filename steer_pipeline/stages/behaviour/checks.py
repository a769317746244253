"""What must hold of rollouts, scores and the behaviour table. Leaks, missing arms and broken scores stop what is
downstream; what the table says of the personas warns.
"""

from collections.abc import Iterator

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import load_persona
from steer_pipeline.io.reader import ROWS
from steer_pipeline.lab.limits import MAX_LENGTH_AUC, MAX_LENGTH_SHIFT, MAX_UNREADABLE, MIN_AGREEMENT
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, reader, should, user_errors

ROLLOUTS = Claims(
    "rollouts",
    must(
        "prompt_is_not_in_the_response",
        "No response begins with the end of the prompt that it answers, chat template included.",
        "check the model's chat template, then materialise rollouts again",
    ),
    must(
        "all_arms_present",
        "Vanilla, every instruction, both signs and the learned scale of the vectors, and every random seed "
        "have one answer to each question and sample; averaged arms lack only where there is no such vector.",
        "materialise rollouts again",
    ),
    must(
        "questions_are_held_out",
        "No question of the rollouts stands in the persona's behaviour set.",
        "ask other questions in the catalogue, or take them out of the set, then materialise behaviour_set and "
        "what follows",
    ),
    partitions_def=TRAIT_OR_ROLE,
)
MINILM = Claims(
    "minilm_scores",
    must(
        "every_rollout_is_scored",
        "Every rollout has one score from 0 to 1, and nothing else has.",
        "materialise minilm_scores again",
    ),
    should(
        "scorer_separates",
        "On unseen questions the scorer tells positives from the rest: the AUC's interval lies above 0.5 and "
        "the AUC above 95% of those on shuffled labels.",
        "bring more scored dialogues, or raise rollouts.minilm_texts; do not read these scores",
    ),
    should(
        "length_does_not_tell",
        f"Length alone has an AUC of at most {MAX_LENGTH_AUC} on what the scorer was trained on, and longer "
        f"vanilla and random answers score at most {MAX_LENGTH_SHIFT} above shorter ones.",
        "read shifts of the trait score beside the number of new tokens",
    ),
    partitions_def=TRAIT_OR_ROLE,
)
JUDGE = Claims(
    "judge_scores",
    must(
        "scores_fit_the_scale",
        "No rollout comes twice; scored rows, and only they, have a whole number from 0 to the top of the "
        "persona's scale (100 for a trait, 3 for a role), and every status is a known one.",
        "materialise judge_scores again",
    ),
    should(
        "judge_answers_are_readable",
        f"Fewer than {MAX_UNREADABLE:.0%} of the rows that were asked have an unreadable reply or none.",
        "make the rubric ask for one number alone, or name another model in judge.model",
    ),
    partitions_def=TRAIT_OR_ROLE,
)
TABLE = Claims(
    "behaviour_table",
    should(
        "every_persona_is_in_the_table",
        "Every trait and role of the catalogue has rollouts and scores.",
        "materialise rollouts and minilm_scores of these personas, then behaviour_table again",
    ),
    should(
        "steering_moves_the_trait",
        "At its learned scale the trained vector raises the trait score of every persona, beyond random directions and "
        "their spread.",
        "look at the dose response: larger scales in rollouts.trained_scales, more questions, or another block",
    ),
    should(
        "random_moves_nothing",
        "Random directions of the trained vector's length move no trait score of any persona beyond its margin, on any "
        "scale.",
        "take no effect of that size for the persona's; see whether norm and length tell",
    ),
    should(
        "scales_agree",
        "MiniLM tells answers in which the lexicon finds the persona from the others: AUC of at "
        f"least {MIN_AGREEMENT} wherever there are both.",
        "read answers on which they differ; mend the marker words, or see the checks of minilm_scores",
    ),
)


@ROLLOUTS.check()
def rollouts_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether rollouts hold answers only, all of them, to questions that nothing was trained on."""
    from steer_pipeline.lab.behaviour import claims
    from steer_pipeline.lab.behaviour.arms import stored_arms
    from steer_pipeline.lab.models.loading import load_tokenizer

    read, profile = reader(context, store), settings().profile
    persona = load_persona(context.partition_key, profile=profile)
    with user_errors():
        rows = read.made_rows("rollouts", persona.name)
        vectors = [read.folder(asset, persona.name) for asset in ("trained_vector", "vector_comparison")]
        arms, missing = stored_arms(persona, *vectors, profile.rollouts)
        known = pl.scan_parquet(read.folder("behaviour_set", persona.name) / ROWS)
    tokenizer = load_tokenizer(profile.model, settings().home)
    yield ROLLOUTS.judged(claims.no_leak(rows, tokenizer, persona, profile.model.chat_template))
    n_questions, n_samples = (
        len(persona.questions[: profile.rollouts.n_questions]),
        profile.rollouts.n_samples,
    )
    names = [arm.name for arm in arms]
    yield ROLLOUTS.judged(claims.all_arms(rows, names, missing, n_questions, n_samples))
    yield ROLLOUTS.judged(claims.questions_held_out(rows, known))


@MINILM.check()
def minilm_scores_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the scores are whole, and whether they measure the persona and not the length."""
    from steer_pipeline.lab.behaviour.claims import score_verdicts

    read = reader(context, store)
    with user_errors():
        tables = [read.made_rows(asset, context.partition_key) for asset in ("minilm_scores", "rollouts")]
    yield from map(MINILM.judged, score_verdicts(*tables))


@JUDGE.check()
def judge_scores_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether scores are on the persona's scale, and whether the judge answered as the rubric asks."""
    from steer_pipeline.lab.behaviour.claims import judge_verdicts

    with user_errors():
        scores = reader(context, store).made_rows("judge_scores", context.partition_key)
    yield from map(
        JUDGE.judged, judge_verdicts(scores, load_persona(context.partition_key, profile=settings().profile))
    )


@TABLE.check()
def behaviour_table_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether what should move the trait does, and what should not does not; persona by persona."""
    from steer_pipeline.lab.behaviour.claims import table_verdicts

    with user_errors():
        folder = reader(context, store).folder("behaviour_table")
    yield from map(TABLE.judged, table_verdicts(folder, TRAIT_OR_ROLE.get_partition_keys()))


CHECKS = [rollouts_checks, minilm_scores_checks, judge_scores_checks, behaviour_table_checks]
