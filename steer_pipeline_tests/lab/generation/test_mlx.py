"""Claims about the MLX back end: the same tokens and logits as Torch, and steering that is never lost."""

import numpy as np
import pytest

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import OutOfMemory, PromptRow
from steer_pipeline.lab.generation.probe import probe_steering
from steer_pipeline.lab.models import hidden
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline_tests.lab.generation.reference import loaded, plans, prompts, term, with_budget

mlx = pytest.importorskip("steer_pipeline.lab.models.mlx")
GREEDY = SamplingSpec(temperature=0, top_p=1, max_new_tokens=16)


def said(model, chosen, spec=GREEDY, n=4):
    rows = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, n))]
    return {(row.row_id, row.variant): row for row in generate(model, rows, chosen, spec)}


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma"])
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_greedy_tokens_are_those_of_torch(tmp_path, arch, scope):
    chosen = [*plans(scope), SteeringPlan("bias", (term(3, 6.0, kind="logits"),), scope)]
    expected = said(loaded(tmp_path, arch), chosen)
    assert said(loaded(tmp_path, arch, backend="mlx"), chosen) == expected
    assert len({tuple(row.token_ids) for row in expected.values()}) > 3  # steering does something


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
def test_logits_are_those_of_torch_within_tolerance(tmp_path, arch):
    torch_model = loaded(tmp_path, arch)
    ids = prompts(torch_model, 3)
    starts = [len(one) - 5 for one in ids]
    for plan in (None, *plans("generated")[2:5], *plans("all")[2:5]):
        ours = mlx.answer_logits(loaded(tmp_path, arch, backend="mlx"), ids, starts, plan)
        theirs = hidden.answer_logits(loaded(tmp_path, arch), ids, starts, plan)
        for a, b in zip(ours, theirs, strict=True):
            assert np.allclose(a, b, atol=2e-3)


def test_sampled_tokens_are_those_of_torch_with_every_guard(tmp_path):
    spec = SamplingSpec(
        temperature=0.8,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        no_repeat_ngram=3,
        penalty_scope="prompt_and_generated",
        max_new_tokens=16,
    )
    assert said(loaded(tmp_path, backend="mlx"), plans(), spec) == said(loaded(tmp_path), plans(), spec)


def test_small_batches_that_refill_give_the_same(tmp_path):
    model = loaded(tmp_path, "llama", backend="mlx")
    spec = SamplingSpec(temperature=0.8, max_new_tokens=30)
    whole = said(model, plans(), spec)
    assert any(row.finish_reason == "eos" for row in whole.values())
    assert said(with_budget(model, 700), plans(), spec) == whole


@pytest.mark.parametrize(
    ("arch", "scope", "expected"),
    [
        # base twice, up and down at block 1, both at 1 and 2, late at 2, edges at 0 and 3: distinct histories
        ("qwen3", "all", [1, 2, 4, 6]),
        ("gemma", "all", [1, 2, 4, 6]),
        ("qwen3", "generated", [1, 1, 1, 1]),
    ],
)
def test_prompts_run_together_until_steering_sets_them_apart(tmp_path, monkeypatch, arch, scope, expected):
    model = loaded(tmp_path, arch, backend="mlx")
    run = mlx.SteeredBlock.__call__
    rows = [[] for _ in range(model.n_blocks)]

    def counted(block, hidden, *args, **kwargs):
        if hidden.shape[1] > 1:  # a prompt
            rows[model.module.taps.index(block.tap)].append(hidden.shape[0])
        return run(block, hidden, *args, **kwargs)

    monkeypatch.setattr(mlx.SteeredBlock, "__call__", counted)
    said(model, plans(scope), n=3)
    assert [sum(calls) for calls in rows] == [3 * streams for streams in expected]


@pytest.mark.parametrize("method", ["enter", "step"])
def test_running_out_of_memory_halves_the_budget_and_changes_nothing(tmp_path, monkeypatch, caplog, method):
    from steer_pipeline.lab.generation import mlx_engine

    model = loaded(tmp_path, backend="mlx")
    spec = SamplingSpec(temperature=0.8, max_new_tokens=8)
    whole = said(model, plans(), spec)
    check = mlx.MlxModel.logits

    def small_machine(wrapped, states, bias=None):
        if states.shape[0] > 6:
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
        return check(wrapped, states, bias)

    # in the middle of entering, or of a step: what is under way starts again
    whole_method = getattr(mlx_engine._Batch, method)

    def limited(batch, *args):
        with monkeypatch.context() as patch:
            patch.setattr(mlx.MlxModel, "logits", small_machine)
            return whole_method(batch, *args)

    monkeypatch.setattr(mlx_engine._Batch, method, limited)
    assert said(model, plans(), spec) == whole
    assert "token budget" in caplog.text

    def never(*_):
        raise MemoryError

    monkeypatch.setattr(mlx_engine._Batch, method, never)
    with pytest.raises(OutOfMemory, match=r"row 'row\d', variant"):
        said(model, plans(), spec)


@pytest.mark.parametrize("tied", [True, False])
def test_quantised_and_tied_heads_are_steered_too(tmp_path, tied):
    from mlx_lm.utils import load_config, load_model, quantize_model, save_config, save_model

    from steer_pipeline.catalogue.specs import ModelSpec
    from steer_pipeline.lab.models.loading import load_model as load
    from steer_pipeline_tests.tiny import tiny_model_dir

    folder = tiny_model_dir(tmp_path, "qwen3", tied)
    model, config = load_model(folder, model_config=mlx._mlx_names(load_config(folder)))
    model, config = quantize_model(model, config, group_size=32, bits=8)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_model(folder, model)
    save_config(config, folder / "config.json")
    quantised = load(ModelSpec(path=str(folder), backend="mlx"), tmp_path)
    bias = SteeringPlan("bias", (term(3, 6.0, kind="logits"),))
    rows = [PromptRow("a", {"*": prompts(quantised, 1)[0]})]
    for result in probe_steering(quantised, rows, [*plans()[2:], bias]):
        assert result.max_abs_logit_delta > 0.05


def test_a_model_that_mlx_lm_cannot_batch_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="padded batches.*use torch"):
        loaded(tmp_path, "gemma2", backend="mlx")
