"""How long the stages of the main job will take, and the diagnosis in a few lines.

In: a `Diagnosis` (tokens per second), a profile (sizes) and its variants. Out: seconds a stage, text. An estimate from
counts of tokens: what is scored, drawn and written besides costs a minute more.
"""

from collections.abc import Mapping

from steer_pipeline.catalogue.specs import Profile, VariantSpec
from steer_pipeline.lab.models.sites import resolve_site
from steer_pipeline.lab.personas.schema import GENERATED, PAIRS, PREFILL
from steer_pipeline.lab.rewrites.diagnosis import Diagnosis
from steer_pipeline.lab.rewrites.work import rows_wanted
from steer_pipeline.lab.units import shown_bytes, shown_seconds

GENERAL_PROMPT = 60  # tokens of a prompt of our own contexts, instruction included
STATEMENT = 25  # tokens of a given text
GIVEN_PAIRS = 30  # of a persona's examples
KEPT_CELLS = 8  # of a coarse pass, about


def expected_seconds(
    diagnosis: Diagnosis, profile: Profile, variants: Mapping[str, VariantSpec], size: str = "pilot"
) -> dict[str, float]:
    """Asset -> seconds for all that `variants` need, in the order of the work; nothing is taken for fresh."""
    personas = {term.persona for spec in variants.values() for term in spec.terms}
    contrast, vector = _of_contrast(diagnosis, profile)
    tokens = {
        "contrast_set": [len(personas) * each for each in contrast],
        "persona_vector": [len(personas) * each for each in vector],
        "dose_curve": [len(personas) * each for each in _of_doses(diagnosis, profile)],
        "rewrite_raw": _of_rewrites(diagnosis, profile, variants, size),
        "random_band": _of_band(diagnosis, profile) if personas else [0, 0],
    }
    return {
        asset: read / diagnosis.prefill_rate + written / diagnosis.decode_rate
        for asset, (read, written) in tokens.items()
    }


def _of_contrast(diagnosis: Diagnosis, profile: Profile) -> tuple[list[float], list[float]]:
    """(tokens read, tokens written) of a persona's contrast set, and of its vector, which reads all of it."""
    spec = profile.contrast
    read = written = given = 0.0
    if GENERATED in spec.source:
        prompt = diagnosis.prompt_tokens if spec.contexts == "news" else GENERAL_PROMPT
        read, written = 2.0 * spec.n_contexts * prompt, 2.0 * spec.n_contexts * spec.max_new_tokens
    if PAIRS in spec.source:
        given += 2 * GIVEN_PAIRS * spec.pair_prompts * (GENERAL_PROMPT + STATEMENT)
    if PREFILL in spec.source:
        given += 2 * GIVEN_PAIRS * spec.prefill_cuts * (GENERAL_PROMPT + STATEMENT)
    return [read, written], [read + written + given, 0]


def _of_doses(diagnosis: Diagnosis, profile: Profile) -> list[float]:
    """(tokens read, tokens written) of a persona's sweep.

    A prompt is read again from the steered block on. What was written is read once more for its likelihood without
    steering, and on some rows twice for its divergence.
    """
    spec, length = profile.dose, profile.rewrites.sampling.max_new_tokens
    grid = len(spec.blocks) * sum(dose != 0 for dose in spec.fractions)
    coarse = min(spec.coarse_rows, spec.n_rows) if spec.refine else spec.n_rows
    # (rows, steered cells): the grid, what a coarse pass leaves over, random directions
    passes = [(coarse, grid), (spec.n_rows - coarse, min(grid, KEPT_CELLS)), (spec.n_rows, spec.n_random)]
    again = 0 if profile.rewrites.scope == "generated" else _usual_share(diagnosis, profile)
    prompt = diagnosis.prompt_tokens * again
    read = sum(
        rows * (2 * diagnosis.prompt_tokens + cells * (prompt + length)) for rows, cells in passes if rows
    )
    written = sum(rows * (1 + cells) * length for rows, cells in passes if rows)
    divergence = 2 * grid * spec.kl_rows * (diagnosis.prompt_tokens + length)
    return [read + divergence, written]


def _of_rewrites(
    diagnosis: Diagnosis, profile: Profile, variants: Mapping[str, VariantSpec], size: str
) -> list[float]:
    """(tokens read, tokens written) of all variants of all rows.

    Prompts are shared below the steered block, and read once more with what was written, for its likelihood.
    """
    usual, read = _usual_share(diagnosis, profile), 2.0
    for spec in variants.values():
        if spec.prompted_by:
            read += 1
        elif spec.terms and spec.scope != "generated":
            blocks = [term.block for term in spec.terms if term.block is not None]
            read += max((_share_above(diagnosis, block) for block in blocks), default=usual)
    rows = rows_wanted(profile, size)
    written = len(variants) * profile.rewrites.sampling.max_new_tokens
    return [rows * (diagnosis.prompt_tokens * read + written), rows * written]


def _of_band(diagnosis: Diagnosis, profile: Profile) -> list[float]:
    """(tokens read, tokens written) under the random directions of the comparison."""
    spec = profile.rewrites
    again = 0 if spec.scope == "generated" else _usual_share(diagnosis, profile)
    read = 2 + spec.band_directions * again if spec.band_directions else 0
    written = spec.band_directions * spec.sampling.max_new_tokens
    return [spec.band_rows * (diagnosis.prompt_tokens * read + written), spec.band_rows * written]


def _usual_share(diagnosis: Diagnosis, profile: Profile) -> float:
    """Of the depth above a steered block, over the blocks of the sweep."""
    swept = [_share_above(diagnosis, block) for block in profile.dose.blocks]
    return sum(swept) / max(len(swept), 1)


def _share_above(diagnosis: Diagnosis, block: int | float) -> float:
    return 1 - resolve_site(block, diagnosis.n_blocks).block / diagnosis.n_blocks


def lines(diagnosis: Diagnosis, seconds: Mapping[str, float]) -> list[str]:
    """The diagnosis for a terminal: the model, what base does, speed, time, memory."""
    turn = {True: "takes a system turn", False: "puts system text before the user's", None: "raw prompts"}
    kept = (
        "no facts to keep"
        if diagnosis.facts_kept is None
        else f"keeps {diagnosis.facts_kept:.0%} of the facts"
    )
    cache = (
        ""
        if diagnosis.cache_bytes is None
        else f", {shown_bytes(1000 * diagnosis.cache_bytes)} per 1000 tokens"
    )
    stages = ", ".join(f"{asset} {shown_seconds(each)}" for asset, each in seconds.items())
    return [
        f"{diagnosis.model} on {diagnosis.device}, {diagnosis.dtype}; {turn[diagnosis.takes_system_turn]}",
        f"base over {diagnosis.rewrites} rewrites: {kept}, {diagnosis.suspects:.0%} suspect, "
        f"{diagnosis.ended:.0%} end by themselves, {diagnosis.copies:.0%} copy",
        f"reads {diagnosis.prefill_rate:.0f} and writes {diagnosis.decode_rate:.0f} tokens/s; about "
        f"{shown_seconds(sum(seconds.values()))} from nothing: {stages}",
        f"weights {shown_bytes(diagnosis.weights_bytes)}{cache}, {shown_bytes(diagnosis.free_bytes)} free",
    ]
