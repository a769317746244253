"""How faithful a sparse autoencoder is to a model, and how sparse.

In: held-out rows as ids. Out: one row a training row, and from these the shares with intervals: the variance that the
reconstruction explains, the loss that the model keeps when it goes on from the reconstruction (1: as without it, 0: as
with zeros in place of the states), active features a token, features that never are. First positions stay as they are;
neither they nor a beginning that all rows share count.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline.lab.models.hidden import each_states
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.plain import Change, plain_of
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae.dictionary import Sae, SaeError
from steer_pipeline.lab.sae.features import shared_prefix
from steer_pipeline.lab.sae.formats import require_fit
from steer_pipeline.lab.stats import Interval, cluster_bootstrap

FIDELITY_SCHEMA, FIDELITY_COLUMNS = described(
    row_id=(pl.String(), "held-out row"),
    n_tokens=(pl.Int64(), "tokens that count: behind the beginning that all rows share"),
    error=(pl.Float64(), "squared distance of states and reconstruction, summed over tokens"),
    variance=(pl.Float64(), "squared distance of states from the mean state of all rows, summed over tokens"),
    l0=(pl.Float64(), "active features a token, mean"),
    nll=(pl.Float64(), "nats of the model's loss, summed over the tokens that count"),
    nll_rebuilt=(pl.Float64(), "the same where the model goes on from the reconstruction"),
    nll_zero=(pl.Float64(), "the same where it goes on from zeros"),
)
N_BOOT = 1000


@dataclass(frozen=True, eq=False)
class Fidelity:
    """What held-out rows say of an autoencoder.

    Attributes:
        rows: of `FIDELITY_SCHEMA`.
        dead: share of the features that were active at none of `dead_tokens` tokens.
    """

    rows: pl.DataFrame
    explained: Interval
    recovered: Interval
    l0: Interval
    dead: float
    dead_tokens: int

    @property
    def numbers(self) -> Mapping[str, float | int]:
        """For records and tables."""
        found: dict[str, float | int] = {"rows": self.rows.height, "tokens": int(self.rows["n_tokens"].sum())}
        for name in ("explained", "recovered", "l0"):
            one = getattr(self, name)
            found |= {name: one.estimate, f"{name}_low": one.low, f"{name}_high": one.high}
        return {**found, "dead": self.dead, "dead_tokens": self.dead_tokens}


def fidelity(
    model: LoadedModel,
    sae: Sae,
    examples: Sequence[Example],
    *,
    seed: int,
    density: tuple[np.ndarray, int] | None = None,
) -> Fidelity:
    """Measured on rows that the autoencoder was not trained on.

    Args:
        density: share of tokens at which each feature was active in training, and how many tokens these were; they
            count beside those of the rows for what is dead.

    Raises:
        SaeError: fewer than two rows, a model without hooks (MLX), or an autoencoder of another model.
    """
    if len(examples) < 2:
        raise SaeError(f"{len(examples)} held-out rows: an interval needs two; give more")
    if model.backend == "mlx":
        raise SaeError("an mlx model has no module to hook; set model.backend: torch for this step")
    site = require_fit(sae, model)
    placed = sae.to(plain_of(model).device)
    states = _state_rows(model, placed, site, examples)
    begin = shared_prefix(examples)
    losses = [_losses(model, placed, site, example, begin) for example in examples]
    rows = pl.DataFrame(
        [
            {"row_id": one.row_id, **own, **loss}
            for one, own, loss in zip(examples, states.rows, losses, strict=True)
        ],
        schema=FIDELITY_SCHEMA,
    )
    active, tokens = states.active > 0, int(rows["n_tokens"].sum())
    if density is not None:
        active, tokens = active | (density[0] > 0), tokens + density[1]
    column = {name: rows[name].to_numpy() for name in rows.columns if name != "row_id"}

    def ratio(top: np.ndarray, bottom: np.ndarray) -> Interval:
        return cluster_bootstrap(
            lambda at: float(top[at].sum() / bottom[at].sum()),
            rows["row_id"].to_numpy(),
            seed=seed,
            n_boot=N_BOOT,
        )

    return Fidelity(
        rows,
        explained=ratio(column["variance"] - column["error"], column["variance"]),
        recovered=ratio(column["nll_zero"] - column["nll_rebuilt"], column["nll_zero"] - column["nll"]),
        l0=ratio(column["l0"] * column["n_tokens"], column["n_tokens"]),
        dead=float(1 - active.mean()),
        dead_tokens=tokens,
    )


@dataclass(frozen=True, eq=False)
class _StateRows:
    rows: list[dict[str, float | int]]  # n_tokens, error, variance, l0 of each
    active: np.ndarray  # int64 [features], tokens of all rows


def _state_rows(model: LoadedModel, sae: Sae, site: Site, examples: Sequence[Example]) -> _StateRows:
    """From one pass: |x - m|^2 of each row is |x|^2 - 2 m.sum(x) + t |m|^2, m being the mean over all rows."""
    found: list[dict[str, float | int]] = [{}] * len(examples)
    begin = shared_prefix(examples)
    sums, squares = np.zeros((len(examples), model.hidden_size)), np.zeros(len(examples))
    active = torch.zeros(sae.n_features, dtype=torch.int64, device=sae.encoder.device)
    for i, whole in each_states(model, [list(one.ids) for one in examples], site.block, site.kind):
        own = whole[begin:].float().to(sae.encoder.device)
        on = sae.encode(own) > 0
        active += on.sum(dim=0)
        left = (own - sae.reconstruct(own)).double()
        found[i] = {
            "n_tokens": len(own),
            "error": float(left.pow(2).sum()),
            "l0": float(on.sum(dim=1).double().mean()),
        }
        sums[i], squares[i] = own.double().sum(dim=0).cpu().numpy(), float(own.double().pow(2).sum())
    tokens = np.array([row["n_tokens"] for row in found])
    mean = sums.sum(axis=0) / tokens.sum()
    variance = squares - 2 * sums @ mean + tokens * (mean @ mean)
    rows = [{**row, "variance": float(own)} for row, own in zip(found, variance, strict=True)]
    return _StateRows(rows, active.cpu().numpy())


def _losses(model: LoadedModel, sae: Sae, site: Site, example: Example, begin: int) -> dict[str, float]:
    """`nll`, `nll_rebuilt` and `nll_zero` of one row, over the tokens from `begin` on."""

    def rebuilt(hidden: Tensor) -> Tensor:
        return _behind_first(hidden, sae.reconstruct(hidden[:, 1:]))

    def zero(hidden: Tensor) -> Tensor:
        return _behind_first(hidden, torch.zeros_like(hidden[:, 1:]))

    return {
        "nll": _nll(model, site, example, begin, None),
        "nll_rebuilt": _nll(model, site, example, begin, rebuilt),
        "nll_zero": _nll(model, site, example, begin, zero),
    }


def _behind_first(hidden: Tensor, rest: Tensor) -> Tensor:
    """States [n, t, hidden] whose first position stays."""
    return torch.cat([hidden[:, :1], rest.to(hidden.dtype)], dim=1)


def _nll(model: LoadedModel, site: Site, example: Example, begin: int, change: Change | None) -> float:
    """Nats of the tokens from `begin` on, summed."""
    plain = plain_of(model)
    ids = torch.tensor([example.ids], device=plain.device)
    with _changed(model, site, change):
        logits = plain.logits(ids)[0, begin - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, begin:], reduction="sum"))


@contextmanager
def _changed(model: LoadedModel, site: Site, change: Change | None) -> Iterator[None]:
    outputs, inner = {}, {}
    if change is not None and site.kind == "output":
        outputs = {site.block: change}
    elif change is not None:
        inner = {site.block: {site.kind: change}}
    with plain_of(model).hooked(outputs, inner):
        yield
