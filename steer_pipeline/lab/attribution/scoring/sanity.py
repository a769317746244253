"""What a ranking must pass before it is believed, after quanda (Bareeva et al. 2024): four tests that need no training.

In: rankings, and what is known of the rows. Out: numbers with intervals.
    randomised    the ranking by a model of random weights is another one
    mislabelled   rows whose answer is wrong come late
    duplicates    two copies of a row have nearly the same score
    shortcut      rows with a planted token come first for queries that have it, too: `quality.recall`
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from steer_pipeline.lab.attribution.scoring.quality import spearman
from steer_pipeline.lab.attribution.scoring.ranking import Ranking, ScoringError
from steer_pipeline.lab.stats import Interval, auc_interval, cluster_bootstrap, paired_difference

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def randomised_model(source: Path, folder: Path, seed: int = 0) -> Path:
    """A model of the architecture and with the tokenizer of `source`, its weights drawn anew."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)
    model.save_pretrained(folder)
    for name in (*_TOKENIZER, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return folder


def same_as_randomised(ranking: Ranking, randomised: Ranking, *, seed: int = 0) -> Interval:
    """Spearman's correlation of the two, over rows that both score; near 1: the ranking does not read the model."""
    rows = sorted(set(ranking.scores) & set(randomised.scores))
    one, other = (np.array([made.scores[row] for row in rows]) for made in (ranking, randomised))
    return cluster_bootstrap(
        lambda chosen: spearman(one[chosen], other[chosen]), np.arange(len(rows)), seed=seed
    )


def mislabelled_late(ranking: Ranking, mislabelled: Collection[str]) -> Interval:
    """AUC with which low scores tell the mislabelled rows from the others: 0.5 is chance, 1 finds them all.

    Raises:
        ScoringError: none of them has a score, or all rows are mislabelled.
    """
    scores = ranking.scores
    known = set(mislabelled) & set(scores)
    if not known or len(known) == len(scores):
        raise ScoringError(f"{len(known)} of {len(scores)} scored rows are mislabelled; give some, not all")
    rows = sorted(scores)
    return auc_interval([-scores[row] for row in rows], [row in known for row in rows])


def duplicates_apart(ranking: Ranking, duplicate_of: Mapping[str, str], *, seed: int = 0) -> Interval:
    """How far copies lie apart in rank, less how far random pairs do, as a share of the ranking: negative is right.

    Args:
        duplicate_of: row -> the row that it repeats; pairs of which one has no score do not count.

    Raises:
        ScoringError: no such pair.
    """
    ranks = {row: place / len(ranking.ordered) for place, row in enumerate(ranking.ordered)}
    pairs = sorted((one, other) for one, other in duplicate_of.items() if one in ranks and other in ranks)
    if not pairs:
        raise ScoringError("no pair of duplicates of which both have a score")
    rng = np.random.default_rng(seed)
    places = np.array(sorted(ranks.values()))
    apart = [abs(ranks[one] - ranks[other]) for one, other in pairs]
    chance = [float(np.abs(np.subtract(*rng.choice(places, 2, replace=False)))) for _ in pairs]
    return paired_difference(apart, chance, seed=seed)
