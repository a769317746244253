"""The vector evaluation report: what steering did to the news, next to what doing nothing does.

In: comparison tables, packs, and what is known of vectors and doses. Out: report.md with plots/*.png, report.html,
which holds everything, and a summary of a screen. Every number is read from the tables and frames handed in; the
report names the versions that they were made from. The sections stand in `sections/`.
"""

from dataclasses import dataclass
from pathlib import Path

from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.report.document import Block, Figure, to_html, to_markdown, write_pictures
from steer_pipeline.lab.rewrites.report_inputs import ReportInputs, gather
from steer_pipeline.lab.rewrites.sections import costs, effects, overview, steering, validation
from steer_pipeline.settings import Settings

TITLE = "Vector evaluation report"


@dataclass(frozen=True)
class ReportFiles:
    """Paths of what was written; `summary` is Markdown of a screen, for the UI."""

    markdown: Path
    html: Path
    plots: tuple[Path, ...]
    summary: str


def write_report(read: Reader, settings: Settings, comparison: Path, out_dir: Path) -> ReportFiles:
    """Renders the comparison in a folder with the vectors and doses of the packs that it compared."""
    return render_vector_eval_report(gather(read, settings, comparison), out_dir)


def render_vector_eval_report(inputs: ReportInputs, out_dir: Path) -> ReportFiles:
    """Writes report.md, plots/*.png and report.html into `out_dir`, which is made when missing."""
    tables = inputs.tables
    blocks: list[Block] = [
        *overview.head(inputs),
        *overview.how_to_read(tables),
        *effects.traits(tables),
        *effects.keywords(tables),
        *effects.content(tables),
        *costs.costs(tables, inputs.context),
        *costs.side_effects(tables, inputs.context),
        *validation.validation(tables),
        *steering.doses(inputs),
        *steering.vectors(inputs),
        *effects.side_by_side(tables),
        *overview.made_from(inputs.context),
    ]
    paths = write_pictures(
        {block.name: block.png for block in blocks if isinstance(block, Figure)}, out_dir / "plots"
    )
    markdown, page = out_dir / "report.md", out_dir / "report.html"
    markdown.write_text(to_markdown(TITLE, blocks), encoding="utf-8")
    page.write_text(to_html(TITLE, blocks), encoding="utf-8")
    return ReportFiles(markdown, page, paths, overview.summary(inputs))
