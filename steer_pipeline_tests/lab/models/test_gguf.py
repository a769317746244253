"""Claims about GGUF files: models like any other, converted once, known by the file's hash, refused in a sentence."""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import LlamaForCausalLM

from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models import gguf, identity
from steer_pipeline.lab.models.identity import ModelLoadError, model_identity, name_of
from steer_pipeline.lab.models.loading import forget_models, load_model, load_tokenizer
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline_tests.tiny import lora, tiny_model_dir

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def written(folder, target, *, arch="llama", template=True, leave_out=()):
    """A model directory as GGUF, as llama.cpp converts it: q and k rows permuted for its rotation."""
    model, config = LlamaForCausalLM.from_pretrained(folder), json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    writer = GGUFWriter(target, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = sorted(tokens["model"]["vocab"], key=tokens["model"]["vocab"].get)
    special = {one["id"] for one in tokens["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if i in special else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in tokens["model"]["merges"]])
    for name in ("bos", "eos", "pad"):
        if name not in leave_out:
            getattr(writer, f"add_{name}_token_id")({"bos": 0, "eos": 3, "pad": 1}[name])
    writer.add_add_bos_token("bos" in leave_out)
    if template:
        writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, weight in model.state_dict().items():
        part = name.removeprefix("model.").removesuffix(".weight")
        array = weight.float().numpy()
        if part.startswith("layers."):
            _, block, inside = part.split(".", 2)
            if inside.endswith(("q_proj", "k_proj")):
                heads = config["num_attention_heads" if "q_proj" in inside else "num_key_value_heads"]
                shape = (heads, 2, array.shape[0] // heads // 2, array.shape[1])
                array = array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
            part = f"blk.{block}.{NAMES[inside]}"
        part = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}.get(part, part)
        writer.add_tensor(f"{part}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def home(tmp_path, original):
    written(original, tmp_path / "tiny-1.gguf")
    yield tmp_path
    forget_models()


def spec(path="tiny-1.gguf", **more):
    return ModelSpec(path=path, device="cpu", **more)


def test_a_gguf_file_is_the_model_that_it_was_written_from(home, original):
    model, same = load_model(spec(), home), ModelSpec(path=str(original), device="cpu")
    assert (model.backend, model.n_blocks, model.hidden_size, model.known_as) == ("torch", 4, 64, "tiny-1")
    turns = {"user": "A storm closed 14 schools in the U.S.", "system": "Be calm."}
    ids = encode_prompt(model.tokenizer, **turns)
    assert ids == encode_prompt(load_tokenizer(same, home), **turns)
    row, greedy = [PromptRow("r", {"*": ids})], SamplingSpec(temperature=0.0, max_new_tokens=8)
    said = next(generate(model, row, [SteeringPlan("base")], greedy)).token_ids
    with torch.inference_mode():
        logits = model.module(torch.tensor([ids])).logits
        assert torch.allclose(load_model(same, home).module(torch.tensor([ids])).logits, logits, atol=1e-4)
    assert said == next(generate(load_model(same, home), row, [SteeringPlan("base")], greedy)).token_ids


def test_it_is_converted_once_and_known_by_its_content(home, monkeypatch):
    before = model_identity(spec(), home)  # without a conversion
    assert not identity.gguf_cache().exists()
    assert load_model(spec(), home).identity == before
    (folder,) = identity.gguf_cache().iterdir()
    assert folder.name.split("-") == [before.base, before.tokenizer]
    monkeypatch.setattr(gguf, "convert", None)  # never again
    forget_models()
    shutil.copy(home / "tiny-1.gguf", home / "other-2.GGUF")
    assert load_model(spec("other-2.GGUF"), home).identity == before
    assert name_of(spec("other-2.GGUF"), home) == "other-2"
    raw = bytearray((home / "tiny-1.gguf").read_bytes())
    raw[-1] ^= 1
    (home / "tiny-1.gguf").write_bytes(raw)
    assert model_identity(spec(), home).base != before.base


def test_a_conversion_that_breaks_off_leaves_nothing(home, monkeypatch):
    whole = gguf.convert

    def broken(*args):
        whole(*args)
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(gguf, "convert", broken)
    with pytest.raises(OSError, match="no space"):
        load_model(spec(), home)
    assert list(identity.gguf_cache().iterdir()) == []


def test_adapters_go_on_top(home, original):
    adapter = lora(original, home / "adapter")
    adapted = load_model(spec(adapter=str(adapter)), home)
    assert adapted.identity == model_identity(spec(adapter=str(adapter)), home)
    assert adapted.identity.on_base() == load_model(spec(), home).identity


def test_a_chat_template_that_is_missing_is_asked_for_and_may_lie_beside_the_file(home, original):
    written(original, home / "bare.gguf", template=False)
    bare = load_model(spec("bare.gguf"), home)
    with pytest.raises(ValueError, match=r"model\.chat_template: false.*chat_template\.jinja"):
        encode_prompt(bare.tokenizer, user="hello")
    assert encode_prompt(bare.tokenizer, user="hello", chat_template=False)
    shutil.copy(original / "chat_template.jinja", home / "bare.jinja")
    told = load_model(spec("bare.gguf"), home)
    expected = encode_prompt(load_tokenizer(spec(), home), user="hello")
    assert encode_prompt(told.tokenizer, user="hello") == expected
    assert told.identity.base == bare.identity.base
    assert told.identity.tokenizer != bare.identity.tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "rwkv6"}, "GGUF of architecture 'rwkv6', which transformers .* does not read .*llama"),
        ({"leave_out": ("eos",)}, "its tokenizer has no end token"),
        ({"leave_out": ("bos",)}, "wants a BOS token"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, original, change, message):
    written(original, tmp_path / "odd.gguf", **change)
    with pytest.raises(ModelLoadError, match=message):
        load_model(spec("odd.gguf"), tmp_path)
    assert list(identity.gguf_cache().iterdir()) == []


def test_without_a_pad_token_the_end_token_pads(tmp_path, original):
    written(original, tmp_path / "odd.gguf", leave_out=("pad",))
    tokenizer = load_tokenizer(spec("odd.gguf"), tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 3


def test_files_that_are_none_are_refused_in_a_sentence(home):
    whole = (home / "tiny-1.gguf").read_bytes()
    (home / "text.gguf").write_text("<html>not found</html>")
    (home / "half.gguf").write_bytes(whole[: len(whole) // 2])
    (home / "weights.bin").write_bytes(b"")
    for name, message in (
        ("text.gguf", "no whole GGUF file"),
        ("half.gguf", "no whole GGUF file|cannot read this GGUF"),
        ("none.gguf", "no such directory"),
        ("weights.bin", "no GGUF file or directory"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            load_model(spec(name), home)
