"""The MLX back end's model: loading, steering by wrapped blocks, logits. Runs on Apple GPUs and on any CPU.

In: a model directory of mlx-lm or transformers (quantised or not, tied head or not) and steering plans.
Out: a wrapped mlx-lm model whose blocks add a delta that the caller sets. Blocks are wrapped, not patched:
Python ignores a `__call__` set on an instance, which once made a whole pack silently unsteered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.plans import block_deltas
from steer_pipeline.lab.models.sites import SteeringPlan

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
_CHECK_TOLERANCE = 5e-2  # of the largest logit: half precision included


class Tap:
    """What is added after one block, and what came out last. Not a module: its arrays are no parameters."""

    def __init__(self) -> None:
        self.delta: mx.array | None = None  # broadcasts to [n, t, hidden]
        self.parent: mx.array | None = None  # [n]: of each row after the block, the row before it
        self.rows: dict[int, mx.array] = {}  # masks made for so many rows -> the mask's row of each row here
        self.output: mx.array | None = None

    def mask(self, mask: Any) -> Any:
        """mlx-lm makes a mask from the cache of one block; here the batch may have split further, or less far."""
        rows = self.rows.get(mask.shape[0]) if isinstance(mask, mx.array) and mask.ndim == 4 else None
        return mask if rows is None else mask[rows]


class SteeredBlock(nn.Module):
    """A block of mlx-lm and a tap on its output. Other attributes are the block's own."""

    def __init__(self, block: nn.Module, tap: Tap):
        super().__init__()
        self.block = block
        object.__setattr__(self, "tap", tap)

    def __call__(self, hidden: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        out = self.block(hidden, self.tap.mask(mask), cache)
        if self.tap.parent is not None:
            out = out[self.tap.parent]
        if self.tap.delta is not None:
            out = out + self.tap.delta
        self.tap.output = out
        return out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


class MlxModel:
    """An mlx-lm model with steerable blocks."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.inner = model.model
        self.taps = [Tap() for _ in self.inner.layers]
        self.inner.layers = [
            SteeredBlock(block, tap) for block, tap in zip(self.inner.layers, self.taps, strict=True)
        ]
        self.softcap = getattr(model, "final_logit_softcapping", None)
        self.dtype = self.inner.norm.weight.dtype

    def states(self, ids: mx.array, cache: Any = None) -> mx.array:
        """Final-normed states [n, t, hidden] of token ids [n, t]."""
        return self.inner(ids, cache)

    def logits(self, states: mx.array, bias: mx.array | None = None) -> mx.array:
        """fp32 logits of final-normed states; `bias` is added before any soft-capping."""
        logits = self._head(states).astype(mx.float32)
        if bias is not None:
            logits = logits + bias
        return logits if self.softcap is None else mx.tanh(logits / self.softcap) * self.softcap

    def direction_logits(self, direction: np.ndarray) -> mx.array:
        """`E (gamma * v)`, fp32 [vocabulary]: what `direction` [hidden] adds to the logits where rms(h) is 1."""
        vector = mx.array(direction)[None].astype(self.dtype)
        gamma = self.inner.norm(mx.ones_like(vector))
        return (self._head(gamma * vector) - self._head(mx.zeros_like(vector)))[0].astype(mx.float32)

    def steer(self, deltas: dict[int, mx.array]) -> None:
        """Sets every block's delta; blocks without one are as they are."""
        for block, tap in enumerate(self.taps):
            tap.delta, tap.parent, tap.rows = deltas.get(block), None, {}

    def split(self, splits: "Splits") -> None:
        """Sets deltas of prompts that run together until steering sets them apart."""
        for block, tap in enumerate(self.taps):
            delta = splits.deltas[block]
            tap.delta = None if delta is None else self.array(delta)[:, None]
            tap.parent = None if delta is None else mx.array(splits.parents[block])
            mine = splits.prompts[block]
            tap.rows = {}
            for prompts in splits.prompts:
                if len(prompts) != len(mine):  # of a prompt's rows any will do: they are padded alike
                    first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
                    tap.rows[len(prompts)] = mx.array([first[prompt] for prompt in mine])

    def rms(self) -> mx.array:
        """fp32 [n, t, 1]: root mean square of the last block's latest output, which the final norm divides by."""
        hidden = self.taps[-1].output
        assert hidden is not None  # a forward pass comes first
        return mx.sqrt(mx.mean(hidden.astype(mx.float32) ** 2, axis=-1, keepdims=True))

    def array(self, table: np.ndarray) -> mx.array:
        """fp32 numpy to the dtype of the residual stream."""
        return mx.array(table).astype(self.dtype)

    def _head(self, states: mx.array) -> mx.array:
        head = getattr(self.model, "lm_head", None)
        if head is not None and not getattr(self.model, "tie_word_embeddings", False):
            return head(states)
        return self.inner.embed_tokens.as_linear(states)  # quantised embeddings have it too


@dataclass
class Splits:
    """How a batch of prompts splits on its way up, as plans steer them apart. A row is one history of one prompt.

    Attributes, by block (`lanes` has one entry more, for what follows the last block):
        prompts: of each row that enters the block, its prompt.
        lanes: int [n_lanes], of each sequence its row.
        deltas: fp32 [rows after the block, hidden] to add, or None where nothing is steered.
        parents: int [rows after the block], the row before it.
    """

    prompts: list[list[int]]
    lanes: list[np.ndarray]
    deltas: list[np.ndarray | None]
    parents: list[np.ndarray]


def splits_of(
    prompts: Sequence[int], plans: Sequence[int], tables: dict[int, np.ndarray], n_blocks: int
) -> Splits:
    """Splits of sequences with these prompts (numbered from 0) and plans; `tables`: fp32 [n_plans, hidden] by block."""
    lanes = np.array(prompts)
    made = Splits([list(range(lanes.max() + 1))], [lanes], [], [])
    for block in range(n_blocks):
        row_prompts, table = made.prompts[-1], tables.get(block)
        if table is None or not table.any():
            made.deltas.append(None)
            made.parents.append(np.arange(len(row_prompts)))
        else:
            distinct, number = np.unique(table, axis=0, return_inverse=True)
            pairs = np.stack([lanes, number.reshape(-1)[list(plans)]], axis=1)
            rows, lanes = np.unique(pairs, axis=0, return_inverse=True)
            lanes = lanes.reshape(-1)
            made.deltas.append(distinct[rows[:, 1]])
            made.parents.append(rows[:, 0])
            row_prompts = [row_prompts[parent] for parent in rows[:, 0]]
        made.lanes.append(lanes)
        made.prompts.append(row_prompts)
    made.prompts.pop()
    return made


def load_mlx(source: str, spec: ModelSpec) -> tuple[MlxModel, dict[str, Any], str]:
    """(model, config, dtype name).

    Raises:
        ModelLoadError: an architecture that mlx-lm lacks.
    """
    from mlx_lm.utils import load_config, load_model

    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, revision=spec.revision))
    try:
        config = load_config(folder)
        model, config = load_model(folder, model_config=_mlx_names(config))
        if spec.dtype != "auto":
            model.set_dtype(_DTYPES[spec.dtype])
        wrapped = MlxModel(model)
        _check(wrapped, source)
    except (ValueError, FileNotFoundError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"model {source}: cannot be loaded with mlx-lm: {error}") from error
    return wrapped, config, str(wrapped.dtype).removeprefix("mlx.core.")


def _mlx_names(config: dict[str, Any]) -> dict[str, Any]:
    """Names that mlx-lm knows for what transformers 5 writes in other ways."""
    names: dict[str, Any] = {}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        names["rope_theta"] = rope["rope_theta"]
    if "full_attention" in rope:
        names["rope_theta"] = rope["full_attention"]["rope_theta"]
        names["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    kinds = config.get("layer_types") or []
    if "full_attention" in kinds and "sliding_attention" in kinds:
        names["sliding_window_pattern"] = kinds.index("full_attention") + 1
    return names


def _check(wrapped: MlxModel, source: str) -> None:
    """The wrapped path, on padded batches, gives the model's own logits (a model may do to them what we do
    not know).
    """
    ids = mx.arange(1, 9)[None]
    own = [wrapped.model(part).astype(mx.float32)[0, -1] for part in (ids, ids[:, :5])]
    short = mx.concatenate([mx.zeros((1, 3), dtype=ids.dtype), ids[:, :5]], axis=1)
    try:
        cache = batch_cache(wrapped, [[0, 3, 3]] * len(wrapped.taps))
        states = wrapped.states(mx.concatenate([ids, short, short]), cache)
    except ValueError as error:  # mlx-lm's Gemma 2 takes no padded batches
        raise ModelLoadError(f"model {source}: mlx-lm cannot run it in padded batches; use torch") from error
    for one, ours in zip(own, wrapped.logits(states[:2, -1]), strict=True):
        allowed = _CHECK_TOLERANCE * mx.maximum(mx.abs(one).max(), 1)
        if not mx.isnan(one).any() and mx.abs(one - ours).max() > allowed:
            raise ModelLoadError(
                f"model {source}: mlx-lm gives other logits in padded batches than row by row; use torch"
            )


def batch_cache(wrapped: MlxModel, paddings: Sequence[list[int]]) -> list[Any]:
    """mlx-lm's batch caches for left-padded rows, of the kind that each block of the model asks for.

    Args:
        paddings: by block, of each row.
    """
    from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, RotatingKVCache, make_prompt_cache

    return [
        BatchRotatingKVCache(one.max_size, padding)
        if isinstance(one, RotatingKVCache)
        else BatchKVCache(padding)
        for one, padding in zip(make_prompt_cache(wrapped.model), paddings, strict=True)
    ]


def logit_bias(wrapped: MlxModel, plans: Sequence[SteeringPlan]) -> mx.array | None:
    """fp32 [n_plans, vocabulary] of logit-bias terms where rms(h) is 1, or None."""
    tables = block_deltas(plans, "logits")
    if not tables:
        return None
    return mx.stack([wrapped.direction_logits(row) for row in np.sum(list(tables.values()), axis=0)])


def answer_logits(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None
) -> list[np.ndarray]:
    """fp32 [len(ids) - start, vocabulary] a sequence: logits at positions `start` and later."""
    wrapped: MlxModel = model.module
    plans = [] if plan is None else [plan]
    bias = logit_bias(wrapped, plans)
    out = []
    for one, start in zip(ids, starts, strict=True):
        steered = np.arange(len(one)) >= (start if plan is not None and plan.scope == "generated" else 0)
        wrapped.steer(
            {
                block: wrapped.array(table[0][None, None] * steered[None, :, None].astype(np.float32))
                for block, table in block_deltas(plans).items()
            }
        )
        states = wrapped.states(mx.array([one]))[:, start:]
        shift = None if bias is None else bias[0] / wrapped.rms()[:, start:]
        out.append(np.array(wrapped.logits(states, shift)[0]))
    wrapped.steer({})
    return out
