"""Whether the report is whole and says what it was made from."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.io.reader import Reader
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.stages.kit import Claims, ought

REPORT = Claims(
    "vector_eval_report",
    ought(
        "report_is_whole",
        "Markdown, HTML and plots are there, and every compared pack is named with its version.",
        "materialise vector_eval_report again",
    ),
)


@REPORT.check(name="report_is_whole")
def report_is_whole(store: ArtifactStoreResource) -> Iterator[dg.AssetCheckResult]:
    """A report that cannot be traced to its packs is worth nothing."""
    from steer_pipeline.lab.rewrites.stored import read_tables

    read = Reader(store.store())
    folder = read.folder("vector_eval_report")
    versions = read_tables(read.folder("rewrite_comparison")).versions
    pages = {name: folder / f"report.{name}" for name in ("md", "html")}
    problems = [f"{path.name} is missing" for path in pages.values() if not path.is_file()]
    text = "".join(path.read_text(encoding="utf-8") for path in pages.values() if path.is_file())
    problems += [
        f"the version of pack {name} is not named" for name, sha in versions.items() if sha not in text
    ]
    plots = len(list((folder / "plots").glob("*.png")))
    problems += [] if plots else ["there are no plots"]
    whole = f"both pages, {plots} plots and the versions of {len(versions)} packs are there"
    yield REPORT.result("report_is_whole", not problems, "; ".join(problems) or whole, {"plots": plots})


CHECKS = [report_is_whole]
