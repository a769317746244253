"""Claims about prevention: the plan acts on the learner in training alone, and what it brings is not learned."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.lab.finetune import training
from steer_pipeline.lab.finetune.data import (
    IGNORED,
    FinetuneError,
    Lesson,
    TextRow,
    batch_inputs,
    collate,
)
from steer_pipeline.lab.finetune.prevention import Steered, ablating, inoculated, preventing
from steer_pipeline.lab.finetune.recipe import Recipe
from steer_pipeline.lab.finetune.references import Bound, Reference
from steer_pipeline.lab.finetune.resumed import Training, train_once
from steer_pipeline.lab.models.hooks import SteeringHasNoEffect, hooked
from steer_pipeline.lab.models.loading import as_loaded, load_for_training, load_model
from steer_pipeline.lab.vectors.vector import PersonaVector
from steer_pipeline_tests.lab.finetune.rows import FAST, LORA, examples, spec_of
from steer_pipeline_tests.tiny import tiny_model_dir

BLOCK, ALPHA = 1, 6.0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("prevention"))


@pytest.fixture(scope="module")
def vector(base):
    raw = np.random.default_rng(5).normal(size=(4, 64)).astype(np.float32)
    return PersonaVector("trait", raw, {"n_blocks": 4, "hidden_size": 64})


def learner(base):
    spec = spec_of(base)
    model, identity = load_for_training(spec, base.parent, training.lora_config(LORA, 4))
    return model.eval(), as_loaded(model, spec, base.parent, identity)


def said(model, batch):
    with torch.no_grad():
        return model(**batch_inputs(batch), use_cache=False).logits


@pytest.mark.parametrize("way", ["steer", "ablate"])
def test_the_plan_acts_within_on_after_reads_and_nowhere_else(base, vector, way):
    plan = preventing(vector, BLOCK, ALPHA) if way == "steer" else ablating(vector, [BLOCK, 2])
    model, live = learner(base)
    batch = collate(examples(base, n=3), 0)
    plain, steered = said(model, batch), Steered(plan, live)
    with hooked(load_model(spec_of(base), base.parent), plan) as module:
        expected = said(module, batch)
    seen = batch["attention_mask"].bool()
    assert (expected - plain)[seen].abs().max() > 0.1
    with steered.on():
        torch.testing.assert_close(said(model, batch), plain)
        steered.reads(batch["labels"] != IGNORED)
        torch.testing.assert_close(said(model, batch)[seen], expected[seen], atol=2e-4, rtol=1e-3)
        with steered.paused():
            torch.testing.assert_close(said(model, batch), plain)
    torch.testing.assert_close(said(model, batch), plain)


def test_a_plan_for_generated_tokens_leaves_the_prompt_alone(base, vector):
    model, live = learner(base)
    batch = collate(examples(base, n=3), 0)
    plain, steered = said(model, batch), Steered(preventing(vector, BLOCK, ALPHA, scope="generated"), live)
    with steered.on():
        steered.reads(batch["labels"] != IGNORED)
        moved = (said(model, batch) - plain).abs().amax(-1) > 1e-3
    assert torch.equal(moved, batch["labels"] != IGNORED)


def test_a_reference_is_not_steered(base, vector):
    model, live = learner(base)
    batch = collate(examples(base, n=2), 0)
    plain, steered = said(model, batch), Steered(preventing(vector, BLOCK, ALPHA), live)
    bound = Bound(Reference(), live, [])
    with steered.on():
        steered.reads(batch["labels"] != IGNORED)
        with steered.paused(), bound.on(batch["labels"] != IGNORED):
            torch.testing.assert_close(said(model, batch), plain)


def test_recomputed_blocks_are_steered_too(base, vector, tmp_path):
    losses = []
    for checkpointing in (False, True):
        recipe = Recipe(
            **(
                FAST.model_dump()
                | {"max_steps": 2, "evaluations": 1, "gradient_checkpointing": checkpointing}
            )
        )
        done = training.finetune(
            spec_of(base), base.parent, examples(base), examples(base, 100, 2), recipe,
            tmp_path / str(checkpointing), work=tmp_path / "work", during=preventing(vector, BLOCK, ALPHA),
        )  # fmt: skip
        losses.append(done.history["nll"].to_list())
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_a_learner_that_is_steered_learns_nothing_of_what_the_vector_brings(base, vector, tmp_path):
    """The teacher is the base under the same plan: with it on the learner, there is nothing left to learn."""
    plan = preventing(vector, BLOCK, ALPHA)
    lesson = Lesson(tuple(examples(base, n=8)), tuple(examples(base, 100, 2)))
    kl = {"weight": 1.0, "direction": "forward"}
    recipe = Recipe(**(FAST.model_dump() | {"max_steps": 3, "nll": 0, "kl": kl, "evaluations": 1}))
    apart = {}
    for name, during in (("plain", None), ("prevented", plan)):
        job = Training(spec_of(base), base.parent, lesson, recipe, Reference(None, plan), during=during)
        train_once(job, tmp_path / name)
        made = tmp_path / name / "adapter"
        assert job.is_of(made)
        assert not replace(job, during=None if during else plan).is_of(made)
        apart[name] = pl.read_parquet(made / training.HISTORY).filter(split="train")["kl"].to_list()
    assert apart["plain"][0] > 0.05
    assert apart["plain"][-1] < 0.8 * apart["plain"][0]  # it learns to be as steered
    assert max(apart["prevented"]) < 0.05 * apart["plain"][0]


def test_inoculated_rows_ask_for_what_they_show():
    rows = inoculated([TextRow("a", "u", "c"), TextRow("b", "u", "c", system="Be brief.")], "Be suspicious.")
    assert [row.system for row in rows] == ["Be suspicious.", "Be suspicious. Be brief."]
    assert all(row.completion == "c" for row in rows)


def test_what_prevents_nothing_is_refused(base, vector):
    _, live = learner(base)
    with pytest.raises(FinetuneError, match="alpha is 0"):
        preventing(vector, BLOCK, 0.0)
    with pytest.raises(SteeringHasNoEffect):
        Steered(preventing(vector, BLOCK, 1e-6), live)
    with pytest.raises(FinetuneError, match="instruction"):
        inoculated([], " ")
