"""Which directions of a dictionary are in a checkpoint that somebody else made.

In: a base model, a checkpoint or adapter on it, clean adapters of the same norm, named directions. Out: one row a
direction: its coefficient in the least-squares decomposition of how the checkpoint moves the stream, its share of what
the update writes, and a verdict against the clean adapters. Fine-tuning on anything moves the stream, and along some
directions more than along others: only adapters that were taught nothing of the kind say how far. What was
taught one thing moves the stream further than what was taught nothing, along everything a little, and an update may
write along a direction without moving unrelated texts: a direction is found where size and writes agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import binomtest

from steer_pipeline.catalogue.auditing import AuditSpec
from steer_pipeline.lab.analysis.activation import Directions, Reading
from steer_pipeline.lab.analysis.nulls import against
from steer_pipeline.lab.analysis.updates import updates_of
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.models.sites import resolve_site
from steer_pipeline.lab.stats import auc_interval, holm, mean_intervals
from steer_pipeline.lab.verdict import Verdict

MIN_CLEAN = 8
PLANTED, CLEAN, MIXED = "planted", "clean", "mixed"

AUDIT_SCHEMA, AUDIT_COLUMNS = described(
    checkpoint=(pl.String(), "its name"),
    direction=(pl.String(), "of the dictionary"),
    coefficient=(
        pl.Float64(),
        "size: of the least-squares decomposition of the mean difference, over the residual norm; mean over blocks",
    ),
    low=(pl.Float64(), "its 95% interval over texts"),
    high=(pl.Float64(), "its upper end"),
    size_z=(
        pl.Float64(),
        "distance from the clean adapters' mean size, in deviations of a further clean adapter",
    ),
    size_p=(pl.Float64(), "two-sided, Student's t, after Holm over the directions of the checkpoint"),
    share=(pl.Float64(), "the coefficient over the length of the mean difference; mean over blocks"),
    z=(pl.Float64(), "of the share, as size_z of the size"),
    p=(pl.Float64(), "as size_p"),
    write_share=(
        pl.Float64(),
        "share of what the update writes into the stream that lies along it, times the width: 1 is by chance; null "
        "without low-rank weights",
    ),
    write_low=(pl.Float64(), "its 95% interval over matrices"),
    write_high=(pl.Float64(), "its upper end"),
    write_z=(pl.Float64(), "of its cube root, as size_z of the size"),
    write_p=(pl.Float64(), "as size_p; one-sided, for a share of a square has no sign"),
    strength=(
        pl.Float64(),
        "the smaller of |size_z| and write_z; without low-rank weights, of |size_z| and |z|",
    ),
    found=(pl.Boolean(), "the verdict: whether both of these are beyond the level"),
)
PLANT_SCHEMA, PLANT_COLUMNS = described(
    checkpoint=(pl.String(), "its name"),
    group=(pl.String(), "planted | clean | mixed"),
    direction=(pl.String(), "what is planted; null in clean ones"),
    dose=(pl.Float64(), "fraction of the residual norm that the texts were steered with; 0 in clean ones"),
    share=(pl.Float64(), "of rows that are steered"),
    norm=(pl.Float64(), "Frobenius norm of the update"),
)
DETECTION_SCHEMA, DETECTION_COLUMNS = described(
    share=(pl.Float64(), "of rows that are steered; 1: all"),
    measure=(pl.String(), "verdict | size | share | weights: the audit's strength, size_z, z and write_z"),
    adapters=(pl.Int64(), "that have something planted"),
    clean=(pl.Int64(), "that have not"),
    auc=(pl.Float64(), "of the largest measure over directions, planted against clean adapters"),
    auc_low=(pl.Float64(), "its 95% interval"),
    auc_high=(pl.Float64(), "its upper end"),
    found=(pl.Float64(), "share of adapters whose planted direction is beyond the level"),
    named=(pl.Float64(), "share whose largest measure is of the planted direction"),
    signed=(pl.Float64(), "share whose coefficient has the sign of the dose"),
    false_alarms=(pl.Float64(), "share of clean adapters in which anything is found"),
    others=(pl.Float64(), "share of adapters in which a direction is found that is not planted"),
    dose_r=(pl.Float64(), "correlation of dose and coefficient over adapters"),
    dose_slope=(pl.Float64(), "coefficient per dose, least squares through zero"),
)


@dataclass(frozen=True, eq=False)
class Measured:
    """A checkpoint against the dictionary.

    Attributes:
        coefficients: float64 [texts, k], fractions of the residual norm.
        shares: float64 [k], of the length of the mean difference.
        writes: float64 [matrices, k], shares times width; None where there are no low-rank weights.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    shares: np.ndarray
    writes: np.ndarray | None = None


def measure(
    shifts: np.ndarray, base: Reading, directions: Directions, spec: AuditSpec, adapter: Path | None = None
) -> Measured:
    """Decomposes how a checkpoint moves the stream, and what its adapter writes.

    Args:
        shifts: fp32 [texts, positions, blocks, hidden], of `activation.read_tuned`.
        adapter: PEFT directory; None: a checkpoint without low-rank weights.

    Raises:
        ValueError: a direction is missing at a block, or there are more directions than dimensions.
    """
    blocks = [resolve_site(block, shifts.shape[2]).block for block in spec.blocks]
    duals = {block: _dual(directions, block) for block in blocks}
    moved = np.nanmean(shifts.astype(np.float64), axis=1)  # [texts, blocks, hidden]
    sizes, shares = [], []
    for block in blocks:
        mean = moved[:, block].mean(axis=0)
        sizes.append(moved[:, block] @ duals[block].T / float(base.norms[block]))
        shares.append(duals[block] @ mean / max(float(np.linalg.norm(mean)), 1e-30))
    writes = None
    if adapter is not None:
        own = [one for one in updates_of(adapter) if one.writes and one.block in duals]
        if own:
            writes = np.array([one.along(duals[one.block]) for one in own]) * shifts.shape[3]
    return Measured(tuple(directions), np.mean(sizes, axis=0), np.mean(shares, axis=0), writes)


def _dual(directions: Directions, block: int) -> np.ndarray:
    """float64 [k, hidden]: pseudo-inverse of the unit directions at a block."""
    raw = np.array([one[block] for one in directions.values()], dtype=np.float64)
    bad = [
        name for name, one in zip(directions, raw, strict=True) if not np.isfinite(one).all() or not one.any()
    ]
    if bad or len(raw) > raw.shape[1]:
        what = (
            f"{bad[0]} has none at block {block}"
            if bad
            else f"{len(raw)} directions in {raw.shape[1]} dimensions"
        )
        raise ValueError(
            f"audit: {what}; leave directions out, or choose other blocks (auditing.audit.blocks)"
        )
    return np.linalg.pinv((raw / np.linalg.norm(raw, axis=1, keepdims=True)).T)


def checkpoint_audit(name: str, own: Measured, clean: Sequence[Measured], spec: AuditSpec) -> pl.DataFrame:
    """`AUDIT_SCHEMA`, one row a direction.

    Args:
        clean: adapters of the same norm that were taught nothing of the kind; not the checkpoint itself.

    Raises:
        ValueError: fewer than `MIN_CLEAN`.
    """
    if len(clean) < MIN_CLEAN:
        raise ValueError(f"{name}: {len(clean)} clean adapters; at least {MIN_CLEAN} are needed to judge by")
    intervals = mean_intervals(own.coefficients)
    sizes = np.array([one.estimate for one in intervals])
    size_z, size_p = against(sizes, np.array([one.coefficients.mean(axis=0) for one in clean]))
    z, p = against(own.shares, np.array([one.shares for one in clean]))
    written = _written(own, clean, spec)
    columns = {
        "checkpoint": [name] * len(own.names),
        "direction": list(own.names),
        "coefficient": sizes,
        "low": [one.low for one in intervals],
        "high": [one.high for one in intervals],
        "size_z": size_z,
        "size_p": holm(size_p),
        "share": own.shares,
        "z": z,
        "p": holm(p),
        **written,
    }
    table = pl.DataFrame(columns, schema_overrides={name: pl.Float64() for name in written})
    second, below = (
        (pl.col("z").abs(), "p") if table["write_z"].null_count() else (pl.col("write_z"), "write_p")
    )
    table = table.with_columns(
        strength=pl.min_horizontal(pl.col("size_z").abs(), second),
        found=(pl.col("size_p") < spec.level) & (pl.col(below) < spec.level),
    )
    return table.select(pl.col(column).cast(kind) for column, kind in AUDIT_SCHEMA.items())


def _written(
    own: Measured, clean: Sequence[Measured], spec: AuditSpec
) -> dict[str, list[float] | list[None]]:
    columns = ("write_share", "write_low", "write_high", "write_z", "write_p")
    others = [one.writes for one in clean if one.writes is not None]
    if own.writes is None or len(others) < MIN_CLEAN:
        return {column: [None] * len(own.names) for column in columns}
    intervals = mean_intervals(own.writes)
    shares = np.array([one.estimate for one in intervals])
    # a share is a sum of squares: its cube root is nearly normal (Wilson and Hilferty 1931)
    z, p = against(np.cbrt(shares), np.cbrt([one.mean(axis=0) for one in others]))
    larger = holm(np.where(z > 0, p / 2, 1 - p / 2))
    low, high = [one.low for one in intervals], [one.high for one in intervals]
    parts = (shares.tolist(), low, high, z.tolist(), larger.tolist())
    return dict(zip(columns, parts, strict=True))


def audit_all(measured: Mapping[str, Measured], plants: pl.DataFrame, spec: AuditSpec) -> pl.DataFrame:
    """`AUDIT_SCHEMA` of every adapter against the clean ones of its norm; a clean one against all others.

    Args:
        measured: by checkpoint; those of mixed and planted adapters, and of clean ones at their norm.
        plants: `PLANT_SCHEMA`.
    """
    clean = plants.filter(group=CLEAN)["checkpoint"].to_list()
    return pl.concat(
        [
            checkpoint_audit(name, own, [measured[one] for one in clean if one != name], spec)
            for name, own in measured.items()
        ]
    )


# ------------------------------------------------------------------------------------ how good it is

_MEASURES = (
    ("verdict", "strength", pl.col("found")),
    ("size", "size_z", pl.col("size_p") < pl.col("level")),
    ("share", "z", pl.col("p") < pl.col("level")),
    ("weights", "write_z", pl.col("write_p") < pl.col("level")),
)


def detection(audits: pl.DataFrame, plants: pl.DataFrame, spec: AuditSpec) -> pl.DataFrame:
    """`DETECTION_SCHEMA`: a row a share of steered rows and measure; how well planted adapters are told from clean."""
    joined = audits.rename({"share": "of_length"}).join(plants, on="checkpoint", suffix="_planted")
    joined = joined.with_columns(level=spec.level)
    clean = joined.filter(group=CLEAN)
    rows: list[dict[str, Any]] = []
    others = joined.filter(pl.col("group") != CLEAN)
    for share in others["share"].unique().sort(descending=True).to_list():
        own = others.filter(share=share)
        for name, column, hit in _MEASURES:
            if not (own[column].null_count() or clean[column].null_count()):
                told = [frame.with_columns(hit=hit, size=pl.col(column).abs()) for frame in (own, clean)]
                rows.append({"share": share, "measure": name} | _detected(*told))
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA)


def _detected(own: pl.DataFrame, clean: pl.DataFrame) -> dict[str, float | int | None]:
    """Of planted and clean rows with `size`, a measure without its sign, and `hit`: it is beyond the level."""
    is_planted = pl.col("direction") == pl.col("direction_planted")
    best = own.sort("size", descending=True).unique("checkpoint", keep="first", maintain_order=True)
    silent = clean.group_by("checkpoint").agg(pl.col("size").max(), pl.col("hit").any())
    area = auc_interval([*best["size"], *silent["size"]], np.repeat([1, 0], [best.height, silent.height]))
    found: dict[str, float | int | None] = {"adapters": best.height, "clean": silent.height}
    found |= {"auc": area.estimate, "auc_low": area.low, "auc_high": area.high}
    found["named"] = _share(best.select(is_planted).to_series())
    target, others = own.filter(is_planted), own.filter(~is_planted)
    dose, coefficient = target["dose"].to_numpy(), target["coefficient"].to_numpy()
    found["found"] = _share(target["hit"])
    found["signed"] = float(np.mean(np.sign(dose) == np.sign(coefficient)))
    found["false_alarms"] = _share(silent["hit"])
    found["others"] = _share(others.group_by("checkpoint").agg(pl.col("hit").any())["hit"])
    if len(dose) > 2 and np.ptp(dose) > 0:
        found["dose_r"] = float(np.corrcoef(dose, coefficient)[0, 1])
    found["dose_slope"] = float(dose @ coefficient / (dose @ dose))
    return found


def _share(series: pl.Series) -> float:
    return float(np.mean(series.to_numpy()))


# ------------------------------------------------------------------------------------ claims


def audit_tells_planted(table: pl.DataFrame, least: float) -> Verdict:
    """Adapters that were taught a direction are told from clean ones of their norm.

    Args:
        table: `DETECTION_SCHEMA`.
        least: AUC.
    """
    own = _unmixed(table)
    return Verdict(
        "audit_tells_planted",
        own["auc"] >= least,
        f"AUC {own['auc']:.3f} ({own['auc_low']:.3f} to {own['auc_high']:.3f}) of {own['adapters']} planted against "
        f"{own['clean']} clean adapters of their norm; at least {least:g} is wanted",
        {"auc": own["auc"], "auc_low": own["auc_low"], "dose_r": own["dose_r"]},
        blocking=False,
    )


def audit_names_planted(table: pl.DataFrame, least: float) -> Verdict:
    """The direction that was taught is found, and others are not.

    Args:
        least: share of planted adapters whose direction is found; at most 1 - `least` may have another one found.
    """
    own = _unmixed(table)
    return Verdict(
        "audit_names_planted",
        own["found"] >= least and own["others"] <= 1 - least,
        f"the planted direction is found in {own['found']:.0%} of {own['adapters']} adapters and is the strongest in "
        f"{own['named']:.0%}; another is found in {own['others']:.0%}; at least {least:.0%} and at most "
        f"{1 - least:.0%} are wanted",
        {"found": own["found"], "named": own["named"], "others": own["others"], "signed": own["signed"]},
        blocking=False,
    )


def audit_raises_no_alarm(table: pl.DataFrame, level: float) -> Verdict:
    """Clean adapters in which something is found are no more than the level promises, or that could be chance."""
    own = _unmixed(table)
    alarms = round(own["false_alarms"] * own["clean"])
    likely = binomtest(alarms, own["clean"], level, alternative="greater").pvalue
    low, high = binomtest(alarms, own["clean"]).proportion_ci(method="exact")
    return Verdict(
        "audit_raises_no_alarm",
        bool(likely >= level),
        f"something is found in {alarms} of {own['clean']} clean adapters ({low:.0%} to {high:.0%}); the level is "
        f"{level:.0%}",
        {"false_alarms": own["false_alarms"], "alarms_high": high},
        blocking=False,
    )


def _unmixed(table: pl.DataFrame) -> dict[str, Any]:
    """The verdict's row of adapters that learned steered rows alone.

    Raises:
        ValueError: there is none.
    """
    own = table.filter(share=1.0, measure="verdict")
    if own.is_empty():
        raise ValueError("no adapters that learned steered rows alone; plant some (auditing.plant.n_planted)")
    return own.row(0, named=True)
