"""Tiny random models of many architectures, each with the tokenizer of the tests.

In: a folder and a name of `SHAPES`. Out: a model directory. Hidden 32, two or three blocks, weights wide enough that
logits have clear gaps; windows and chunks of 16 where there are any.
"""

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from steer_pipeline_tests.tiny import tiny_model_dir

WINDOW = 16

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_PLAIN = {**_LLAMA, "num_key_value_heads": 4}
_HEADS = {**_LLAMA, "head_dim": 8}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 48,
    "factor": 10.0,
}

# name -> model type, path, config
SHAPES: dict[str, tuple[str, str, dict]] = {
    "llama": ("llama", "torch", _LLAMA),
    "mistral": ("mistral", "torch", {**_HEADS, "sliding_window": WINDOW}),
    "qwen2": (
        "qwen2",
        "torch",
        {**_LLAMA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", "torch", _HEADS),
    "qwen3_moe": ("qwen3_moe", "torch", {**_HEADS, **_EXPERTS}),
    "mixtral": ("mixtral", "torch", {**_HEADS, **_EXPERTS, "sliding_window": WINDOW}),
    "gemma2": ("gemma2", "torch", {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", "torch", {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "olmo2": ("olmo2", "torch", _PLAIN),
    "phi3": ("phi3", "torch", {**_PLAIN, "sliding_window": WINDOW}),
    "longrope": (
        "phi3",
        "torch",
        {**_PLAIN, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 48},
    ),
    "gpt2": ("gpt2", "torch-plain", _GPT),
    "gpt_bigcode": ("gpt_bigcode", "torch-plain", _GPT),
    "gpt_neo": (
        "gpt_neo",
        "torch-plain",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 512,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
    ),
    "gpt_neox": ("gpt_neox", "torch-plain", _LLAMA),
    "gptj": ("gptj", "torch-plain", {**_GPT, "rotary_dim": 4}),
    "falcon": ("falcon", "torch-plain", {**_LLAMA, "alibi": False}),
    "opt": ("opt", "torch-plain", {**_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("bloom", "torch-plain", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    # a config that makes transformers' cache forget what the model still reads
    "bloom_windowed": (
        "bloom",
        "torch-plain",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "sliding_window": WINDOW},
    ),
    "rwkv": (
        "rwkv",
        "torch-plain",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    ),
    "phi": ("phi", "torch-plain", _PLAIN),
    "stablelm": ("stablelm", "torch-plain", _LLAMA),
    "granite": ("granite", "torch-plain", {**_LLAMA, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "cohere": ("cohere", "torch-plain", {**_LLAMA, "logit_scale": 0.25}),
    "cohere2": ("cohere2", "torch-plain", {**_LLAMA, "logit_scale": 0.25, "sliding_window": WINDOW}),
    "nemotron": ("nemotron", "torch-plain", _HEADS),
    "gpt_oss": ("gpt_oss", "torch-plain", {**_HEADS, **_EXPERTS, "sliding_window": WINDOW}),
    "diffllama": ("diffllama", "torch-plain", _LLAMA),
    "deepseek_v2": ("deepseek_v2", "torch-plain", {**_LLAMA, **_LATENT}),
    "deepseek_v3": ("deepseek_v3", "torch-plain", {**_LLAMA, **_LATENT}),
    "minimax": (
        "minimax",
        "torch-plain",
        {**_HEADS, **_EXPERTS, "layer_types": ["full_attention", "linear_attention"], "block_size": 16},
    ),
    "olmo_hybrid": (
        "olmo_hybrid",
        "torch-plain",
        {
            **_PLAIN,
            **_LINEAR,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention"] * 2 + ["full_attention"],
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        "torch-plain",
        {
            **_HEADS,
            **_EXPERTS,
            **_LINEAR,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "mamba": ("mamba", "torch-plain", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "lfm2": (
        "lfm2",
        "torch-plain",
        {**_LLAMA, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    ),
    "llama4": (
        "llama4_text",
        "torch-plain",
        {
            **_HEADS,
            **_EXPERTS,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        "torch-plain",
        {
            **_HEADS,
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "intermediate_size": [48] * 3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "vocab_size_per_layer_input": 448,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 1,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 3,
        },
    ),
    "gemma4": (
        "gemma4_text",
        "torch-plain",
        {
            **_HEADS,
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": 448,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
        },
    ),
}


@cache
def _folder() -> Path:
    return tiny_model_dir(Path(mkdtemp(prefix="architectures-")), "qwen3")


@cache
def architecture_dir(name: str) -> Path:
    """A model directory of this architecture, made once a process."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    model_type, _, shape = SHAPES[name]
    folder = Path(mkdtemp(prefix=f"tiny-{name}-")) / f"tiny-{name}"
    shutil.copytree(_folder(), folder)
    (folder / "model.safetensors").unlink()
    settings = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=448, tie_word_embeddings=False, **settings, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for one in model.parameters():  # one spread for all, whatever an architecture begins with
            if one.ndim > 1:
                torch.nn.init.normal_(one, std=0.25)
    model.generation_config = GenerationConfig(**settings)
    model.save_pretrained(folder)
    return folder
