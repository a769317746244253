"""Claims about Bergson: on the same rows it and we agree to 1e-5, and without it the message says how to get it."""

from dataclasses import replace

import pytest

from steer_pipeline.catalogue.attribution_scoring import GradientMethod, MagicMethod
from steer_pipeline.lab.attribution.scoring import bergson
from steer_pipeline.lab.attribution.scoring.methods import needs_bergson, score
from steer_pipeline.lab.attribution.scoring.quality import agreement
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError
from steer_pipeline_tests.lab.finetune.rows import spec_of

there = pytest.mark.skipif(not bergson.installed(), reason=f"Bergson is not installed: {bergson.CURE}")
FORMS = {
    "plain": {"preconditioning": "none"},
    "products": {"preconditioning": "none", "unit_norm": False, "projection": 0},
    "nearest": {"query": "nearest", "sides": "two"},
    "two_sided": {"sides": "two"},
    "one_sided": {"sides": "one"},
    "one_sided_products": {"sides": "one", "unit_norm": False},
    "mixed": {"preconditioning": "mixed", "mixing": 0.6},
}


def both(fields):
    return {
        side: GradientMethod(**({"projection": 4} | fields), back_end=side) for side in ("native", "bergson")
    }


def compared(made, work):
    ranked = {side: score(side, made, work) for side in ("native", "bergson")}
    assert ranked["bergson"].coverage == ranked["native"].coverage
    found = agreement(ranked["native"], ranked["bergson"])
    assert found["relative_difference"] < 1e-5
    assert found["spearman"] > 0.9999
    return ranked


@there
@pytest.mark.parametrize("name", FORMS)
def test_both_back_ends_give_the_same_scores(scoring, tmp_path, name):
    compared(scoring(both(FORMS[name])), tmp_path)


@there
def test_both_give_them_on_a_model_without_an_adapter_and_for_summed_losses(scoring, base, tmp_path):
    compared(scoring(both({"preconditioning": "none"}), tuned=spec_of(base), loss="sum"), tmp_path)


@there
def test_both_count_the_same_failures(scoring, pool, tmp_path):
    # Bergson alone: a masked row scores 0, a long one stops everything
    masked = replace(pool[0], row_id="masked", masked=tuple(range(pool[0].start, len(pool[0].ids))))
    partly = replace(pool[1], row_id="partly", masked=(pool[1].start,))
    long = replace(pool[0], row_id="long", ids=pool[0].ids * 200)
    made = scoring(both({"preconditioning": "none"}), pool=(long, *pool, masked, partly))
    ranked = compared(made, tmp_path)
    assert ranked["bergson"].coverage == pytest.approx(11 / 13)
    assert ranked["bergson"].scores["partly"] != pytest.approx(ranked["bergson"].scores["row1"])


@there
def test_magic_by_bergson_is_the_training_that_we_differentiate(scoring, tmp_path):
    methods = {side: MagicMethod(back_end=side) for side in ("native", "bergson")}
    compared(scoring(methods), tmp_path)


@there
def test_trackstar_and_ekfac_score_every_row(scoring, tmp_path):
    made = scoring(
        {"trackstar": {"kind": "trackstar", "projection": 4, "downweighted": 20}, "ekfac": {"kind": "ekfac"}}
    )
    for name in ("trackstar", "ekfac"):
        assert needs_bergson(made.settings.methods[name])
        first = score(name, made, tmp_path / "one")
        assert first.coverage == 1.0
        assert first.table.equals(score(name, made, tmp_path / "two").table)


@there
def test_a_killed_run_goes_on_from_the_steps_that_are_done(scoring, tmp_path, monkeypatch):
    made = scoring(both({"sides": "one"}))
    whole = score("bergson", made, tmp_path / "whole")
    make = bergson._preconditioned
    monkeypatch.setattr(bergson, "_preconditioned", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score("bergson", made, tmp_path / "killed")
    monkeypatch.setattr(bergson, "_preconditioned", make)
    monkeypatch.setattr(bergson, "_hessian", lambda *_: pytest.fail("made again"))
    assert score("bergson", made, tmp_path / "killed").table.equals(whole.table)


@there
def test_other_tokens_than_ours_are_an_error_that_names_the_row(scoring, tmp_path, monkeypatch):
    labels = bergson.labels_of
    monkeypatch.setattr(
        bergson,
        "labels_of",
        lambda example: [-100, *labels(example)[1:]] if example.row_id != "row3" else [1, *example.ids[1:]],
    )
    made = scoring(both({"preconditioning": "none"}))
    seen = bergson._require_ours

    def as_stored(pool, folder):
        monkeypatch.setattr(bergson, "labels_of", labels)
        seen(pool, folder)

    monkeypatch.setattr(bergson, "_require_ours", as_stored)
    with pytest.raises(ScoringError, match="row 'row3': Bergson saw other tokens or labels"):
        score("bergson", made, tmp_path)


@there
def test_what_bergson_cannot_load_is_told_before_it_tries(scoring, tuned, tmp_path):
    stacked = tuned.model_copy(update={"adapter": (tuned.adapter, tuned.adapter)})
    with pytest.raises(ScoringError, match="2 adapters: Bergson reads one; merge"):
        score("bergson", scoring(both({"preconditioning": "none"}), tuned=stacked), tmp_path)
    with pytest.raises(ScoringError, match="trains on a base without adapters"):
        score("magic", scoring({"magic": MagicMethod(back_end="bergson")}, base=tuned), tmp_path)


@pytest.mark.parametrize(
    "method",
    [{"kind": "gradient", "back_end": "bergson"}, {"kind": "trackstar"}, {"kind": "ekfac"}],
    ids=lambda one: one["kind"],
)
def test_without_bergson_the_message_says_how_to_get_it(scoring, tmp_path, monkeypatch, method):
    monkeypatch.setattr(bergson, "installed", lambda: False)
    with pytest.raises(ScoringError, match="not installed: run `make bergson`.*--no-deps bergson==2.5.1"):
        score("it", scoring({"it": method}), tmp_path)


def test_another_series_of_bergson_is_refused(monkeypatch):
    monkeypatch.setattr(bergson, "installed", lambda: True)
    monkeypatch.setattr(bergson.importlib.metadata, "version", lambda _name: "3.0.1")
    with pytest.raises(ScoringError, match=r"Bergson 3.0.1 is installed.*for 2.5: run `make bergson`"):
        bergson.require()
