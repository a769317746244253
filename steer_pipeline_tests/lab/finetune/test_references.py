"""Claims about references: they are the models that they name, in the learner's weights, and leave its gradients."""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.finetune import losses, training
from steer_pipeline.lab.finetune.data import IGNORED, batch_inputs, collate
from steer_pipeline.lab.finetune.references import Bound, Reference, adapter_off
from steer_pipeline.lab.models.hooks import SteeringHasNoEffect, hooked
from steer_pipeline.lab.models.loading import as_loaded, load_for_training, load_model
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline_tests.lab.finetune.rows import LORA, examples, spec_of
from steer_pipeline_tests.tiny import lora, tiny_model_dir


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def adapters(base):
    return [lora(base, base.parent / f"adapter-{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def batch(base):
    return collate(examples(base, n=3), 0)


def plan(scope="all", alpha=6.0, kind="output"):
    unit = np.random.default_rng(0).normal(size=64).astype(np.float32)
    term = SteeringTerm("push", unit / np.linalg.norm(unit), Site(1, kind), alpha)
    return SteeringPlan("teacher", (term,), scope)


def learner(base, *below):
    """A model in training on these frozen adapters, whose own adapter says something, too."""
    spec = spec_of(base, adapter=tuple(map(str, below)) or None)
    model, identity = load_for_training(spec, base.parent, training.lora_config(LORA, 4))
    torch.manual_seed(3)
    for layer in model.modules():
        if hasattr(layer, "lora_B") and "default" in layer.lora_B:
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    return model, as_loaded(model, spec, base.parent, identity)


def said(model, batch):
    with torch.no_grad():
        return model(**batch_inputs(batch), use_cache=False).logits[batch["attention_mask"].bool()]


def expected(base, batch, *on, steered=None):
    model = load_model(spec_of(base, adapter=tuple(map(str, on)) or None), base.parent)
    if steered is None:
        return said(model.module, batch)
    with hooked(model, steered) as module:
        return said(module, batch)


@pytest.mark.parametrize(
    ("below", "reference_on", "is_on"),
    [
        ((), None, ()),  # nothing below: the base
        ((0,), None, (0,)),  # the previous student
        ((0,), (), ()),  # the base under a history
        ((0, 1), (0,), (0,)),  # the last good of two students
        ((0,), (1,), (1,)),  # a student that is not in the history
    ],
)
@pytest.mark.parametrize("steered", [None, plan()], ids=["plain", "steered"])
def test_a_reference_is_the_model_that_it_names(base, adapters, batch, below, reference_on, is_on, steered):
    history = [adapters[i] for i in below]
    model, live = learner(base, *history)
    on = None if reference_on is None else tuple(adapters[i] for i in reference_on)
    bound = Bound(Reference(on, steered), live, history)
    mine = said(model, batch)
    with bound.on(batch["labels"] != IGNORED):
        got = said(model, batch)
    wanted = expected(base, batch, *(adapters[i] for i in is_on), steered=steered)
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(said(model, batch), mine)
    assert not torch.allclose(mine, wanted, atol=1e-2)


def test_a_plan_for_generated_tokens_steers_those_of_the_completion(base, batch):
    model, live = learner(base)
    completion = batch["labels"] != IGNORED
    with adapter_off(model):
        plain = model(**batch_inputs(batch)).logits
    with Bound(Reference(None, plan("generated")), live, []).on(completion):
        got = model(**batch_inputs(batch)).logits
    moved = (got - plain).abs().amax(-1) > 1e-3
    assert torch.equal(moved, completion)


def test_gradients_are_those_without_a_reference_and_of_the_new_adapter_alone(base, adapters, batch):
    gradients = []
    for asked in (False, True):
        model, live = learner(base, adapters[0])
        bound = Bound(Reference((adapters[1],), plan()), live, adapters[:1])
        logits = model(**batch_inputs(batch), use_cache=False).logits
        if asked:
            with torch.no_grad(), bound.on(batch["labels"] != IGNORED):
                said(model, batch)
        chosen, targets = losses.supervised_logits(logits, batch["labels"])
        losses.nll_sum(chosen, targets).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(found)
        assert all(".default." in name for name in found)
        gradients.append(found)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_base_under_a_history_leaves_the_history_frozen(base, adapters, batch):
    model, live = learner(base, adapters[0])
    with torch.no_grad(), Bound(Reference(()), live, adapters[:1]).on(batch["labels"] != IGNORED):
        said(model, batch)
    assert all(".default." in name for name, p in model.named_parameters() if p.requires_grad)


def test_digests_tell_references_apart(adapters):
    found = [
        Reference(),
        Reference(()),
        Reference((adapters[0],)),
        Reference((adapters[1],)),
        Reference(None, plan()),
        Reference(None, plan(alpha=5.0)),
    ]
    assert len({reference.digest() for reference in found}) == len(found)
    assert Reference((adapters[0],), plan()).digest() == Reference((adapters[0],), plan()).digest()


def test_a_teacher_that_is_not_steered_is_refused(base):
    _, live = learner(base)
    with pytest.raises(SteeringHasNoEffect, match="push at output of block 1"):
        Bound(Reference(None, plan(alpha=0.0)), live, [])
    with pytest.raises(ValueError, match="logits"):
        Bound(Reference(None, plan(kind="logits")), live, [])
