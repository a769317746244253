"""Claims about adapters: one base, each model its own adapters, the base as it was, and what does not fit is named."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models import loading
from steer_pipeline.lab.models.adapters import AdapterHasNoEffect, AdaptersSwitched
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loading import load_for_training, load_model
from steer_pipeline.lab.models.sites import Site, SteeringPlan
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import VectorError, require_same_model
from steer_pipeline_tests.lab.generation.reference import plain_greedy, prompts
from steer_pipeline_tests.lab.models.test_identity import negate_in_place
from steer_pipeline_tests.lab.personas.builders import vector
from steer_pipeline_tests.tiny import lora, tiny_model_dir

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=8)


@pytest.fixture(autouse=True)
def nothing_loaded():
    loading.forget_models()


@pytest.fixture
def base(tmp_path):
    return tiny_model_dir(tmp_path)


def load(base, *adapters, **spec):
    names = tuple(str(one) for one in adapters)
    return load_model(ModelSpec(path=str(base), device="cpu", adapter=names or None, **spec), base.parent)


def logits(model):
    with torch.inference_mode():
        return model.module(IDS).logits


def of_peft(base, folder):
    """Logits of the adapter as PEFT alone loads it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.inference_mode():
        return model(IDS).logits


def rewritten(folder, target, change, **config):
    """A copy of an adapter with other tensors or other fields of its config."""
    shutil.copytree(folder, target)
    tensors = change(load_file(target / "adapter_model.safetensors"))
    save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
    told = json.loads((target / "adapter_config.json").read_text()) | config
    (target / "adapter_config.json").write_text(json.dumps(told))
    return target


def same(tensors):
    return tensors


# ------------------------------------------------------------------------------------- switching


def test_each_model_has_its_own_adapters_in_any_order_of_use_and_the_base_is_loaded_once(
    base, tmp_path, monkeypatch
):
    loads, original = [], loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *args: loads.append(1) or original(*args))
    folders = [lora(base, tmp_path / f"a{seed}", seed) for seed in range(3)]
    plain = load(base)
    own = logits(plain)
    models = [load(base, folder) for folder in folders]
    expected = [of_peft(base, folder) for folder in folders]
    for index in (2, 0, 1, 0):
        assert torch.allclose(logits(models[index]), expected[index], atol=1e-5)
        assert torch.equal(logits(plain), own)
    assert loads == [1]
    assert len({str(one.identity) for one in (plain, *models)}) == 4


def test_the_base_without_adapters_is_the_modules_that_were_loaded_and_memory_holds_one_stack(base, tmp_path):
    plain = load(base)
    before = dict(plain.module.named_modules())
    stack = [lora(base, tmp_path / f"a{seed}", seed) for seed in range(2)]
    load(base, *stack)
    held = {name for name, _ in load(base, stack[1]).module.named_parameters() if "lora_" in name}
    assert len(held) == 4 * 2 * 2  # blocks, modules, A and B
    after = dict(plain.module.named_modules())
    assert before == after
    assert not hasattr(plain.module, "peft_config")


def test_a_module_that_an_adapter_brings_along_goes_with_it(base, tmp_path):
    plain = load(base)
    before, modules = logits(plain), dict(plain.module.named_modules())
    own = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        own.model.norm.weight.mul_(3)
    folder = lora(base, tmp_path / "a", 1, model=own, modules_to_save=["norm"])
    adapted = load(base, folder)
    assert torch.allclose(logits(adapted), of_peft(base, folder), atol=1e-5)
    assert len(blocks_of(adapted).layers) == 4
    assert torch.equal(logits(plain), before)
    assert dict(plain.module.named_modules()) == modules


def test_an_adapter_that_comes_on_while_text_is_generated_can_be_differentiated_through_later(base, tmp_path):
    """Switched lazily in inference mode, its weights were inference tensors, and the next gradient failed."""
    one, other = load(base, lora(base, tmp_path / "one")), load(base, lora(base, tmp_path / "other", seed=2))
    logits(other)
    logits(one)  # the switch happens in here
    with torch.enable_grad():
        embedded = one.module.get_input_embeddings()(IDS).requires_grad_()
        one.module(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0


def test_several_adapters_add_up(base, tmp_path):
    one, other = (lora(base, tmp_path / f"a{seed}", seed, target_modules=["down_proj"]) for seed in range(2))
    merged = AutoModelForCausalLM.from_pretrained(base)
    for folder in (one, other):
        merged = PeftModel.from_pretrained(merged, folder).merge_and_unload()
    with torch.inference_mode():
        expected = merged(IDS).logits
    assert torch.allclose(logits(load(base, one, other)), expected, atol=1e-4)


def test_the_engine_runs_an_adapted_model_as_transformers_does(base, tmp_path):
    plain = load(base)
    adapted = load(base, lora(base, tmp_path / "a", 1))
    ids = prompts(plain, 1)[0]
    (said,) = generate(adapted, [PromptRow("r", {"*": ids})], [SteeringPlan("base")], GREEDY)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a")
    with torch.inference_mode():
        out = reference.generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=sorted(plain.eos_ids)
        )
    own = [token for token in out[0, len(ids) :].tolist() if token not in plain.eos_ids]
    assert said.token_ids == own != plain_greedy(plain, ids, SteeringPlan("base"), 8)


def test_no_journal_row_of_the_base_is_taken_for_an_adapted_model(base, tmp_path):
    states = []
    for model in (load(base), load(base, lora(base, tmp_path / "a", 1))):
        rows = [PromptRow("r", {"*": prompts(model, 1)[0]})]
        journal = tmp_path / "journal.jsonl"
        list(generate(model, rows, [SteeringPlan("base")], GREEDY, journal=journal, progress=states.append))
    assert [state.sequences_resumed for state in states] == [0, 0]


def test_a_run_that_is_under_way_does_not_go_on_under_other_adapters(base, tmp_path):
    plain, adapted = load(base), load(base, lora(base, tmp_path / "a", 1))
    rows = [PromptRow(f"r{i}", {"*": ids}) for i, ids in enumerate(prompts(plain, 3))]
    under_way = generate(plain, rows, [SteeringPlan("base"), SteeringPlan("again")], GREEDY)
    next(under_way)
    blocks = blocks_of(plain)
    logits(adapted)
    with pytest.raises(AdaptersSwitched, match="finish with one model"), blocks.ready():
        pass
    with blocks_of(plain).ready():
        pass


def test_adapters_stay_fp32_on_a_base_in_half_precision(base, tmp_path):
    model = load(base, lora(base, tmp_path / "a", 1), dtype="bfloat16")
    kinds = {"lora_" in name: parameter.dtype for name, parameter in model.module.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_an_adapter_that_was_replaced_is_another_model_and_the_old_one_says_so(base, tmp_path):
    folder = lora(base, tmp_path / "a", 1)
    first = load(base, folder)
    lora(base, folder, 2)
    second = load(base, folder)
    assert first.identity.differences(second.identity).startswith("adapters differ: ")
    with pytest.raises(ModelLoadError, match=r"its files have changed since .*load the model again"):
        logits(first)


# ------------------------------------------------------------------------------ what does not fit


def renamed(old, new):
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def first_blocks(tensors):
    return {key: tensor for key, tensor in tensors.items() if ".layers.0." in key}


def zero(part):
    return lambda tensors: {
        key: torch.zeros_like(tensor) if part in key else tensor for key, tensor in tensors.items()
    }


def with_embedding(tensors):
    return tensors | {"base_model.model.model.embed_tokens.weight": torch.zeros(446, 64)}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (
            renamed(".model.layers", ".model.language_model.layers"),
            {},
            r"16 missing \(base_model\.model\.model\.layers\.0\.mlp.* and 16 unexpected \(.*language_model",
        ),
        (renamed("base_model.model.", ""), {}, "16 missing .* and 16 unexpected"),
        (first_blocks, {}, r"12 missing \(base_model\.model\.model\.layers\.1\.mlp.*\); it belongs to"),
        (renamed("lora_A", "lora_Q"), {}, "8 missing .*lora_A.* and 8 unexpected .*lora_Q"),
        (with_embedding, {}, r"holds weights of the base itself \(base_model\.model\.model\.embed_tokens"),
        (same, {"target_modules": ["no_such"]}, "does not fit Qwen3ForCausalLM: .*no_such"),
        (
            same,
            {"target_modules": ["q_proj", "mlp"]},
            "does not fit Qwen3ForCausalLM: Target module Qwen3MLP",
        ),
        (same, {"r": 3}, "does not fit Qwen3ForCausalLM: .*size mismatch"),
        (same, {"bias": "all"}, "it trains biases of the base itself.*merge_and_unload"),
        (same, {"init_lora_weights": "pissa"}, r"changes the base's weights where it begins \(pissa\)"),
        (same, {"peft_type": "IA3"}, "a IA3 adapter, not LoRA"),
        (same, {"peft_type": "NEW"}, "adapter_config.json cannot be read"),
        (zero("lora_B"), {}, "its lora_B are all zero, it was never trained"),
        (zero("lora_A"), {}, "changes no logit"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_the_base_as_it_was(base, tmp_path, change, config, message):
    plain = load(base)
    before, modules = logits(plain), dict(plain.module.named_modules())
    fine = lora(base, tmp_path / "fine", 1)
    broken = rewritten(fine, tmp_path / "broken", change, **config)
    for adapters in ([broken], [fine, broken]):
        with pytest.raises(ModelLoadError, match=message):
            load(base, *adapters)
        assert torch.equal(logits(plain), before)
        assert dict(plain.module.named_modules()) == modules
    assert torch.allclose(logits(load(base, fine)), of_peft(base, fine), atol=1e-5)


def test_an_adapter_without_effect_has_an_error_of_its_own(base, tmp_path):
    fine = lora(base, tmp_path / "fine", 1)
    with pytest.raises(AdapterHasNoEffect):
        load(base, rewritten(fine, tmp_path / "idle", zero("lora_A")))


def test_an_adapter_of_some_blocks_that_says_so_is_taken(base, tmp_path):
    folder = lora(base, tmp_path / "a", 1, layers_to_transform=[1])
    assert torch.allclose(logits(load(base, folder)), of_peft(base, folder), atol=1e-5)


def test_a_pickle_is_never_run(base, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    folder = lora(base, tmp_path / "a", 1)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    expected = of_peft(base, folder)
    assert torch.allclose(logits(load(base, folder)), expected, atol=1e-5)
    torch.save({"x": Code()}, folder / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="cannot be read as plain tensors"):
        load(base, folder)
    assert not (tmp_path / "was_run").exists()


def test_mlx_says_what_to_do_instead(base, tmp_path):
    spec = ModelSpec(path=str(base), adapter=str(lora(base, tmp_path / "a", 1)), backend="mlx")
    with pytest.raises(ModelLoadError, match=r"merge it into its base .* or set model\.backend: torch"):
        load_model(spec, tmp_path)
    with pytest.raises(ModelLoadError, match=r"set model\.backend: torch"):
        load_for_training(spec, tmp_path, LoraConfig())


# --------------------------------------------------------------------------------------- vectors


def test_a_vector_belongs_to_the_base_whatever_adapters_are_on_it(base, tmp_path):
    plain, adapted = load(base), load(base, lora(base, tmp_path / "a", 1))
    told = {"weights_sha": plain.weights_sha, "model": plain.name, "model_identity": str(plain.identity)}
    mine = vector(hidden=64, **told)
    require_same_model(mine, adapted)
    assert make_term(mine, Site(1), 1.0).made_on == str(plain.identity) != str(adapted.identity)
    shutil.copytree(base, tmp_path / "other")
    negate_in_place(tmp_path / "other")
    with pytest.raises(VectorError, match=f"on '{base}', this is '{tmp_path / 'other'}'; weights differ"):
        require_same_model(mine, load(tmp_path / "other"))


# -------------------------------------------------------------------------------------- training


def trained_a_little(model):
    """Two steps of the optimiser on whatever trains."""
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("beneath", [0, 1])
def test_only_the_new_adapter_trains_and_nobody_elses_model_is_touched(base, tmp_path, beneath):
    adapters = [lora(base, tmp_path / f"old{i}", i) for i in range(beneath)]
    resident = load(base, *adapters)
    before = logits(resident)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model, below = load_for_training(resident.spec.model_copy(update={"dtype": "bfloat16"}), tmp_path, config)
    assert model.training
    assert below == resident.identity
    frozen = {name: one.clone() for name, one in model.named_parameters() if not one.requires_grad}
    trains = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert len(trains) == 4 * 2 * 2
    assert all(".default." in name and one.dtype == torch.float32 for name, one in trains.items())
    trained_a_little(model)
    assert all(one.equal(frozen[name]) for name, one in model.named_parameters() if name in frozen)
    assert torch.equal(logits(resident), before)
    model.save_pretrained(tmp_path / "new", selected_adapters=["default"])
    assert len(load(base, *adapters, tmp_path / "new").identity.adapters) == beneath + 1
    assert not torch.equal(logits(load(base, *adapters, tmp_path / "new")), before)
    assert torch.equal(logits(resident), before)


def test_training_on_a_frozen_adapter_starts_where_that_adapter_is(base, tmp_path):
    folder = lora(base, tmp_path / "old", 1)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    spec = ModelSpec(path=str(base), device="cpu", adapter=str(folder))
    model, _ = load_for_training(spec, tmp_path, config)
    with torch.no_grad():
        assert torch.allclose(model.eval()(IDS).logits, of_peft(base, folder), atol=1e-5)
