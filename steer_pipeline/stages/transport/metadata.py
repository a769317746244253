"""What a person sees of a carried vector: the picture, shares, maps, and numbers to plot over versions."""

from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline import show
from steer_pipeline.stages.kit import picture

PLOTTED = ("native_shift", "carried_share", "knowing_share", "random_share", "random_max")


def of_transport(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Shares and maps as tables and as a picture, a text of every arm, and the headline numbers."""
    from steer_pipeline.lab.transport.figure import shares_plot
    from steer_pipeline.lab.transport.measuring import MAP_COLUMNS, PLOT, ROWS, read_tables
    from steer_pipeline.lab.transport.shares import SHARE_COLUMNS

    shares, maps = read_tables(folder)
    (folder / PLOT).write_bytes(
        shares_plot(shares, maps, f"{summary['persona']} in {summary['target']['model']}")
    )
    rows = pl.read_parquet(folder / ROWS)
    first = rows.filter(pl.col("row_id") == rows["row_id"].min(), pl.col("direction") != "random")
    return {
        "shares_plot": picture(folder / PLOT),
        "shares": show.markdown_table(shares, SHARE_COLUMNS),
        "maps": show.markdown_table(maps, MAP_COLUMNS),
        "texts": show.samples(
            [{"arm": name, "text": text} for name, text in first.select("variant", "text").iter_rows()]
        ),
        "target": summary["target"]["model"],
        "target_weights": summary["target"]["weights_sha"],
        "scale": summary["scale"],
        "block": summary["block"],
        **show.rounded({name: summary[name] for name in PLOTTED if summary.get(name) is not None}),
    }
