"""What must hold of behaviour sets, sweeps, trained vectors and comparisons. What training and comparison take for
granted stops them; weak evidence warns, with its numbers.
"""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.catalogue import load_persona
from steer_pipeline.lab.limits import (
    MAX_LATE_SHARE,
    MAX_NORM_FRACTION,
    MIN_GAP_CLOSED,
    MIN_SEED_COSINE,
    MIN_SEEDS,
)
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, reader, should, user_errors

READ_AGAIN = "mend behaviour.source or its files, then materialise behaviour_set again"
MORE_SEEDS = "name more in training.seeds"
SET = Claims(
    "behaviour_set",
    must(
        "no_row_without_a_score_counts",
        "Only pos rows with a score of at least the profile's minimum count, and all of those do.",
        "materialise behaviour_set again",
    ),
    must(
        "questions_are_disjoint",
        "No question is in two splits, by index or by text, or among the persona's rollout questions.",
        "materialise behaviour_set again, or ask other questions in the catalogue",
    ),
    must(
        "splits_are_not_empty",
        "Train, validation and test each have rows that count.",
        "lower behaviour.train_tokens, or bring more scored dialogues",
    ),
    must(
        "instructions_are_stripped",
        "Every dialogue is one bare question and one answer: no system turn, no instruction before the question.",
        READ_AGAIN,
    ),
    must(
        "dialogues_are_of_this_model",
        "The profile's model wrote the answers, unless the profile sets behaviour.allow_other_model.",
        "bring dialogues of this model, or set behaviour.allow_other_model",
    ),
    should(
        "token_budget_is_met",
        "Each split has the supervised response tokens that the profile wants.",
        "bring more scored dialogues, or lower the budgets in `behaviour`",
    ),
    partitions_def=TRAIT_OR_ROLE,
)
RATES = Claims(
    "lr_sweep",
    should(
        "chosen_rate_is_inside_the_sweep",
        "The best learning rate is neither the smallest nor the largest of the sweep, where a better one may lie "
        "outside.",
        "add rates beyond that edge to training.learning_rates",
    ),
    should(
        "no_rate_diverges",
        "Every learning rate of the sweep kept a finite loss to its end.",
        "leave these rates out of training.learning_rates",
    ),
    partitions_def=TRAIT_OR_ROLE,
)
TRAINED = Claims(
    "trained_vector",
    must(
        "vector_is_sound",
        "The vector and those of all seeds are finite, not zero, as wide as the model, at one block, and their files "
        "belong together.",
        "materialise trained_vector again",
    ),
    should(
        "validation_improves",
        "The vector makes the persona's held-out answers likelier: NLL below the model's without it, with a paired "
        "interval over questions above zero.",
        "train at another block (training.block) or longer, or bring more dialogues",
    ),
    should(
        "training_settled",
        "Validation NLL was no longer falling when training ended: the last quarter of the steps brought less than "
        f"{MAX_LATE_SHARE:.0%} of the whole gain.",
        "raise training.epochs or the learning rates",
    ),
    should(
        "seeds_agree",
        f"At least {MIN_SEEDS} seeds, and their vectors point the same way: mean cosine of at least {MIN_SEED_COSINE}.",
        f"{MORE_SEEDS}, or bring more dialogues",
    ),
    should(
        "norm_is_moderate",
        f"The vector is at most {MAX_NORM_FRACTION:g} times as long as the residual stream that it is added to.",
        "lower the learning rates, or set training.weight_decay",
    ),
    partitions_def=TRAIT_OR_ROLE,
)
COMPARED = Claims(
    "vector_comparison",
    must(
        "same_tokens_in_every_arm",
        "Every arm, seed and dose is measured once on each of vanilla's rows, on the same response tokens.",
        "materialise vector_comparison again",
    ),
    should(
        "prompting_has_an_effect",
        "The instruction in context makes held-out answers likelier: the interval of its gain is above 0.",
        "read the persona's dialogues: the model may not follow the instruction, or the test split may be too small",
    ),
    should(
        "trained_closes_half_of_the_gap",
        f"The trained vector closes at least {MIN_GAP_CLOSED:g} of what prompting gains in likelihood.",
        "see the checks of trained_vector; train at another block or longer",
    ),
    should(
        "random_closes_none",
        "Random directions of the trained norm at its site close nothing: their interval includes 0 or is below it.",
        "take what the trained vector closes beyond them for its effect, and see whether its norm is moderate",
    ),
    should(
        "averaged_exists",
        "There were enough rows for an averaged vector; if not, how many there were.",
        "bring more scored dialogues, or lower behaviour.min_count or behaviour.score_gap",
    ),
    should(
        "at_least_three_seeds",
        f"Trained and random vectors are of at least {MIN_SEEDS} seeds each.",
        MORE_SEEDS,
    ),
    partitions_def=TRAIT_OR_ROLE,
)


@SET.check()
def behaviour_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a behaviour set holds what training and comparison take for granted."""
    from steer_pipeline.lab.dialogues.rules import judge_set
    from steer_pipeline.lab.models.identity import name_of

    profile = settings().profile
    persona = load_persona(context.partition_key, profile=profile)
    with user_errors():
        rows = reader(context, store).made_rows("behaviour_set", persona.name)
    model = name_of(profile.model, settings().home)
    yield from map(SET.judged, judge_set(rows, persona, profile.behaviour, model))


@RATES.check()
def lr_sweep_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the sweep was wide enough and none of its rates too large."""
    from steer_pipeline.lab.vectors.learned.claims import sweep_verdicts

    with user_errors():
        folder = reader(context, store).folder("lr_sweep", context.partition_key)
    yield from map(RATES.judged, sweep_verdicts(folder))


@TRAINED.check()
def trained_vector_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a trained vector is whole, of use, and trained long enough."""
    from steer_pipeline.lab.vectors.learned.claims import trained_verdicts

    with user_errors():
        folder = reader(context, store).folder("trained_vector", context.partition_key)
    yield from map(TRAINED.judged, trained_verdicts(folder))


@COMPARED.check()
def vector_comparison_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the comparison is fair, and what it says."""
    from steer_pipeline.lab.likelihood.claims import judge_comparison

    with user_errors():
        folder = reader(context, store).folder("vector_comparison", context.partition_key)
    yield from map(COMPARED.judged, judge_comparison(folder))


CHECKS = [behaviour_set_checks, lr_sweep_checks, trained_vector_checks, vector_comparison_checks]
