"""What a table of sanity tests says of methods, and of itself."""

import polars as pl

from steer_pipeline.lab.attribution.soundness import (
    SOUND_SCHEMA,
    TESTS,
    empty_ranking_fails,
    headline,
    soundness_verdict,
)


def table(**passed):
    """Methods whose tests pass or fail; each measured its place among the tests."""
    rows = [
        (
            name,
            "random" if name == "random" else "gradient",
            test,
            name in passed and passed[name][i],
            float(i),
        )
        for name in passed
        for i, test in enumerate(TESTS)
    ]
    told = [(*row, None, None, f"{row[2]} says {row[4]:g}") for row in rows]
    return pl.DataFrame(told, schema=SOUND_SCHEMA, orient="row")


GOOD, BLIND = (True,) * 4, (True, False, False, False)


def test_methods_that_pass_are_sound_whatever_a_random_ranking_does():
    found = soundness_verdict(table(gradient=GOOD, random=BLIND))
    assert found.passed
    assert found.numbers == {"tests": 4, "failed": 0}


def test_a_method_that_fails_is_named_with_its_test():
    found = soundness_verdict(table(gradient=(True, False, True, True), random=BLIND))
    assert not found.passed
    assert found.message == "gradient mislabelled_rows_score_low: mislabelled_rows_score_low says 1"


def test_tests_that_a_random_ranking_passes_say_nothing():
    assert empty_ranking_fails(table(gradient=GOOD, random=BLIND)).passed
    found = empty_ranking_fails(table(gradient=GOOD, random=(True, False, False, True)))
    assert not found.passed
    assert "random shortcut_rows_are_found" in found.message
    assert "no random ranking" in empty_ranking_fails(table(gradient=GOOD)).message


def test_a_last_line_holds_what_every_test_measured():
    assert headline(table(gradient=GOOD))["gradient"] == {test: float(i) for i, test in enumerate(TESTS)}
