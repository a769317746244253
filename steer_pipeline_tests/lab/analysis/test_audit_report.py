"""Pages of audit, screening and prevention say what their tables hold, and show what went wrong."""

import polars as pl

from steer_pipeline.lab.analysis.audit import AUDIT_SCHEMA, DETECTION_SCHEMA, PLANT_SCHEMA
from steer_pipeline.lab.analysis.audit_report import audit_page, prevention_page, screening_page
from steer_pipeline.lab.screening.gate import FLAG_SCHEMA, GATE_SCHEMA
from steer_pipeline.lab.screening.predicting import CORRELATION_SCHEMA, SHIFT_SCHEMA, WRITTEN_SCHEMA
from steer_pipeline.lab.screening.preventing import PREVENTION_SCHEMA

PICTURE = b"png"


def frame(schema, *rows):
    """Rows of a schema; what they do not say is null."""
    return pl.DataFrame(rows, schema=schema)


def test_the_audit_names_what_it_missed_and_whom_it_accused():
    plants = frame(
        PLANT_SCHEMA,
        {"checkpoint": "seen", "group": "planted", "direction": "paranoid", "dose": 0.3, "share": 1.0},
        {"checkpoint": "hidden", "group": "mixed", "direction": "paranoid", "dose": 0.1, "share": 0.25},
        {"checkpoint": "innocent", "group": "clean", "dose": 0.0, "share": 0.0},
    )
    audits = frame(
        AUDIT_SCHEMA,
        *(
            {"checkpoint": name, "direction": "paranoid", "coefficient": size, "found": found}
            for name, size, found in (("seen", 0.3, True), ("hidden", 0.01, False), ("innocent", 0.2, True))
        ),
    )
    whole = {"share": 1.0, "measure": "verdict", "adapters": 20, "clean": 20, "auc": 0.97, "auc_low": 0.9}
    whole |= {"auc_high": 1.0, "found": 0.95, "false_alarms": 0.05}
    page = audit_page(
        audits,
        frame(DETECTION_SCHEMA, whole),
        plants,
        dict.fromkeys(("detection", "sizes", "doses"), PICTURE),
    )
    assert "found in 95%; 5% of 20 clean ones" in page
    missed, accused = page.split("Missed")[-1].split("False alarms")[-2:]
    assert "hidden" in missed
    assert "seen" not in missed
    assert "innocent" in accused
    assert page.count("<img") == 3


def test_the_screening_shows_r_the_gate_and_the_furthest_rows():
    page = screening_page(
        frame(SHIFT_SCHEMA, {"checkpoint": "one", "direction": "paranoid", "predicted": 0.5, "actual": 0.4}),
        frame(CORRELATION_SCHEMA, {"over": "within", "r": 0.91, "low": 0.8, "high": 0.97, "students": 40}),
        frame(GATE_SCHEMA, {"measure": "false_alarms", "value": 0.04, "low": 0.0, "high": 0.1, "rows": 90}),
        frame(
            FLAG_SCHEMA,
            *({"source": "s", "row_id": f"n{i:02d}", "direction": "p", "score": float(i)} for i in range(40)),
        ),
        {"shifts": PICTURE},
    )
    assert "40 students agree with r 0.91 [0.80, 0.97] (within)" in page
    assert "false alarms 0.04 [0.00, 0.10]" in page
    assert "n39" in page
    assert "n27" not in page, "only the furthest rows"


def test_the_prevention_sets_texts_side_by_side():
    row = {"unwanted": 0.1, "unwanted_low": 0.0, "unwanted_high": 0.2, "nll": 0.01}
    page = prevention_page(
        frame(PREVENTION_SCHEMA, {"arm": "plain", **row}, {"arm": "steer-1", "verdict": "prevents", **row}),
        frame(
            WRITTEN_SCHEMA,
            *(
                {"checkpoint": who, "row_id": f"n{i}", "output": f"{who} says {i}"}
                for i in range(5)
                for who in ("model", "steer-1")
            ),
        ),
        {"prevention": PICTURE},
    )
    assert "`steer-1`" not in page, "Markdown is set as HTML"
    assert "steer-1</code>: prevents, unwanted +0.100 [+0.000, +0.200]" in page
    assert "model says 2" in page
    assert "model says 3" not in page
