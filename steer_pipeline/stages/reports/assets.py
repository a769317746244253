"""Reports: what a reader is shown, made from the stored comparison and nothing else."""

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from steer_pipeline.io.reader import Reader
from steer_pipeline.io.versioned import note_input
from steer_pipeline.lineage import made_of
from steer_pipeline.partitions import STEERED_PERSONAS
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.reports import rendering

MAX_PLOT_BYTES = 150_000  # of plots shown inside the UI; the bundle holds them all


@dg.asset(
    group_name="reports",
    owners=["team:steering"],
    tags={"steer/stage": "reports", "steer/device": "cpu"},
    kinds={"markdown"},
    code_version=made_of("1", "name", "summary", "rewrites.sampling"),
    deps=[
        "rewrite_pack",
        "variant_spec",
        dg.AssetDep("persona_vector", partition_mapping=STEERED_PERSONAS),
        dg.AssetDep("dose_curve", partition_mapping=STEERED_PERSONAS),
    ],
    io_manager_key="bundle_io",
)
def vector_eval_report(
    context: dg.AssetExecutionContext, rewrite_comparison: Path, store: ArtifactStoreResource
) -> Iterator[dg.Output]:
    """`report.md` with its plots, and `report.html`, which holds everything: what steering did to the news.

    Traits with intervals beside both controls, content kept, validation, doses, vectors and rewrites side by
    side. Every number comes from the stored comparison; the report names the versions that it was made from.
    """
    read = Reader(store.store(), lambda version: note_input(context, version))
    with tempfile.TemporaryDirectory(prefix="vector_eval_report-") as folder:
        files = rendering.write_report(read, settings(), rewrite_comparison, Path(folder))
        metadata = {
            "report": dg.MetadataValue.md(rendering.head(files.markdown)),
            "characters": files.markdown.stat().st_size,
            "plots": len(files.plots),
            **{f"plot_{path.stem}": _picture(path) for path in files.plots if _fits(path)},
        }
        yield dg.Output(Path(folder), metadata=metadata)


def _fits(path: Path) -> bool:
    return path.stat().st_size <= MAX_PLOT_BYTES


def _picture(path: Path) -> dg.MarkdownMetadataValue:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{data})")


ASSETS = [vector_eval_report]
