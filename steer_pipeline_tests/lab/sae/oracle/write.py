"""Writes the directories and numbers beside this file, with sae-lens: `pip install sae-lens==6.54.12`, then
`python write.py FOLDER`. Tests only read them; sae-lens is no dependency.
"""

import json
import sys
from pathlib import Path

import sae_lens.loading.pretrained_sae_loaders as loaders
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import save_file

HIDDEN, FEATURES, TOKENS = 6, 10, 5
WHERE = {"model_name": "toy", "hook_name": "blocks.1.hook_resid_post", "hf_hook_name": "model.layers.1"}
GEMMA = "resid_post/layer_1_width_16k_l0_small"


def made(kind, config, seed, **more):
    sae = kind(config(d_in=HIDDEN, d_sae=FEATURES, metadata=SAEMetadata(**WHERE), **more))
    random = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(sae.named_parameters()):
        tensor.data.copy_(
            torch.randn(tensor.shape, generator=random) * (0.7 if name.startswith("W") else 0.2)
        )
    if hasattr(sae, "threshold"):
        sae.threshold.data.copy_(torch.rand(FEATURES, generator=random) * 0.5)
    return sae


def gemma_scope(folder):
    """A directory of GemmaScope 2, and what sae-lens's own loader makes of it."""
    sae = made(JumpReLUSAE, JumpReLUSAEConfig, 50)
    place = folder / "gemma_scope_2" / GEMMA
    place.mkdir(parents=True)
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-it",
        "hf_hook_point_in": "model.layers.1.output",
    }
    (place / "config.json").write_text(json.dumps(config))
    tensors = {"w_enc": sae.W_enc, "w_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    tensors["threshold"] = sae.threshold
    save_file({name: one.data.contiguous() for name, one in tensors.items()}, place / "params.safetensors")
    root = folder / "gemma_scope_2"
    loaders.hf_hub_download = lambda repo_id, filename, subfolder="", **_: str(root / subfolder / filename)
    loaders.get_safetensors_tensor_shapes = lambda *_: {
        "w_enc": (HIDDEN, FEATURES),
        "w_dec": (FEATURES, HIDDEN),
    }
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-it", GEMMA)
    read = JumpReLUSAE(JumpReLUSAEConfig.from_dict(loaders.handle_config_defaulting(config)))
    read.load_state_dict(state)
    return read


def main(folder):
    plain = {"apply_b_dec_to_input": False}
    cases = {
        "standard": made(StandardSAE, StandardSAEConfig, 0),
        "standard_layer_norm": made(
            StandardSAE, StandardSAEConfig, 1, normalize_activations="layer_norm", **plain
        ),
        "jumprelu": made(JumpReLUSAE, JumpReLUSAEConfig, 2, **plain),
        "jumprelu_rescaled": made(
            JumpReLUSAE, JumpReLUSAEConfig, 3, normalize_activations="constant_norm_rescale"
        ),
        "topk": made(TopKSAE, TopKSAEConfig, 4, k=3),
        "topk_by_norm": made(TopKSAE, TopKSAEConfig, 5, k=3, rescale_acts_by_decoder_norm=True),
    }
    for name, sae in cases.items():
        sae.save_model(folder / name)
    cases[f"gemma_scope_2/{GEMMA}"] = gemma_scope(folder)
    states = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(99)) * 2
    values = {}
    with torch.no_grad():
        for name, sae in cases.items():
            features = sae.encode(states)
            values[name] = {"features": features.tolist(), "reconstruction": sae.decode(features).tolist()}
    (folder / "values.json").write_text(json.dumps({"states": states.tolist(), "values": values}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
