"""A trait scale for any model: MiniLM fitted on a persona's examples, with its evidence.

In: a persona with `examples`. Out: a scorer fitted on the pairs of `fit`, and what it does on the pairs of `held_out`,
which it has not seen. The examples are plain English, so the scale needs nothing that a model was taught to say.
"""

from collections.abc import Sequence

import numpy as np

from steer_pipeline.catalogue.specs import Persona, StatementPair
from steer_pipeline.lab.evaluation.minilm import (
    MiniLMScorer,
    SeparationReport,
    balanced_logistic,
    embed_once,
    shuffled_within,
)
from steer_pipeline.lab.quality.text import words
from steer_pipeline.lab.stats import auc, auc_interval


class ExamplesError(ValueError):
    """A persona's examples are missing, or no scale can be made of them. The message names persona and cure."""


def example_scorer(persona: Persona, *, seed: int = 17, n_shuffles: int = 100) -> MiniLMScorer:
    """A persona's scale in [-1, 1], fitted on the examples for fitting and judged on those held out.

    Args:
        n_shuffles: fits with shuffled labels that the null stands on.

    Returns:
        The scorer. Its `report` is of the held-out pairs: AUC with an interval over pairs; mean and 95th percentile of
        the AUC when labels are shuffled within pairs, of both halves; AUC of the number of words, over all pairs.

    Raises:
        ExamplesError: the persona has no examples, or its scale does not tell the held-out poles apart: the AUC is
            not above that of shuffled labels, or its interval reaches chance.
    """
    if persona.examples is None:
        raise ExamplesError(
            f"persona {persona.name} has no examples; give it pairs of statements of its poles"
        )
    fit, held_out = persona.examples.fit, persona.examples.held_out
    # The cross-validated report within `fit`, null included, gives way to that of the held-out pairs.
    scorer = MiniLMScorer(seed=seed, n_shuffles=1)
    scorer.fit([pair.positive for pair in fit], [pair.negative for pair in fit], range(len(fit)))
    scorer.report = found = _judged(scorer, fit, held_out, seed, n_shuffles)
    if not found.separates:
        raise ExamplesError(
            f"persona {persona.name}: a scale fitted on {len(fit)} pairs of its examples does not tell the poles of "
            f"the {len(held_out)} held-out pairs apart: AUC {found.auc.estimate:.2f} [{found.auc.low:.2f}, "
            f"{found.auc.high:.2f}], with shuffled labels up to {found.shuffled_high:.2f}. Write examples in which "
            "each pole is plain to see, or more of them"
        )
    return scorer


def _judged(
    scorer: MiniLMScorer,
    fit: Sequence[StatementPair],
    held_out: Sequence[StatementPair],
    seed: int,
    n_shuffles: int,
) -> SeparationReport:
    known, new = _texts(fit), _texts(held_out)
    labels, truth = np.repeat([1, 0], len(fit)), np.repeat([1, 0], len(held_out))
    pairs, held_out_pairs = np.tile(np.arange(len(fit)), 2), np.tile(np.arange(len(held_out)), 2)
    features, judged = embed_once(known), embed_once(new)
    rng, shuffled = np.random.default_rng(seed), []
    for _ in range(n_shuffles):
        # Both halves are shuffled: labels drawn for one alone follow or oppose the trait of the other by chance, and
        # the AUC strays far from 0.5.
        fake = shuffled_within(labels, pairs, rng)
        scores = balanced_logistic().fit(features, fake).predict_proba(judged)[:, 1]
        shuffled.append(auc(scores, shuffled_within(truth, held_out_pairs, rng)))
    return SeparationReport(
        auc=auc_interval(scorer.score(new), truth, groups=held_out_pairs, seed=seed),
        shuffled_mean=float(np.mean(shuffled)),
        shuffled_high=float(np.quantile(shuffled, 0.95)),
        length_auc=auc([len(words(text)) for text in known + new], np.r_[labels, truth]),
        n_texts=len(new),
        n_contexts=len(held_out),
    )


def _texts(pairs: Sequence[StatementPair]) -> list[str]:
    """Positive statements first."""
    return [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
