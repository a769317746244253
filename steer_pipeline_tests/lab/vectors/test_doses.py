"""Doses in all three units become blocks and lengths; controls keep site and norm."""

import numpy as np
import pytest

from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.vectors.doses import Recommendation, draw_of, make_term, random_like, terms_for
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.personas.builders import model_like, vector

RECOMMENDED = {"paranoid": Recommendation("paranoid", 2, 0.3, 9.0, "fine")}


def variant(*terms, **fields):
    spec = {"name": "v", "role": "steered", "summary": "s", "terms": list(terms), **fields}
    return VariantSpec.model_validate(spec)


def term(dose, **fields):
    return {"persona": "paranoid", "dose": dose, **fields}


@pytest.mark.parametrize(
    ("spec", "block", "alpha", "fraction"),
    [
        (term({"recommended": 1.0}), 2, 9.0, 0.3),
        (term({"recommended": -1.0}), 2, -9.0, -0.3),
        (term({"recommended": 0.5}, block=-2), 2, 4.5, 0.15),
        (term({"fraction": 0.2}), 2, 6.0, 0.2),
        (term({"fraction": 0.2}, block=0), 0, 2.0, 0.2),
        (term({"fraction": -0.5}, block=0.5), 2, -15.0, -0.5),
        (term({"alpha": 2.4}, block=-3), 1, 2.4, 0.12),
        (term({"alpha": 2.4}), 2, 2.4, 0.08),
    ],
)
def test_every_unit_of_dose_resolves_to_block_and_alpha(spec, block, alpha, fraction):
    plan = terms_for(variant(spec), {"paranoid": vector()}, RECOMMENDED, 4)
    (found,) = plan.terms
    assert found.site == Site(block)
    assert found.alpha == pytest.approx(alpha)
    assert found.dose_fraction == pytest.approx(fraction)
    np.testing.assert_allclose(found.unit, vector().unit_at(block))


@pytest.mark.parametrize(
    ("spec", "block", "alpha", "fraction"),
    [
        (term({"fraction": 0.2}, site="logits"), 2, 8.0, 0.2),  # of the last block's norm, 40
        (term({"alpha": -4.0}, block=0, site="logits"), 0, -4.0, -0.1),
    ],
)
def test_a_logit_bias_takes_its_blocks_vector_and_is_dosed_where_the_final_norm_reads(
    spec, block, alpha, fraction
):
    (found,) = terms_for(variant(spec), {"paranoid": vector()}, RECOMMENDED, 4).terms
    assert found.site == Site(block, "logits")
    assert found.alpha == pytest.approx(alpha)
    assert found.dose_fraction == pytest.approx(fraction)
    np.testing.assert_allclose(found.unit, vector().unit_at(block))
    control = terms_for(
        variant(spec | {"direction": "random"}), {"paranoid": vector()}, RECOMMENDED, 4
    ).terms[0]
    assert (control.site, control.alpha, control.dose_fraction) == (
        found.site,
        found.alpha,
        found.dose_fraction,
    )


def test_a_recommended_dose_is_none_for_logits():
    with pytest.raises(ValueError, match="give a fraction or alpha for logits"):
        variant(term({"recommended": 1.0}, site="logits"))


def test_the_plan_carries_variant_scope_stream_and_versions():
    spec = variant(term({"alpha": 1.0}), scope="generated", stream="shared")
    plan = terms_for(spec, {"paranoid": vector()}, RECOMMENDED, 4, versions={"paranoid": "abc"})
    assert (plan.variant, plan.scope, plan.stream) == ("v", "generated", "shared")
    assert plan.terms[0].version == "abc"
    unversioned = terms_for(spec, {"paranoid": vector()}, RECOMMENDED, 4)
    assert unversioned.terms[0].version == vector().digest


def test_a_combination_keeps_each_vector_at_its_own_site():
    vectors = {"paranoid": vector(), "rule_defiant": vector(seed=5)}
    recommended = {**RECOMMENDED, "rule_defiant": Recommendation("rule_defiant", 1, 0.2, 4.0, "fine")}
    other = {"persona": "rule_defiant", "dose": {"recommended": 1.0}}
    plan = terms_for(variant(term({"recommended": 1.0}), other), vectors, recommended, 4)
    assert [(t.site.block, t.alpha) for t in plan.terms] == [(2, 9.0), (1, 4.0)]


def test_a_base_variant_has_no_terms():
    base = VariantSpec(name="base", role="base", summary="s")
    assert terms_for(base, {}, {}, 4).terms == ()


def test_a_random_direction_has_site_and_alpha_of_its_term_and_is_keyed_by_the_seed():
    real = make_term(vector(hidden=256), Site(1), 3.0)
    control = random_like(real, seed=7)
    assert (control.site, control.alpha, control.dose_fraction) == (real.site, real.alpha, real.dose_fraction)
    assert control.name == "random:paranoid"
    assert control.unit.dtype == np.float32
    assert np.linalg.norm(control.unit) == pytest.approx(1, rel=1e-6)
    assert abs(control.unit @ real.unit) < 0.3
    np.testing.assert_array_equal(control.unit, random_like(real, seed=7).unit)
    assert not np.array_equal(control.unit, random_like(real, seed=8).unit)
    plan = terms_for(
        variant(term({"recommended": 1.0}, direction="random")),
        {"paranoid": vector()},
        RECOMMENDED,
        4,
        seed=3,
    )
    assert plan.terms[0].name == "random:paranoid"
    assert plan.terms[0].alpha == 9.0


def test_every_variant_term_and_draw_has_a_direction_of_its_own():
    """One seed for all made the control of one persona the control of all at that block."""

    def drawn(name, draw):
        terms = [term({"fraction": 0.1}, direction="random", block=1)] * 2
        spec = VariantSpec(name=name, role="control", summary="x", terms=terms)
        return [
            one.unit
            for one in terms_for(spec, {"paranoid": vector(hidden=64)}, {}, 4, seed=3, draw=draw).terms
        ]

    units = np.array([unit for name in ("a", "b") for draw in range(5) for unit in drawn(name, draw)])
    assert np.abs(units @ units.T - np.eye(20)).max() < 0.6
    np.testing.assert_array_equal(drawn("a", 2), drawn("a", 2))


def test_rows_share_directions_evenly_and_in_a_keyed_order():
    taken = [draw_of(i, 10, seed=20) for i in range(40)]
    assert [sorted(taken[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4
    assert taken[:10] != taken[10:20]
    assert taken != [draw_of(i, 10, seed=21) for i in range(40)]


def test_random_directions_are_uniform_over_the_sphere():
    real = make_term(vector(), Site(0), 1.0)
    units = np.stack([random_like(real, seed).unit for seed in range(2000)])
    assert np.abs(units.mean(axis=0)).max() < 0.04
    np.testing.assert_allclose(units.T @ units / len(units), np.eye(8) / 8, atol=0.03)


@pytest.mark.parametrize(
    ("spec", "vectors", "recommended", "told"),
    [
        (term({"recommended": 1.0}), {}, RECOMMENDED, "no vector; materialise persona_vector"),
        (term({"recommended": 1.0}), None, {}, "dose_curve is not materialised"),
        (
            term({"recommended": 1.0}),
            None,
            {"paranoid": Recommendation("paranoid", None, None, None, "nothing moved")},
            "nothing moved",
        ),
        (
            term({"recommended": 1.0}, block=1),
            None,
            RECOMMENDED,
            "belongs to block 2, the term names block 1",
        ),
        (term({"alpha": 1.0}, block=9), None, RECOMMENDED, "outside a model of 4 blocks"),
    ],
)
def test_what_cannot_be_resolved_is_an_error_that_says_why(spec, vectors, recommended, told):
    known = {"paranoid": vector()} if vectors is None else vectors
    with pytest.raises(ValueError, match=told):
        terms_for(variant(spec), known, recommended, 4)


def test_a_fraction_needs_a_measured_residual_norm():
    unmeasured = {"paranoid": vector(residual_norms=None)}
    with pytest.raises(VectorError, match="residual norm of block 1 is unknown"):
        terms_for(variant(term({"fraction": 0.1}, block=1)), unmeasured, {}, 4)
    plan = terms_for(variant(term({"alpha": 1.0}, block=1)), unmeasured, {}, 4)
    assert plan.terms[0].dose_fraction is None


def test_vectors_of_another_model_do_not_reach_a_plan():
    spec = variant(term({"alpha": 1.0}, block=1))
    with pytest.raises(VectorError, match="another model"):
        terms_for(spec, {"paranoid": vector()}, {}, 4, model=model_like(weights_sha="w2"))
    with pytest.raises(VectorError, match="made on 4 blocks, the model has 6"):
        terms_for(spec, {"paranoid": vector()}, {}, 6)
