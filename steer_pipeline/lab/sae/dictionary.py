"""A sparse autoencoder as a value: what it makes of states of the residual stream, and back.

In: states fp32 [..., hidden]. Out: features [..., n_features], most of them zero, and what they stand for together. The
formulas are those of sae-lens; it is not needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from steer_pipeline.lab.models.sites import Site

Activation = Literal["relu", "jumprelu", "topk"]
Scaling = Literal["none", "constant_norm_rescale", "layer_norm"]
_EPS = 1e-5  # of sae-lens's layer_norm


class SaeError(ValueError):
    """A sparse autoencoder cannot be read, trained or applied. The message names file or setting, and the cure."""


@dataclass(frozen=True, eq=False)
class Sae:
    """Features f = act((x' - c) W_enc + b_enc) of a state x, and the reconstruction f W_dec + b_dec.

    x' is x as `scaling` has it, c is b_dec where `centred`, else 0. The reconstruction is scaled back.

    Attributes:
        encoder: W_enc, fp32 [hidden, features].
        decoder: W_dec, fp32 [features, hidden].
        encoder_bias: b_enc, fp32 [features].
        decoder_bias: b_dec, fp32 [hidden].
        activation: "relu"; "jumprelu": x where x > threshold, else 0; "topk": the k largest, if above 0.
        threshold: fp32 [features], of jumprelu.
        k: of topk.
        by_norm: topk compares features times the lengths of their decoder rows, and gives them so.
        site: where the model has the states; None: unknown.
        metadata: what its maker says of it.
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor
    activation: Activation = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    by_norm: bool = False
    centred: bool = True
    scaling: Scaling = "none"
    site: Site | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hidden_size(self) -> int:
        return self.encoder.shape[0]

    @property
    def n_features(self) -> int:
        return self.encoder.shape[1]

    def to(self, device: Any) -> "Sae":
        """The same with its tensors on `device`."""
        names = ("encoder", "decoder", "encoder_bias", "decoder_bias")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        if self.threshold is not None:
            moved["threshold"] = self.threshold.to(device)
        return replace(self, **moved)

    def encode(self, states: Tensor) -> Tensor:
        """Features [..., n_features] of states [..., hidden]; never below zero."""
        return self._encoded(self._scaled(states.float())[0])

    def reconstruct(self, states: Tensor) -> Tensor:
        """What is left of states [..., hidden] when only their features are kept; fp32, of the same shape."""
        scaled, back = self._scaled(states.float())
        return back(self._decoded(self._encoded(scaled)))

    def _encoded(self, scaled: Tensor) -> Tensor:
        centred = scaled - self.decoder_bias if self.centred else scaled
        raw = centred @ self.encoder + self.encoder_bias
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return raw.relu() * (raw > self.threshold)
        if self.activation == "topk":
            assert self.k is not None
            if self.by_norm:
                raw = raw * self.decoder.norm(dim=-1)
            return top_k(raw, self.k)
        return raw.relu()

    def _decoded(self, features: Tensor) -> Tensor:
        if self.by_norm:
            features = features / self.decoder.norm(dim=-1)
        return features @ self.decoder + self.decoder_bias

    def _scaled(self, states: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """States as the encoder takes them, and the way back."""
        if self.scaling == "constant_norm_rescale":
            factor = self.hidden_size**0.5 / states.norm(dim=-1, keepdim=True)
            return states * factor, lambda out: out / factor
        if self.scaling == "layer_norm":
            mean = states.mean(dim=-1, keepdim=True)
            spread = (states - mean).std(dim=-1, keepdim=True)
            return (states - mean) / (spread + _EPS), lambda out: out * spread + mean
        return states, lambda out: out


def top_k(raw: Tensor, k: int) -> Tensor:
    """[..., n]: the k largest of each row of `raw`, where they are above zero; the others are zero."""
    values, places = raw.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(raw).scatter(-1, places, values.relu())


def checked(sae: Sae, where: str) -> Sae:
    """`sae`, whose shapes fit each other.

    Raises:
        SaeError: they do not, or a number is not finite.
    """
    hidden, n = sae.encoder.shape if sae.encoder.ndim == 2 else (0, 0)
    expected: dict[str, tuple[int, ...]] = {
        "encoder": (hidden, n),
        "decoder": (n, hidden),
        "encoder_bias": (n,),
        "decoder_bias": (hidden,),
    }
    if sae.activation == "jumprelu":
        expected["threshold"] = (n,)
    for name, shape in expected.items():
        tensor = getattr(sae, name)
        if tensor is None or not n or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else list(tensor.shape)
            raise SaeError(f"{where}: its {name} is {found}, {list(shape)} fits; fetch the directory again")
        if not tensor.isfinite().all():
            raise SaeError(f"{where}: its {name} has values that are not finite; fetch the directory again")
    if sae.activation == "topk" and not (sae.k and 1 <= sae.k <= n):
        raise SaeError(f"{where}: k is {sae.k} of {n} features; give 1 to {n}")
    return sae
