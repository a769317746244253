"""The three steps from a catalogue entry to a recommended dose, as a profile asks for them.

In: a persona, a profile, a loaded model and news rows. Out: a contrast set, a vector, and the folder of a
dose curve (`rows.parquet`, `sweep.parquet`, `recommendation.json`, `probe.json`, `scale.json`,
`dose_curve.png`). Stages call these; a notebook that wants other contexts or rows calls the functions beneath.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.evaluation import Scales, trait_scales
from steer_pipeline.lab.generation.probe import ProbeResult, probe_steering
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.personas.contexts import (
    Context,
    general_contexts,
    news_contexts,
    reserved_rows,
    split_contexts,
)
from steer_pipeline.lab.personas.contrast import build_contrast_prompts, complete_contrast, dropped_pairs
from steer_pipeline.lab.personas.dose import prompt_rows, steered_cells, sweep_blocks, sweep_rows
from steer_pipeline.lab.personas.dose_plot import plot_sweep
from steer_pipeline.lab.personas.dose_table import recommend_dose, sweep_table
from steer_pipeline.lab.personas.filtering import Ask, filter_generated, require_enough
from steer_pipeline.lab.personas.given import given_pairs, pair_rows
from steer_pipeline.lab.personas.prefill import prefill_rows
from steer_pipeline.lab.personas.schema import GENERATED, PAIRS
from steer_pipeline.lab.quality import lead_facts
from steer_pipeline.lab.vectors.doses import Recommendation, save_recommendation
from steer_pipeline.lab.vectors.extracted import extract_vector, judge_imported
from steer_pipeline.lab.vectors.formats import import_declared
from steer_pipeline.lab.vectors.vector import PersonaVector

ROWS, SWEEP, PROBE, PLOT = "rows.parquet", "sweep.parquet", "probe.json", "dose_curve.png"
SCALE = "scale.json"  # on which the trait is scored, and why on that one
PROBED_ROWS = 2


def profile_contexts(profile: Profile, news: pl.DataFrame) -> list[Context]:
    """The contexts that `profile.contrast` asks for, split by `profile.vector`.

    News contexts come from rows that neither the variants nor the dose sweep use (`reserved_rows`).
    """
    if profile.contrast.contexts == "general":
        contexts = general_contexts(profile.contrast.n_contexts, profile.contrast.seed)
    else:
        reserved = reserved_for_personas(profile, news)
        contexts = news_contexts(reserved.filter(pl.col("purpose") == "contrast"), profile.rewrites)
    return split_contexts(contexts, profile.vector.held_out_fraction, profile.vector.seed)


def dose_rows(profile: Profile, news: pl.DataFrame) -> pl.DataFrame:
    """The held-out news rows of the dose sweep, with `overlaps_rewrites`."""
    return reserved_for_personas(profile, news).filter(pl.col("purpose") == "dose")


def reserved_for_personas(profile: Profile, news: pl.DataFrame) -> pl.DataFrame:
    """The news rows that vectors and doses are made from, with their `purpose`; see `reserved_rows`."""
    wants_news = profile.contrast.contexts == "news" and GENERATED in profile.contrast.source
    return reserved_rows(
        news,
        n_dose=profile.dose.n_rows,
        n_contrast=profile.contrast.n_contexts if wants_news else 0,
        first_free=profile.rewrites.full_rows,
        seed=profile.dose.seed,
    )


@dataclass(frozen=True)
class ContrastMade:
    """A contrast set, and what a reader of it should know.

    Attributes:
        rows: of `contrast.CONTRAST_SCHEMA`, all sources one after the other.
        empty_pairs: generated pairs that are not among them, because a side is empty.
        filtered_by: what generated pairs were filtered by, in words; empty: they were not to be, or there are none.
        bad_lines: a sentence for every line of `contrast.pairs` that could not be used.
    """

    rows: pl.DataFrame
    empty_pairs: int = 0
    filtered_by: str = ""
    bad_lines: tuple[str, ...] = ()


def make_contrast(
    model: LoadedModel,
    persona: Persona,
    profile: Profile,
    news: pl.DataFrame,
    home: Path,
    ask: Ask | None = None,
) -> ContrastMade:
    """The contrast set of every source that `profile.contrast` names.

    Args:
        home: where relative paths start.
        ask: the judge, where there is one that can judge this persona.

    Raises:
        ContrastError: a source gives too few pairs. Of several sources, generated pairs may be too few: then the others
            are what a vector is made of.
    """
    spec, chat = profile.contrast, profile.model.chat_template
    made, parts = ContrastMade(pl.DataFrame()), []
    for source in spec.source:
        if source == GENERATED:
            made = _generated(model, persona, profile, news, ask)
            parts.append(made.rows)
        elif source == PAIRS:
            pairs, bad = given_pairs(persona, spec, profile.vector, home)
            made = replace(made, bad_lines=tuple(bad))
            parts.append(pair_rows(model, pairs, chat))
        else:
            parts.append(prefill_rows(model, persona, spec, profile.vector, chat))
    return replace(made, rows=pl.concat(parts))


def _generated(
    model: LoadedModel, persona: Persona, profile: Profile, news: pl.DataFrame, ask: Ask | None
) -> ContrastMade:
    spec = profile.contrast
    prompts = build_contrast_prompts(persona, spec, profile_contexts(profile, news))
    rows, by = complete_contrast(model, prompts, spec, profile.model.chat_template), ""
    empty = dropped_pairs(prompts, rows)
    if spec.filter:
        rows, by = filter_generated(rows, persona, ask)
        if spec.source == (GENERATED,):
            require_enough(rows, by)
    return ContrastMade(rows, empty, by)


def make_vector(
    model: LoadedModel, persona: Persona, profile: Profile, contrast: pl.DataFrame, home: Path
) -> PersonaVector:
    """The persona's vector, computed or imported as the catalogue says, with its evidence on this model."""
    if persona.vector == "computed":
        return extract_vector(model, contrast, persona.name, profile.vector)
    imported = import_declared(
        persona.vector, persona.name, model=model.known_as, n_blocks=model.n_blocks, home=home
    )
    return judge_imported(imported, model, contrast, profile.vector)


def make_dose_curve(
    model: LoadedModel,
    vector: PersonaVector,
    persona: Persona,
    profile: Profile,
    news: pl.DataFrame,
    contrast: pl.DataFrame,
    folder: Path,
    known_facts: Path | None = None,
) -> Recommendation:
    """Probes, sweeps, recommends and plots; writes everything into `folder`.

    Args:
        news: the corpus; which rows are used is `dose_rows`' business.
        contrast: fits the scale of a persona without lexicon and examples (`dose_scales`).
        known_facts: Parquet of ground truth (row_id, facts); other rows are held to the facts of their lead.

    Raises:
        SteeringHasNoEffect: the largest dose of some block changes no logit.
        ScaleError: the persona has no scale, or one that says the same of every text.
    """
    scales = dose_scales(persona, profile, contrast)
    rows = with_facts(dose_rows(profile, news), known_facts)
    chat, both_poles = profile.model.chat_template, profile.dose.holds_both_ways(persona)
    probes = _probed(model, vector, profile, rows)
    scored = sweep_rows(
        model,
        vector,
        profile.dose,
        rows,
        profile.rewrites,
        scales,
        limits=profile.coherence,
        chat_template=chat,
        both_poles=both_poles,
    )
    table = sweep_table(scored, profile.dose, profile.coherence)
    recommendation = recommend_dose(table, persona.name, both_poles=both_poles)
    folder.mkdir(parents=True, exist_ok=True)
    scored.write_parquet(folder / ROWS)
    table.write_parquet(folder / SWEEP)
    (folder / PROBE).write_text(json.dumps([asdict(probe) for probe in probes], indent=2) + "\n")
    save_recommendation(recommendation, folder)
    (folder / SCALE).write_text(json.dumps({"scale": scales.headline, "note": scales.note}) + "\n")
    plot_sweep(table, recommendation, profile.coherence, folder / PLOT)
    return recommendation


def _probed(
    model: LoadedModel, vector: PersonaVector, profile: Profile, rows: pl.DataFrame
) -> list[ProbeResult]:
    """What the largest dose of every block does to the logits of the first rows."""
    largest = [max(profile.dose.fractions, key=abs)]
    cells = steered_cells(vector, sweep_blocks(vector, profile.dose), largest, profile.rewrites.scope)
    probed = prompt_rows(model, rows.head(PROBED_ROWS), profile.rewrites, profile.model.chat_template)
    return probe_steering(model, probed, [cell.plan for cell in cells])


def dose_scales(persona: Persona, profile: Profile, contrast: pl.DataFrame) -> Scales:
    """What the persona's doses are chosen on."""
    return trait_scales(persona, profile.scales, contrast, seed=profile.vector.seed, headline_only=True)


def with_facts(rows: pl.DataFrame, known_facts: Path | None) -> pl.DataFrame:
    """News rows with `facts`, what a rewrite should keep: of the file where they stand there, else of the lead."""
    known: dict[str, list[str]] = {}
    if known_facts is not None and known_facts.is_file():
        known = dict(pl.read_parquet(known_facts, columns=["row_id", "facts"]).iter_rows())
    facts = [
        known[row_id] if row_id in known else lead_facts(text)
        for row_id, text in rows.select("row_id", "text").iter_rows()
    ]
    return rows.with_columns(facts=pl.Series(facts, dtype=pl.List(pl.String)))
