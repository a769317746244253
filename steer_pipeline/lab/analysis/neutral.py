"""How a model's stream looks on texts that are about nothing in particular: the states that an analysis of weights
stands on.

In: a loaded model and token ids. Out: `Neutral`: states at block outputs, their means, what attention adds on
average, and the null directions that are made of them. Positions of a text but its first count: that is an attention
sink.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from steer_pipeline.lab.analysis.nulls import isotropic_directions, matched_directions, states_of
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loaded import LoadedModel

TENSORS = "neutral.safetensors"


@dataclass(frozen=True, eq=False)
class Neutral:
    """Of one model.

    Attributes:
        states: fp32 [m, n_blocks, hidden], single positions at block outputs.
        mean: fp32 [n_blocks, hidden], the mean over all positions.
        attended: fp32 [n_blocks, hidden], the mean of what each block's attention adds.
        norms: fp32 [n_blocks], mean length at block outputs.
        n_null: null directions that are drawn.
    """

    states: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    attended: np.ndarray = field(repr=False)
    norms: np.ndarray = field(repr=False)
    n_null: int = 1000
    seed: int = 0

    def drawing(self, n_null: int, seed: int) -> "Neutral":
        """The same, with another number of null directions."""
        return replace(self, n_null=n_null, seed=seed)

    def matched(self, block: int) -> np.ndarray:
        """fp32 [n_null, hidden]: null directions of length 1 at the output of a block, with the states' covariance.

        Direction k is one mixture of positions at every block, as a persona's vector is one contrast of texts.
        """
        return matched_directions(self.states[:, block], self.n_null, self.seed)

    def isotropic(self) -> np.ndarray:
        """fp32 [n_null, hidden]: directions from all sides alike, at any block."""
        return isotropic_directions(self.states.shape[2], self.n_null, self.seed)

    def attention_input(self, block: int) -> np.ndarray:
        """fp32 [hidden]: the mean state that a block's attention reads, from block 1 on."""
        return self.mean[_above(block) - 1]

    def mlp_input(self, block: int) -> np.ndarray:
        """fp32 [hidden]: the mean state that a block's MLP reads, from block 1 on."""
        return self.attention_input(block) + self.attended[block]

    def length(self, block: int, fraction: float) -> float:
        """A fraction of the mean length of the stream that a block reads."""
        return fraction * float(self.norms[_above(block) - 1])


def _above(block: int) -> int:
    if block < 1:
        raise ValueError("block 0 reads embeddings, which have no directions; begin at block 1")
    return block


def read_neutral(model: LoadedModel, sequences: Sequence[list[int]]) -> Neutral:
    """Runs the model over the texts.

    Raises:
        ValueError: a text has fewer than two tokens.
    """
    requests = [HiddenRequest(list(ids), 1, len(ids)) for ids in sequences]
    weights = np.array([len(ids) - 1 for ids in sequences], dtype=np.float64)
    weights /= weights.sum()
    means = [
        np.einsum("n,nbh->bh", weights, collect_means(model, requests, kind=kind)).astype(np.float32)
        for kind in ("output", "attention")
    ]
    norms = residual_norms(model, [list(ids) for ids in sequences])
    return Neutral(states_of(model, sequences), means[0], means[1], norms)


def save_neutral(neutral: Neutral, folder: Path) -> None:
    """Writes all arrays."""
    from safetensors.numpy import save_file

    arrays = {name: getattr(neutral, name) for name in ("states", "mean", "attended", "norms")}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / TENSORS)


def load_neutral(folder: Path) -> Neutral:
    """What `save_neutral` wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / TENSORS)
    return Neutral(arrays["states"], arrays["mean"], arrays["attended"], arrays["norms"])
