"""A direction that tells one pole's pack from the other's in the unsteered model, and where rewrites lie along it.

In: means of hidden states over the rewrites of a variant, of its counterpart and of base on the same news
(`transfer`). Out: a unit direction at the block at which it separates best on pairs left out of its fit, and
projections in standard deviations of base's. No model runs here. What it is fitted on is never what it is applied to:
its own AUC is cross-fitted over news, and students are projected on news that no pack has.

The counterpart is the variant that steers to the other pole, where there is one: against base alone a direction reads
whatever steering does to a text, such as its length, and both poles move the same way along it.
"""

from dataclasses import dataclass

import numpy as np

from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.stats import Interval, auc, auc_interval, grouped_folds

FOLDS = 5
SHUFFLES = 50
MIN_PAIRS = 4


@dataclass(frozen=True, eq=False)
class Readout:
    """Where a persona shows.

    Attributes:
        teacher, against: variants whose packs it is fitted on.
        at: place among the blocks that were read; `block` is its number.
        direction: fp64 [hidden], unit.
        zero, unit: mean and standard deviation of base's cross-fitted projections.
        auc: of cross-fitted projections of the two, over news; `shuffled_high` is the 95th percentile
            of the same with labels exchanged within pairs.
        teacher_shift: mean of the steered pack's cross-fitted projections over base's, in `unit`s.
    """

    teacher: str
    against: str
    at: int
    block: int
    direction: np.ndarray
    zero: float
    unit: float
    auc: Interval
    shuffled_high: float
    teacher_shift: float
    n_pairs: int

    @property
    def separates(self) -> bool:
        """Better than chance and than exchanged labels."""
        return self.auc.low > 0.5 and self.auc.estimate > self.shuffled_high

    def project(self, states: np.ndarray) -> np.ndarray:
        """fp64 [n]: states [n, blocks read, hidden] along the direction, in standard deviations of base's."""
        return (states[:, self.at].astype(np.float64) @ self.direction - self.zero) / self.unit


def fit_readout(
    teacher: str,
    against: str,
    states: dict[str, np.ndarray],
    base: str,
    blocks: list[int],
    *,
    seed: int,
) -> Readout:
    """A read-out from pairs.

    Args:
        states: variant -> [pairs, blocks read, hidden] of the same news in the same order, of `teacher`, `against` and
            `base`.

    Raises:
        Refused: fewer than `MIN_PAIRS` pairs, or the two packs are equal.
    """
    ours, theirs, plain = (states[name].astype(np.float64) for name in (teacher, against, base))
    n = len(ours)
    if n < MIN_PAIRS:
        raise Refused(
            f"{n} news items are learned by students of {teacher}, {against} and {base} alike, and a read-out needs "
            f"{MIN_PAIRS}; raise students.rows"
        )
    if np.array_equal(ours, theirs):
        raise Refused(
            f"the rewrites of {teacher} and {against} are the same; there is no direction between them"
        )
    folds = grouped_folds(np.arange(n), min(FOLDS, n), seed)
    labels, pairs = np.repeat([1, 0], n), np.tile(np.arange(n), 2)
    sides = [_crossfitted(ours[:, b], theirs[:, b], folds, plain[:, b]) for b in range(len(blocks))]
    areas = [auc(np.concatenate(side[:2]), labels) for side in sides]
    at = int(np.argmax(areas))
    up, down, middle = sides[at]
    zero, unit = float(middle.mean()), max(float(middle.std(ddof=1)), 1e-12)
    return Readout(
        teacher=teacher,
        against=against,
        at=at,
        block=blocks[at],
        direction=_direction(ours[:, at], theirs[:, at]),
        zero=zero,
        unit=unit,
        auc=auc_interval(np.concatenate([up, down]), labels, groups=pairs, seed=seed),
        shuffled_high=_null(ours, theirs, folds, seed),
        teacher_shift=float((up.mean() - zero) / unit),
        n_pairs=n,
    )


def _direction(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Unit mean difference of [n, hidden]."""
    difference = (ours - theirs).mean(axis=0)
    return difference / max(float(np.linalg.norm(difference)), 1e-12)


def _crossfitted(
    ours: np.ndarray, theirs: np.ndarray, folds: np.ndarray, *others: np.ndarray
) -> list[np.ndarray]:
    """Projections [n] of both sides and of others, each row along the direction that the other folds give."""
    sides = (ours, theirs, *others)
    found = [np.empty(len(ours)) for _ in sides]
    for fold in np.unique(folds):
        out = folds == fold
        direction = _direction(ours[~out], theirs[~out])
        for values, side in zip(found, sides, strict=True):
            values[out] = side[out] @ direction
    return found


def _null(ours: np.ndarray, theirs: np.ndarray, folds: np.ndarray, seed: int) -> float:
    """95th percentile of the best block's AUC when sides are exchanged within pairs and all is fitted anew."""
    rng, areas = np.random.default_rng(seed), []
    labels = np.repeat([1, 0], len(ours))
    for _ in range(SHUFFLES):
        turned = rng.integers(0, 2, len(ours)).astype(bool)[:, None, None]
        first, second = np.where(turned, theirs, ours), np.where(turned, ours, theirs)
        scores = [_crossfitted(first[:, b], second[:, b], folds) for b in range(ours.shape[1])]
        areas.append(max(auc(np.concatenate(each), labels) for each in scores))
    return float(np.quantile(areas, 0.95))
