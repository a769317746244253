"""What must hold of contrast sets, persona vectors and dose curves. In: what is stored. Out: verdicts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import Persona, ScaleSpec
from steer_pipeline.lab.controls import place_among
from steer_pipeline.lab.evaluation import trait_scales
from steer_pipeline.lab.limits import MIN_CONTRAST_AUC, MIN_LOGIT_DELTA, MIN_SPLIT_HALF_COSINE
from steer_pipeline.lab.personas.contrast import measure_contrast, mismatched_contexts
from steer_pipeline.lab.personas.dose_table import band_of, cell_beside_band
from steer_pipeline.lab.personas.schema import GENERATED, PAIRS
from steer_pipeline.lab.personas.steps import PROBE, SWEEP
from steer_pipeline.lab.vectors.doses import Recommendation, load_recommendation
from steer_pipeline.lab.vectors.vector import PersonaVector, best_block
from steer_pipeline.lab.verdict import Verdict

BETTER = 5  # blocks that a warning names in place of noisy ones

# ------------------------------------------------------------------------------------ contrast sets


def sides_match(rows: pl.DataFrame) -> Verdict:
    """Both sides hold the same contexts, and both splits are there."""
    broken, splits = mismatched_contexts(rows), rows["split"].n_unique()
    contexts = rows["context_id"].n_unique()
    message = f"{contexts} contexts, all on both sides"
    if broken.height:
        first = broken.row(0, named=True)
        message = f"{broken.height} of {contexts} contexts differ (limit 0); {first['context_id']}: {first['problem']}"
    elif splits != 2:
        message += f", but {splits} split where train and held_out are needed"
    numbers = {"contexts": contexts, "mismatched_contexts": broken.height, "splits": splits}
    return Verdict("sides_share_their_contexts", broken.is_empty() and splits == 2, message, numbers)


def contrast_shows(rows: pl.DataFrame, persona: Persona, scales: ScaleSpec) -> Verdict:
    """What the model says under the two instructions differs in the trait; pairs that were filtered out included."""
    claim, generated = "completions_show_the_contrast", rows.filter(pl.col("source") == GENERATED)
    if generated.is_empty():
        return Verdict(claim, True, "the model generated nothing: the texts are given")
    scorer = trait_scales(persona, scales, rows, headline_only=True).scorer
    apart = measure_contrast(generated, scorer)
    return Verdict(
        claim,
        apart["difference_low"] > 0 and apart["auc"] >= MIN_CONTRAST_AUC,
        f"trait score {apart['positive']:+.2f} against {apart['negative']:+.2f}: difference "
        f"{apart['difference']:+.2f} [{apart['difference_low']:+.2f}, {apart['difference_high']:+.2f}], which must be "
        f"above 0; AUC {apart['auc']:.2f}, at least {MIN_CONTRAST_AUC} is wanted",
        apart,
    )


# ------------------------------------------------------------------------------------------ vectors


def vector_verdicts(vector: PersonaVector) -> Iterator[Verdict]:
    """Of a vector that could be loaded, so that its directions are sound."""
    blocks, width = len(vector.present_blocks), int(vector.raw.shape[1])
    numbers = {"directions": blocks, "width": width}
    yield Verdict("directions_are_sound", True, f"{blocks} directions of {width} values", numbers)
    best = best_block(vector.metadata)
    if best is None:
        for claim in ("halves_agree", "separates_held_out_contexts"):
            yield Verdict(claim, False, "the vector was not judged on a contrast set")
        return
    yield halves_agree(vector, best)
    yield separates(vector, best)


def halves_agree(vector: PersonaVector, block: int) -> Verdict:
    """Random halves of the pairs give the same direction."""
    cosines = vector.metadata.get("split_half_cosine")
    if cosines is None:
        return Verdict("halves_agree", True, "imported: there are no pairs to halve")
    return Verdict(
        "halves_agree",
        cosines[block] >= MIN_SPLIT_HALF_COSINE,
        f"mean cosine of halves {cosines[block]:.3f} at block {block}, at least {MIN_SPLIT_HALF_COSINE} is wanted",
        {"split_half_cosine": cosines[block], "best_block": block},
    )


def separates(vector: PersonaVector, block: int) -> Verdict:
    """The best block does better than the best blocks of shuffled refits, of all sources and read-outs together."""
    facts = vector.metadata
    auc, limit = facts["held_out_auc"][block], facts["auc_max_null_95th"]
    return Verdict(
        "separates_held_out_contexts",
        auc > limit,
        f"AUC {auc:.3f} at block {block}, which must be above {limit:.3f}: 95% of shuffled refits stay under that at "
        "their best block",
        {
            "held_out_auc": auc,
            "auc_max_null_95th": limit,
            "auc_max_p": facts["auc_max_p"],
            "best_block": block,
        },
        cure=_other_contrast(facts),
    )


def _other_contrast(facts: Mapping[str, Any]) -> str:
    """What to try where no block of a vector is above its null."""
    tried = [one["source"] for one in facts.get("candidates", [])]
    if not tried:
        return ""
    if PAIRS not in tried:
        return (
            f"the vector is noise at every block under contrast.source {', '.join(dict.fromkeys(tried))}: set "
            "contrast.source: pairs, which needs no model that follows instructions"
        )
    return (
        "given texts do not tell the poles apart in this model: write more and plainer pairs (the persona's examples, "
        "or contrast.pairs), set vector.readout: auto, or use a more able model"
    )


# -------------------------------------------------------------------------------------- dose curves


def dose_verdicts(folder: Path) -> Iterator[Verdict]:
    """Of a dose_curve's folder."""
    yield takes_effect(folder)
    recommendation = load_recommendation(folder)
    yield Verdict(
        "a_coherent_dose_exists",
        recommendation.found,
        recommendation.reason,
        {"dose_fraction": recommendation.fraction or 0.0},
    )
    yield beyond_random(sweep_of(folder), recommendation)


def sweep_of(folder: Path) -> pl.DataFrame:
    """The table of a dose_curve's folder: one row a cell."""
    return pl.read_parquet(folder / SWEEP)


def swept_blocks_separate(vector: PersonaVector, sweep: pl.DataFrame) -> Verdict:
    """No block that was swept has a direction at the level of its null; where one has, which blocks do better."""
    claim, facts = "swept_blocks_separate", vector.metadata
    swept = sweep["block"].drop_nulls().unique().sort().to_list()
    aucs, nulls = facts.get("held_out_auc") or [], facts.get("auc_null_95th") or []
    if not any(auc is not None for auc in aucs):
        return Verdict(claim, True, "the vector was not judged on a contrast set")
    margins = {
        block: auc - null
        for block, (auc, null) in enumerate(zip(aucs, nulls, strict=True))
        if auc is not None and null is not None
    }
    noise = [block for block in swept if margins.get(block, 1.0) <= 0]
    better = sorted((block for block in margins if margins[block] > 0), key=margins.__getitem__)[::-1][
        :BETTER
    ]
    numbers = {"swept_blocks": len(swept), "blocks_at_null": len(noise)}
    if not noise:
        return Verdict(claim, True, f"all {len(swept)} swept blocks are above their null", numbers)
    told = "; ".join(f"block {one}: AUC {aucs[one]:.3f}, null {nulls[one]:.3f}" for one in noise)
    cure = f"set dose.blocks: {sorted(better)}" if better else "no block is better: " + _other_contrast(facts)
    return Verdict(claim, False, f"at the level of their null: {told}", numbers, cure=cure)


def takes_effect(folder: Path) -> Verdict:
    """The largest dose of every block changes logits."""
    probes = json.loads((folder / PROBE).read_text())
    weakest = min(probe["max_abs_logit_delta"] for probe in probes)
    return Verdict(
        "steering_takes_effect",
        weakest >= MIN_LOGIT_DELTA,
        f"the weakest block changes a logit by {weakest:.3g}, at least {MIN_LOGIT_DELTA:g} is needed",
        {"min_logit_delta": weakest},
    )


def beyond_random(sweep: pl.DataFrame, recommendation: Recommendation) -> Verdict:
    """The persona moves its trait beyond zero, further than every random direction of its norm, and than their spread.

    At the recommended dose, or, where there is none, where the trait moved most; at the opposite dose too where the
    persona is used with both signs.
    """
    claim, cell = "beyond_random_directions", cell_beside_band(sweep)
    if cell is None:
        return Verdict(claim, True, "no positive dose was swept")
    shifts = band_of(sweep)["shift"].to_numpy()
    place = place_among(cell["shift"], shifts, 1)
    message = (
        f"shift {_interval(cell)} at dose {cell['fraction']:+g} of block {cell['block']}, which must lie above zero "
        f"and beyond all directions of that norm: {place}"
    )
    passed = place.beyond and cell["shift_low"] > 0
    numbers = {
        "shift": cell["shift"],
        "dose_fraction": cell["fraction"],
        "random_mean": place.mean,
        "random_min": place.low,
        "random_max": place.high,
        "random_rank_p": place.rank_p,
        "random_spread_p": place.spread_p,
    }
    turned = None if recommendation.negative_rank_p is None else cell_beside_band(sweep, turned=True)
    if turned is not None:
        other = place_among(turned["shift"], shifts, -1)
        passed = passed and other.beyond and turned["shift_high"] < 0
        numbers |= {"negative_shift": turned["shift"], "negative_rank_p": other.rank_p}
        message += (
            f". At {turned['fraction']:+g}: {_interval(turned)}, which must lie below zero and beyond them all; rank p "
            f"{other.rank_p:.3g}, against their spread p {other.spread_p:.3g}"
        )
    return Verdict(claim, bool(passed), message, numbers)


def _interval(cell: Mapping[str, Any]) -> str:
    return f"{cell['shift']:+.3f} [{cell['shift_low']:+.3f}, {cell['shift_high']:+.3f}]"
