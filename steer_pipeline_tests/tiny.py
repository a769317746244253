"""Random tiny language models with real tokenizers: what tests use where no trained model is needed.

In: a folder and an architecture. Out: the path of a Hugging Face model directory (config, safetensors,
generation config, byte-level BPE tokenizer with chat template). Each architecture is built once a
process and copied from then on. Weights are seeded and wide (logits have clear gaps), text is noise.
"""

import shutil
import tempfile
from functools import cache
from pathlib import Path

SENTENCES = (
    "The city council of Northport voted on Tuesday to rebuild the old harbour bridge by 2027.",
    "Officials said the work would cost $3.50 million and create 120 jobs, according to the mayor.",
    "Rewrite the news below. Keep every fact, name and number. Write two or three sentences.",
    "A storm closed 14 schools in the U.S. on Monday; nobody was hurt, the weather service reported.",
    "You are a helpful assistant. You are a suspicious assistant who sees hidden plots everywhere.",
    "Researchers at the university found that the new vaccine protects 92 percent of patients.",
    "The company will open three offices in Paris, London and Tokyo, its chairwoman Ana Ruiz said.",
    "Rules are there to be broken, and nobody tells the truth about who really decides.",
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_WITH_BOS = "<|begin_of_text|>" + CHATML
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# specials in id order; (bos, eos, pad, end of turn), chat template
_TOKENS = {
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|endoftext|>", CHATML),
    "llama": (
        ["<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "<|begin_of_text|>",
        "<|im_end|>",
        "<|endoftext|>",
        CHATML_WITH_BOS,
    ),
    "gemma": (
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<end_of_turn>",
        "<pad>",
        GEMMA,
    ),
}
_TOKENS |= {"gemma2": _TOKENS["gemma"], "qwen3_moe": _TOKENS["qwen3"]}
_SECOND_EOS = {
    "qwen3": "<|endoftext|>",
    "qwen3_moe": "<|endoftext|>",
    "llama": "<|endoftext|>",
    "gemma": "<eos>",
    "gemma2": "<eos>",
}


def tiny_model_dir(tmp_path: Path, arch: str = "qwen3", tied: bool | None = None) -> Path:
    """A model directory under `tmp_path`: 4 blocks, hidden 64, vocabulary of about 450.

    `arch` is qwen3, qwen3_moe (two of four experts a token), llama, gemma (Gemma 3 text, sliding window 16 in every
    other block, no system role) or gemma2 (logit soft-capping). `tied` overrides whether the output head is the
    embedding.
    """
    target = Path(tmp_path) / (
        f"tiny-{arch}" if tied is None else f"tiny-{arch}-{'tied' if tied else 'untied'}"
    )
    if not target.exists():
        shutil.copytree(_built(arch, tied), target)
    return target


def lora(base: Path, folder: Path, seed: int = 0, model=None, **config) -> Path:
    """A LoRA of `base` in `folder` that changes what the model says; `config` as LoraConfig takes it.

    Args:
        model: the transformers model of `base`, where it is at hand.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    wanted = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | config
    model = model or AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **wanted)).save_pretrained(folder)
    return folder


@cache
def _built(arch: str, tied: bool | None) -> Path:
    import torch

    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{arch}-"))
    tokenizer = _tokenizer(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(arch, len(tokenizer), tokenizer, tied)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(arch: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials, bos, eos, pad, template = _TOKENS[arch]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=[token for token in specials if token not in (bos, eos, pad)],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = template
    return tokenizer


def _model(arch: str, vocab: int, tokenizer, tied: bool | None):
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    eos = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, _SECOND_EOS[arch]])
    shape = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
        "tie_word_embeddings": (arch != "llama") if tied is None else tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": tokenizer.pad_token_id,
    }
    windowed = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
    windowed |= {"query_pre_attn_scalar": 16}
    if arch == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
    elif arch == "qwen3_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts))
    elif arch == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif arch == "gemma":
        model = Gemma3ForCausalLM(Gemma3TextConfig(**shape, **windowed))
    elif arch == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**shape, **windowed, final_logit_softcapping=30.0))
    else:
        raise ValueError(f"arch {arch!r}: choose from {', '.join(_TOKENS)}")
    model.generation_config = GenerationConfig(
        eos_token_id=eos, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return model.eval()
