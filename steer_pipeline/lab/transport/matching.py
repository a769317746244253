"""The same texts in two models: which states of theirs belong together.

In: texts, each a prompt and what follows it, and two loaded models. Out: states [n, hidden] row by row, and the input
embeddings of shared tokens. Where the tokenizers give a text the same ids, its states are read token by token at the
same positions, from the last prompt token on; a text that they cut differently gives one row, the mean over its
completion in either model. Texts and not rows are split, so that no text is fitted on and judged on.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, each_states
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.personas.schema import kept
from steer_pipeline.lab.transport.maps import MapError

JUDGED_SHARE = 0.2  # of the texts a map is judged on, not fitted on
TOKENS_A_TEXT = 24  # positions read, evenly spaced: neighbours tell little that is new


@dataclass(frozen=True)
class MatchedText:
    """One text as both models read it. Texts of one `key` (e.g. `news:0a1b`) are fitted on or judged on together."""

    key: str
    user: str
    completion: str
    system: str | None = None


@dataclass(frozen=True, eq=False)
class Matched:
    """States of the same texts.

    Attributes:
        source, target: block -> fp32 [n, hidden of that model].
        judged: bool [n]: rows of texts that maps are judged on.
        by_token: whether rows are tokens; else each is the mean over a completion.
    """

    source: Mapping[int, np.ndarray]
    target: Mapping[int, np.ndarray]
    judged: np.ndarray
    by_token: bool


def contrast_texts(contrast: pl.DataFrame, persona: str) -> list[MatchedText]:
    """The rows of a contrast set that count and that its vector was fitted on, as texts."""
    rows = kept(contrast).filter(
        (pl.col("split") == "train") & (pl.col("completion").str.strip_chars().str.len_chars() > 0)
    )
    return [
        MatchedText(f"{persona}:{row['context_id']}", row["user"], row["completion"], row["system"])
        for row in rows.iter_rows(named=True)
    ]


def require_disjoint(texts: Iterable[MatchedText], contrast: pl.DataFrame, measured: Iterable[str]) -> None:
    """No text of a map asks for or is an answer of the trait that is carried, and none is a prompt it is measured on.

    Args:
        contrast: the contrast set of the persona that is carried.
        measured: user turns that the target answers later.

    Raises:
        MapError: names the first text that is.
    """
    asked, said = set(contrast["system"].drop_nulls()), set(contrast["completion"]) - {""}
    prompts = set(measured)
    for text in texts:
        if text.system in asked:
            place = "is asked for by an instruction of its contrast set"
        elif text.completion in said:
            place = "is an answer of its contrast set"
        elif text.user in prompts:
            place = "has a prompt that the vector is measured on"
        else:
            continue
        raise MapError(
            f"text {text.key} {place}: a map fitted on it knows what it is judged by; draw other texts, or lower "
            "transport.fit_texts where news are few"
        )


def without_trait(texts: Sequence[MatchedText], scorer: TraitScorer) -> list[MatchedText]:
    """The texts whose completion shows neither pole of the persona."""
    return [
        text
        for text in texts
        if not scorer.shows(text.completion) and not scorer.shows_opposite(text.completion)
    ]


def matched_states(
    source: LoadedModel,
    target: LoadedModel,
    texts: Sequence[MatchedText],
    source_blocks: Sequence[int],
    target_blocks: Sequence[int],
    *,
    seed: int,
) -> Matched:
    """States of both models at the outputs of the named blocks.

    All texts are read token by token, or none: rows of both kinds in one fit would weigh differently.
    """
    if len(texts) < 4:
        raise MapError(
            f"{len(texts)} texts to match; give at least 4, hundreds are better (transport.fit_texts)"
        )
    ids = [_encoded(source, text) for text in texts], [_encoded(target, text) for text in texts]
    judged = _judged([text.key for text in texts], seed)
    by_token = ids[0] == ids[1]
    read = _by_token if by_token else _by_text
    states = [
        read(model, own, blocks)
        for model, own, blocks in zip((source, target), ids, (source_blocks, target_blocks), strict=True)
    ]
    rows = [len(_positions(start, len(tokens))) for tokens, start in ids[0]] if by_token else [1] * len(texts)
    return Matched(states[0], states[1], np.repeat(judged, rows), by_token)


def shared_embeddings(source: LoadedModel, target: LoadedModel) -> tuple[np.ndarray, np.ndarray]:
    """Input embeddings fp32 [shared tokens, hidden] of the tokens that both vocabularies have, in one order.

    Raises:
        MapError: an MLX model, or fewer than 3 tokens in common.
    """
    for model in (source, target):
        if model.backend == "mlx":
            raise MapError(f"map embeddings: {model.name} is an MLX model; leave it out of transport.ways")
    own, other = (model.tokenizer.get_vocab() for model in (source, target))
    shared = sorted(own.keys() & other.keys())
    if len(shared) < 3:
        raise MapError(
            f"map embeddings: the vocabularies share {len(shared)} tokens; leave it out of transport.ways"
        )
    return (
        _rows_of(source, [own[token] for token in shared]),
        _rows_of(target, [other[token] for token in shared]),
    )


def _rows_of(model: LoadedModel, ids: Sequence[int]) -> np.ndarray:
    weight: Any = model.module.get_input_embeddings().weight
    return weight.detach()[list(ids)].float().cpu().numpy()


def _encoded(model: LoadedModel, text: MatchedText) -> tuple[list[int], int]:
    """(ids, where the completion begins)."""
    prompt = encode_prompt(
        model.tokenizer, user=text.user, system=text.system, chat_template=model.spec.chat_template
    )
    answer = encode_completion(model.tokenizer, text.completion, end_of_turn=False)
    if not answer:
        raise MapError(f"text {text.key} has an empty completion; leave it out")
    return [*prompt, *answer], len(prompt)


def _positions(start: int, length: int) -> np.ndarray:
    """Of the states read in a sequence: from its last prompt token on, at most `TOKENS_A_TEXT`."""
    first = max(start - 1, 0)
    return np.unique(np.linspace(first, length - 1, min(TOKENS_A_TEXT, length - first)).round().astype(int))


def _by_token(
    model: LoadedModel, sequences: Sequence[tuple[list[int], int]], blocks: Sequence[int]
) -> dict[int, np.ndarray]:
    found = {}
    for block in blocks:
        rows: list[np.ndarray] = [np.empty(0)] * len(sequences)
        for i, states in each_states(model, [ids for ids, _ in sequences], block):
            at = _positions(sequences[i][1], len(sequences[i][0]))
            rows[i] = states.float().cpu().numpy()[at]
        found[block] = np.concatenate(rows)
    return found


def _by_text(
    model: LoadedModel, sequences: Sequence[tuple[list[int], int]], blocks: Sequence[int]
) -> dict[int, np.ndarray]:
    means = collect_means(
        model, [HiddenRequest(ids, start, len(ids)) for ids, start in sequences], blocks=blocks
    )
    return {block: means[:, i] for i, block in enumerate(blocks)}


def _judged(keys: Sequence[str], seed: int) -> np.ndarray:
    """bool [texts]: those of a fifth of the keys, by a hash of seed and key."""
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
    chosen = set(order[: max(1, round(JUDGED_SHARE * len(order)))])
    return np.array([key in chosen for key in keys])
