"""What the report reads from the store, and how it is handed to `lab.rewrites.report`.

In: a reader of the store, the settings and the folder of a comparison. Out: the report's files in a folder.
No Dagster here.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.settings import Settings
from steer_pipeline.stages.rewrites.comparing import read_tables


def write_report(read: Reader, now: Settings, comparison: Path, folder: Path) -> Any:
    """Renders the comparison with the vectors and doses of the packs that it compared.

    Returns:
        `ReportFiles`: paths of report.md, report.html and the plots.
    """
    from steer_pipeline.lab.rewrites.report import ReportContext, render_vector_eval_report

    compared = read_tables(comparison)
    tables, pack_versions = compared.tables, compared.versions
    found = {name: read.store.version("rewrite_pack", name, sha) for name, sha in pack_versions.items()}
    for version in found.values():
        read.note(version)
    packs = {name: read_rows(version.path) for name, version in found.items()}
    personas = list(dict.fromkeys(term.persona for name in packs for term in now.variants[name].terms))
    versions = {f"rewrite_pack/{name}": sha for name, sha in pack_versions.items()}
    vectors, doses = [], []
    for persona in personas:
        if (vector := read.current("persona_vector", persona)) is not None:
            vectors.append(_vector_info(persona, vector.sha, vector.path))
            versions[f"persona_vector/{persona}"] = vector.sha
        if (dose := read.current("dose_curve", persona)) is not None:
            doses.append(_dose_info(persona, dose.sha, dose.path))
            versions[f"dose_curve/{persona}"] = dose.sha
    return render_vector_eval_report(
        tables,
        packs,
        vectors=vectors,
        doses=doses,
        context=ReportContext(
            versions=versions,
            facts=_facts(now, packs["base"]),
            targets={name: now.variants[name].targets for name in packs if now.variants[name].targets},
        ),
        out_dir=folder,
    )


def head(markdown: Path, lines: int = 60) -> str:
    """The beginning of the report, for the UI: plots are left out, they are shown by themselves."""
    text = [line for line in markdown.read_text(encoding="utf-8").splitlines() if not line.startswith("![")]
    return "\n".join(text[:lines])


def _vector_info(persona: str, sha: str, folder: Path) -> Any:
    from steer_pipeline.lab.rewrites.report import VectorInfo
    from steer_pipeline.lab.vectors.vector import load_vector

    return VectorInfo(persona, sha, load_vector(folder).metadata)


def _dose_info(persona: str, sha: str, folder: Path) -> Any:
    from steer_pipeline.lab.rewrites.report import DoseInfo
    from steer_pipeline.lab.vectors.doses import load_recommendation

    advice = load_recommendation(folder)
    sweep = pl.read_parquet(folder / "sweep.parquet")
    return DoseInfo(persona, sha, sweep, advice.block, advice.fraction, advice.alpha, advice.reason)


def _facts(now: Settings, base: pl.DataFrame) -> dict[str, str]:
    first = base.row(0, named=True)
    profile = now.profile
    return {
        "profile": f"{profile.name}: {profile.summary}",
        "model": first["model"],
        "size": f"{first['size']}, {base.height} rows",
        "decoding": json.dumps(profile.rewrites.sampling.model_dump()),
        "decoding hash": first["decoding_hash"],
    }
