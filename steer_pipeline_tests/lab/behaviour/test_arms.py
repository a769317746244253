"""Every persona gets the same arms, with doses in both units; what is missing is missing and not zero."""

import numpy as np
import pytest

from steer_pipeline.catalogue.specs import ModelSpec, RolloutSpec
from steer_pipeline.lab.arms import family_of
from steer_pipeline.lab.behaviour.arms import AveragedDose, build_arms, scales_with_both_signs
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.behaviour.builders import averaged_vector, persona, trained_vector
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = RolloutSpec(trained_scales=[0.5, 2.0], averaged_scales=[-1.0, 1.0], random_seeds=[51, 52])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder)), dtype="float32", device="cpu"), folder)


@pytest.fixture(scope="module")
def arms(model):
    return build_arms(
        persona(), trained_vector(model), (averaged_vector(model), AveragedDose(2, 5.0)), SPEC,
        versions={"trained": "t1", "averaged": "a1"},
    )  # fmt: skip


def test_vanilla_the_learned_scale_and_both_signs_are_always_there(arms):
    """There was no unprompted arm, so nothing to compare with (chatspace 1.8)."""
    assert [arm.name for arm in arms] == [
        "vanilla", "prompted_0", "prompted_1", "trained@-1", "trained@0.5", "trained@1", "trained@2",
        "averaged@-1", "averaged@1", "random@51", "random@52",
    ]  # fmt: skip
    assert family_of("prompted_1") == "prompted"
    assert scales_with_both_signs([1.0, 0.5, 1.0]) == [-1.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="vanilla"):
        scales_with_both_signs([0.0, 1.0])


def test_scales_are_multiples_of_the_vector_not_absolute_lengths(arms, model):
    """Scales of 200 to 800 times a raw vector of norm 300 made garbage (chatspace 3.4.4)."""
    by = {arm.name: arm for arm in arms}
    norm = float(np.linalg.norm(trained_vector(model).raw))
    assert by["trained@1"].term.alpha == pytest.approx(norm)
    assert by["trained@-1"].term.alpha == pytest.approx(-norm)
    assert by["trained@0.5"].term.dose_fraction == pytest.approx(norm / 2 / 12.0)
    assert by["averaged@1"].term.alpha == pytest.approx(5.0)
    assert (by["averaged@1"].term.site.block, by["trained@1"].term.site.block) == (2, 1)
    assert (by["trained@1"].term.version, by["averaged@1"].term.version) == ("t1", "a1")
    assert by["vanilla"].term is None


def test_random_directions_have_the_trained_vectors_length_and_site(arms):
    learned = next(arm.term for arm in arms if arm.name == "trained@1")
    random = [arm.term for arm in arms if arm.arm == "random"]
    assert all(term.alpha == learned.alpha and term.site == learned.site for term in random)
    assert abs(random[0].unit @ random[1].unit) < 0.5
    assert abs(random[0].unit @ learned.unit) < 0.5


def test_every_arm_draws_from_a_stream_of_its_own(arms):
    assert len({arm.plan.stream for arm in arms}) == len(arms)


def test_without_an_averaged_vector_its_arms_are_absent(model):
    arms = build_arms(persona(), trained_vector(model), None, SPEC)
    assert not [arm for arm in arms if arm.arm == "averaged"]
    with pytest.raises(VectorError, match="4 blocks"):
        build_arms(persona(), averaged_vector(model), None, SPEC)
