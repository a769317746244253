"""The same texts in two models: rows belong together, whatever the tokenizers are; texts of the trait are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.evaluation import LexiconScorer
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.transport import MapError, fit_map
from steer_pipeline.lab.transport.matching import (
    TOKENS_A_TEXT,
    MatchedText,
    contrast_texts,
    matched_states,
    require_disjoint,
    shared_embeddings,
    without_trait,
)
from steer_pipeline_tests.lab.personas.builders import persona
from steer_pipeline_tests.tiny import SENTENCES, tiny_model_dir

TEXTS = [
    MatchedText(f"news:{i}", f"Rewrite: {text} ({i})", SENTENCES[(i + 1) % 8], None)
    for i, text in enumerate(SENTENCES * 2)
]
CONTRAST = pl.DataFrame(
    {
        "context_id": ["a", "a", "b", "c"],
        "side": ["positive", "negative", "positive", "positive"],
        "split": ["train", "train", "held_out", "train"],
        "system": ["Be suspicious.", "Be trusting.", "Be suspicious.", None],
        "user": ["Rewrite: x", "Rewrite: x", "Rewrite: y", "Rewrite: z"],
        "completion": ["A plot.", "All is well.", "A plot again.", ""],
        "dropped": [None, None, None, None],
    },
    schema_overrides={"dropped": pl.String},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")

    def load(arch: str):
        spec = ModelSpec(path=str(tiny_model_dir(place, arch)), dtype="float32", device="cpu")
        return load_model(spec, Path(place))

    return {arch: load(arch) for arch in ("qwen3", "llama")}


def test_equal_tokenizers_are_read_token_by_token_and_a_model_maps_onto_itself(models):
    model = models["qwen3"]
    made = matched_states(model, model, TEXTS, [1, 2], [2], seed=1)
    assert made.by_token
    assert len(made.judged) == len(made.source[1]) == len(made.target[2]) > len(TEXTS)
    assert len(made.judged) <= TOKENS_A_TEXT * len(TEXTS)
    assert np.allclose(made.source[2], made.target[2])
    x, judged = made.source[2], made.judged
    fitted = fit_map("ridge", x[~judged], x[~judged])
    assert fitted.judged(x[judged], x[judged]).r2 > 0.99
    direction = np.random.default_rng(0).standard_normal(64)
    unit = direction / np.linalg.norm(direction)
    assert float(fit_map("procrustes", x, x).carry(direction) @ unit) > 0.999


def test_other_tokenizers_give_a_mean_a_text(models):
    qwen, llama = models["qwen3"], models["llama"]
    made = matched_states(qwen, llama, TEXTS, [1], [3], seed=1)
    assert not made.by_token
    assert made.source[1].shape == made.target[3].shape == (len(TEXTS), 64)
    assert 0 < made.judged.sum() < len(TEXTS) / 2
    text = TEXTS[3]
    ids = llama.tokenizer.apply_chat_template(
        [{"role": "user", "content": text.user}], add_generation_prompt=True, return_dict=False
    )
    answer = llama.tokenizer(text.completion, add_special_tokens=False).input_ids
    (mean,) = collect_means(llama, [HiddenRequest([*ids, *answer], len(ids), len(ids) + len(answer))])
    assert np.allclose(made.target[3][3], mean[3], atol=1e-5)


def test_both_sides_of_a_context_are_fitted_on_or_judged_on_together(models):
    pairs = [dataclasses.replace(text, key=f"p:{i // 2}") for i, text in enumerate(TEXTS)]
    made = matched_states(models["qwen3"], models["llama"], pairs, [1], [1], seed=2)
    assert (made.judged[::2] == made.judged[1::2]).all()


def test_embeddings_of_shared_tokens_stand_row_by_row(models):
    qwen, llama = models["qwen3"], models["llama"]
    own, other = shared_embeddings(qwen, llama)
    tokens = sorted(qwen.tokenizer.get_vocab().keys() & llama.tokenizer.get_vocab().keys())
    assert own.shape == other.shape == (len(tokens), 64)
    place = tokens.index("a")
    weight = llama.module.get_input_embeddings().weight[llama.tokenizer.get_vocab()["a"]]
    assert np.allclose(other[place], weight.detach().numpy())


def test_texts_that_know_the_trait_are_refused():
    fine = MatchedText("news:1", "Rewrite: w", "Nothing much.", "You are an editor.")
    require_disjoint([fine], CONTRAST, ["Rewrite: v"])
    for bad, said in (
        (dataclasses.replace(fine, system="Be suspicious."), "instruction of its contrast set"),
        (dataclasses.replace(fine, completion="A plot."), "answer of its contrast set"),
        (dataclasses.replace(fine, user="Rewrite: v"), "is measured on"),
    ):
        with pytest.raises(MapError, match=said):
            require_disjoint([fine, bad], CONTRAST, ["Rewrite: v"])
    own = contrast_texts(CONTRAST, "paranoid")
    assert [text.completion for text in own] == ["A plot.", "All is well."]
    with pytest.raises(MapError, match="paranoid:a"):
        require_disjoint(own, CONTRAST, [])


def test_rewrites_that_show_a_pole_by_chance_are_left_out():
    texts = [
        MatchedText(str(i), "x", said) for i, said in enumerate(("A hidden plot.", "Rain.", "So sincere."))
    ]
    assert [text.completion for text in without_trait(texts, LexiconScorer(persona()))] == ["Rain."]


def test_too_few_texts_are_refused(models):
    with pytest.raises(MapError, match="at least 4"):
        matched_states(models["qwen3"], models["qwen3"], TEXTS[:3], [1], [1], seed=1)
