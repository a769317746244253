"""Plots of a comparison, drawn from stored rows and intervals only. In: tables. Out: PNG bytes.

Steered variants have colours of their own, base and controls are grey, so that what must show nothing is
seen as the background to the rest.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, dots, interval_row, png
from steer_pipeline.lab.rewrites.comparison import BASE, ComparisonTables


def colours(tables: ComparisonTables) -> dict[str, str]:
    """One colour a variant; grey for base and the controls."""
    shown = [name for name in tables.variants if tables.roles[name] not in ("base", "control")]
    return dict.fromkeys(tables.variants, GREY) | {n: PALETTE[i % len(PALETTE)] for i, n in enumerate(shown)}


def _rows_of_variants(axes: Axes, names: Sequence[str], shade: Mapping[str, str], *, labels: bool) -> None:
    axes.set_yticks(range(len(names)), names if labels else [""] * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(shade[name] if shade[name] != GREY else DARK)
    bare(axes)


def trait_metrics(tables: ComparisonTables) -> list[str]:
    """Names of the trait metrics, in the summary's order."""
    names = tables.summary["metric"].unique(maintain_order=True).to_list()
    return [name for name in names if name.startswith("trait_")]


def persona_of(metric: str) -> str:
    """`paranoid` of `trait_paranoid_lexicon`."""
    return metric.removeprefix("trait_").rpartition("_")[0]


def trait_title(metric: str) -> str:
    """`paranoid, lexicon` of `trait_paranoid_lexicon`."""
    return f"{persona_of(metric)}, {metric.rpartition('_')[2]}"


def personas_with_markers(tables: ComparisonTables) -> list[str]:
    """Personas whose markers were counted, in column order."""
    ending = "_positive"
    return [
        name[len("hits_") : -len(ending)]
        for name in tables.rows.columns
        if name.startswith("hits_") and name.endswith(ending)
    ]


def trait_shifts(tables: ComparisonTables) -> bytes:
    """Mean difference to base with its interval, a panel a trait and scale; the band spans the controls."""
    names = [name for name in tables.variants if name != BASE]
    metrics, shade = trait_metrics(tables), colours(tables)
    figure = Figure(figsize=(2.2 + 2.6 * len(metrics), 1.1 + 0.36 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharex=True)[0]
    for i, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
        controls = [tables.of(name, metric) for name in tables.controls]
        low, high = min(c["low"] for c in controls), max(c["high"] for c in controls)
        axes.axvspan(low, high, color=GREY, alpha=0.18, linewidth=0)
        axes.axvline(0, color=DARK, linewidth=0.6)
        for y, name in enumerate(names):
            row = tables.of(name, metric)
            interval_row(axes, y, row["difference"], row["low"], row["high"], shade[name])
        axes.set_title(trait_title(metric), fontsize=9)
        axes.set_xlabel("shift of the mean score", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _rows_of_variants(axes, names, shade, labels=i == 0)
    return png(figure)


def row_distributions(tables: ComparisonTables) -> bytes:
    """Every row's trait difference to base as a dot, a panel a trait and scale; the bar is the mean."""
    names = [name for name in tables.variants if name != BASE]
    metrics, shade = trait_metrics(tables), colours(tables)
    figure = Figure(figsize=(2.2 + 2.6 * len(metrics), 1.1 + 0.5 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharex=True)[0]
    for i, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
        base = tables.rows.filter(pl.col("variant") == BASE).select("row_id", base=metric)
        axes.axvline(0, color=DARK, linewidth=0.6)
        for y, name in enumerate(names):
            own = tables.rows.filter(pl.col("variant") == name).select("row_id", own=metric)
            both = own.join(base, on="row_id").select(pl.col("own") - pl.col("base")).to_series().to_numpy()
            dots(axes, both, y, shade[name])
        axes.set_title(trait_title(metric), fontsize=9)
        axes.set_xlabel("difference to base, one dot a row", fontsize=8)
        _rows_of_variants(axes, names, shade, labels=i == 0)
    return png(figure)


def text_distributions(tables: ComparisonTables) -> bytes:
    """Overlap with base, length and facts kept, one dot a row, a line a variant."""
    panels = (
        ("overlap", "overlap with base (word Jaccard)"),
        ("length_ratio", "words per word of base"),
        ("facts_kept", "share of facts kept"),
    )
    names, shade = tables.variants, colours(tables)
    figure = Figure(figsize=(10.4, 1.1 + 0.5 * len(names)), layout="constrained")
    for i, (axes, (metric, label)) in enumerate(zip(figure.subplots(1, 3), panels, strict=True)):
        for y, name in enumerate(names):
            values = tables.rows.filter(pl.col("variant") == name)[metric].drop_nulls().to_numpy()
            dots(axes, values[np.isfinite(values)], y, shade[name])
        if metric != "length_ratio":
            axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(label, fontsize=8)
        _rows_of_variants(axes, names, shade, labels=i == 0)
    return png(figure)


def dose_response(
    sweeps: Mapping[str, pl.DataFrame], chosen: Mapping[str, tuple[float | None, int | None]]
) -> bytes:
    """Trait shift and extra NLL against dose, a column a persona, a line a block; random directions as dots.

    Args:
        sweeps: persona -> table of a dose sweep, as `sweep_table` makes it.
        chosen: persona -> recommended (fraction, block), or Nones.
    """
    figure = Figure(figsize=(1.2 + 4.2 * len(sweeps), 5.4), layout="constrained")
    panels = figure.subplots(2, len(sweeps), squeeze=False, sharex="col")
    for column, (persona, sweep) in enumerate(sweeps.items()):
        fraction, block = chosen.get(persona, (None, None))
        for row, (metric, label) in enumerate(_RESPONSES.items()):
            axes = panels[row][column]
            _response(axes, sweep, metric)
            axes.axhline(0, color=DARK, linewidth=0.6)
            if fraction is not None:
                axes.axvline(fraction, color=DARK, linestyle=":", linewidth=1.1)
            axes.set_ylabel(label, fontsize=8)
            bare(axes)
        advice = "no dose recommended" if fraction is None else f"recommended {fraction:+g} at block {block}"
        panels[0][column].set_title(f"{persona}: {advice}", fontsize=9)
        panels[0][column].legend(fontsize=7, frameon=False)
        panels[1][column].set_xlabel(
            "dose, fraction of the mean residual norm (cross: not coherent)", fontsize=8
        )
    return png(figure)


_RESPONSES = {"shift": "trait shift to base", "extra_nll": "extra NLL to base, nats a token"}


def _response(axes: Axes, sweep: pl.DataFrame, metric: str) -> None:
    steered = sweep.filter(direction="persona").partition_by("block", maintain_order=True)
    for place, line in enumerate(line.sort("fraction") for line in steered):
        colour, dose = PALETTE[place % len(PALETTE)], line["fraction"].to_numpy()
        y, low, high = (line[f"{metric}{edge}"].cast(pl.Float64).to_numpy() for edge in ("", "_low", "_high"))
        axes.plot(dose, y, "-", marker=".", color=colour, label=f"block {line['block'][0]}", linewidth=1.3)
        broken = ~line["coherent"].to_numpy()
        axes.plot(dose[broken], y[broken], "x", color="#111", markersize=5)
        axes.fill_between(dose, low, high, color=colour, alpha=0.15, linewidth=0)
    band = sweep.filter(direction="random")
    if band.height:
        label = f"{band.height} random, block {band['block'][0]}"
        axes.plot(band["fraction"], band[metric], ".", color=GREY, markersize=4, label=label, zorder=3)


def vector_quality(metadata: Mapping[str, Mapping]) -> bytes:
    """Held-out AUC against its shuffled-label null, and split-half cosine, by block; a column a persona."""
    figure = Figure(figsize=(1.2 + 3.6 * len(metadata), 2.9), layout="constrained")
    panels = figure.subplots(1, len(metadata), squeeze=False, sharey=True)[0]
    for axes, (persona, data) in zip(panels, metadata.items(), strict=True):
        for name, label, style, colour in (
            ("held_out_auc", "held-out AUC", "-o", PALETTE[4]),
            ("auc_null_95th", "AUC, shuffled labels, 95th percentile", "--", GREY),
            ("split_half_cosine", "split-half cosine", "-s", PALETTE[1]),
        ):
            if data.get(name):
                values = [np.nan if value is None else value for value in data[name]]
                axes.plot(
                    range(len(values)),
                    values,
                    style,
                    color=colour,
                    label=label,
                    markersize=3.5,
                    linewidth=1.3,
                )
        axes.set_title(persona, fontsize=9)
        axes.set_xlabel("block", fontsize=8)
        axes.set_ylim(-0.05, 1.08)
        axes.xaxis.get_major_locator().set_params(integer=True)
        bare(axes)
    panels[0].legend(fontsize=7, frameon=False, loc="lower right")
    return png(figure)
