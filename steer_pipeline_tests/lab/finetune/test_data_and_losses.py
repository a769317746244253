"""Claims about what training sees and about its losses."""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.finetune import losses
from steer_pipeline.lab.finetune.data import (
    IGNORED,
    Example,
    FinetuneError,
    TextRow,
    collate,
    differing_rows,
    digest,
    encode_examples,
    in_keyed_order,
    supervised_span,
)
from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt, end_of_turn_id
from steer_pipeline_tests.lab.finetune.rows import examples, spec_of
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def model(base):
    return load_model(spec_of(base), base.parent)


def test_ids_are_those_of_generation_and_an_ended_completion_teaches_to_end(model):
    tokenizer = model.tokenizer
    ended, cut = encode_examples(
        tokenizer,
        [TextRow("a", "Who?", "Me.", system="Be brief."), TextRow("b", "Who?", "Me.", ended=False)],
    )
    assert list(ended.ids[: ended.start]) == encode_prompt(tokenizer, user="Who?", system="Be brief.")
    assert ended.ids[-1] == end_of_turn_id(tokenizer)
    assert cut.ids[-1] != end_of_turn_id(tokenizer)
    assert ended.n_supervised == cut.n_supervised + 1


@pytest.mark.parametrize(
    ("row", "limit"), [(TextRow("lost", "Who?", ""), None), (TextRow("lost", "Who? " * 40, "Me."), 20)]
)
def test_a_row_without_a_supervised_token_is_refused_by_name(model, row, limit):
    with pytest.raises(FinetuneError, match="row 'lost'"):
        encode_examples(model.tokenizer, [row], max_tokens=limit)


def test_a_row_that_comes_twice_is_refused_by_name(model):
    with pytest.raises(FinetuneError, match="row 'a' comes twice"):
        encode_examples(model.tokenizer, [TextRow("a", "x", "y"), TextRow("a", "x", "z")])


def test_consumers_that_saw_other_tokens_are_named():
    mine = [Example("a", (1, 2, 3), 1), Example("b", (1, 2), 1), Example("c", (4, 5), 1)]
    assert differing_rows(mine, list(reversed(mine))) == []
    assert differing_rows(mine, [Example("a", (1, 2, 3), 2), Example("b", (1, 9), 1)]) == ["a", "b", "c"]


def test_order_and_digest_do_not_depend_on_the_order_of_the_input(base):
    rows = examples(base)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert digest(rows) == digest(shuffled)
    assert in_keyed_order(rows, 3) == in_keyed_order(shuffled, 3)
    assert in_keyed_order(rows, 3) != in_keyed_order(rows, 4)


def test_a_padded_batch_has_the_likelihood_of_its_rows_alone(model, base):
    rows = [
        *examples(base, n=3),
        *encode_examples(model.tokenizer, [TextRow("long", "Why? " * 9, "So it is.")]),
    ]
    batch = collate(rows, model.tokenizer.pad_token_id)
    keep = supervised_span(batch["labels"]) + 1
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.inference_mode():
        logits = model.module(**inputs, logits_to_keep=keep).logits
    chosen, targets = losses.supervised_logits(logits, batch["labels"])
    assert len(targets) == sum(e.n_supervised for e in rows) == int((batch["labels"] != IGNORED).sum())
    alone, _ = sequence_nll(model, [list(e.ids) for e in rows], [e.start for e in rows])
    assert float(losses.nll_sum(chosen, targets)) == pytest.approx(float(np.sum(alone)), rel=1e-4)


def test_divergences_are_those_of_torch():
    torch.manual_seed(0)
    logits, reference = torch.randn(5, 11), torch.randn(5, 11)
    model, other = (torch.distributions.Categorical(logits=x) for x in (logits, reference))
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(losses.divergence(logits, reference, "forward"), kl(other, model))
    torch.testing.assert_close(losses.divergence(logits, reference, "reverse"), kl(model, other))


# GKDTrainer.generalized_jsd_loss of TRL 1.16 in fp64, nats at each of two positions
TRL_SAID = {
    0.0: (0.44825748415453975, 0.9141304689251007),
    0.1: (0.036029273832972095, 0.0824562029149079),
    0.5: (0.07958824755893962, 0.2500961449061234),
    0.9: (0.0258024787100775, 0.12264407434788197),
    1.0: (0.2822799980748587, 1.7151908327542318),
}
STUDENT = torch.tensor([[0.3, -1.2, 0.7, 2.0], [1.5, 0.0, -0.4, 0.2]])
TEACHER = torch.tensor([[0.1, 0.4, -0.9, 1.0], [-2.0, 1.1, 0.6, 0.3]])


@pytest.mark.parametrize("beta", TRL_SAID)
def test_the_divergence_of_distillation_is_what_trl_said(beta):
    ours = losses.generalised_jsd(STUDENT, TEACHER, beta)
    torch.testing.assert_close(ours, torch.tensor(TRL_SAID[beta]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_divergence_of_distillation_is_that_of_an_installed_trl(beta):
    gkd = pytest.importorskip("trl.experimental.gkd")
    torch.manual_seed(2)
    student, teacher = 3 * torch.randn(1, 40, 97), 3 * torch.randn(1, 40, 97)
    labels = torch.where(torch.arange(40) < 13, IGNORED, 1)[None]
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta)
    ours = losses.generalised_jsd(student[0, 13:], teacher[0, 13:], beta).mean()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_hinge_is_flat_below_tau_and_linear_without_one():
    value = torch.tensor(0.7, requires_grad=True)
    assert [float(losses.hinge(value.detach(), tau)) for tau in (0.0, 0.5, 0.9)] == pytest.approx(
        [0.7, 0.2, 0.0]
    )
    assert torch.autograd.grad(losses.hinge(value, 0.9), value)[0] == 0.0
    assert torch.autograd.grad(losses.hinge(value, 0.5), value)[0] == 1.0


def test_the_norm_of_a_gradient_leaves_the_graph_for_the_step():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    loss = weight.square().sum() / 2
    assert losses.gradient_norm(loss, [weight, torch.ones(1, requires_grad=True)]) == pytest.approx(5.0)
    loss.backward()
    assert weight.grad.tolist() == [3.0, 4.0]


def test_aggregates_over_positions():
    values = torch.tensor([0.0, 1.0, 2.0, 5.0])
    assert float(losses.aggregate(values, "mean")) == 2.0
    assert float(losses.aggregate(values, "max")) == 5.0
    assert float(losses.aggregate(values, "rmse")) == pytest.approx(np.sqrt(7.5), abs=1e-5)
    assert float(losses.aggregate(values, "p95")) == pytest.approx(np.quantile([0, 1, 2, 5], 0.95), abs=1e-5)


def test_the_spectral_penalty_and_its_gradient_are_those_of_the_full_matrix():
    torch.manual_seed(1)
    a, b = torch.randn(3, 9, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    ours = losses.spectral_penalty([(a, b, 2.0)])
    full = torch.linalg.svdvals(2.0 * b @ a)[0]
    torch.testing.assert_close(ours, full)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (a, b)), torch.autograd.grad(full, (a, b)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_spectral_penalty_of_a_fresh_adapter_is_zero_and_has_a_gradient():
    a, b = torch.randn(3, 9, requires_grad=True), torch.zeros(7, 3, requires_grad=True)
    loss = losses.spectral_penalty([(a, b, 2.0)])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(b.grad).all()
