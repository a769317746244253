"""Claims about sites inside of a block: collected and added at one place, the one that a plain hook would take."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from steer_pipeline.catalogue.specs import SamplingSpec, VectorSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.generation.probe import probe_steering
from steer_pipeline.lab.models.blocks import Blocks
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, sequence_nll
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.sites import Site, SteeringPlan
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import VectorError
from steer_pipeline_tests.lab.generation.reference import loaded, prompts, term, with_budget
from steer_pipeline_tests.lab.personas.builders import vector

ARCHITECTURES = ["qwen3", "llama", "gemma", "gemma2", "qwen3_moe"]
# Written out for each architecture, from the sums in transformers' code: not what the package finds by itself.
NORMS = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
PARTS = {"attention": "self_attn", "mlp": "mlp"}
MODULES = {"qwen3": PARTS, "llama": PARTS, "qwen3_moe": PARTS, "gemma": NORMS, "gemma2": NORMS}
LOUD = {"gemma": 20.0, "gemma2": 20.0, "qwen3_moe": 4.0}  # doses that these models hear
GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=10)


def module_at(model, arch, block, kind):
    layer = model.module.model.layers[block]
    return layer if kind == "output" else getattr(layer, MODULES[arch][kind])


def hooked(model, arch, plan, watch=None):
    """Plain forward hooks that add a plan's vectors and, at a `watch`ed (block, kind), keep what comes out."""
    stack, seen = ExitStack(), []

    def hook(delta, kept):
        def change(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            if delta is not None and not (plan.scope == "generated" and first.shape[1] > 1):
                first = first + delta
            if kept:
                seen.append(first)
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return change

    for one in plan.terms:
        module = module_at(model, arch, one.site.block, one.site.kind)
        delta = torch.from_numpy(np.float32(one.alpha) * one.unit)
        stack.callback(module.register_forward_hook(hook(delta, kept=False)).remove)
    if watch:
        stack.callback(module_at(model, arch, *watch).register_forward_hook(hook(None, kept=True)).remove)
    stack.seen = seen
    return stack


def plans(scope="all", scale=1.0):
    """Base; each site alone at first, middle and last blocks; several in one block; beside block outputs."""
    chosen = {
        "base": (),
        "attention": (term(1, 3.0, kind="attention"),),
        "mlp": (term(1, 3.0, kind="mlp"),),
        "both": (term(1, 3.0, kind="attention"), term(1, -4.0, 1, kind="mlp")),
        "all": (term(1, 3.0, kind="attention"), term(1, 3.0, 2), term(2, 4.0, 3, kind="mlp")),
        "output": (term(1, 3.0),),
        "edges": (term(0, 2.0, 4, kind="attention"), term(3, 5.0, 5, kind="attention")),
        "last": (term(3, 6.0, 6, kind="mlp"),),
        "opposite": (term(1, -3.0, kind="attention"),),
    }
    return [
        SteeringPlan(name, tuple(replace(one, alpha=scale * one.alpha) for one in terms), scope)
        for name, terms in chosen.items()
    ]


def requests(model):
    return [HiddenRequest(ids, 3 + i, len(ids) - 2) for i, ids in enumerate(prompts(model, 4))]


def greedy(model, arch, ids, plan):
    with hooked(model, arch, plan), torch.inference_mode():
        out = model.module.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=GREEDY.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(model.eos_ids),
        )
    new = out[0, len(ids) :].tolist()
    return new[:-1] if new and new[-1] in model.eos_ids else new


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_what_is_collected_is_what_a_hook_sees_there(tmp_path, arch, kind):
    model, plan = loaded(tmp_path, arch), SteeringPlan("p", (term(0, 3.0, kind=kind), term(1, 2.0, 1)))
    found = collect_means(model, requests(model), plan, kind=kind)
    for block in range(model.n_blocks):
        for row, request in enumerate(requests(model)):
            with hooked(model, arch, plan, watch=(block, kind)) as hooks, torch.inference_mode():
                model.module(torch.tensor([request.ids]))
            expected = hooks.seen[0][0, request.start : request.stop].mean(0).numpy()
            assert np.allclose(found[row, block], expected, atol=2e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_vector_changes_what_is_collected_at_its_site_by_itself(tmp_path, arch):
    model = loaded(tmp_path, arch)
    for kind in ("attention", "mlp", "output"):
        for block in (0, 2, 3):
            one, read = term(block, 3.0, kind=kind), {"blocks": [block], "kind": kind}
            plain = collect_means(model, requests(model), **read)
            steered = collect_means(model, requests(model), SteeringPlan("p", (one,)), **read)
            assert np.allclose(steered - plain, np.float32(3.0) * one.unit, atol=2e-5), (kind, block)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_blocks_are_the_sum_of_what_is_collected_inside_of_them(tmp_path, arch):
    model = loaded(tmp_path, arch)
    output, attention, mlp = (
        collect_means(model, requests(model), kind=kind) for kind in ("output", "attention", "mlp")
    )
    assert np.allclose(output[:, 1:] - output[:, :-1], attention[:, 1:] + mlp[:, 1:], atol=2e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_generation_is_that_of_plain_hooks_for_all_plans_in_one_batch(tmp_path, arch, scope):
    model, chosen = loaded(tmp_path, arch), plans(scope, LOUD.get(arch, 1.0))
    rows = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, 3))]
    said = {(row.row_id, row.variant): row.token_ids for row in generate(model, rows, chosen, GREEDY)}
    for row in rows:
        for plan in chosen:
            assert said[row.row_id, plan.variant] == greedy(model, arch, row.ids["*"], plan), plan.variant
    for one in ("attention", "mlp", "both"):  # a vector after a block's MLP is one at its output
        assert any(said[row.row_id, one] != said[row.row_id, "base"] for row in rows), one


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)]
)  # tracing takes half a minute; test_engine traces one model in the fast suite
def test_batches_and_compiled_decoding_change_nothing(tmp_path, monkeypatch, compiled):
    from steer_pipeline.lab.generation import torch_engine
    from steer_pipeline.lab.models import blocks

    monkeypatch.setattr(blocks, "COMPILER", "eager")
    monkeypatch.setattr(torch_engine, "COMPILER", "eager")
    model, sampling = loaded(tmp_path), SamplingSpec(temperature=0.8, max_new_tokens=6)
    rows = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, 4))]
    everything = [
        replace(plan, variant=f"{plan.variant} {scope}")
        for scope in ("all", "generated")
        for plan in plans(scope)
    ]
    other = replace(model, spec=model.spec.model_copy(update={"compile": compiled}))
    said = [
        {(row.row_id, row.variant): row.token_ids for row in generate(one, rows, everything, sampling)}
        for one in (model, with_budget(other, 1 if not compiled else 16384))
    ]
    assert said[0] == said[1]


def test_the_probe_and_likelihoods_see_inner_sites_and_the_plan_is_part_of_the_journal_s_key(tmp_path):
    from steer_pipeline.lab.generation.jobs import plan_hash

    model = loaded(tmp_path)
    rows = [PromptRow("r", {"*": prompts(model, 1)[0]})]
    chosen = [plan for plan in plans() if plan.terms]
    assert all(result.max_abs_logit_delta > 1e-3 for result in probe_steering(model, rows, chosen))
    ids = [request.ids for request in requests(model)]
    nll = {plan.variant: sequence_nll(model, ids, [4] * 4, plan)[0] for plan in plans()}
    assert np.allclose(
        nll.pop("output"), nll["mlp"], atol=1e-3
    )  # a vector after a block's MLP is one at its output
    for i, a in enumerate(nll):
        for b in list(nll)[:i]:
            assert not np.allclose(nll[a], nll[b], atol=1e-3)
    alone = [SteeringPlan("p", (term(1, 3.0, kind=kind),)) for kind in ("output", "attention", "mlp")]
    assert len(set(map(plan_hash, alone))) == 3


def test_a_model_that_adds_something_else_is_refused_in_a_sentence():
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.5,
        pad_token_id=0,
    )
    blocks = Blocks(GraniteForCausalLM(config).eval())
    with pytest.raises(ModelLoadError, match="granite: block 0 adds something else"), blocks.ready():
        _ = blocks._inner_modules
    with pytest.raises(ModelLoadError, match="granite: block 0 adds something else"), blocks.ready():
        _ = blocks._inner_modules


def test_mlx_says_which_back_end_knows_these_sites(tmp_path):
    pytest.importorskip("mlx_lm")
    model = loaded(tmp_path, backend="mlx")
    rows = [PromptRow("r", {"*": prompts(model, 1)[0]})]
    with pytest.raises(ValueError, match=r"term 'paranoid': the mlx back end .* set model\.backend: torch"):
        list(generate(model, rows, plans()[1:2], GREEDY))
    with pytest.raises(ValueError, match=r"site kind 'mlp': the mlx back end"):
        collect_means(model, requests(model), kind="mlp")
    with pytest.raises(ValueError, match="site kind 'logits'; output, attention and mlp can be read"):
        collect_means(model, requests(model), kind="logits")


def test_a_vector_is_added_where_it_was_collected_and_nowhere_else():
    inner = vector(site="attention")
    assert make_term(inner, Site(1, "attention"), 2.0).dose_fraction == pytest.approx(0.1)
    for one, site in ((inner, "output"), (inner, "mlp"), (inner, "logits"), (vector(), "attention")):
        with pytest.raises(
            VectorError, match=f"collected at site '{one.site}', it cannot be added at '{site}'"
        ):
            make_term(one, Site(1, site), 2.0)
    assert VectorSpec().site == "output"
