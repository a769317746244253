"""`steer query`: SQL over what is stored."""

import click

from steer_pipeline.cli.console import readers_may_leave
from steer_pipeline.cli.options import examples


@click.command(
    epilog=examples(
        "steer query --list",
        'steer query "select _partition, avg(n_new_tokens) from rewrite_pack group by all"',
        "steer query \"select * from rewrite_comparison where metric = 'length'\" --csv",
    )
)
@click.argument("sql", required=False)
@click.option("--list", "listed", is_flag=True, help="All tables with their columns and numbers of rows.")
@click.option("--json", "form", flag_value="json", help="Records as a JSON list.")
@click.option("--csv", "form", flag_value="csv", help="Comma-separated values with a header.")
def query(sql: str | None, listed: bool, form: str | None) -> None:
    """Ask what is stored in SQL, a table an asset.

    SQL is one SELECT in DuckDB's dialect. A table holds the current versions of all partitions of its asset; its
    columns _partition and _version say where a row is from. Where an asset stores several tables, the others are called
    <asset>__<table>.
    """
    if (sql is None) != listed:
        raise click.UsageError("give one SELECT, or --list")
    from steer_pipeline.io import query as asking
    from steer_pipeline.resources import open_store

    store = open_store()
    with readers_may_leave():
        if listed and form is None:
            click.echo(asking.as_list(asking.listing(store)), nl=False)
            return
        frame = asking.columns(asking.listing(store)) if listed else asking.query(store, sql or "")
        if form == "json":
            click.echo(frame.write_json())
        elif form == "csv":
            click.echo(asking.as_csv(frame), nl=False)
        else:
            click.echo(asking.as_table(frame))
