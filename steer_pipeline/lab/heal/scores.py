"""Every score by which a sample is judged: how much it repeats, how likely it is, what it leaks.

In: texts with their prompts, and the loss of each of their tokens under the original model (no vector, no adapter).
Out: one column a score, all of them kept with the sample, whatever is decided by them later. A measure that looks at
the whole text misses a collapse near its end, so measures of loops and likelihood look at windows and report the worst.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealFilterSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.models.completions import completion_losses
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.quality.leaks import Told, persona_leak, refusal
from steer_pipeline.lab.quality.loops import character_cycle, counting_cycle, find_cycle, repeated_windows
from steer_pipeline.lab.quality.repeats import longest_repeat
from steer_pipeline.lab.quality.suspects import RULES
from steer_pipeline.lab.quality.text import words

# Of the suspect rules those that hold for any text, not only for rewrites of a source; loops are measured here.
SUSPECTS = ("empty", "prompt_echo", "special_tokens", "control_chars", "other_script")
NEEDED = {
    "sample_id": "its own name",
    "prompt_id": "which prompt it answers",
    "dose": "of the vector",
    "prompt": "the prompt's text",
    "output": "the text",
    "truncated": "whether the token limit cut it",
    "token_ids": "its tokens as they were generated",
}
SCORE_SCHEMA, SCORES = described(
    n_words=(pl.Int64(), "Words of the text."),
    cycle_period=(pl.Int64(), "Words, or characters, of the longest cycle; null without one."),
    cycle_rounds=(pl.Float64(), "How often it goes round; 0 without one."),
    duplicate_mass=(
        pl.Float64(),
        "Share of 3-word runs that repeat an earlier one, of the text or its worst window.",
    ),
    distinct=(pl.Float64(), "Smallest share of distinct words in a window."),
    compression=(pl.Float64(), "Smallest ratio of a window's bytes after zlib to those before."),
    longest_repeat=(pl.Float64(), "Words of the longest run that stands twice, as a share of the text's."),
    nll=(pl.Float64(), "Mean loss of its tokens under the original model, nats; null where not measured."),
    nll_high=(pl.Float64(), "Mean loss of its unlikeliest window."),
    nll_low=(pl.Float64(), "Mean loss of its likeliest window."),
    leak=(pl.String(), "Words in which it speaks of its instructions, or null."),
    refusal=(pl.String(), "Words in which it declines, or null."),
    suspects=(pl.List(pl.String()), "Suspect rules that it breaks."),
)
MIN_COMPRESSED_WORDS = 20  # fewer are all header to zlib, and few words differ from each other anyway
GRAM = 3


def with_losses(
    rows: pl.DataFrame, model: LoadedModel, *, prompt_ids: str = "prompt_ids", token_ids: str = "token_ids"
) -> pl.DataFrame:
    """The rows with `losses`: list of fp32, nats of each token of the sample under the unsteered model.

    The ids are those that were generated. Nothing is decoded and encoded again: a tokenizer may join the end of a
    prompt and the beginning of an answer, and then others were measured than are learned.

    Args:
        rows: with a column of each prompt's ids and one of each sample's.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, ids in enumerate(rows[prompt_ids].to_list()):
        places.setdefault(tuple(ids), []).append(place)
    samples = rows[token_ids].to_list()
    of_prompt = completion_losses(model, list(places), [[samples[i] for i in own] for own in places.values()])
    losses: list[np.ndarray] = [np.empty(0)] * rows.height
    for own, found in zip(places.values(), of_prompt, strict=True):
        for place, values in zip(own, found, strict=True):
            losses[place] = values
    return rows.with_columns(pl.Series("losses", [v.tolist() for v in losses], dtype=pl.List(pl.Float32)))


def score_samples(
    rows: pl.DataFrame,
    spec: HealFilterSpec,
    *,
    told: Told = Told(),
    special_tokens: Sequence[str] = (),
) -> pl.DataFrame:
    """The rows with a column a score.

    Args:
        rows: the columns of `NEEDED`, and `losses` where they are measured.
        told: what the steered persona is called and asked, so that its leaking is seen.

    Raises:
        ValueError: a column is missing, an id stands twice, or a text is null (its row is named).
    """
    check_rows(rows)
    losses = rows["losses"].to_list() if "losses" in rows.columns else [None] * rows.height
    found = []
    for text, prompt, own in zip(rows["output"], rows["prompt"], losses, strict=True):
        given = prompt or ""
        broken = [name for name in SUSPECTS if RULES[name].hits(text, given, special_tokens)]
        found.append(
            loop_scores(text, spec.window_words)
            | loss_scores(own, spec.nll_window)
            | {
                "leak": persona_leak(text, told, given),
                "refusal": refusal(text, given),
                "suspects": broken,
            }
        )
    return pl.concat([rows, pl.DataFrame(found, schema=SCORE_SCHEMA)], how="horizontal")


def check_rows(rows: pl.DataFrame) -> None:
    for name, holds in NEEDED.items():
        if name not in rows.columns:
            raise ValueError(
                f"samples have no column {name!r} ({holds}); they have {', '.join(rows.columns)}"
            )
    if rows["sample_id"].is_duplicated().any():
        twice = rows.filter(pl.col("sample_id").is_duplicated())["sample_id"][0]
        raise ValueError(f"sample_id {twice} stands in more than one row; each sample needs its own")
    if "losses" in rows.columns:
        uneven = rows.filter(pl.col("losses").list.len() != pl.col("token_ids").list.len())
        if uneven.height:
            name = uneven["sample_id"][0]
            raise ValueError(
                f"sample {name}: it has not as many losses as tokens; measure them again (with_losses)"
            )
    if rows["output"].null_count():
        name = rows.filter(pl.col("output").is_null())["sample_id"][0]
        raise ValueError(f"sample {name}: output is null; a sample without text is the empty string")


# --------------------------------------------------------------------------------------- measures


def loop_scores(text: str, window_words: int) -> dict[str, float | int | None]:
    """How much a text repeats itself, in words, whatever the period; all zero or one for a text without words.

    Nothing costs more than n log n in the length: windows are of one size, and repeats are found through `Repeats`.
    """
    tokens = words(text)
    period, rounds = _longest_cycle(text, tokens)
    # Of the whole text, too: whole sentences that come back after a window's length.
    mass, distinct, compression = repeated_windows(tokens, GRAM), 1.0, 1.0
    for window in _windows(tokens, window_words, max(1, window_words // 4)):
        mass = max(mass, repeated_windows(window, GRAM))
        if len(window) >= MIN_COMPRESSED_WORDS:
            distinct = min(distinct, len(set(window)) / len(window))
            compression = min(compression, _compressed(" ".join(window)))
    return {
        "n_words": len(tokens),
        "cycle_period": period,
        "cycle_rounds": rounds,
        "duplicate_mass": mass,
        "distinct": distinct,
        "compression": compression,
        "longest_repeat": longest_repeat(tokens) / len(tokens) if tokens else 0.0,
    }


def _longest_cycle(text: str, tokens: Sequence[str]) -> tuple[int | None, float]:
    """Period and rounds of the cycle with most rounds: of words, of words around numbers that count, of characters."""
    cycles = [find_cycle(tokens), counting_cycle(tokens), character_cycle(text)]
    found = [cycle for cycle in cycles if cycle is not None]
    best = max(found, key=lambda cycle: cycle.rounds, default=None)
    return (None, 0.0) if best is None else (best.period, best.rounds)


def _windows(items: Sequence, size: int, step: int) -> Iterator[Sequence]:
    """Windows of `size` items every `step`, the last at the end; all items where there are no more."""
    last = max(0, len(items) - size)
    for start in [*range(0, last, step), last]:
        yield items[start : start + size]


def _compressed(text: str) -> float:
    raw = text.encode("utf-8", "replace")
    return min(1.0, len(zlib.compress(raw, 9)) / len(raw))


def loss_scores(losses: Sequence[float] | None, window: int) -> dict[str, float | None]:
    """Mean loss of all tokens, and of the windows with the highest and lowest mean; null without a token."""
    if losses is None or not len(losses):
        return {"nll": None, "nll_high": None, "nll_low": None}
    means = _window_means(losses, window)
    return {"nll": float(np.mean(losses)), "nll_high": max(means), "nll_low": min(means)}


@dataclass(frozen=True)
class Expected:
    """What base's tokens cost by their rarity, and what a token counts for at most.

    Tokenizers number tokens by how common they are, so the logarithm of a token's number stands for its rarity. Loss
    alone is a measure of style: a text with many rare words is unlikely and may be sound. What lies above the loss
    expected of words as rare is what breaks syntax (as in the acceptability measure SLOR, Lau, Clark and Lappin 2017).

    Attributes:
        intercept, slope: nats, and nats per unit of log(number + 1).
        cap: nats that a token counts for at most, so that one strange name does not speak for its window.
    """

    intercept: float
    slope: float
    cap: float

    @classmethod
    def of(cls, scored: pl.DataFrame, cap: float) -> "Expected":
        """Fitted on the tokens of scored rows by least squares; flat where numbers say nothing of losses."""
        losses = np.minimum(np.concatenate(scored["losses"].to_list()), cap)
        rarity = _rarity(np.concatenate(scored["token_ids"].to_list()))
        spread = float(rarity.var())
        slope = max(0.0, float(np.cov(rarity, losses, bias=True)[0, 1]) / spread) if spread else 0.0
        return cls(float(losses.mean() - slope * rarity.mean()), slope, cap)

    def surprise(self, losses: Sequence[float], token_ids: Sequence[int]) -> np.ndarray:
        """Nats [tokens] above what tokens as rare cost in base's texts."""
        own = np.minimum(np.asarray(losses, dtype=float), self.cap)
        return own - self.intercept - self.slope * _rarity(np.asarray(token_ids))


def _rarity(token_ids: np.ndarray) -> np.ndarray:
    return np.log(token_ids.astype(float) + 1)


def with_surprise(scored: pl.DataFrame, expected: Expected, window: int) -> pl.DataFrame:
    """The scored rows with `surprise`: nats above what is expected, mean of the window in which it is largest."""
    highest = [
        max(_window_means(expected.surprise(losses, ids).tolist(), window)) if losses else None
        for losses, ids in zip(scored["losses"].to_list(), scored["token_ids"].to_list(), strict=True)
    ]
    return scored.with_columns(pl.Series("surprise", highest, dtype=pl.Float64))


def _window_means(losses: Sequence[float], window: int) -> list[float]:
    return [float(np.mean(part)) for part in _windows(losses, window, max(1, window // 4))]
