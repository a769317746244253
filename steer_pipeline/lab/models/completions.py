"""How likely a model finds texts that answer the same prompts.

In: token ids of prompts, and of each prompt's completions. Out: negative log-likelihood of each completion, as a mean
or token by token. The completions of a prompt are branches of one tree: one pass computes the prompt once and every
branch behind it, where attention can be masked (models that run block by block). Others read prompt and completion
anew for each.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Blocks, Call, blocks_of, masked
from steer_pipeline.lab.models.hidden import token_losses
from steer_pipeline.lab.models.loaded import FAST, LoadedModel

_ROOM = {"cpu": 1024, "mps": 4096, "cuda": 16384}  # tokens of one pass: their logits exist at the same time

Ids = Sequence[int]


def completion_nll(
    model: LoadedModel, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]
) -> list[list[float]]:
    """Nats a token of each completion under the unsteered model, given its prompt; NaN for an empty one.

    Args:
        prompts: token ids, none empty.
        completions: of each prompt, any number; end tokens count where they are among the ids.

    Raises:
        ValueError: as many lists of completions as prompts are needed, or a prompt is empty (its index is named).
    """
    losses = completion_losses(model, prompts, completions)
    return [
        [float(one.mean(dtype=np.float64)) if one.size else float("nan") for one in own] for own in losses
    ]


def completion_losses(
    model: LoadedModel, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]
) -> list[list[np.ndarray]]:
    """The same token by token: fp32 [tokens] a completion, in nats.

    Prompt and completion are not tokenised here: what is measured are the very ids that were generated.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts and {len(completions)} lists of completions; give one for each"
        )
    if empty := [index for index, ids in enumerate(prompts) if not ids]:
        raise ValueError(f"prompt {empty[0]} has no tokens; drop it")
    if model.backend != FAST or blocks_of(model).long_after is not None:
        return _one_by_one(model, prompts, completions)
    blocks = blocks_of(model)
    with torch.inference_mode():
        return [_branches(blocks, prompt, own) for prompt, own in zip(prompts, completions, strict=True)]


def _one_by_one(
    model: LoadedModel, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]
) -> list[list[np.ndarray]]:
    """The same as sequences: for back ends whose attention cannot be masked."""
    places = [(i, j) for i, own in enumerate(completions) for j, ids in enumerate(own) if ids]
    found = [[_nothing() for _ in own] for own in completions]
    if places:
        ids = [[*prompts[i], *completions[i][j]] for i, j in places]
        for (i, j), losses in zip(
            places, token_losses(model, ids, [len(prompts[i]) for i, _ in places]), strict=True
        ):
            found[i][j] = losses
    return found


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.float32)


def _branches(blocks: Blocks, prompt: Ids, completions: Sequence[Ids]) -> list[np.ndarray]:
    found = [_nothing() for _ in completions]
    for together in _passes(completions, max(1, _ROOM[blocks.device.type] - len(prompt))):
        losses = _pass(blocks, prompt, [completions[index] for index in together])
        for index, own in zip(together, losses, strict=True):
            found[index] = own
    return found


def _passes(completions: Sequence[Ids], room: int) -> Iterator[list[int]]:
    """Indices of the completions that go through the model together."""
    together: list[int] = []
    used = 0
    for index, ids in enumerate(completions):
        if not ids:
            continue
        if together and used + len(ids) > room:
            yield together
            together, used = [], 0
        together.append(index)
        used += len(ids)
    if together:
        yield together


def _pass(blocks: Blocks, prompt: Ids, branches: Sequence[Ids]) -> list[np.ndarray]:
    """Losses of each branch: a token sees the prompt and what stands before it on its own branch."""
    start, device = len(prompt), blocks.device
    lengths = [len(ids) for ids in branches]
    flat = [token for ids in branches for token in ids]
    ids = torch.tensor([[*prompt, *flat]], device=device)
    owner = torch.repeat_interleave(torch.arange(len(branches)), torch.tensor(lengths)).to(device)
    owner = torch.cat([torch.full((start,), -1, device=device), owner])
    within = torch.cat([torch.arange(length) for length in lengths]).to(device)
    at = torch.cat([torch.arange(start, device=device), start + within])
    hidden = _last_states(blocks, ids, at, owner)
    # What predicts a branch's first token is the prompt's last.
    here = torch.arange(start, start + len(flat), device=device)
    before = torch.where(within == 0, torch.full_like(here, start - 1), here - 1)
    logits = blocks.logits(hidden[0, before])
    losses = -logits.log_softmax(-1).gather(1, ids[0, here, None])[:, 0]
    return [part.float().cpu().numpy() for part in losses.split(lengths)]


def _last_states(blocks: Blocks, ids: Tensor, at: Tensor, owner: Tensor) -> Tensor:
    """Output [1, t, hidden] of the last block for tokens at positions `at`; `owner` -1 is seen by all branches."""
    distance = at[:, None] - at[None]
    seen = (distance >= 0) & ((owner[None] == -1) | (owner[None] == owner[:, None]))

    def attend(call: Call) -> Tensor:
        return masked(call, seen if call.window is None else seen & (distance < call.window))

    with blocks.ready():
        hidden = blocks.embed(ids)
        rotary = blocks.rotary(hidden, at[None])
        for block in range(len(blocks.layers)):
            hidden = blocks.run(block, hidden, rotary, attend)
    return hidden
