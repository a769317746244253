"""From vectors and doses to steering plans.

In: persona vectors, recommended doses and the variants of the catalogue. Out: `SteeringTerm`s and
`SteeringPlan`s with every dose resolved to a block and a length in the residual stream. Runs no model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from steer_pipeline.catalogue.specs import VariantSpec, VariantTerm
from steer_pipeline.lab.corpus.identity import digest64
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm, resolve_site
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, require_same_model

RECOMMENDATION = "recommendation.json"


@dataclass(frozen=True)
class Recommendation:
    """The dose that dose_curve recommends, or why there is none.

    Attributes:
        block, fraction, alpha: site, fraction of the mean residual norm there, and length; all None when no
            dose will do.
        reason: the rule and the numbers behind the choice, or what failed.
        random_n, random_mean, random_min, random_max: trait shifts of random directions at that block and norm (where
            there is no dose: where the trait moved most); None where none were tried.
        random_rank_p, negative_rank_p: rank of the persona's shift among them, (1 + as far) / (1 + all); the latter of
            the opposite dose, where it was swept and both poles are used.
    """

    persona: str
    block: int | None
    fraction: float | None
    alpha: float | None
    reason: str
    random_n: int | None = None
    random_mean: float | None = None
    random_min: float | None = None
    random_max: float | None = None
    random_rank_p: float | None = None
    negative_rank_p: float | None = None

    @property
    def found(self) -> bool:
        return self.block is not None


def save_recommendation(recommendation: Recommendation, folder: Path) -> None:
    """Writes `recommendation.json`."""
    text = json.dumps(asdict(recommendation), indent=2, allow_nan=False)
    (folder / RECOMMENDATION).write_text(text + "\n", encoding="utf-8")


def load_recommendation(folder: Path) -> Recommendation:
    """What `save_recommendation` wrote, from a dose_curve's folder.

    Raises:
        VectorError: the file is missing or damaged.
    """
    path = folder / RECOMMENDATION
    try:
        return Recommendation(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise VectorError(f"{path}: no readable recommendation ({error}); materialise dose_curve") from error


def make_term(vector: PersonaVector, site: Site, alpha: float, *, version: str | None = None) -> SteeringTerm:
    """`alpha * unit` at `site`; alpha is a length in the residual stream and may be negative.

    A site of kind "logits" takes the vector of its block and acts where the final norm reads: its dose fraction is
    of the last block's residual norm.

    Args:
        version: content hash of the stored vector; default: the vector's digest.

    Raises:
        VectorError: the vector has no direction at the site or was collected at another kind of site, or alpha is not
            finite.
    """
    if vector.site != ("output" if site.kind == "logits" else site.kind):
        raise VectorError(
            f"vector {vector.persona!r} was collected at site {vector.site!r}, it cannot be added at {site.kind!r}; "
            f"give the term `site: {vector.site}`, or collect it there (`vector.site` in the profile)"
        )
    if not np.isfinite(alpha):
        raise VectorError(f"vector {vector.persona!r}: alpha is {alpha}; a finite length is needed")
    measured = vector.metadata.get("residual_norms") is not None
    return SteeringTerm(
        name=vector.persona,
        unit=vector.unit_at(site.block),
        site=site,
        alpha=float(alpha),
        dose_fraction=float(alpha) / vector.residual_norm(_dosed_at(vector, site)) if measured else None,
        version=version or vector.digest,
        made_on=vector.metadata.get("model_identity"),
    )


def random_like(term: SteeringTerm, seed: int) -> SteeringTerm:
    """A seeded random unit direction, uniform on the sphere, with the site and alpha of `term`."""
    direction = np.random.default_rng([seed, term.site.block]).standard_normal(len(term.unit))
    unit = (direction / np.linalg.norm(direction)).astype(np.float32)
    return replace(term, name=f"random:{term.name}", unit=unit, version=f"random-{seed}")


def direction_seed(seed: int, owner: str, place: int, draw: int) -> int:
    """Of one random direction: others for every owner (a variant or persona), term and draw."""
    return digest64(f"{seed}\x1f{owner}\x1f{place}\x1f{draw}")


def draw_of(source_index: int, n: int, seed: int) -> int:
    """Which of `n` directions a row takes: of every `n` rows in a row each takes another, in a keyed order."""
    block, place = divmod(source_index, n)
    return int(np.random.default_rng([seed, block]).permutation(n)[place])


def directions_in(variant: VariantSpec) -> int:
    """Random directions that the rows of a variant share; 1 for a variant without any."""
    return max((term.directions for term in variant.terms if term.direction == "random"), default=1)


def terms_for(
    variant: VariantSpec,
    vectors: Mapping[str, PersonaVector],
    recommendations: Mapping[str, Recommendation],
    n_blocks: int,
    *,
    model: LoadedModel | None = None,
    versions: Mapping[str, str] | None = None,
    seed: int = 0,
    draw: int = 0,
) -> SteeringPlan:
    """The plan of one variant; of one that has random directions, with those of a draw.

    `recommended` multiplies the recommended alpha at the recommended block, `fraction` the mean residual norm
    at the site, `alpha` is the length itself.

    Args:
        vectors, recommendations: by persona; a recommendation is needed where the dose or the block asks for
            one.
        n_blocks: depth of the model that is steered.
        model: LoadedModel; given, each vector must have been made on it.
        versions: content hash of each persona's stored vector.
        seed, draw: of random directions, see `direction_seed`.

    Raises:
        VectorError: a vector or recommendation is missing, has no dose, or does not fit the model.
    """
    terms = []
    for place, spec in enumerate(variant.terms):
        what = f"variant {variant.name!r}, persona {spec.persona!r}"
        vector = vectors.get(spec.persona)
        if vector is None:
            raise VectorError(f"{what}: no vector; materialise persona_vector for {spec.persona}")
        if vector.n_blocks != n_blocks:
            raise VectorError(f"{what}: made on {vector.n_blocks} blocks, the model has {n_blocks}")
        if model is not None:
            require_same_model(vector, model)
        site, alpha = _resolve(spec, vector, recommendations.get(spec.persona), what)
        term = make_term(vector, site, alpha, version=(versions or {}).get(spec.persona))
        if spec.direction == "random":
            term = random_like(term, direction_seed(seed, variant.name, place, draw % spec.directions))
        terms.append(term)
    return SteeringPlan(variant.name, tuple(terms), variant.scope or "all", variant.stream)


def _resolve(
    spec: VariantTerm, vector: PersonaVector, recommended: Recommendation | None, what: str
) -> tuple[Site, float]:
    """Site and alpha of a term."""
    named = None if spec.block is None else resolve_site(spec.block, vector.n_blocks).block
    if named is None or spec.dose.recommended is not None:
        if recommended is None or recommended.block is None or recommended.alpha is None:
            reason = "dose_curve is not materialised" if recommended is None else recommended.reason
            raise VectorError(
                f"{what}: there is no recommended dose ({reason}); "
                "give the term a block and a dose as fraction or alpha in the profile's `variants`"
            )
        if spec.dose.recommended is not None:
            if named not in (None, recommended.block):
                raise VectorError(
                    f"{what}: the recommended dose belongs to block {recommended.block}, the term names "
                    f"block {named}; give a dose as fraction or alpha there"
                )
            return Site(recommended.block, spec.site), spec.dose.recommended * recommended.alpha
        named = recommended.block if named is None else named
    site = Site(named, spec.site)
    if spec.dose.alpha is not None:
        return site, spec.dose.alpha
    return site, (spec.dose.fraction or 0.0) * vector.residual_norm(_dosed_at(vector, site))


def _dosed_at(vector: PersonaVector, site: Site) -> int:
    """The block whose residual norm a dose is a fraction of."""
    return vector.n_blocks - 1 if site.kind == "logits" else site.block
