"""Checks of the report: whether it is whole and says what it was made from."""

import json

import dagster as dg

from steer_pipeline.resources import ArtifactStoreResource


@dg.asset_check(
    asset="vector_eval_report",
    description="Markdown, HTML and plots are there, and every compared pack is named with its version.",
)
def report_is_whole(store: ArtifactStoreResource) -> dg.AssetCheckResult:
    """A report that cannot be traced to its packs is worth nothing."""
    shelf = store.store()
    folder = shelf.current("vector_eval_report", None).path
    compared = shelf.current("rewrite_comparison", None).path / "versions.json"
    text = (folder / "report.md").read_text(encoding="utf-8")
    plots = len(list((folder / "plots").glob("*.png")))
    absent = [name for name, sha in json.loads(compared.read_text()).items() if sha not in text]
    problems = [f"the version of pack {name} is not named" for name in absent]
    problems += [] if plots else ["there are no plots"]
    problems += [] if (folder / "report.html").is_file() else ["report.html is missing"]
    return dg.AssetCheckResult(
        passed=not problems, description="; ".join(problems) or "it is", metadata={"plots": plots}
    )


CHECKS = [report_is_whole]
