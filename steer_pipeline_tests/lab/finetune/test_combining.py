"""Claims about the sum of adapters: its update is the weighted sum of theirs, and PEFT loads it."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from steer_pipeline.lab.finetune.combining import combine_adapters
from steer_pipeline.lab.finetune.data import FinetuneError
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline_tests.lab.finetune.rows import spec_of
from steer_pipeline_tests.tiny import lora, tiny_model_dir

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("combining"))


@pytest.fixture(scope="module")
def poles(base):
    return (
        lora(base, base.parent / "positive", 1, r=2, lora_alpha=6),
        lora(base, base.parent / "negative", 2, r=3, lora_alpha=4),
    )


def deltas(folder):
    """Module -> scaling * B @ A in fp64."""
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    scaling = config["lora_alpha"] / config["r"]
    return {
        name: scaling * tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
        for name, a in tensors.items()
        if "lora_A" in name
    }


def test_the_difference_is_that_of_the_updates(poles, tmp_path):
    combine_adapters([(poles[0], 1.0), (poles[1], -1.0)], tmp_path / "difference")
    positive, negative, both = (deltas(folder) for folder in (*poles, tmp_path / "difference"))
    assert positive.keys() == negative.keys() == both.keys()
    for name, delta in both.items():
        torch.testing.assert_close(delta, positive[name] - negative[name], atol=1e-6, rtol=1e-5)


def test_it_says_what_peft_says_of_a_weighted_combination(base, poles, tmp_path):
    combine_adapters([(poles[0], 0.5), (poles[1], -2.0)], tmp_path / "sum")
    ours = load_model(spec_of(base, adapter=str(tmp_path / "sum")), base.parent).module(IDS).logits
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), poles[0], "positive").eval()
    plain.load_adapter(poles[1], "negative")
    with torch.no_grad():
        plain.base_model.set_adapter(["positive", "negative"])
        for layer in plain.modules():
            if hasattr(layer, "lora_B") and "positive" in layer.lora_B:
                layer.lora_B["positive"].weight *= 0.5
                layer.lora_B["negative"].weight *= -2.0
        torch.testing.assert_close(ours, plain(IDS).logits, atol=1e-4, rtol=1e-3)


def test_an_adapter_minus_itself_does_nothing(poles, tmp_path):
    combine_adapters([(poles[0], 1.0), (poles[0], -1.0)], tmp_path / "none")
    assert max(float(delta.abs().max()) for delta in deltas(tmp_path / "none").values()) < 1e-6


def test_adapters_of_other_modules_are_refused_by_name(base, poles, tmp_path):
    other = lora(base, tmp_path / "other", 3, target_modules=["q_proj"])
    with pytest.raises(FinetuneError, match=r"only one has .*down_proj"):
        combine_adapters([(poles[0], 1.0), (other, -1.0)], tmp_path / "sum")


def test_what_is_no_plain_lora_is_refused_by_name(base, poles, tmp_path):
    odd = lora(base, tmp_path / "odd", 3, use_rslora=True)
    with pytest.raises(FinetuneError, match="odd: use_rslora"):
        combine_adapters([(poles[0], 1.0), (odd, -1.0)], tmp_path / "sum")
