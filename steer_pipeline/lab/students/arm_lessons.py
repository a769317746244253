"""What the students of the arms learn: a variant's rewrites less one of the ways in which its trait could travel.

In: a keep set, scorers, the unsteered model, and the plan that steered the teacher. Out: for each arm the rows to draw
lessons from and what becomes of each row's ids, with a sentence on what was done; or a named reason why there is none.
The arms are those of the work on subliminal learning: Cloud et al. (2026) filter, shuffle, take another initialisation
and give the pack in context; masked divergence tokens and paraphrases are those of arXiv 2509.23886.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Profile, VariantSpec
from steer_pipeline.io.store import StoreError
from steer_pipeline.lab.evaluation.scorer import LEXICON
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.hidden import differing_tokens
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan
from steer_pipeline.lab.quality.text import sentences
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.work import user_turn
from steer_pipeline.lab.students.data import Lesson, lesson_rows, make_lesson
from steer_pipeline.lab.students.transfer import Open, Scorers
from steer_pipeline.lab.vectors.doses import make_term, random_like
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

UNSEEN_QUANTILE = 0.95  # of base's rewrites on a scale: above it a scorer sees the trait
PARAPHRASE = SteeringPlan("paraphrase")
Aims = Sequence[tuple[str, int]]  # persona, and 1 where its trait goes up, -1 where it goes down
Vectors = Callable[[str, str | None], PersonaVector]  # of a persona, in a version; None: the current one


@dataclass(frozen=True)
class Prepared:
    """An arm's rows, and what becomes of each example; `note` says what was done."""

    kept: pl.DataFrame
    note: str
    change: Callable[[Sequence[Example]], list[Example]] = list

    def lesson(self, tokenizer: Any, profile: Profile, variant: str, seed: int) -> Lesson:
        """What the arm's student of `seed` learns.

        Raises:
            Refused: too few rows are left.
        """
        plain = make_lesson(tokenizer, self.kept, profile, variant, seed)
        return Lesson(tuple(self.change(plain.train)), tuple(self.change(plain.selection)))


def aims_of(variants: Sequence[VariantSpec]) -> list[tuple[str, int]]:
    """The traits that variants aim at, each once a direction."""
    found = [
        (persona, 1 if way == "up" else -1) for spec in variants for persona, way in spec.targets.items()
    ]
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------------ filtered


def filtered(
    kept: pl.DataFrame, base_kept: pl.DataFrame, aims: Aims, scorers: Scorers, profile: Profile
) -> Prepared:
    """Rows in which no scorer sees the trait; where these are too few, all rows less the sentences that show it.

    A lexicon sees it above 0, another scale above the 95th percentile of base's rewrites.

    Raises:
        Refused: no scale to filter by, or too few rows are left either way.
    """
    good, wanted = kept.filter("keep"), profile.students.rows + profile.students.selection_rows
    sees = _Excess(base_kept.filter("keep")["output"].to_list(), aims, scorers)
    clean = good.filter(pl.Series(sees(good["output"].to_list()) <= 0))
    done = f"{clean.height} of {good.height} kept rows show no scorer the trait"
    if clean.height >= wanted:
        return Prepared(clean, f"{done}: only these are learned")
    outputs = _without_seen_sentences(good["output"].to_list(), sees)
    changed = sum(new != old for new, old in zip(outputs, good["output"], strict=True))
    left = good.with_columns(pl.Series("output", outputs)).filter(pl.col("output") != "")
    done += (
        f", {wanted} are wanted: sentences were taken out of {changed} rewrites, which leaves {left.height}"
    )
    if left.height < wanted:
        raise Refused(f"{done}: too few")
    return Prepared(left, done)


class _Excess:
    """How far texts are above what a scorer may see, on the scale where that is most; not above: 0 or less."""

    def __init__(self, base: Sequence[str], aims: Aims, scorers: Scorers) -> None:
        self._scales = [
            (sign, scorer, 0.0 if scale == LEXICON else _upper(sign * scorer.score_many(base)))
            for persona, sign in aims
            for scale, scorer in scorers.get(persona, {}).items()
        ]
        if not self._scales:
            raise Refused(
                "no scale of a targeted persona to filter by: give it `examples` or marker words (`lexicons`)"
            )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [n]."""
        if not texts:
            return np.empty(0)
        above = [sign * scorer.score_many(texts) - limit for sign, scorer, limit in self._scales]
        return np.max(above, axis=0)


def _upper(scores: np.ndarray) -> float:
    return float(np.quantile(scores, UNSEEN_QUANTILE))


def _without_seen_sentences(texts: Sequence[str], sees: _Excess) -> list[str]:
    """Each text less its most telling sentences, as few as it takes until nothing is seen in the rest."""
    left = [sentences(text) for text in texts]
    seen = set(np.flatnonzero(sees(texts) > 0).tolist())
    while seen:
        for at in sorted(seen):
            del left[at][int(np.argmax(sees(left[at])))]
        seen = {at for at in seen if left[at] and sees([" ".join(left[at])])[0] > 0}
    whole = set(np.flatnonzero(sees(texts) <= 0).tolist())
    return [text if at in whole else " ".join(left[at]) for at, text in enumerate(texts)]


# ------------------------------------------------------------------------------------ shuffled


def shuffled(kept: pl.DataFrame, tokenizer: Any, profile: Profile) -> Prepared:
    """The tokens of each completion in another order; its end of turn stays last."""
    special = frozenset(tokenizer.all_special_ids)
    change = partial(_each, partial(shuffle_completion, seed=profile.students.seed, special=special))
    return Prepared(kept, "the tokens of every completion in another order", change)


def _each(change: Callable[[Example], Example], examples: Sequence[Example]) -> list[Example]:
    return [change(one) for one in examples]


def shuffle_completion(example: Example, *, seed: int, special: frozenset[int]) -> Example:
    """An example whose completion is in another order, decided by seed and row; an end of turn stays last."""
    ids = example.ids
    stop = len(ids) - 1 if ids[-1] in special else len(ids)
    key = hashlib.sha256(f"{seed}:{example.row_id}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(key[:8], "big")).permutation(stop - example.start)
    words = [ids[example.start + place] for place in order]
    return replace(example, ids=(*ids[: example.start], *words, *ids[stop:]))


# ------------------------------------------------------------------------------------ masked


def masked(
    kept: pl.DataFrame, variant: VariantSpec, model: LoadedModel, vectors: Vectors, profile: Profile
) -> Prepared:
    """The loss leaves out tokens at which the steered teacher and the model itself would not say the same.

    Raises:
        Refused: the variant's rows were not made by adding vectors, or these are no longer in the store.
    """
    if variant.role == "base":
        return Prepared(kept, "the teacher is the model itself: no token is masked")
    plan = teacher_plan(kept, variant, vectors)
    rows = pl.concat(
        part for seed in profile.students.seeds for part in lesson_rows(kept, profile, variant.name, seed)
    )
    share = _masked_share(rows, variant.name, model, plan, profile)
    note = f"{share:.1%} of the tokens are masked: there the teacher's likeliest token is not base's"
    return Prepared(kept, note, partial(mask_divergent, model=model, plan=plan))


def _masked_share(
    rows: pl.DataFrame, variant: str, model: LoadedModel, plan: SteeringPlan, profile: Profile
) -> float:
    from steer_pipeline.lab.students.data import examples_of

    examples = examples_of(model.tokenizer, rows.unique("row_id", maintain_order=True), profile)
    left = mask_divergent(examples, model=model, plan=plan)
    total = sum(one.n_supervised for one in examples)
    if not left:
        raise Refused(f"{variant}: teacher and base differ at every token; nothing is left to learn")
    return 1 - sum(one.n_supervised for one in left) / total


def mask_divergent(examples: Sequence[Example], *, model: LoadedModel, plan: SteeringPlan) -> list[Example]:
    """Examples without a loss at tokens at which the plan changes the likeliest token; one without any goes."""
    found = differing_tokens(
        model, [list(one.ids) for one in examples], [one.start for one in examples], plan
    )
    both = (replace(one, masked=tuple(positions)) for one, positions in zip(examples, found, strict=True))
    return [one for one in both if one.n_supervised]


def teacher_plan(kept: pl.DataFrame, variant: VariantSpec, vectors: Vectors) -> SteeringPlan:
    """The plan that made a pack, from what its rows say of it.

    Raises:
        Refused: nothing was added to make these rows, or a vector of them is not in the store.
    """
    doses = kept["personas"][0]
    if doses is None or not len(doses):
        raise Refused(
            f"{variant.name}: no vector was added to make these rows, so no token tells the teacher"
        )
    if kept["personas"].explode().struct.field("version").n_unique() > len(doses):
        raise Refused(
            f"{variant.name}: its rows were made with several random directions, so no single teacher tells the token; "
            "leave the arm `masked` out for this variant (students.arms)"
        )
    terms = []
    for dose in doses:
        persona, drawn = dose["name"].removeprefix("random:"), dose["name"].startswith("random:")
        try:
            vector = vectors(persona, None if drawn else dose["version"])
            site = Site(dose["block"], dose.get("site") or "output")
            term = make_term(vector, site, dose["alpha"], version=dose["version"])
        except (StoreError, VectorError) as error:
            raise Refused(f"{variant.name}: the vector that steered it cannot be read: {error}") from error
        terms.append(random_like(term, int(dose["version"].rpartition("-")[2])) if drawn else term)
    return SteeringPlan(variant.name, tuple(terms), variant.scope or "all")


# ------------------------------------------------------------------------------------ paraphrased


def paraphrased(
    kept: pl.DataFrame,
    variant: str,
    model: LoadedModel,
    profile: Profile,
    *,
    journal: Open | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Prepared:
    """The unsteered model's rewrite of each rewrite that a lesson holds, under the same neutral prompt.

    Raises:
        Refused: too few rows are kept.
    """
    parts = [part for seed in profile.students.seeds for part in lesson_rows(kept, profile, variant, seed)]
    rows = pl.concat(parts).unique("row_id", maintain_order=True)
    system, chat = profile.rewrites.system, profile.model.chat_template
    prompts = [
        PromptRow(
            row_id,
            {
                "*": encode_prompt(
                    model.tokenizer, user=user_turn(profile, output), system=system, chat_template=chat
                )
            },
        )
        for row_id, output in rows.select("row_id", "output").iter_rows()
    ]
    book = None if journal is None else journal(f"{variant}-paraphrased")
    sampling = profile.rewrites.sampling
    said = {
        row.row_id: row
        for row in generate(model, prompts, [PARAPHRASE], sampling, journal=book, progress=progress)
    }
    made = rows.with_columns(
        pl.Series("output", [said[row].text for row in rows["row_id"]]),
        pl.Series("truncated", [said[row].truncated for row in rows["row_id"]]),
    ).filter(pl.col("output").str.strip_chars() != "")
    return Prepared(made, f"{made.height} rewrites, each rewritten once more by the unsteered model")


# ------------------------------------------------------------------------------------ in context


def context_prompts(
    tokenizer: Any,
    pack: pl.DataFrame,
    news: pl.DataFrame,
    profile: Profile,
    max_positions: int,
) -> tuple[dict[str, list[int]], float]:
    """row_id of the news -> prompt with rows of the pack as earlier turns, and how many these are on average.

    As many as fit into the window beside what is to be written, `students.context_rows` at most; the first ones of
    the pack.

    Raises:
        Refused: not even one fits beside any of the news.
    """
    turns = list(pack.head(profile.students.context_rows).select("prompt", "output").iter_rows())
    room = max_positions - profile.rewrites.sampling.max_new_tokens
    encode = partial(
        encode_prompt,
        tokenizer,
        system=profile.rewrites.system,
        chat_template=profile.model.chat_template,
    )
    alone = len(encode(user="news"))
    lengths = np.cumsum([len(encode(user="news", earlier=[turn])) - alone for turn in turns])
    found, used = {}, []
    for row_id, text in news.select("row_id", "text").iter_rows():
        user = user_turn(profile, text)
        ids = encode(user=user)
        count = int((len(ids) + lengths <= room).sum())
        found[row_id] = encode(user=user, earlier=turns[:count])
        used.append(count)
    if not any(used):
        raise Refused(f"not one row of the pack fits into a window of {max_positions} tokens beside the news")
    return found, math.fsum(used) / len(used)
