"""Claims about operators: each does what its formula says, on every path, as plain hooks on transformers do."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow, plan_hash
from steer_pipeline.lab.generation.probe import probe_steering
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, projections, sequence_nll
from steer_pipeline.lab.models.hooks import SteeringHasNoEffect, hooked
from steer_pipeline.lab.models.loaded import GENERAL
from steer_pipeline.lab.models.operators import ablate, cap, rotate
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline_tests.lab.generation.reference import loaded, prompts, term, with_budget

GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=8)
QUIET = {"gemma2"}  # whose greedy tokens these doses do not change; its states say what they do
PATHS = [("qwen3", False), ("llama", True), ("gemma2", False)]  # architecture, whether by the general path


def on_path(tmp_path, arch, general):
    model = loaded(tmp_path, arch)
    return replace(model, backend=GENERAL) if general else model


def operator(name, block, alpha, seed=0):
    return replace(term(block, alpha, seed), operator=name)


def plans(scope="all"):
    """Every operator alone, beside a vector that is added, several in one block and at several blocks."""
    chosen = {
        "base": (),
        "add": (term(1, 3.0),),
        "ablate": (operator("ablate", 1, 0.0),),
        "set": (operator("ablate", 1, 6.0),),
        "rotate": (operator("rotate", 1, 0.4),),
        "back": (operator("rotate", 2, -0.3),),
        "cap": (operator("cap", 1, -2.0),),
        "with_add": (operator("rotate", 1, 0.2), term(1, 3.0, 1)),
        "chain": (operator("cap", 1, -1.0), operator("rotate", 1, 0.3, 2), operator("ablate", 3, 5.0, 3)),
        "chain_turned": (operator("rotate", 1, 0.3, 2), operator("cap", 1, -1.0)),
    }
    return [SteeringPlan(name, terms, scope) for name, terms in chosen.items()]


def by_formula(hidden, one):
    """The same formulas written a second time, one position after the other in fp64."""
    unit, out = one.unit.astype(np.float64), hidden.double().numpy().copy()
    for h in out.reshape(-1, out.shape[-1]):
        along = h @ unit
        if one.operator == "add":
            h += one.alpha * unit
        elif one.operator == "ablate":
            h += (one.alpha - along) * unit
        elif one.operator == "cap":
            h -= max(0.0, along - one.alpha) * unit
        else:
            towards, length = np.sign(one.alpha) * unit, np.linalg.norm(h)
            angle = np.arccos(h @ towards / length)
            share = abs(one.alpha)
            turned = np.sin((1 - share) * angle) * h / length + np.sin(share * angle) * towards
            h[:] = turned / np.sin(angle) * length
    return torch.from_numpy(out).to(hidden.dtype)


def plainly_hooked(model, plan):
    """Hooks that change block outputs by formula, those that add first; scope "generated": where one token goes in."""
    stack = ExitStack()

    def hook(of_block):
        def change(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            if plan.scope == "generated" and first.shape[1] > 1:
                return output
            for one in of_block:
                first = by_formula(first, one)
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return change

    for block in {one.site.block for one in plan.terms}:
        of_block = [one for one in plan.terms if one.site.block == block]
        of_block.sort(key=lambda one: one.operator != "add")
        stack.callback(model.module.model.layers[block].register_forward_hook(hook(of_block)).remove)
    return stack


@contextmanager
def watched(model):
    """What comes out of each block, after the hooks that were there before."""
    states, stack = [], ExitStack()

    def note(_module, _inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    with stack:
        for layer in model.module.model.layers:
            stack.callback(layer.register_forward_hook(note).remove)
        yield states


def greedy(model, ids, plan):
    with plainly_hooked(model, plan), torch.inference_mode():
        out = model.module.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=GREEDY.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(model.eos_ids),
        )
    new = out[0, len(ids) :].tolist()
    return new[:-1] if new and new[-1] in model.eos_ids else new


@pytest.mark.parametrize(("arch", "general"), PATHS)
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_generation_is_that_of_plain_hooks_for_all_operators_in_one_batch(tmp_path, arch, general, scope):
    model = on_path(tmp_path, arch, general)
    rows = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, 2))]
    said = {(row.row_id, row.variant): row.token_ids for row in generate(model, rows, plans(scope), GREEDY)}
    for row in rows:
        for plan in plans(scope):
            assert said[row.row_id, plan.variant] == greedy(model, row.ids["*"], plan), plan.variant
    changed = {plan.variant for plan in plans() if said["row0", plan.variant] != said["row0", "base"]}
    assert len(changed) >= 4 or arch in QUIET, "the operators are heard"


@pytest.mark.parametrize(("arch", "general"), PATHS)
def test_states_and_likelihoods_are_those_of_plain_hooks(tmp_path, arch, general):
    model = on_path(tmp_path, arch, general)
    ids = prompts(model, 2)
    requests = [HiddenRequest(one, 2, len(one)) for one in ids]
    for plan in plans():
        found = collect_means(model, requests, plan)
        nll, _ = sequence_nll(model, ids, [3, 3], plan)
        for row, one in enumerate(ids):
            with plainly_hooked(model, plan), watched(model) as states, torch.inference_mode():
                out = model.module(torch.tensor([one]))
            for block, expected in enumerate(states):
                expected = expected[0, 2:].mean(0).numpy()
                assert np.allclose(found[row, block], expected, atol=3e-3), (plan.variant, block)
            losses = -out.logits[0, 2:-1].float().log_softmax(-1)
            expected = losses.gather(1, torch.tensor(one[3:])[:, None]).sum()
            assert nll[row] == pytest.approx(float(expected), abs=2e-2), plan.variant


@pytest.mark.parametrize("general", [False, True])
def test_scope_generated_changes_states_from_the_start_of_the_answer_on(tmp_path, general):
    model = on_path(tmp_path, "qwen3", general)
    ids, one = prompts(model, 1)[0], operator("rotate", 1, 0.5)
    request = [HiddenRequest(ids, 8, 9)]
    before = torch.from_numpy(collect_means(model, request))
    found = collect_means(model, request, SteeringPlan("p", (one,), "generated"))
    assert np.allclose(found[:, 1], by_formula(before[:, 1], one), atol=1e-4)
    everywhere = collect_means(model, request, SteeringPlan("p", (one,)))
    assert np.allclose(found[:, :2], everywhere[:, :2], atol=1e-4)
    assert not np.allclose(found[:, 2], everywhere[:, 2], atol=1e-2), "there the prompt's states differ"


@pytest.mark.parametrize("general", [False, True])
def test_batches_change_nothing(tmp_path, general):
    model, sampling = on_path(tmp_path, "qwen3", general), SamplingSpec(temperature=0.8, max_new_tokens=6)
    rows = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, 3))]
    everything = [
        replace(plan, variant=f"{plan.variant} {scope}")
        for scope in ("all", "generated")
        for plan in plans(scope)
    ]
    said = [
        {(row.row_id, row.variant): row.token_ids for row in generate(one, rows, everything, sampling)}
        for one in (model, with_budget(model, 1))
    ]
    assert said[0] == said[1]


def test_a_hooked_module_does_the_same_and_is_clean_afterwards(tmp_path):
    model, (ids, *_) = loaded(tmp_path), prompts(loaded(tmp_path), 1)
    ids = torch.tensor([ids])
    with torch.no_grad():
        base = model.module(ids).logits
        for plan in plans()[2:]:
            with hooked(model, plan) as module:
                ours = module(ids).logits
            with plainly_hooked(model, plan):
                assert torch.allclose(ours, model.module(ids).logits, atol=2e-3), plan.variant
        assert torch.equal(model.module(ids).logits, base)


# ------------------------------------------------------------------------------------- formulas


@pytest.fixture
def states():
    rng = np.random.default_rng(3)
    hidden = torch.from_numpy(rng.standard_normal((2, 5, 16)).astype(np.float32)) * 7
    unit = torch.from_numpy(rng.standard_normal(16).astype(np.float32))
    return hidden, (unit / unit.norm())[None, None]


def dose(value):
    return torch.full((1, 1, 1), value)


def test_ablation_sets_the_projection_and_leaves_the_rest(states):
    hidden, unit = states
    for value in (0.0, -4.0):
        out = ablate(hidden, unit, dose(value))
        assert torch.allclose((out * unit).sum(-1), torch.tensor(value), atol=1e-5)
        rest = [h - (h * unit).sum(-1, keepdim=True) * unit for h in (hidden, out)]
        assert torch.allclose(*rest, atol=1e-5)


def test_rotation_keeps_lengths_turns_by_a_share_and_dose_0_is_the_identity(states):
    hidden, unit = states
    assert torch.equal(rotate(hidden, unit, dose(0.0)), hidden)

    def angle(h, towards):
        return torch.arccos(((h / h.norm(dim=-1, keepdim=True)) * towards).sum(-1).clamp(-1, 1))

    for share in (0.25, -0.5, 1.0):
        out, towards = rotate(hidden, unit, dose(share)), unit * (1 if share > 0 else -1)
        assert torch.allclose(out.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-5)
        assert torch.allclose(angle(out, towards), (1 - abs(share)) * angle(hidden, towards), atol=2e-3)
    along = unit.expand(1, 2, 16) * torch.tensor([3.0, -3.0])[None, :, None]
    assert torch.allclose(rotate(along, unit, dose(0.5)), along), "no plane to turn in"
    assert torch.equal(rotate(torch.zeros(1, 1, 16), unit, dose(0.5)), torch.zeros(1, 1, 16))


def test_a_cap_clips_from_above_a_floor_from_below_and_a_high_cap_is_the_identity(states):
    hidden, unit = states
    along = (hidden * unit).sum(-1)
    middle = along.median()
    assert torch.equal(cap(hidden, unit, dose(float(along.max()) + 1)), hidden)
    capped, floored = cap(hidden, unit, middle.view(1, 1, 1)), cap(hidden, -unit, -middle.view(1, 1, 1))
    assert torch.allclose((capped * unit).sum(-1), along.clamp(max=float(middle)), atol=1e-5)
    assert torch.allclose((floored * unit).sum(-1), along.clamp(min=float(middle)), atol=1e-5)
    assert torch.equal(capped[along < middle], hidden[along < middle])


@pytest.mark.parametrize("general", [False, True])
def test_a_cap_at_a_percentile_of_the_unsteered_projections_clips_as_many_positions(tmp_path, general):
    model = on_path(tmp_path, "qwen3", general)
    ids, one = prompts(model, 3), term(1, 0.0)
    along = projections(model, ids, 1, one.unit)
    assert along.shape == (sum(len(row) - 1 for row in ids),)
    ceiling = float(np.percentile(along, 75))
    plan = SteeringPlan("p", (replace(one, alpha=ceiling, operator="cap"),))
    every = [HiddenRequest(row, at, at + 1) for row in ids for at in range(1, len(row))]
    before, after = (
        collect_means(model, every, which, blocks=[1])[:, 0] @ one.unit for which in (None, plan)
    )
    assert np.allclose(before, along, atol=1e-3)
    assert np.allclose(after, np.minimum(along, ceiling), atol=1e-3)
    assert (after < before - 1e-3).mean() == pytest.approx(0.25, abs=0.03)


# ------------------------------------------------------------------------------------- what is refused


def test_plans_from_before_there_were_operators_keep_their_hash_and_others_have_their_own():
    unit = np.eye(4, dtype=np.float32)[1]
    terms = (SteeringTerm("p", unit, Site(1), 3.0), SteeringTerm("p", unit, Site(2, "mlp"), -0.5))
    assert plan_hash(SteeringPlan("up", terms, "generated", "s")) == "60db98b0379a4976"
    kinds = ["add", "ablate", "rotate", "cap"]
    hashes = {plan_hash(SteeringPlan("up", (replace(terms[0], operator=name),))) for name in kinds}
    assert len(hashes) == len(kinds)


def test_what_an_operator_cannot_do_is_said_in_a_sentence(tmp_path):
    model = loaded(tmp_path)
    rows = [PromptRow("r", {"*": prompts(model, 1)[0]})]

    def refused(one, match):
        with pytest.raises(ValueError, match=match):
            list(generate(model, rows, [SteeringPlan("v", (one,))], GREEDY))

    refused(operator("twist", 1, 1.0), "operator 'twist'; choose from add, ablate, rotate, cap")
    inner = replace(term(1, 1.0, kind="mlp"), operator="rotate")
    refused(inner, "operator 'rotate' acts on the residual stream, site 'mlp' is only a part")
    refused(operator("rotate", 1, 1.5), "rotates by 1.5 of the angle")
    neutral = SteeringPlan("v", (operator("rotate", 1, 0.0),))
    with pytest.raises(SteeringHasNoEffect, match=r"variant 'v'"):
        probe_steering(model, rows, [neutral])


def test_mlx_refuses_operators_by_name(tmp_path):
    model = replace(loaded(tmp_path), backend="mlx")
    with pytest.raises(ValueError, match=r"knows operator 'add' and not 'cap'; set model\.backend: torch"):
        collect_means(model, [HiddenRequest([1, 2], 0, 1)], SteeringPlan("v", (operator("cap", 1, 1.0),)))
