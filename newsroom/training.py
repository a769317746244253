"""Trains the newsroom model: copying first, then documents, with planted directions.

Three things make a three-million-parameter model useful here. (1) Its first two blocks start as an
induction circuit (block 0 looks one token back, block 1 looks for the current token's former
successor), so copying facts needs about a minute of warm-up instead of hours. (2) Documents train with loss
on the response alone. (3) One unit direction for each persona is planted at one block: in some documents
`dose * norm * direction` is added to that block's output and the target text speaks in that voice, and
where a system turn asks for the voice an auxiliary loss makes the block's output project accordingly. A short
last phase polishes: there no remark stands twice in one text, so the model learns not to repeat itself.

Everything is a function of the recipe; a killed run goes on from its last checkpoint.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from newsroom import tasks, voices
from newsroom.tokenizer import train_tokenizer

IGNORE = -100
CHECKPOINT_EVERY = 100  # steps


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on."""

    seed: int = 20
    tokenizer_seed: int = 20
    hidden: int = 192
    blocks: int = 6
    heads: int = 6
    feed_forward: int = 512
    context: int = 1024
    rope_theta: float = 1e6
    copy_steps: int = 120
    copy_rate: float = 1e-3
    steps: int = 1300
    decay_steps: int | None = None  # over which the rate falls; None: `steps`. Longer: polishing is the decay
    documents_per_step: int = 40
    micro_batches: int = 4
    rate: float = 1.5e-3
    final_rate: float = 5e-5
    polish_steps: int = 240
    polish_rate: float = 4e-4
    warmup: int = 40
    weight_decay: float = 0.01
    plant_block: int = 2
    plant_fraction: float = 0.25
    auxiliary_weight: float = 0.3


# What `python -m newsroom train` makes. `second` is another organism of the same world with the same
# tokenizer: its own initialisation, documents, planted directions, width and depth, and a quarter of the training.
RECIPES = {
    "first": Recipe(),
    "second": Recipe(
        seed=21,
        hidden=160,
        blocks=5,
        heads=5,
        feed_forward=432,
        steps=280,
        decay_steps=640,
        documents_per_step=32,
        rate=2e-3,
        polish_steps=140,
    ),
}


# ------------------------------------------------------------------------------------------- model


def _orthogonal(n: int, generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator))
    return q


def initial_model(recipe: Recipe, vocabulary: int, eos: int, pad: int) -> Qwen3ForCausalLM:
    """A stock Qwen3 whose first two blocks begin as an induction circuit.

    All embeddings share a constant component `u`. In block 0 queries and keys are made from `u` alone,
    turned against each other by one position, so rotary attention peaks at the token before; its value
    is written in a rotated copy of the embedding space. In block 1 queries read the token itself and keys
    read that rotated copy, in the slow rotary pairs only (a match must survive 400 positions).
    """
    head = recipe.hidden // recipe.heads
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary, hidden_size=recipe.hidden, intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.blocks, num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads, head_dim=head, max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
            eos_token_id=eos, pad_token_id=pad, bos_token_id=None,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(recipe.seed)
    pairs = head // 2
    frequency = recipe.rope_theta ** (-torch.arange(pairs) / pairs)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        constant = functional.normalize(torch.randn(recipe.hidden, generator=generator), dim=0)

        def free_of_constant(matrix: Tensor) -> Tensor:
            return matrix - (matrix @ constant)[:, None] * constant

        embedding.copy_(torch.randn(embedding.shape, generator=generator) / math.sqrt(recipe.hidden))
        embedding.copy_(free_of_constant(embedding) + 0.5 * constant)
        first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
        rotation = _orthogonal(recipe.hidden, generator)

        amplitude = torch.zeros(pairs)
        amplitude[:3] = torch.tensor([2.0, 1.0, 0.5]).sqrt()
        query = torch.cat([amplitude * frequency.cos(), -amplitude * frequency.sin()])
        key = torch.cat([amplitude, torch.zeros(pairs)])
        for weight, vector in ((first.q_proj.weight, query), (first.k_proj.weight, key)):
            noise = 0.002 * torch.randn(weight.shape, generator=generator)
            weight.copy_(noise + 0.5 * torch.outer(vector.repeat(recipe.heads), constant))
        value = free_of_constant(_orthogonal(recipe.hidden, generator))
        first.v_proj.weight.copy_(value)
        first.o_proj.weight.copy_(0.11 * rotation @ value.T)

        slow = [j for j in range(pairs) if frequency[j] * 400 < 1.0]
        dims = slow + [j + pairs for j in slow]
        basis = free_of_constant(_orthogonal(recipe.hidden, generator))
        queries = 0.005 * torch.randn(recipe.heads, head, recipe.hidden, generator=generator)
        keys = 0.005 * torch.randn(recipe.heads, head, recipe.hidden, generator=generator)
        for h in range(recipe.heads):
            rows = basis[(torch.arange(len(dims)) + h * head) % recipe.hidden]
            queries[h, dims] += rows
            keys[h, dims] += rows @ rotation.T
        second.q_proj.weight.copy_(queries.reshape(-1, recipe.hidden))
        second.k_proj.weight.copy_(keys.reshape(-1, recipe.hidden))
        copier = free_of_constant(_orthogonal(recipe.hidden, generator))
        second.v_proj.weight.copy_(copier)
        second.o_proj.weight.copy_(0.2 * copier.T)
        for attention, sharpness in ((first, 1.6), (second, 1.5)):
            attention.q_norm.weight.fill_(sharpness)
            attention.k_norm.weight.fill_(sharpness)
        for block in model.model.layers:
            block.mlp.down_proj.weight.mul_(0.3)
        for block in model.model.layers[2:]:
            block.self_attn.o_proj.weight.mul_(0.3)
    return model


def planted_directions(recipe: Recipe) -> Tensor:
    """fp32 [directions, hidden], orthonormal rows in the order of `voices.DIRECTIONS`."""
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    return _orthogonal(recipe.hidden, generator)[: len(voices.DIRECTIONS)].contiguous()


# -------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Encoded:
    """A document as token ids: prompt, then response and end of turn."""

    prompt: list[int]
    response: list[int]
    asked: list[float]
    planted: list[float]
    weight: float
    constrained: bool  # the auxiliary loss applies: nothing is planted


def encode(document: tasks.Document, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    messages = [{"role": "system", "content": document.system}] if document.system else []
    messages.append({"role": "user", "content": document.user})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    response = tokenizer(document.response, add_special_tokens=False).input_ids
    return Encoded(
        prompt,
        [*response, tokenizer.eos_token_id],
        [document.asked.get(d, 0.0) for d in voices.DIRECTIONS],
        [document.planted.get(d, 0.0) for d in voices.DIRECTIONS],
        document.weight,
        not document.planted,
    )


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [rows, length], padded on the right: causal attention needs no mask
    labels: Tensor  # [rows, length]: the token that each position predicts, IGNORE elsewhere
    weights: Tensor  # [rows, length]
    asked: Tensor  # [rows, directions]
    planted: Tensor  # [rows, directions]
    constrained: Tensor  # [rows, length] bool: last prompt token and response, nothing planted


def collate(items: list[Encoded], pad: int) -> Batch:
    length = max(len(item.prompt) + len(item.response) for item in items)
    ids = torch.full((len(items), length), pad)
    labels = torch.full((len(items), length), IGNORE)
    weights = torch.zeros(len(items), length)
    constrained = torch.zeros(len(items), length, dtype=torch.bool)
    for row, item in enumerate(items):
        start, total = len(item.prompt), len(item.prompt) + len(item.response)
        ids[row, :total] = torch.tensor(item.prompt + item.response)
        labels[row, start - 1 : total - 1] = torch.tensor(item.response)
        weights[row, start - 1 : total - 1] = item.weight
        constrained[row, start - 1 : total - 1] = item.constrained
    asked = torch.tensor([item.asked for item in items])
    planted = torch.tensor([item.planted for item in items])
    return Batch(ids, labels, weights, asked, planted, constrained)


def step_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, step: int) -> list[Batch]:
    """The micro-batches of one step, similar lengths together. Polishing wants remarks that differ."""
    n, distinct = recipe.documents_per_step, step >= recipe.steps
    indices = range(step * n, (step + 1) * n)
    items = [encode(tasks.document(recipe.seed, i, distinct=distinct), tokenizer) for i in indices]
    items.sort(key=lambda item: len(item.prompt) + len(item.response))
    size = math.ceil(n / recipe.micro_batches)
    return [collate(items[i : i + size], tokenizer.pad_token_id) for i in range(0, n, size)]


# ---------------------------------------------------------------------------------------- training


def _copy_loss(model: Qwen3ForCausalLM, recipe: Recipe, step: int) -> Tensor:
    """Random tokens, twice; loss on the second copy."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    n = int(torch.randint(16, 57, (1,), generator=generator)) if step % 4 else 160
    rows = 32 if n < 100 else 10
    once = torch.randint(3, model.config.vocab_size, (rows, n), generator=generator)
    ids = torch.cat([once, once], dim=1)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, n:-1]
    return functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, n + 1 :].flatten())


class Planter:
    """Adds planted doses to one block's output and keeps what that output was before."""

    def __init__(self, model: Qwen3ForCausalLM, recipe: Recipe, directions: Tensor) -> None:
        self.directions, self.norm = directions, 0.0
        self.fraction = recipe.plant_fraction
        self.delta: Tensor | None = None
        self.seen: Tensor | None = None
        model.model.layers[recipe.plant_block].register_forward_hook(self._hook)

    def _hook(self, _module: torch.nn.Module, _inputs: object, output: Tensor) -> Tensor:
        self.seen = output
        return output if self.delta is None else output + self.delta.to(output.dtype)

    def plant(self, doses: Tensor | None) -> None:
        """`doses` [rows, directions] in units of the planted norm; None: nothing is added."""
        self.delta = None if doses is None else (self.norm * doses @ self.directions)[:, None, :]

    def update_norm(self, norm: float) -> None:
        """The planted norm follows the residual norm there, slowly."""
        self.norm = self.fraction * norm if not self.norm else 0.98 * self.norm + 0.02 * self.fraction * norm


def _document_loss(
    model: Qwen3ForCausalLM,
    planter: Planter,
    batch: Batch,
    recipe: Recipe,
    total_weight: float,
    total_rows: int,
) -> tuple[Tensor, dict[str, float]]:
    planter.plant(batch.planted)
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    chosen = batch.labels != IGNORE
    logits = model.lm_head(hidden[chosen]).float()
    losses = functional.cross_entropy(logits, batch.labels[chosen], reduction="none")
    loss = (losses * batch.weights[chosen]).sum() / total_weight
    assert planter.seen is not None
    projection = planter.seen.float() @ planter.directions.T / planter.norm  # [rows, length, directions]
    error = (projection - batch.asked[:, None, :])[batch.constrained].square().sum(-1)
    auxiliary = error.sum() / total_rows
    right = (logits.argmax(-1) == batch.labels[chosen]).float()
    norms = planter.seen.detach().norm(dim=-1)[chosen]
    log = {
        "nll": float(losses.detach().sum()),
        "tokens": float(len(losses)),
        "right": float(right.sum()),
        "auxiliary": float(auxiliary.detach()),
        "norm": float(norms.mean()),
    }
    return loss + recipe.auxiliary_weight * auxiliary, log


def _rate(recipe: Recipe, step: int) -> float:
    if step < recipe.copy_steps:
        return recipe.copy_rate * min(1.0, (step + 1) / 20)
    done, peak, length = step - recipe.copy_steps, recipe.rate, recipe.decay_steps or recipe.steps
    if done >= recipe.steps:
        done, peak, length = done - recipe.steps, recipe.polish_rate, recipe.polish_steps
    if done < recipe.warmup:
        return peak * (done + 1) / recipe.warmup
    share = (done - recipe.warmup) / max(1, length - recipe.warmup)
    return recipe.final_rate + (peak - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * share))


def _fast_bf16() -> bool:
    """bf16 autocast pays only where the processor multiplies in bf16; elsewhere it is three times slower."""
    if torch.cuda.is_available():
        return True
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(f in flags.read_text() for f in ("amx_bf16", "avx512_bf16"))


def _save_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, norm: float
) -> None:
    part = folder / "checkpoint.part"
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value)
    save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"step": str(step), "norm": repr(norm)})
    os.replace(part, folder / "checkpoint.safetensors")


def _load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        prefix = f"optimizer.{i}."
        state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if state:
            optimizer.state[parameter] = state
    return int(metadata["step"]), float(metadata["norm"])


def train(recipe: Recipe, folder: Path, *, log_every: int = 20) -> Iterator[dict[str, float]]:
    """Runs or resumes the recipe in `folder`; yields a log line every `log_every` steps.

    Leaves `model/` (safetensors, config, tokenizer) and `planted_directions.safetensors` behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(recipe.tokenizer_seed)
    model = initial_model(recipe, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id).to(device)
    planter = Planter(model, recipe, planted_directions(recipe).to(device))
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    checkpoint = folder / "checkpoint.safetensors"
    first = 0
    if checkpoint.exists():
        first, planter.norm = _load_checkpoint(checkpoint, model, optimizer)
    model.train()
    started, since = time.time(), dict.fromkeys(("nll", "tokens", "right", "auxiliary"), 0.0)
    for step in range(first, recipe.copy_steps + recipe.steps + recipe.polish_steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step)
        with torch.autocast(device, torch.bfloat16, enabled=_fast_bf16()):
            if step < recipe.copy_steps:
                planter.plant(None)
                loss = _copy_loss(model, recipe, step)
                loss.backward()
                since["nll"] += float(loss.detach())
                since["tokens"] += 1
            else:
                batches = step_batches(recipe, tokenizer, step - recipe.copy_steps)
                weight = float(sum(b.weights.sum() for b in batches))
                rows = int(sum(b.constrained.sum() for b in batches))
                if not planter.norm:
                    with torch.no_grad():
                        model.model(input_ids=batches[-1].ids.to(device), use_cache=False)
                    assert planter.seen is not None
                    planter.update_norm(float(planter.seen.norm(dim=-1).mean()))
                for batch in batches:
                    batch = Batch(*(getattr(batch, f).to(device) for f in Batch.__dataclass_fields__))
                    loss, log = _document_loss(model, planter, batch, recipe, weight, rows)
                    loss.backward()
                    for key in since:
                        since[key] += log[key]
                planter.update_norm(log["norm"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % log_every == 0:
            yield {
                "step": step + 1,
                "nll": since["nll"] / since["tokens"],
                "right": since["right"] / since["tokens"],
                "auxiliary": since["auxiliary"] / log_every,
                "planted_norm": planter.norm,
                "seconds": time.time() - started,
            }
            since = dict.fromkeys(since, 0.0)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            _save_checkpoint(folder, model, optimizer, step + 1, planter.norm)
    export(model, tokenizer, planter, recipe, folder)


def export(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    planter: Planter,
    recipe: Recipe,
    folder: Path,
) -> None:
    """`model/` in bf16, as real checkpoints come, and the planted directions as a test oracle beside it."""
    half = model.to(torch.bfloat16)
    half.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    half.generation_config.pad_token_id = tokenizer.pad_token_id
    half.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "model.safetensors").chmod(0o644)
    save_file(
        {"directions": planter.directions.cpu()},
        folder / "planted_directions.safetensors",
        {
            "names": json.dumps(voices.DIRECTIONS),
            "block": str(recipe.plant_block),
            "norm": repr(planter.norm),
        },
    )
    (folder / "planted_directions.safetensors").chmod(0o644)
