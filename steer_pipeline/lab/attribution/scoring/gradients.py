"""Each row's own gradient from one backward pass of many rows: activations times output gradients, module by module.

In: a loaded Torch model and a batch of examples. Out: fp32 [n, D], the gradients of a row's loss by the weights of
every module, projected on both sides to p x p numbers each. Of a model with adapters the modules are the last one's
lora_A and lora_B, of a plain one all linear modules of its blocks. Names, signs and formulas are Bergson's (2.5).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from steer_pipeline.lab.attribution.scoring.projection import projection
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError
from steer_pipeline.lab.finetune.data import IGNORED, Example, batch_inputs, collate, supervised_span
from steer_pipeline.lab.models.loaded import LoadedModel

Batch = dict[str, Tensor]
Objective = Callable[[Any, Batch], Tensor]  # model, batch of n rows -> n numbers, each of its row alone


def modules_of(model: LoadedModel) -> dict[str, nn.Linear]:
    """Linear modules by the name that Bergson has for them, in the model's order.

    Raises:
        ScoringError: MLX, or no such module.
    """
    if model.backend == "mlx":
        raise ScoringError("gradients are Torch's; set model.backend: torch")
    inner = model.module.base_model  # without the head and, of a model with adapters, without PEFT's wrapper
    names = {name: one for name, one in inner.named_modules() if isinstance(one, nn.Linear)}
    if model.adapters:
        last = f".adapter_{len(model.adapters) - 1}"
        found = {
            name.removesuffix(last) + ".default": one for name, one in names.items() if name.endswith(last)
        }
    else:
        found = {name: one for name, one in names.items() if "layers." in name}
    if not found:
        raise ScoringError(f"model {model.name}: no linear modules in its blocks or in its adapter")
    return found


class Gradients:
    """Gradients of rows on one model. One at a time may read."""

    def __init__(self, model: LoadedModel, *, side: int, seed: int = 0) -> None:
        """
        Args:
            side: p of the projection; 0: gradients as they are.
        """
        self.model, self.side = model, side
        self.modules = modules_of(model)
        shapes = {name: (one.out_features, one.in_features) for name, one in self.modules.items()}
        self.sizes = {name: side**2 or out * into for name, (out, into) in shapes.items()}
        self._left: dict[str, Tensor] = {}
        self._right: dict[str, Tensor] = {}
        for name, (out, into) in shapes.items() if side else ():
            self._left[name] = projection(name, "left", seed, side, out).to(model.device)
            self._right[name] = projection(name, "right", seed, side, into).to(model.device)

    def of(self, examples: Sequence[Example], objective: Objective) -> Tensor:
        """fp32 [n, D]: the gradient of each row's objective, the modules one after the other."""
        batch = {name: one.to(self.model.device) for name, one in collate(examples, 0).items()}
        parts = {name: torch.zeros(len(examples), size) for name, size in self.sizes.items()}
        with torch.enable_grad(), self._collecting(parts):
            objective(self.model.module, batch).sum().backward()
        return torch.cat(list(parts.values()), dim=1)

    @contextmanager
    def _collecting(self, parts: dict[str, Tensor]) -> Iterator[None]:
        """Hooks that add each module's gradients [n, size] to `parts` during a backward pass."""
        embeddings = self.model.module.get_input_embeddings()
        hooks = [embeddings.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())]
        hooks += [one.register_forward_hook(self._hook(name, parts)) for name, one in self.modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str, parts: dict[str, Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read = inputs[0].detach().float()  # [n, t, in]
            if self.side:
                read = read @ self._right[name].T  # [n, t, p]

            def backward(gradient: Tensor) -> None:
                written = gradient.float()  # [n, t, out]
                if self.side:
                    written = written @ self._left[name].T
                parts[name] += (written.transpose(1, 2) @ read).flatten(1).cpu()

            output.register_hook(backward)

        return forward


def row_loss(reduction: str) -> Objective:
    """A row's negative log-likelihood over its supervised tokens, their "sum" or "mean"."""

    def loss(module: Any, batch: Batch) -> Tensor:
        nll, counts = row_nll(module, batch)
        return nll / counts if reduction == "mean" else nll

    return loss


def row_nll(module: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed NLL in nats of each row's supervised tokens, and how many they are: [n] each."""
    span = supervised_span(batch["labels"])
    logits = module(**batch_inputs(batch), logits_to_keep=span + 1, use_cache=False).logits[:, -span - 1 : -1]
    targets = batch["labels"][:, -span:]
    nll = functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return nll.sum(1), (targets != IGNORED).sum(1)


def row_projection(block: int, unit: Tensor) -> Objective:
    """Minus the mean projection on `unit` [hidden] of what a block puts out at the supervised positions.

    What lowers this objective moves the model along the direction.
    """

    def objective(module: Any, batch: Batch) -> Tensor:
        states: list[Tensor] = []
        layers = (
            (module.get_base_model() if hasattr(module, "get_base_model") else module).get_decoder().layers
        )
        hook = layers[block].register_forward_hook(
            lambda _module, _inputs, output: states.append(
                output if isinstance(output, Tensor) else output[0]
            )
        )
        try:
            module(**batch_inputs(batch), logits_to_keep=1, use_cache=False)
        finally:
            hook.remove()
        supervised = (batch["labels"] != IGNORED).float()
        along = states[0].float() @ unit.to(states[0].device, torch.float32)  # [n, t]
        return -(along * supervised).sum(1) / supervised.sum(1)

    return objective
