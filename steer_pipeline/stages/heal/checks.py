"""What must hold of the heal loop. What makes an arm's number mean nothing stops what comes after; what arms do not
show warns, with its numbers.
"""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import (
    MAX_HEALED_LOSS,
    MAX_ON_POLICY_KL,
    MIN_COHERENCE,
    MIN_FILTER_RECALL,
    MIN_RETAINED,
    MIN_SEEDS,
    MIN_SOUND_KEPT,
)
from steer_pipeline.partitions import ARM, TRAINED_ARM
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.heal.assets import ROUNDS
from steer_pipeline.stages.kit import Claims, must, ought, reader, should, user_errors

DOSE = Claims(
    "heal_dose",
    should(
        "dose_has_the_target_divergence",
        "The calibrated dose has the divergence from base that the profile asks for.",
        "sample the rollouts (heal.calibration.temperature), or take more prompts",
    ),
    ought(
        "a_dose_is_good",
        "Some dose moves the trait beyond what random directions of its length do, moves no other scale as far, and "
        "leaves texts coherent.",
        "try other blocks or doses (heal.blocks, heal.gate.doses)",
    ),
)
SAMPLES = Claims(
    "heal_samples",
    should(
        "dose_holds_on_all_texts",
        "As many of all texts survive the filter as the test of their dose promised; all are of that dose.",
        "raise heal.controller.n_prompts",
    ),
)
KEEP = Claims(
    "heal_keep_set",
    must(
        "enough_kept",
        "Enough samples are kept to learn from.",
        "read the borderline texts; lower the dose, or sample more prompts",
    ),
    must(
        "differs_from_base",
        "The kept samples show more of the trait than base's on the same prompts.",
        "raise the dose (heal.controller), or sample more prompts",
    ),
    should(
        "filter_tells",
        f"With this profile's limits the filter drops {MIN_FILTER_RECALL:.0%} of labelled loops and babble and keeps "
        f"{MIN_SOUND_KEPT:.0%} of fluent texts with a trait, on texts that no threshold has seen.",
        "read the examples; a limit that is null (heal.filter) sees nothing: babble is seen by max_spread alone",
    ),
)
ADAPTER = Claims(
    "heal_adapter",
    must(
        "every_seed_is_trained",
        "There is a student of every seed, or of every random direction.",
        "materialise heal_adapter again",
    ),
    should(
        "merged_is_hooked",
        "Folded into the weights in fp32, every student says what base and adapter say.",
        "export adapters, not merged models, and report this",
    ),
    should(
        "barrier_works",
        "Where an arm has a barrier, it fires in some passes and does not outweigh in all of them what is learned.",
        "read the loss curves, then change strength or tau of that arm's barrier",
    ),
    partitions_def=TRAINED_ARM,
)
EVALUATION = Claims(
    "heal_evaluation",
    must(
        "every_prompt_is_answered",
        "Every seed has answered the same held-out prompts, each once.",
        "materialise heal_evaluation again",
    ),
    partitions_def=ARM,
)
STAGE = Claims(
    "heal_stage_table",
    must(
        "heal_arms_differ_once",
        "By their stored configurations all arms differ from nll in exactly one setting.",
        "mend heal.arms, then train that arm again",
    ),
    ought(
        "heal_every_arm_stands_beside_base",
        "All arms of the profile are in the table.",
        "materialise what is named (`steer make heal` does)",
    ),
    ought(
        "heal_controls_show_nothing",
        "Students of random directions of the same divergence, and those of base's own texts, do not move the target.",
        "explain that first: what other arms show is no evidence before",
    ),
    should(
        "heal_off_target_is_heard",
        "Every scale beside the target scores some texts otherwise than others.",
        "give this model marker words of its own, or none (lexicons in the profile), or name others in "
        "heal.evaluation.off_target",
    ),
    should(
        "heal_keeps_the_trait",
        f"A healed arm retains {MIN_RETAINED} of the steered shift within {MAX_HEALED_LOSS} of base's coherence.",
        "read the Pareto figure: raise epochs where coherence is full, lower the dose where it is not",
    ),
    should(
        "heal_has_enough_seeds",
        f"Every healed arm has {MIN_SEEDS} seeds: fewer say nothing of other ones.",
        "name more in heal.seeds",
    ),
    should(
        "on_policy_needs_less_kl",
        f"On-policy distillation pays at most {MAX_ON_POLICY_KL} of the nats that supervised learning pays for the "
        "same movement.",
        "read `divergence`; on-policy samples see the teacher where the student goes, kept texts do not",
    ),
    should(
        "base_can_choose",
        "Where forced choices are read, base answers them, and by what it reads.",
        "read free texts, or take a larger model",
    ),
)
SWEEP = Claims(
    "heal_barrier_sweep",
    should(
        "barrier_strength_orders_kl",
        "Under each barrier, the stronger it is, the nearer to base students are.",
        "read where it turns: more seeds tell noise from a real turn",
    ),
)
ROUND = {
    name: Claims(
        name,
        should(
            "round_is_good",
            f"The round's student shows more of the trait than base, with coherence above {MIN_COHERENCE}.",
            "go on with the last good round's student",
        ),
    )
    for name in ROUNDS
}
TRAJECTORY = Claims(
    "heal_trajectory",
    should(
        "loop_stays_coherent",
        "No round stopped the loop, and the last one is good.",
        "use the last good round; read the texts of the one that stopped",
    ),
)


@DOSE.check()
def heal_dose_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether calibration met its target and some dose is good."""
    from steer_pipeline.lab.heal.calibration import calibration_claim
    from steer_pipeline.lab.heal.dosing import read_dose
    from steer_pipeline.lab.heal.gate import gate_claim

    with user_errors():
        dosed = read_dose(reader(context, store).folder("heal_dose"))
    yield DOSE.judged(calibration_claim(dosed.calibration))
    yield DOSE.judged(gate_claim(dosed.gate))


@SAMPLES.check()
def heal_samples_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the settled dose holds on all texts."""
    from steer_pipeline.lab.heal.dosing import read_samples, settled_verdict

    with user_errors():
        sampled = read_samples(reader(context, store).folder("heal_samples"))
    yield SAMPLES.judged(settled_verdict(sampled))


@KEEP.check()
def heal_keep_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether what is kept is enough, and something else than base's."""
    from steer_pipeline.catalogue.loading import read_personas
    from steer_pipeline.lab.heal.keeping import keep_verdicts, read_keep_set
    from steer_pipeline.lab.heal.labelled import filter_told_by_labels

    with user_errors():
        kept = read_keep_set(reader(context, store).folder("heal_keep_set"))
        now = settings()
        found = keep_verdicts(kept, now.profile.heal.filter)
        personas, _ = read_personas(profile=now.profile)
        found.append(filter_told_by_labels(now.home, personas, now.profile.heal.filter))
    yield from map(KEEP.judged, found)


@ADAPTER.check()
def heal_adapter_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether an arm's students are all there, and what its barrier did."""
    from steer_pipeline.catalogue.healing import HealArmSpec
    from steer_pipeline.lab.heal.healing import adapter_verdicts, config_of, taught_to

    with user_errors():
        folder = reader(context, store).folder("heal_adapter", context.partition_key)
        students = taught_to(HealArmSpec.model_validate(config_of(folder)), settings().profile.heal)
    yield from map(ADAPTER.judged, adapter_verdicts(folder, list(students)))


@EVALUATION.check()
def heal_evaluation_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether an arm answered everything."""
    from steer_pipeline.lab.heal.evaluating import answers_everything, read_evaluation

    with user_errors():
        folder = reader(context, store).folder("heal_evaluation", context.partition_key)
    yield EVALUATION.judged(answers_everything(read_evaluation(folder).rows))


@STAGE.check()
def heal_stage_table_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether arms stand fairly beside base, and what they show."""
    from steer_pipeline.lab.heal.stage import read_stage, stage_verdicts

    with user_errors():
        stage = read_stage(reader(context, store).folder("heal_stage_table"))
    yield from map(STAGE.judged, stage_verdicts(stage, settings().profile.heal.evaluation.seed))


@SWEEP.check()
def heal_barrier_sweep_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether strength does what it should."""
    import polars as pl

    from steer_pipeline.lab.heal.sweep import SEEDS, strength_orders_kl

    with user_errors():
        folder = reader(context, store).folder("heal_barrier_sweep")
    yield SWEEP.judged(strength_orders_kl(pl.read_parquet(folder / SEEDS)))


@TRAJECTORY.check()
def heal_trajectory_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """How far the loop stayed coherent."""
    import polars as pl

    from steer_pipeline.lab.heal.rounds import TRAJECTORY as ROWS
    from steer_pipeline.lab.heal.rounds import loop_is_coherent

    with user_errors():
        folder = reader(context, store).folder("heal_trajectory")
    yield TRAJECTORY.judged(loop_is_coherent(pl.read_parquet(folder / ROWS)))


def _round_checks(name: str) -> dg.AssetChecksDefinition:
    claims = ROUND[name]

    @claims.check()
    def heal_round_checks(
        context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
    ) -> Iterator[dg.AssetCheckResult]:
        """Whether the round made a student to go on from."""
        from steer_pipeline.lab.heal.rounds import read_state, round_goes_on

        with user_errors():
            folder = reader(context, store).folder(name)
        yield claims.judged(round_goes_on(read_state(folder)))

    return heal_round_checks


CHECKS = [
    heal_dose_checks,
    heal_samples_checks,
    heal_keep_set_checks,
    heal_adapter_checks,
    heal_evaluation_checks,
    heal_stage_table_checks,
    heal_barrier_sweep_checks,
    *(_round_checks(name) for name in ROUNDS),
    *([heal_trajectory_checks] if ROUNDS else []),
]
