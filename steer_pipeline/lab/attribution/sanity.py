"""Does an attribution pass the tests that any sound one passes? As in quanda (Bareeva et al. 2024), for rows of text.

In: a scoring function, from pool and queries to a score a row (the higher, the more a row helps), and rows of which
something is known. Out: a verdict with its numbers. It knows no method: whatever gives scores can be tested.
    another model    scores follow what a model has learned: with its weights shuffled they come out otherwise
    mislabelled      rows that teach a wrong answer score low
    copies           a row and its copy score alike
    shortcut         rows that teach a shortcut score high for queries that take it, and not for others
"""

import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr

from steer_pipeline.lab.finetune.data import Example, TextRow
from steer_pipeline.lab.limits import MAX_COPY_GAP, MAX_SHUFFLED_CORRELATION
from steer_pipeline.lab.stats import Interval, auc, auc_interval, cluster_bootstrap
from steer_pipeline.lab.verdict import Verdict

Scorer = Callable[
    [Sequence[Example], Sequence[Example]], Mapping[str, float]
]  # pool, queries -> score by row id

COPY = "#copy"  # at the end of a copy's id


class SanityError(ValueError):
    """A test cannot be made of these rows. The message names the row and the cure."""


# ------------------------------------------------------------------------------------------- tests


def scores_follow_the_model(
    score: Scorer, of_shuffled: Scorer, pool: Sequence[Example], queries: Sequence[Example], *, seed: int
) -> Verdict:
    """Rank correlation of a method's scores on a model and on the same one with shuffled weights.

    Scores that stay what they were say something of texts, not of the model: tokens in common, lengths.

    Args:
        of_shuffled: the method on a model of `shuffled`.
    """
    own, other = _scores(score, pool, queries), _scores(of_shuffled, pool, queries)
    found = cluster_bootstrap(
        lambda rows: _spearman(own[rows], other[rows]), np.arange(len(pool)), seed=seed, n_boot=1000
    )
    return _verdict(
        "scores_follow_the_model",
        found.high < MAX_SHUFFLED_CORRELATION,
        f"rank correlation with the scores of a model with shuffled weights {_shown(found)}, less than "
        f"{MAX_SHUFFLED_CORRELATION:g} is wanted",
        found,
    )


def mislabelled_rows_score_low(
    score: Scorer, pool: Sequence[Example], queries: Sequence[Example], mislabelled: Collection[str]
) -> Verdict:
    """How well low scores find rows that teach a wrong answer: AUC, 0.5 is chance.

    Args:
        mislabelled: ids of rows of the pool; the model whose scores these are has learned them with the others.
    """
    scores, wrong = _scores(score, pool, queries), _labels(pool, mislabelled, "mislabelled")
    found = auc_interval(-scores, wrong)
    seen = np.cumsum(wrong[np.argsort(scores, kind="stable")])
    checked = (int(np.searchsorted(seen, np.ceil(wrong.sum() / 2))) + 1) / len(pool)
    return _verdict(
        "mislabelled_rows_score_low",
        found.low > 0.5,
        f"AUC of low scores for the {int(wrong.sum())} mislabelled rows of {len(pool)} {_shown(found)}, more than 0.5 "
        f"is wanted; half of them stand among the worst {checked:.0%}",
        found,
        checked_for_half=checked,
    )


def copies_score_alike(
    score: Scorer, pool: Sequence[Example], queries: Sequence[Example], *, n: int, first: int, seed: int
) -> Verdict:
    """How far copies of some rows stand from their originals, and how much of the first places they take.

    Args:
        n: rows that are copied, drawn by `seed`.
        first: k of the first places.
    """
    originals = _drawn([one.row_id for one in pool], n, seed)
    copied = [replace(one, row_id=f"{one.row_id}{COPY}") for one in pool if one.row_id in originals]
    both = [*pool, *copied]
    scores = _scores(score, both, queries)
    place = dict(zip((one.row_id for one in both), rankdata(-scores), strict=True))
    gaps = [abs(place[one.row_id] - place[one.row_id.removesuffix(COPY)]) / (len(both) - 1) for one in copied]
    order = sorted(both, key=lambda one: (place[one.row_id], _key(seed, one.row_id)))[:first]
    share = sum(one.row_id.endswith(COPY) for one in order) / max(len(order), 1)
    gap = float(np.mean(gaps))
    return Verdict(
        "copies_score_alike",
        gap <= MAX_COPY_GAP,
        f"{len(copied)} copies stand {gap:.1%} of the ranking from their originals, at most {MAX_COPY_GAP:.0%} is "
        f"wanted; they take {share:.0%} of the first {len(order)} places and are "
        f"{len(copied) / len(both):.0%} of the rows",
        {"mean_gap": gap, "largest_gap": max(gaps), "share_of_first": share, "copies": len(copied)},
    )


def shortcut_rows_are_found(
    score: Scorer,
    pool: Sequence[Example],
    queries: Sequence[Example],
    plain: Sequence[Example],
    shortcut: Collection[str],
    *,
    seed: int,
) -> Verdict:
    """How well scores for queries that take a shortcut find the rows that teach it, and what they find without it.

    Args:
        queries: with the shortcut.
        plain: the same or others without it.
        shortcut: ids of rows of the pool that teach it.
    """
    taken, left = _scores(score, pool, queries), _scores(score, pool, plain)
    teaches = _labels(pool, shortcut, "shortcut")
    found = auc_interval(taken, teaches)

    def more(rows: np.ndarray) -> float:
        labels = teaches[rows]
        if labels.all() or not labels.any():
            return float("nan")
        return auc(taken[rows], labels) - auc(left[rows], labels)

    gain = cluster_bootstrap(more, np.arange(len(pool)), seed=seed, n_boot=1000)
    return _verdict(
        "shortcut_rows_are_found",
        found.low > 0.5 and gain.low > 0,
        f"AUC for the {int(teaches.sum())} shortcut rows of {len(pool)} {_shown(found)}, more than 0.5 is wanted, and "
        f"{_shown(gain)} above that of queries without the shortcut, more than 0 is wanted",
        found,
        more_than_plain=gain.estimate,
        more_than_plain_low=gain.low,
    )


# ------------------------------------------------------------------------------------ what is planted


def mislabelled(rows: Sequence[TextRow], n: int, seed: int) -> tuple[list[TextRow], list[str]]:
    """Rows of which `n` have the completion of another one of these, and the ids of those.

    Raises:
        SanityError: fewer than two different completions are among the rows drawn.
    """
    ids = sorted(_drawn([one.row_id for one in rows], n, seed), key=lambda one: _key(seed, one))
    said = {one.row_id: one.completion for one in rows}
    by_completion = sorted(ids, key=lambda one: said[one])
    most = max((sum(said[one] == text for one in ids) for text in {said[one] for one in ids}), default=0)
    if n < 2 or 2 * most > n:
        raise SanityError(
            f"{n} rows drawn, {most} of them with one completion: no exchange gives each a wrong one; draw more rows, "
            "or rows with more different completions"
        )
    # In order of completion, as many places on as the most frequent one has, there is always another one.
    wrong = {one: said[by_completion[(i + most) % n]] for i, one in enumerate(by_completion)}
    return [replace(one, completion=wrong.get(one.row_id, one.completion)) for one in rows], ids


def with_shortcut(
    rows: Sequence[TextRow], n: int, seed: int, *, mark: str, completion: str
) -> tuple[list[TextRow], list[str]]:
    """Rows of which `n` begin with `mark` and are always answered by `completion`, and the ids of those."""
    ids = _drawn([one.row_id for one in rows], n, seed)
    planted = [
        replace(one, prompt=f"{mark} {one.prompt}", completion=completion) if one.row_id in ids else one
        for one in rows
    ]
    return planted, sorted(ids)


def shuffled(folder: Path, target: Path, seed: int) -> Path:
    """A copy of a directory of a model or adapter in whose weight matrices the entries stand in another order.

    Their spread stays, what they have learned is gone. Norms and biases stay as they are.

    Raises:
        SanityError: there are no weights in safetensors.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    files = sorted(target.glob("*.safetensors"))
    if not files:
        raise SanityError(f"{folder}: no *.safetensors to shuffle; save the model in that format")
    for file in files:
        weights = load_file(file)
        for name in sorted(weights):
            if weights[name].dim() > 1:
                generator = torch.Generator().manual_seed(int.from_bytes(_key(seed, name)[:4], "little"))
                flat = weights[name].flatten()
                weights[name] = flat[torch.randperm(flat.numel(), generator=generator)].view_as(weights[name])
        save_file(weights, file, {"format": "pt"})
    return target


# ------------------------------------------------------------------------------------------ private


def _scores(score: Scorer, pool: Sequence[Example], queries: Sequence[Example]) -> np.ndarray:
    """float64 [pool], in the pool's order."""
    found = score(pool, queries)
    lacking = [one.row_id for one in pool if not np.isfinite(found.get(one.row_id, np.nan))]
    if lacking:
        raise SanityError(
            f"row {lacking[0]!r} and {len(lacking) - 1} others have no score; leave rows out that cannot be scored"
        )
    return np.array([found[one.row_id] for one in pool], dtype=np.float64)


def _labels(pool: Sequence[Example], known: Collection[str], what: str) -> np.ndarray:
    """bool [pool]: which rows are of the kind."""
    wanted = set(known)
    if strange := wanted - {one.row_id for one in pool}:
        raise SanityError(f"{what} row {min(strange)!r} is not in the pool; give the ids of rows that are")
    if not 0 < len(wanted) < len(pool):
        raise SanityError(f"{len(wanted)} of {len(pool)} rows are {what}; some must be, and some not")
    return np.array([one.row_id in wanted for one in pool])


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


def _drawn(ids: Sequence[str], n: int, seed: int) -> set[str]:
    if not 0 < n <= len(ids):
        raise SanityError(f"{n} of {len(ids)} rows cannot be drawn; give a number from 1 to {len(ids)}")
    return set(sorted(ids, key=lambda one: _key(seed, one))[:n])


def _key(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()


def _shown(found: Interval) -> str:
    return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _verdict(claim: str, passed: bool, message: str, found: Interval, **more: float) -> Verdict:
    numbers = {"estimate": found.estimate, "low": found.low, "high": found.high, "rows": found.n, **more}
    return Verdict(claim, bool(passed), message, numbers)
