"""What is added to the residual stream, where and how much: plain values, no torch.

A site is the output of one decoder block, what its attention or its MLP adds, or the logits. Blocks count from 0;
`hidden_states[k + 1]` of transformers is the output of block k, except that the last entry is taken after the final
norm, which is why collection uses hooks and not that tuple.
"""

from dataclasses import dataclass

import numpy as np

INNER = ("attention", "mlp")
KINDS = ("output", *INNER, "logits")
# What a term does with the residual stream h at its site, u being its unit direction; see `operators` for the formulas.
OPERATORS = {
    "add": "alpha * u is added; alpha is a length, 0 changes nothing",
    "ablate": "the projection of h on u becomes alpha, a length; 0 is plain directional ablation; no alpha is neutral",
    "rotate": "h is turned towards u (towards -u where alpha is negative) by the share |alpha| <= 1 of the angle "
    "between them, its length kept; 0 changes nothing",
    "cap": "the projection of h on u is clipped to at most alpha, a length; above the largest projection it changes "
    "nothing; a floor f is the cap -f of -u",
}
ADD = "add"


@dataclass(frozen=True)
class Site:
    """A place in decoder block `block`, 0-based from the embedding, where vectors are both collected and added.

    Attributes:
        kind: "output", the residual stream after the block; "attention" or "mlp", what the block's attention or MLP
            (dense or of experts) contributes, as it is when it is added to the residual stream: after the output
            projection and, where a model has one (Gemma 2 and 3), after the norm that follows it; "logits", a bias on
            the logits that the block's vector makes through final norm and output embedding.
    """

    block: int
    kind: str = "output"


def resolve_site(reference: int | float, n_blocks: int) -> Site:
    """A canonical site from an index (negative counts from the end) or a fraction of depth in [0, 1).

    Raises:
        ValueError: the reference is outside the model.
    """
    index = int(reference * n_blocks) if isinstance(reference, float) else reference
    block = index + n_blocks if index < 0 else index
    if not 0 <= block < n_blocks or (isinstance(reference, float) and not 0 <= reference < 1):
        raise ValueError(f"block {reference!r} is outside a model of {n_blocks} blocks")
    return Site(block)


@dataclass(frozen=True, eq=False)
class SteeringTerm:
    """`alpha * unit` is added at `site`, or what another operator does with the two.

    Attributes:
        name: persona, or `random:<persona>`; for messages and provenance.
        unit: fp32 [hidden], Euclidean norm 1.
        alpha: dose as a length in the residual stream; negative steers to the other pole. Of other operators: see
            `OPERATORS`.
        dose_fraction: alpha over the mean residual norm at the site, where known.
        version: content hash of the vector artefact.
        made_on: identity, as text, of the model that the vector was made on; it may have had other adapters than the
            model that is steered.
        operator: one of `OPERATORS`; others than "add" act on block outputs only.
    """

    name: str
    unit: np.ndarray
    site: Site
    alpha: float
    dose_fraction: float | None = None
    version: str | None = None
    made_on: str | None = None
    operator: str = ADD


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """The terms of one variant. No terms: the model as it is.

    Those that add, add up; at one block the other operators follow after them, in the order of the terms.
    """

    variant: str
    terms: tuple[SteeringTerm, ...] = ()
    scope: str = "all"  # "all" positions, or "generated" only
    stream: str | None = None  # name of the random stream; None: the variant's name
