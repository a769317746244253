"""The five names: two lists make a vector, a vector steers any code that runs the module, and nothing stays behind."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import steer_pipeline
from steer_pipeline import extract, generate, load_model, load_vector, steered
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means
from steer_pipeline.lab.models.hooks import SteeringHasNoEffect, hooked
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.vectors.formats import export_vector
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, save_vector
from steer_pipeline_tests.tiny import tiny_model_dir

UP = [f"Hidden plots decide about {what}." for what in "abcdefghij"]
DOWN = [f"Officials said the truth about {what}." for what in "abcdefghij"]
ASKED = ["Who decides?", "What did the mayor say?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_model_dir(tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="module")
def vector(model):
    return extract(model, UP, DOWN, questions=ASKED, name="plots")


def prompt(model, text="Who decides?"):
    return torch.tensor([encode_prompt(model.tokenizer, user=text)])


def logits(model, **kwargs):
    with torch.no_grad():
        return model.module(input_ids=prompt(model), use_cache=False, **kwargs).logits[0]


# ------------------------------------------------------------------------------------- the package


def test_importing_the_package_or_asking_for_its_names_loads_nothing_heavy():
    code = (
        "import sys, steer_pipeline; assert set(steer_pipeline.__all__) <= set(dir(steer_pipeline))\n"
        "assert not {'torch', 'dagster', 'polars', 'transformers', 'numpy'} & set(sys.modules), sys.modules\n"
        "from steer_pipeline import extract, generate, load_model, load_vector, steered\n"
        "assert 'dagster' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'steer'"):
        steer_pipeline.steer  # noqa: B018


def test_a_model_without_chat_template_is_prompted_raw(tmp_path):
    folder = tiny_model_dir(tmp_path)
    (folder / "chat_template.jinja").unlink()
    plain = load_model(folder)
    assert not plain.spec.chat_template
    assert len(generate(plain, ["The mayor said"], max_new_tokens=4)) == 1
    assert extract(plain, UP, DOWN, questions=ASKED).n_blocks == 4
    assert extract(plain, UP, DOWN, read="texts").metadata["readout"] == "text_tokens"


@pytest.mark.parametrize(
    ("arguments", "told"), [({"device": "tpu"}, "device"), ({"adapter": "nowhere"}, "no adapter_config.json")]
)
def test_what_cannot_be_loaded_is_told(tmp_path, arguments, told):
    with pytest.raises(ModelLoadError, match=told):
        load_model(tiny_model_dir(tmp_path), **arguments)


# ------------------------------------------------------------------------------------- extract


def test_a_vector_is_the_difference_of_the_means_over_the_texts_own_tokens(model, vector):
    def state(text):
        rows = []
        for question in ASKED:
            before = encode_prompt(model.tokenizer, user=question)
            own = model.tokenizer.encode(text, add_special_tokens=False)
            rows.append(HiddenRequest(before + own, len(before), len(before) + len(own)))
        return collect_means(model, rows).mean(axis=0)

    few = extract(model, UP[:3], DOWN[:3], questions=ASKED)
    expected = np.mean([state(text) for text in UP[:3]], axis=0) - np.mean(
        [state(t) for t in DOWN[:3]], axis=0
    )
    np.testing.assert_allclose(few.raw, expected, atol=1e-4)
    assert "held_out_auc" not in few.metadata
    assert "3 texts a side: no held-out AUC, 8 are needed" in few.metadata["flags"]
    assert vector.metadata["n_train"] == 6
    assert vector.metadata["n_held_out"] == 4
    assert min(vector.metadata["held_out_auc"]) > 0.9
    assert min(vector.metadata["split_half_cosine"]) > 0.3
    assert vector.metadata["weights_sha"] == model.weights_sha


def test_lists_that_do_not_match_have_evidence_too_and_texts_without_meaning_have_none(model):
    unequal = extract(model, UP, DOWN[:8], questions=ASKED)
    assert not unequal.metadata["matched"]
    assert min(unequal.metadata["held_out_auc"]) > 0.9
    rng = np.random.default_rng(0)
    words = ["the", "mayor", "said", "new", "rules", "Paris", "cost", "city", "plots", "work"]
    noise = [" ".join(rng.permutation(words)) for _ in range(40)]
    for matched in (True, False):
        nothing = extract(model, noise[:20], noise[20:], questions=ASKED[:1], matched=matched)
        assert nothing.metadata["auc_max_p"] > 0.01
        assert max(nothing.metadata["auc_null_mean"]) == pytest.approx(0.5, abs=0.05)


def test_system_texts_are_read_on_the_models_own_answers(model):
    made = extract(model, UP[:4], DOWN[:4], read="system", questions=ASKED, max_new_tokens=6)
    assert made.metadata["readout"] == "response_tokens"
    said = generate(model, ASKED[:1], system=UP[0], temperature=0, max_new_tokens=6)[0]
    assert said  # what was averaged over is what the engine says
    again = extract(model, UP[:4], DOWN[:4], read="system", questions=ASKED, max_new_tokens=6)
    np.testing.assert_array_equal(made.raw, again.raw)


@pytest.mark.parametrize(
    ("positive", "negative", "more", "told"),
    [
        ("one text", DOWN, {}, "positive: a list of texts"),
        ([], DOWN, {}, "positive: a list of texts"),
        (UP, ["", *DOWN], {}, r"negative\[0\] is ''"),
        (UP, DOWN[:3], {"matched": True}, "10 positive and 3 negative texts do not match"),
        (UP, DOWN, {"read": "answer"}, "choose from answers, system, texts"),
        (UP, UP, {}, "the two sides do not differ"),
    ],
)
def test_lists_that_make_no_vector_are_refused(model, positive, negative, more, told):
    with pytest.raises(VectorError, match=told):
        extract(model, positive, negative, questions=ASKED, **more)


@pytest.mark.parametrize(
    ("aucs", "cosines", "best"),
    [
        (None, None, 2),
        ([1, 1, 1, 1, 1, 1], [0.99, 0.9, 0.95, 0.9, 0.9, 0.99], 2),
        ([1, 0.7, 0.7, 0.7, 0.9, 1], [0.9] * 6, 4),
    ],
)
def test_the_best_block_is_told_by_the_evidence_in_the_middle_of_the_model(aucs, cosines, best):
    metadata = {"n_blocks": 6, "hidden_size": 2, "held_out_auc": aucs, "split_half_cosine": cosines}
    assert PersonaVector("p", np.ones((6, 2), np.float32), metadata).default_block == best
    assert PersonaVector("p", np.ones((1, 2), np.float32), metadata, (5,)).default_block == 5


# ------------------------------------------------------------------------------------- steered


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma", "gemma2", "qwen3_moe"])
def test_the_hooked_module_is_steered_where_the_pipeline_reads_and_adds(tmp_path, arch):
    tiny = load_model(tiny_model_dir(tmp_path, arch))
    unit = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    unit /= np.linalg.norm(unit)
    ids = encode_prompt(tiny.tokenizer, user="Who decides?")
    request = [HiddenRequest(ids, 0, len(ids))]
    for kind in ("output", "attention", "mlp"):
        plan = SteeringPlan("v", tuple(SteeringTerm("p", unit, Site(b, kind), 3.0) for b in (1, 3)))
        plain = logits(tiny)
        with hooked(tiny, plan):
            inside = collect_means(tiny, request, kind=kind)  # the reader runs the same modules
            assert (logits(tiny) - plain).abs().max() > 0.01, kind
        np.testing.assert_allclose(inside, collect_means(tiny, request, plan, kind=kind), atol=2e-3)


def test_hugging_faces_own_generate_says_what_the_engine_says(model, vector):
    ids = prompt(model)
    for block in (1, 3):  # 3 is the last one, before the final norm
        engine = generate(
            model, ["Who decides?"], vector, dose=0.5, block=block, temperature=0, max_new_tokens=12
        )
        with steered(model, vector, 0.5, block) as module:
            out = module.generate(ids, max_new_tokens=12, do_sample=False)
        assert model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == engine[0]


def test_nothing_stays_behind_after_an_error_nested_or_not(model, vector):
    before = logits(model)

    def fails():
        with steered(model, vector, 0.3, 1), steered(model, vector, 0.3, 2):
            assert not torch.equal(logits(model), before)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(logits(model), before)
    assert not any(module._forward_hooks for module in model.module.modules())
    with steered(model, vector, 0.3, 1):
        once = logits(model)
        with steered(model, vector, -0.3, 1):
            torch.testing.assert_close(logits(model), before, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(logits(model), once)


def test_dose_zero_is_the_model_as_it_is_and_the_other_sign_the_other_pole(model, vector):
    before = logits(model)
    with steered(model, vector, 0):
        assert torch.equal(logits(model), before)
    ids = encode_prompt(model.tokenizer, user="Who decides?")
    projected = []
    for dose in (-0.3, 0.0, 0.3):
        with steered(model, vector, dose, 1):
            states = collect_means(model, [HiddenRequest(ids, 1, len(ids))])[0, 1]
        projected.append(float(states @ vector.unit_at(1)))
    norm = 0.3 * vector.residual_norm(1)
    np.testing.assert_allclose(np.diff(projected), [norm, norm], rtol=1e-3)


def test_a_vector_that_does_not_fit_or_does_nothing_is_an_error(tmp_path, model, vector):
    other = load_model(tiny_model_dir(tmp_path, "llama"))
    with pytest.raises(VectorError, match="made on another model"), steered(other, vector):
        pass
    with pytest.raises(SteeringHasNoEffect, match="larger dose"), steered(model, vector, alpha=1e-9):
        pass
    with pytest.raises(VectorError, match="block 9 is outside"), steered(model, vector, 0.1, 9):
        pass
    with pytest.raises(VectorError, match="make one with extract"), steered(model, vector.raw):
        pass
    mlx = replace(model, backend="mlx")
    with pytest.raises(ValueError, match=r"use generate\("), steered(mlx, vector):
        pass


def test_gradients_pass_so_that_training_can_be_steered(model, vector):
    with steered(model, vector, 0.2, 1) as module:
        embedded = module.get_input_embeddings()(prompt(model)).detach().requires_grad_()
        module(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------- load and generate


def test_vectors_come_from_our_folders_and_from_files_of_other_tools(tmp_path, model, vector):
    save_vector(vector, tmp_path / "ours")
    assert load_vector(tmp_path / "ours").digest == vector.digest
    export_vector(vector, tmp_path / "v.gguf", "gguf", block=2)
    with pytest.raises(VectorError, match="pass the loaded one"):
        load_vector(tmp_path / "v.gguf")
    back = load_vector(tmp_path / "v.gguf", model)
    assert (back.persona, back.present_blocks) == ("v", (2,))
    with steered(model, back, 0.2):  # its doses are measured here
        assert model.module is not None
    with pytest.raises(VectorError, match="no such file or folder"):
        load_vector(tmp_path / "none.gguf")


def test_several_doses_are_several_answers_to_every_prompt(model, vector):
    told = generate(model, ASKED, vector, dose=[-0.4, 0, 0.4], max_new_tokens=8)
    assert list(told) == [-0.4, 0, 0.4]
    assert {len(texts) for texts in told.values()} == {2}
    assert told[0] == generate(model, ASKED, max_new_tokens=8)
    assert told[0.4] == generate(model, ASKED, vector, dose=0.4, max_new_tokens=8)
    plan = SteeringPlan("mine", (SteeringTerm("p", vector.unit_at(1), Site(1), 2.0),))
    assert list(generate(model, ASKED, [plan], max_new_tokens=2)) == ["mine"]
    assert generate(model, []) == []
    with pytest.raises(ValueError, match="a list of texts"):
        generate(model, "Who?")
    with pytest.raises(SteeringHasNoEffect):
        generate(model, ASKED, vector, alpha=1e-9)
