"""`steer report`: where the reports lie, as pages that a browser opens, and rewrites side by side, drawn by seed."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steer_pipeline.cli.options import VARIANTS, examples, known

if TYPE_CHECKING:
    import polars as pl

# asset -> the page in its version
PAGES = {
    "vector_eval_report": "report.html",
    "behaviour_table": "behaviour.html",
    "student_comparison": "students.html",
}
PAIR_PAGES = "pair_report", "analysis.html"  # one a pair of the profile's `analysis`


@click.command(
    epilog=examples(
        "steer report", "steer report --open", "steer report --texts 6 --seed 1 --variants base,paranoid"
    )
)
@click.option("--open", "in_browser", is_flag=True, help="Open them in the browser too.")
@click.option(
    "--texts", type=click.IntRange(min=1), help="Print so many news items in every variant instead."
)
@click.option("--seed", default=0, show_default=True, help="`--texts`: draws the news items.")
@VARIANTS
def report(in_browser: bool, texts: int | None, seed: int, variants: list[str]) -> None:
    """Print where the reports lie, and open them; or print rewrites side by side.

    They are pages for a browser: of the rewrites, of the behaviour table, of the students, and of analysed pairs. The
    news items of `--texts` are drawn by seed from those that were compared, so that nobody has chosen them.
    """
    from steer_pipeline.resources import open_store
    from steer_pipeline.settings import settings

    store = open_store()
    if texts is not None:
        version = store.current("rewrite_comparison", None)
        if version is None:
            click.echo(
                f"nothing is compared in the store {store.base} yet: run `steer make pilot` first", err=True
            )
            sys.exit(1)
        for line in _texts(version.path, texts, seed, variants):
            click.echo(line)
        return
    versions = {asset: store.current(asset, None) for asset in PAGES}
    pages = [version.path / PAGES[asset] for asset, version in versions.items() if version]
    pairs = [store.current(PAIR_PAGES[0], pair) for pair in settings().profile.analysis.pairs]
    pages += [version.path / PAIR_PAGES[1] for version in pairs if version]
    pages = [page for page in pages if page.is_file()]
    if not pages:
        click.echo(f"no report in the store {store.base} yet: run `steer make pilot` first", err=True)
        sys.exit(1)
    for page in pages:
        click.echo(page)
        if in_browser:
            click.launch(page.as_uri())


def _texts(folder: Path, count: int, seed: int, wanted: Sequence[str]) -> Iterator[str]:
    """Markdown: a heading and a table for each news item that the seed draws."""
    import polars as pl

    rows = pl.read_parquet(folder / "rows.parquet", columns=["row_id", "variant", "source", "output"])
    there = rows["variant"].unique(maintain_order=True).to_list()
    known(wanted, there, "variant")
    ids = rows["row_id"].unique().sort()
    for row_id in ids.sample(min(count, len(ids)), seed=seed, shuffle=True):
        yield from _beside(rows.filter(row_id=row_id), wanted or there)


def _beside(rows: "pl.DataFrame", variants: Sequence[str]) -> Iterator[str]:
    outputs = dict(rows.select("variant", "output").iter_rows())
    yield f"**{_one_line(rows['source'][0])}**\n"
    yield "| variant | rewrite |\n|---|---|"
    yield from (f"| {name} | {_one_line(outputs.get(name, ''))} |" for name in variants)
    yield ""


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
