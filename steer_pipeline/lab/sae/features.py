"""What a sparse autoencoder sees in each training row: which features, how strongly, at how many tokens.

In: rows as ids, by the one tokenisation that training uses, and an `Sae`. Out: a table with one row a row, features in
sparse lists. Rows stream: states and features of one batch of tokens are all that exists at a time, and finished rows
are written. The first position (BOS where there is one, an attention sink in any case) never counts, nor does padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_array
from torch import Tensor

from steer_pipeline.catalogue.sae import Pooling, SaeFeaturesSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example, digest
from steer_pipeline.lab.models.hidden import each_states
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.sae.dictionary import Sae, SaeError
from steer_pipeline.lab.sae.formats import require_fit

FEATURES = "features.parquet"
STATISTICS = (
    "n_tokens",
    "active_entry_share",
    "active_feature_share",
    "active_mean",
    "active_std",
    "active_max",
    "l0_mean",
    "l0_std",
    "l0_cv",
    "concentration",
)
FEATURE_SCHEMA, FEATURE_COLUMNS = described(
    row_id=(pl.String(), "the training row"),
    ids=(
        pl.String(),
        "16 hex digits of the row's token ids and boundary, as `finetune.data.digest` has them",
    ),
    content=(pl.String(), "the same without the row's id: equal of rows that say the same"),
    length=(pl.Int64(), "tokens of the row, prompt and all"),
    n_tokens=(pl.Int64(), "tokens that count: of the span, without the first position"),
    active_entry_share=(pl.Float64(), "share of all pairs of token and feature that are active"),
    active_feature_share=(pl.Float64(), "share of the features that are active at some token"),
    active_mean=(pl.Float64(), "mean over active pairs of token and feature"),
    active_std=(pl.Float64(), "their standard deviation"),
    active_max=(pl.Float64(), "the strongest"),
    l0_mean=(pl.Float64(), "active features a token, mean"),
    l0_std=(pl.Float64(), "their standard deviation"),
    l0_cv=(pl.Float64(), "l0_std over l0_mean"),
    concentration=(
        pl.Float64(),
        "sum of squared shares of the features in the active pairs; 1: all are one's",
    ),
    feature=(pl.List(pl.Int32()), "features that are active at some token, ascending"),
    mean=(pl.List(pl.Float32()), "of each, its mean over all tokens that count"),
    max=(pl.List(pl.Float32()), "of each, its maximum"),
    tokens=(pl.List(pl.Int32()), "of each, the tokens at which it is active"),
)
_CELLS = 1 << 23  # token times feature, of one piece: 32 MB
_TOGETHER = 256  # rows between two writes


@dataclass
class _Sums:
    """Of one row, over the tokens seen so far."""

    total: Tensor  # fp32 [features]
    largest: Tensor  # fp32 [features]
    active: Tensor  # int64 [features]
    squares: float = 0.0
    per_token: tuple[Tensor, ...] = ()  # int64 [tokens] a piece: active features

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "_Sums":
        zeros = torch.zeros(n, device=device)
        return cls(zeros, zeros.clone(), torch.zeros(n, dtype=torch.int64, device=device))

    def add(self, features: Tensor) -> None:
        """Features [tokens, n] of more tokens."""
        active = features > 0
        self.total += features.sum(dim=0)
        self.largest = torch.maximum(self.largest, features.amax(dim=0))
        self.active += active.sum(dim=0)
        self.squares += float(features.double().pow(2).sum())
        self.per_token = (*self.per_token, active.sum(dim=1))


def shared_prefix(examples: Sequence[Example]) -> int:
    """Positions, one at least, at whose beginning all rows are alike (the template's system turn), and so their states.

    They are the same number of a kind in every row: to learn from, or to judge by, they are one row's.
    """
    first, *others = examples
    n = len(first.ids) - 1
    for other in others:
        n = min(n, len(other.ids) - 1)
        n = next((i for i in range(n) if first.ids[i] != other.ids[i]), n)
    return max(1, n)


def counted(example: Example, span: str = "completion") -> slice:
    """Positions of a row that count: all of the span but the sequence's first.

    Raises:
        SaeError: there is none.
    """
    start = 1 if span == "sequence" else max(1, example.start)
    if start >= len(example.ids):
        raise SaeError(f"row {example.row_id!r}: no token behind its first in the {span}; drop the row")
    return slice(start, len(example.ids))


def row_features(
    model: LoadedModel, sae: Sae, examples: Sequence[Example], span: str = "completion"
) -> Iterator[pl.DataFrame]:
    """`FEATURE_SCHEMA`, some rows at a time, in the order given.

    Raises:
        SaeError: a row without a token that counts, or an autoencoder of another model.
    """
    site = require_fit(sae, model)
    spans = [counted(example, span) for example in examples]
    placed: Sae | None = None
    for begin in range(0, len(examples), _TOGETHER):
        some = examples[begin : begin + _TOGETHER]
        found: list[dict[str, object]] = [{}] * len(some)
        for i, states in each_states(model, [list(one.ids) for one in some], site.block, site.kind):
            placed = placed or sae.to(states.device)
            sums = _Sums.empty(sae.n_features, states.device)
            for piece in states[spans[begin + i]].split(max(1, _CELLS // sae.n_features)):
                sums.add(placed.encode(piece))
            found[i] = {**_about(some[i]), **_row(sums)}
        yield pl.DataFrame(found, schema=FEATURE_SCHEMA)


def _about(example: Example) -> dict[str, object]:
    return {
        "row_id": example.row_id,
        "ids": digest([example]),
        "content": digest([replace(example, row_id="")]),
        "length": len(example.ids),
    }


def _row(sums: _Sums) -> dict[str, object]:
    """The lists and the ten statistics of one row."""
    per_token = torch.cat(sums.per_token).double()
    n_tokens, n_active = len(per_token), int(sums.active.sum())
    seen = sums.active.nonzero()[:, 0]
    total = float(sums.total.double().sum())
    mean = total / n_active if n_active else 0.0
    l0, spread = float(per_token.mean()), float(per_token.std(correction=0))
    shares = sums.active[seen].double() / max(1, n_active)
    return {
        "n_tokens": n_tokens,
        "active_entry_share": n_active / (n_tokens * len(sums.active)),
        "active_feature_share": len(seen) / len(sums.active),
        "active_mean": mean,
        "active_std": max(0.0, sums.squares / n_active - mean**2) ** 0.5 if n_active else 0.0,
        "active_max": float(sums.largest.max()),
        "l0_mean": l0,
        "l0_std": spread,
        "l0_cv": spread / (l0 + 1e-8),
        "concentration": float((shares**2).sum()),
        "feature": seen.int().tolist(),
        "mean": (sums.total[seen] / n_tokens).tolist(),
        "max": sums.largest[seen].tolist(),
        "tokens": sums.active[seen].int().tolist(),
    }


def write_features(
    model: LoadedModel, sae: Sae, examples: Sequence[Example], spec: SaeFeaturesSpec, path: Path
) -> None:
    """`row_features` as a Parquet file, written as rows are done.

    Raises:
        SaeError: as `row_features`, or there is no row.
    """
    import pyarrow.parquet as pq

    if not examples:
        raise SaeError("no row to read features of; the pool of sft_manifest is empty")
    schema = pl.DataFrame(schema=FEATURE_SCHEMA).to_arrow().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for frame in row_features(model, sae, examples, spec.span):
            writer.write_table(frame.to_arrow().cast(schema))


def feature_matrix(features: pl.DataFrame, n_features: int, pooling: Pooling = "mean") -> csr_array:
    """fp32 [rows, n_features], sparse: what `pooling` makes of each feature over a row's tokens."""
    counts = features["feature"].list.len().to_numpy()
    columns = features["feature"].explode().drop_nulls().to_numpy()
    if pooling == "presence":
        values = np.ones(len(columns), dtype=np.float32)
    else:
        values = features[pooling].explode().drop_nulls().to_numpy()
    ends = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((values, columns, ends), shape=(features.height, n_features))
