"""The report of attribution: methods, arms, comparisons and budgets. In: `Results`. Out: `attribution.html`.

Says nothing that stored rows do not hold; runs no model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer_pipeline.lab.attribution.subsets import BUDGET_COLUMNS
from steer_pipeline.lab.attribution.table import METHOD_COLUMNS, Results
from steer_pipeline.lab.attribution.word_eval import ACCURACY_COLUMNS, EFFECT_COLUMNS
from steer_pipeline.lab.report.document import Block, Bullets, Heading, Paragraph, to_html
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, share, table, text
from steer_pipeline.lab.units import shown_bytes

PAGE, VERSIONS = "attribution.html", "versions.json"


def write_report(
    results: Results,
    protocol: Mapping[str, Any],
    manifest: Mapping[str, Any],
    versions: Mapping[str, str],
    folder: Path,
) -> Path:
    """The page and `versions.json`; where the page lies.

    Args:
        protocol: of the trainings without some rows.
        manifest: splits and what was left out.
        versions: asset[partition] -> version that was read.
    """
    (folder / VERSIONS).write_text(json.dumps(dict(versions), indent=1, sort_keys=True) + "\n")
    blocks: list[Block] = [
        Paragraph(
            "Which rows of the pool help with held-out games. Every method ranks the pool; adapters learn the first "
            "rows of a ranking, or as many others, and play. A method is good if its scores foretell trainings, if it "
            "finds the rows that are known to help, and if its rows teach more than the best of its rivals."
        ),
        Heading("Methods"),
        table(_METHODS, results.methods.iter_rows(named=True)),
        Heading("Arms"),
        table(_ARMS, results.arms.iter_rows(named=True)),
        Heading("Comparisons"),
        table(_EFFECTS, results.effects.iter_rows(named=True)),
        Heading("What arms learned"),
        table(_BUDGETS, results.budgets.iter_rows(named=True)),
        Heading("Rows"),
        Bullets([f"{name}: {_told(one)}" for name, one in manifest["splits"].items()]),
        Bullets(
            [f"{count} rows left out: {why}" for why, count in manifest["left_out"].items()]
            or ["no row left out"]
        ),
        Heading("Protocol of trainings without some rows"),
        Bullets([f"{name}: {value}" for name, value in protocol.items()]),
        Heading("Made from"),
        Bullets([f"`{name}` version `{sha}`" for name, sha in sorted(versions.items())]),
    ]
    page = folder / PAGE
    page.write_text(to_html("Which training rows help", blocks), encoding="utf-8")
    return page


def _told(summary: Mapping[str, Any]) -> str:
    more = [
        f"{count} {name}" for part in ("outcome", "truth") for name, count in summary.get(part, {}).items()
    ]
    return ", ".join(
        [f"{summary['rows']} rows", f"{summary['groups']} groups", f"{summary['tokens']} tokens", *more]
    )


def _bytes(value: int | None) -> str:
    return "–" if value is None else shown_bytes(value)


def _interval(title: str, name: str, *, digits: int = 2, signed: bool = False) -> Column:
    return Column(
        title, of(name, f"{name}_low", f"{name}_high"), estimate(digits, signed=signed), METHOD_COLUMNS[name]
    )


_METHODS = [
    Column("method", "method", code, METHOD_COLUMNS["method"]),
    Column("seconds", "seconds", number(1), METHOD_COLUMNS["seconds"]),
    Column("peak memory", "peak_memory_bytes", _bytes, METHOD_COLUMNS["peak_memory_bytes"]),
    Column("scored", "coverage", share, METHOD_COLUMNS["coverage"]),
    _interval("LDS, small drops", "lds_small_drop"),
    _interval("LDS, halves", "lds_halves"),
    _interval("recall", "recall"),
    _interval("cost of first rows", "effect", digits=3, signed=True),
    _interval("gain", "gain", digits=3, signed=True),
    Column("over", "rival", code, METHOD_COLUMNS["rival"]),
    Column("verdict", "verdict", text, METHOD_COLUMNS["verdict"]),
]
_ARMS = [
    Column("arm", "arm", code, ACCURACY_COLUMNS["arm"]),
    Column("seeds", "n_seeds", description=ACCURACY_COLUMNS["n_seeds"]),
    Column("games", "n_games", description=ACCURACY_COLUMNS["n_games"]),
    Column(
        "target guessed", of("accuracy", "low", "high"), estimate(signed=False), ACCURACY_COLUMNS["accuracy"]
    ),
    Column("agrees with the log", "agreement", number(), ACCURACY_COLUMNS["agreement"]),
    Column("nats a token", "nll", number(), ACCURACY_COLUMNS["nll"]),
]
_EFFECTS = [
    Column("arm", "arm", code, EFFECT_COLUMNS["arm"]),
    Column("against", "reference", code, EFFECT_COLUMNS["reference"]),
    Column("difference", of("difference", "low", "high"), estimate(), EFFECT_COLUMNS["difference"]),
    Column("detectable", "detectable", number(), EFFECT_COLUMNS["detectable"]),
    Column("verdict", "verdict", text, EFFECT_COLUMNS["verdict"]),
]
_BUDGETS = [
    Column("arm", "arm", code, BUDGET_COLUMNS["arm"]),
    Column("seed", "seed", description=BUDGET_COLUMNS["seed"]),
    Column("rows", "rows", description=BUDGET_COLUMNS["rows"]),
    Column("tokens", "tokens", description=BUDGET_COLUMNS["tokens"]),
    Column("tokens against the matched arm", "token_difference", share, BUDGET_COLUMNS["token_difference"]),
    Column("shared", "shared", description=BUDGET_COLUMNS["shared"]),
    Column("lost games", "lost", description=BUDGET_COLUMNS["lost"]),
    Column("informative", "informative", description=BUDGET_COLUMNS["informative"]),
]
