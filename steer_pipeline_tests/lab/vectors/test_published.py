"""Claims about published averaged vectors: required keys, no stand-ins, no zeros, no mixing of models."""

import pickle

import numpy as np
import pytest
import torch

from steer_pipeline.lab.vectors.averaged import MissingVector
from steer_pipeline.lab.vectors.formats import FormatError
from steer_pipeline.lab.vectors.published import load_published
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.personas.builders import model_like

QWEN = model_like(name="Qwen/Qwen3-32B")
GEMMA = model_like(name="google/gemma-2-27b-it")
ROLE_KEYS = ("pos_0", "pos_1", "pos_2", "pos_3", "pos_all")
TRAIT_KEYS = ("pos_neg", "pos_neg_50", "pos_default", "pos_default_50", "pos_70", "pos_40_70")


def tensors(keys, shape=(4, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator, dtype=torch.bfloat16) for key in keys}


def published(tmp_path, slug="qwen-3-32b", *, role=None, trait=None, defaults=None):
    root = tmp_path / slug
    for kind in ("roles_240", "traits_240"):
        (root / kind / "vectors").mkdir(parents=True, exist_ok=True)
    torch.save(tensors(ROLE_KEYS) if role is None else role, root / "roles_240" / "vectors" / "sailor.pt")
    torch.save(tensors(TRAIT_KEYS) if trait is None else trait, root / "traits_240" / "vectors" / "petty.pt")
    held = {"activations": tensors(("pos_1", "default_1", "all_1"), seed=9), "metadata": {"n": 7}}
    torch.save(held if defaults is None else defaults, root / "roles_240" / "default_vectors.pt")
    return root


def test_a_role_is_full_scores_minus_default_and_a_trait_its_matched_pairs(tmp_path):
    root = published(tmp_path)
    role, trait = load_published(root, "sailor", "role", QWEN), load_published(root, "petty", "trait", QWEN)
    wanted = (
        tensors(ROLE_KEYS)["pos_3"].float()
        - tensors(("pos_1", "default_1", "all_1"), seed=9)["default_1"].float()
    )
    assert np.array_equal(role.raw, wanted.numpy())
    assert np.array_equal(trait.raw, tensors(TRAIT_KEYS)["pos_neg_50"].float().numpy())
    assert role.raw.dtype == np.float32
    assert role.present_blocks == (0, 1, 2, 3)
    assert role.metadata["model"] == "Qwen/Qwen3-32B"
    assert role.metadata["source"]["keys"] == ["pos_3", "default_1"]
    assert set(role.metadata["source"]["files"]) == {"sailor.pt", "default_vectors.pt"}


@pytest.mark.parametrize("kind", ["role", "trait"])
def test_no_other_key_takes_the_place_of_a_missing_one(tmp_path, kind):
    role = tensors([key for key in ROLE_KEYS if key != "pos_3"])
    trait = tensors([key for key in TRAIT_KEYS if key != "pos_neg_50"])
    root = published(tmp_path, role=role, trait=trait)
    name, key = {"role": ("sailor", "pos_3"), "trait": ("petty", "pos_neg_50")}[kind]
    with pytest.raises(MissingVector, match=f"no key '{key}'"):
        load_published(root, name, kind, QWEN)


def test_role_defaults_are_required(tmp_path):
    held = {"activations": tensors(("pos_1", "all_1")), "metadata": {}}
    with pytest.raises(MissingVector, match="no key 'default_1'"):
        load_published(published(tmp_path, defaults=held), "sailor", "role", QWEN)
    root = published(tmp_path, defaults=tensors(("default_1",)))
    with pytest.raises(FormatError, match="no dict under key 'activations'"):
        load_published(root, "sailor", "role", QWEN)
    (root / "roles_240" / "default_vectors.pt").unlink()
    with pytest.raises(FormatError, match=r"default_vectors\.pt: no such file"):
        load_published(root, "sailor", "role", QWEN)


def test_zeros_are_an_empty_set(tmp_path):
    zeros = tensors(TRAIT_KEYS) | {"pos_neg_50": torch.zeros(4, 8)}
    with pytest.raises(MissingVector, match="all zeros, which is how an empty set was written"):
        load_published(published(tmp_path, trait=zeros), "petty", "trait", QWEN)


@pytest.mark.parametrize("shape", [(3, 8), (4, 9), (32,)])
def test_wrong_depth_and_width_are_refused(tmp_path, shape):
    root = published(tmp_path, trait=tensors(TRAIT_KEYS, shape))
    with pytest.raises(FormatError, match="has 4 blocks of width 8"):
        load_published(root, "petty", "trait", QWEN)


def test_values_that_are_not_finite_are_refused(tmp_path):
    bad = tensors(TRAIT_KEYS)
    bad["pos_neg_50"][1, 2] = float("nan")
    with pytest.raises(FormatError, match="'pos_neg_50' has values that are not finite"):
        load_published(published(tmp_path, trait=bad), "petty", "trait", QWEN)


def test_foreign_pickles_are_not_run(tmp_path):
    root, run = published(tmp_path), tmp_path / "run"

    class Bad:
        def __reduce__(self):
            return (run.write_text, ("x",))

    (root / "traits_240" / "vectors" / "petty.pt").write_bytes(pickle.dumps({"pos_neg_50": Bad()}))
    with pytest.raises(FormatError, match="not a file of plain tensors"):
        load_published(root, "petty", "trait", QWEN)
    assert not run.exists()


def test_a_gemma_role_is_never_held_against_qwen_defaults(tmp_path):
    qwen, gemma = published(tmp_path), published(tmp_path, "gemma-2-27b")
    assert load_published(gemma, "sailor", "role", GEMMA).raw.any()
    with pytest.raises(VectorError, match="role defaults of 'qwen-3-32b' for a role of 'gemma-2-27b'"):
        load_published(gemma, "sailor", "role", GEMMA, defaults=qwen / "roles_240" / "default_vectors.pt")
    held = {"activations": tensors(("default_1",)), "metadata": {"model_name": "Qwen/Qwen3-32B"}}
    copied = published(tmp_path, "gemma-2-27b", defaults=held)
    with pytest.raises(VectorError, match="role defaults of 'Qwen/Qwen3-32B'"):
        load_published(copied, "sailor", "role", GEMMA)


@pytest.mark.parametrize("slug", ["gemma-2-27b", "qwen-3-3", "qwen-3-0.6b"])
def test_vectors_of_another_model_are_refused_unless_asked_for(tmp_path, slug):
    root = published(tmp_path, slug)
    with pytest.raises(VectorError, match=f"vectors of '{slug}', the model is 'Qwen/Qwen3-32B'"):
        load_published(root, "petty", "trait", QWEN)
    assert load_published(root, "petty", "trait", QWEN, allow_other_model=True).metadata["model"] == slug
