"""Reports: what a reader is shown, made from the stored comparison and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from steer_pipeline.lineage import made_of
from steer_pipeline.partitions import STEERED_PERSONAS
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import cpu, folder, picture, reader, user_errors

MAX_PLOT_BYTES = 150_000  # of plots shown inside the UI; the bundle holds them all


@dg.asset(
    **cpu("reports", io_manager_key="bundle_io", kinds={"markdown"}),
    deps=[
        "rewrite_pack",
        "variant_spec",
        dg.AssetDep("persona_vector", partition_mapping=STEERED_PERSONAS),
        dg.AssetDep("dose_curve", partition_mapping=STEERED_PERSONAS),
    ],
    code_version=made_of("4", "name", "summary", "rewrites.sampling"),
)
def vector_eval_report(
    context: dg.AssetExecutionContext, rewrite_comparison: Path, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """`report.md` with its plots, and `report.html`, which holds everything: what steering did to the news.

    Traits with intervals beside both controls, content kept, costs against base, the random band, side effects,
    validation, doses, vectors and rewrites side by side. Every number comes from the stored comparison; the report
    names the versions that it was made from.
    """
    from steer_pipeline.lab.rewrites.report import write_report

    with user_errors(), folder("vector_eval_report") as made:
        report = write_report(reader(context, store), settings(), rewrite_comparison, made)
        shown = {
            f"plot_{path.stem}": picture(path)
            for path in report.plots
            if path.stat().st_size <= MAX_PLOT_BYTES
        }
        metadata = {**shown, "summary": dg.MetadataValue.md(report.summary), "plots": len(report.plots)}
        yield dg.Output(made, metadata=metadata)


ASSETS = [vector_eval_report]
