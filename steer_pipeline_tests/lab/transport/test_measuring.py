"""By which profile the target is judged, which news serve what, and where a vector comes from."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from steer_pipeline.catalogue import load_profile
from steer_pipeline.catalogue.specs import ModelSpec, TransportSpec
from steer_pipeline.lab.personas.steps import reserved_for_personas
from steer_pipeline.lab.transport.measuring import (
    counterparts,
    other_profile,
    spec_of,
    transport_rows,
    variance_along,
)
from steer_pipeline.lab.vectors.vector import VectorError

NEWSROOM = load_profile("newsroom")
NEWS = pl.DataFrame(
    {
        "row_id": [f"{i:016x}" for i in range(700)],
        "source_index": range(700),
        "text": [f"The council of Northport spent {i} million." for i in range(700)],
    }
)


def carrying(**fields) -> TransportSpec:
    return TransportSpec(model=ModelSpec(path="elsewhere"), rows=20, fit_texts=50, **fields)


def test_the_target_is_judged_by_its_own_profile_where_one_is_named():
    here = NEWSROOM.model_copy(update={"transport": carrying()})
    there = NEWSROOM.model_copy(update={"transport": carrying(profile="smollm2-135m")})
    assert other_profile(here).contrast == NEWSROOM.contrast
    assert other_profile(there).contrast == load_profile("smollm2-135m").contrast != NEWSROOM.contrast
    assert {other_profile(one).model.path for one in (here, there)} == {"elsewhere"}
    with pytest.raises(VectorError, match="names no model to carry vectors to"):
        spec_of(NEWSROOM.model_copy(update={"transport": None}))


def test_news_that_are_measured_on_fitted_on_and_used_by_vectors_and_doses_are_disjoint():
    profile = NEWSROOM.model_copy(update={"transport": carrying()})
    measured, fitted = (set(rows["row_id"]) for rows in transport_rows(profile, profile, NEWS))
    assert (len(measured), len(fitted)) == (20, 50)
    assert not measured & fitted
    assert not (measured | fitted) & set(reserved_for_personas(profile, NEWS)["row_id"])
    again = transport_rows(profile, profile, NEWS.sample(fraction=1.0, shuffle=True, seed=1))
    assert set(again[0]["row_id"]) == measured


def test_too_few_news_are_refused():
    profile = NEWSROOM.model_copy(update={"transport": carrying()})
    with pytest.raises(ValueError, match="70 are needed .20 for transport.rows"):
        transport_rows(profile, profile, NEWS.head(330))


def test_fewer_than_ten_random_rotations_and_names_given_twice_are_refused():
    for fields in ({"n_random": 9}, {"ways": ["ridge", "ridge"]}, {"personas": []}):
        with pytest.raises(ValidationError):
            carrying(**fields)


def test_texts_that_never_move_along_a_direction_are_seen_by_their_variance():
    states = np.random.default_rng(0).standard_normal((5000, 8)) + 4.0
    still = states.copy()
    still[:, 3] = 4.0
    assert variance_along(states, np.eye(8)[3]) == pytest.approx(1.0, abs=0.1)
    assert variance_along(still, np.eye(8)[3]) == pytest.approx(0.0, abs=1e-9)


def test_the_block_comes_from_the_same_depth():
    assert counterparts(6, 5, 2, range(6), "depth") == [2]
    assert counterparts(6, 30, 14, range(6), "depth") == [2]
    assert counterparts(30, 6, 5, range(30), "depth") == [27]
    assert counterparts(6, 6, 3, [0, 1], "depth") == [1]
    assert counterparts(6, 5, 2, range(6), "fit") == [2, 3, 1, 4]
