"""The plain way that the engine must agree with: one row, one variant, transformers' generate, hooks on the
blocks.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline_tests.tiny import SENTENCES, tiny_model_dir


def loaded(tmp_path, arch="qwen3", **spec):
    folder = tiny_model_dir(tmp_path, arch)
    return load_model(ModelSpec(path=str(folder), device="cpu", **spec), tmp_path)


def with_budget(model, batch_tokens):
    return replace(model, spec=model.spec.model_copy(update={"batch_tokens": batch_tokens}))


def term(block, alpha, seed=0, hidden=64, kind="output", name="paranoid"):
    vector = np.random.default_rng(seed).standard_normal(hidden).astype(np.float32)
    return SteeringTerm(name, vector / np.linalg.norm(vector), Site(block, kind), alpha)


def plans(scope="all"):
    """Base and resample, two doses at one block, a combination, a late site, a first and a last block."""
    return [
        SteeringPlan("base"),
        SteeringPlan("base_resample"),
        SteeringPlan("up", (term(1, 3.0),), scope),
        SteeringPlan("down", (term(1, -3.0),), scope),
        SteeringPlan("both", (term(1, 3.0), term(2, 4.0, 1)), scope),
        SteeringPlan("late", (term(2, 4.0, 2),), scope),
        SteeringPlan("edges", (term(0, 2.0, 3), term(3, 5.0, 4)), scope),
    ]


def prompts(model, n=5):
    """Prompts of different lengths; some fill more than one padding unit."""
    texts = [" ".join(SENTENCES[: 1 + i % 4]) for i in range(n)]
    return [encode_prompt(model.tokenizer, user="Rewrite: " + text) for text in texts]


@contextmanager
def hooks(module, plan):
    """Adds each term at the output of its block: everywhere, or only where single tokens go in one by one."""
    handles = []
    for one in plan.terms:
        delta = torch.from_numpy(np.float32(one.alpha) * one.unit)

        def hook(_module, _inputs, output, delta=delta):
            if plan.scope == "generated" and output.shape[1] > 1:
                return output
            return output + delta.to(output.dtype)

        handles.append(module.model.layers[one.site.block].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_greedy(model, ids, plan, max_new_tokens):
    """Generated token ids, without the end token."""
    with hooks(model.module, plan), torch.inference_mode():
        out = model.module.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(model.eos_ids),
        )
    new = out[0, len(ids) :].tolist()
    return new[:-1] if new and new[-1] in model.eos_ids else new
