"""`steer report`: where the reports lie, as pages that a browser opens."""

import sys

import click

from steer_pipeline.cli.options import examples

# asset -> the page in its version
PAGES = {
    "vector_eval_report": "report.html",
    "behaviour_table": "behaviour.html",
    "student_comparison": "students.html",
}


@click.command(epilog=examples("steer report", "steer report --open"))
@click.option("--open", "in_browser", is_flag=True, help="Open them in the browser too.")
def report(in_browser: bool) -> None:
    """Print where the reports lie, and open them.

    They are pages for a browser: of the rewrites, of the behaviour table, and of the students.
    """
    from steer_pipeline.resources import open_store

    store = open_store()
    versions = {asset: store.current(asset, None) for asset in PAGES}
    pages = [version.path / PAGES[asset] for asset, version in versions.items() if version]
    pages = [page for page in pages if page.is_file()]
    if not pages:
        click.echo(f"no report in the store {store.base} yet: run `steer make pilot` first", err=True)
        sys.exit(1)
    for page in pages:
        click.echo(page)
        if in_browser:
            click.launch(page.as_uri())
