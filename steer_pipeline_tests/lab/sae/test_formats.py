"""Directories of sparse autoencoders. `oracle/` holds what sae-lens 6.54 wrote and computed; see `oracle/write.py`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae.dictionary import SaeError
from steer_pipeline.lab.sae.formats import CONFIG, DENSITY, WEIGHTS, at_block, read_sae, site_of, write_sae

ORACLE = Path(__file__).parent / "oracle"
VALUES = json.loads((ORACLE / "values.json").read_text())
STATES = torch.tensor(VALUES["states"])
CASES = sorted(VALUES["values"])
GEMMA = next(name for name in CASES if name.startswith("gemma"))


@pytest.fixture
def topk(tmp_path):
    return Path(shutil.copytree(ORACLE / "topk", tmp_path / "topk"))


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.mark.parametrize("name", CASES)
def test_features_and_reconstruction_are_those_of_sae_lens(name):
    sae, expected = read_sae(ORACLE / name), VALUES["values"][name]
    torch.testing.assert_close(sae.encode(STATES), torch.tensor(expected["features"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sae.reconstruct(STATES), torch.tensor(expected["reconstruction"]), rtol=1e-5, atol=1e-5
    )
    assert sae.site == Site(1)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_reads_as_it_was(name, tmp_path):
    sae = read_sae(ORACLE / name)
    write_sae(sae, tmp_path / "copy", np.full(10, 0.01))
    again = read_sae(tmp_path / "copy")
    assert torch.equal(again.encode(STATES), sae.encode(STATES))
    assert torch.equal(again.reconstruct(STATES), sae.reconstruct(STATES))
    assert again.site == sae.site
    assert torch.allclose(load_file(tmp_path / "copy" / DENSITY)["sparsity"], torch.tensor(-2.0).double())


def test_flat_configurations_of_before_version_6_are_read(topk):
    flat = {"d_in": 6, "d_sae": 10, "hook_point": "blocks.1.hook_resid_post"}
    flat |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    (topk / CONFIG).write_text(json.dumps(flat))
    sae = read_sae(topk)
    assert (sae.activation, sae.k, sae.site) == ("topk", 3, Site(1))
    torch.testing.assert_close(sae.encode(STATES), torch.tensor(VALUES["values"]["topk"]["features"]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "gated"}, "architecture 'gated'.*take one of them"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it"),
        ({"reshape_activations": "hook_z"}, "attention heads"),
        ({"k": 11}, "k is 11 of 10 features"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "hook_resid_post"),
    ],
)
def test_what_cannot_be_applied_is_refused_with_a_cure(topk, changes, message):
    edit(topk, **changes)
    with pytest.raises(SaeError, match=message):
        read_sae(topk)


def test_damaged_directories_name_the_file(topk, tmp_path):
    tensors = load_file(topk / WEIGHTS)
    for name, broken, message in (
        ("b_enc", None, "no tensor b_enc"),
        ("W_dec", tensors["W_dec"][:5], r"decoder is \[5, 6\], \[10, 6\] fits"),
        ("b_dec", tensors["b_dec"] * float("nan"), "decoder_bias has values that are not finite"),
    ):
        kept = {key: one for key, one in tensors.items() if key != name}
        save_file(kept if broken is None else {**kept, name: broken.contiguous()}, topk / WEIGHTS)
        with pytest.raises(SaeError, match=message):
            read_sae(topk)
    (topk / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(SaeError, match="cannot be read"):
        read_sae(topk)
    with pytest.raises(SaeError, match=r"name it in sae\.folder"):
        read_sae(tmp_path / "nowhere")


def test_transcoders_are_refused(tmp_path):
    folder = Path(shutil.copytree(ORACLE / GEMMA, tmp_path / "gemma"))
    config = json.loads((folder / "config.json").read_text())
    config["hf_hook_point_out"] = "model.layers.1.post_feedforward_layernorm.output"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaeError, match="not transcoders"):
        read_sae(folder)


@pytest.mark.parametrize(
    "hook, site",
    [
        ("blocks.17.hook_resid_post", Site(17)),
        ("blocks.4.hook_resid_pre", Site(3)),
        ("blocks.2.hook_mlp_out", Site(2, "mlp")),
        ("blocks.2.hook_attn_out", Site(2, "attention")),
        ("model.layers.17.output", Site(17)),
        ("model.layers.5", Site(5)),
        ("model.language_model.layers.5.output", Site(5)),
        ("model.layers.9.post_feedforward_layernorm.output", Site(9, "mlp")),
    ],
)
def test_hooks_of_both_libraries_are_sites(hook, site):
    assert site_of(hook) == site


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_resid_pre", "hook_embed", "model.layers.3.self_attn.o_proj.input"]
)
def test_other_places_are_refused(hook):
    with pytest.raises(SaeError, match="take one of the residual stream"):
        site_of(hook)


def test_a_block_is_asked_for_where_no_configuration_says_it(tmp_path):
    folder = Path(shutil.copytree(ORACLE / GEMMA, tmp_path / "gemma"))
    (folder / "config.json").unlink()
    with pytest.raises(SaeError, match=r"sae\.block"):
        at_block(read_sae(folder), None)
    assert at_block(read_sae(folder), 3).site == Site(3)
    with pytest.raises(SaeError, match="drop one of the two"):
        at_block(read_sae(ORACLE / GEMMA), 3)
