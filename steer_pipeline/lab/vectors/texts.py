"""A persona vector from two lists of texts, for whoever has no catalogue entry and no contrast set.

In: texts of the two poles and a loaded model. Out: a `PersonaVector` of all blocks with residual norms and, where there
are enough texts, split-half cosine and held-out AUC against shuffled labels. States are read by the pipeline's own
`collect_means` on ids of its one tokenisation.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.vectors.extracted import (
    MIN_PAIRS,
    N_HALVES,
    N_NORM_SEQUENCES,
    N_SHUFFLES,
    PairedStates,
    Separation,
    auc_columns,
    rounded,
    separation,
    split_half_cosine,
    with_residual_norms,
)
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, model_fields

Read = Literal["answers", "system", "texts"]
QUESTIONS = (
    "What do you think about the news today?",
    "How was your day?",
    "What should we do next?",
    "Tell me about the town where you live.",
)
HELD_OUT_FRACTION = 0.25
_METHOD = "mean_difference"
_READOUTS = {"answers": "response_tokens", "system": "response_tokens", "texts": "text_tokens"}


@dataclass(frozen=True, eq=False)
class _Poles:
    """One state a text: fp32 [texts, n_blocks, hidden] a pole, and which texts are held out."""

    positive: np.ndarray
    negative: np.ndarray
    held_positive: np.ndarray  # bool [texts]
    held_negative: np.ndarray


def extract(
    model: LoadedModel,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    read: Read = "answers",
    questions: Sequence[str] = QUESTIONS,
    matched: bool | None = None,
    name: str = "persona",
    site: Literal["output", "attention", "mlp"] = "output",
    max_new_tokens: int = 40,
    seed: int = 0,
) -> PersonaVector:
    """The mean hidden state of the positive texts minus that of the negative ones, at every block.

    Which tokens a text's state is the mean over, `read` says:

    - "answers": each text is what the assistant answers to each of `questions`; the mean is over the text's own tokens,
      not over question, template or end of turn. For statements ("They are hiding something."). Works on small models.
    - "system": each text is a system turn before each of `questions`; the model answers greedily, and the mean is over
      the tokens of its answer. For instructions ("You are a paranoid editor."), on models that follow them.
    - "texts": each text by itself, without a template; the mean is over its tokens but the first, whose state is an
      attention sink. For base models.

    The states of one text under several questions are averaged, so that every text counts once. From eight texts a side
    on, a quarter (at least four) is held out: the direction is fitted on the rest, and metadata hold `held_out_auc`
    with its null of 200 refits on shuffled labels, and `split_half_cosine`. With fewer, all texts are fitted and a flag
    says what is missing. `residual_norms` make doses as fractions possible.

    Args:
        matched: text i of one list is the counterpart of text i of the other, and labels are shuffled within pairs;
            default: whether the lists are equally long. Otherwise over all texts.
        name: what the vector is called.
        site: what of a block is read, and so where the vector is added; see `Site`.
        max_new_tokens: of the answers under "system".
        seed: of the split and the shuffles.

    Raises:
        VectorError: a list is empty or no list, a text is empty, lists that are to match differ in length, an answer is
            empty, or the poles do not differ.
        ValueError: the model's tokenizer has no chat template and its spec asks for one.
    """
    sides = {
        "positive": list(_checked("positive", positive)),
        "negative": list(_checked("negative", negative)),
    }
    if read not in _READOUTS:
        raise VectorError(f"read={read!r}; choose from {', '.join(_READOUTS)}")
    paired = len(positive) == len(negative) if matched is None else matched
    if paired and len(positive) != len(negative):
        raise VectorError(
            f"{len(positive)} positive and {len(negative)} negative texts do not match; pass matched=False"
        )
    asked = list(_checked("questions", questions)) if read != "texts" else [""]
    requests = [
        request
        for side, texts in sides.items()
        for request in _requests(model, side, texts, asked, read, max_new_tokens)
    ]
    means = collect_means(model, requests, kind=site)
    states = means.reshape(-1, len(asked), *means.shape[1:]).mean(axis=1)
    raw, evidence = _fitted(_split(states, len(sides["positive"]), seed, paired), seed, paired)
    metadata = {
        **model_fields(model),
        "source": {"kind": "texts", "read": read, "sha256": _texts_sha(sides, asked)},
        "flags": [],
        "method": _METHOD,
        "readout": _READOUTS[read],
        "site": site,
        "seed": seed,
        "raw_norms": rounded(np.linalg.norm(raw, axis=1)),
        **evidence,
    }
    every = max(1, len(requests) // N_NORM_SEQUENCES)
    return with_residual_norms(
        PersonaVector(name, raw, metadata), model, [one.ids for one in requests[::every]]
    )


def _checked(what: str, texts: Sequence[str]) -> Iterator[str]:
    if isinstance(texts, str) or not len(texts):
        raise VectorError(f"{what}: a list of texts is needed, not {texts!r}")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise VectorError(f"{what}[{number}] is {text!r}; a text is needed")
        yield text.strip()


def _texts_sha(sides: dict[str, list[str]], questions: list[str]) -> str:
    return hashlib.sha256(json.dumps([sides, questions]).encode()).hexdigest()


# ------------------------------------------------------------------------------------- what is read


def _requests(
    model: LoadedModel, side: str, texts: list[str], questions: list[str], read: Read, max_new_tokens: int
) -> list[HiddenRequest]:
    """One a text and question, questions within texts."""
    tokenizer, chat = model.tokenizer, model.spec.chat_template
    if read == "texts":
        whole = [encode_prompt(tokenizer, user=text, chat_template=False) for text in texts]
        return [HiddenRequest(ids, min(1, len(ids) - 1), len(ids)) for ids in whole]
    if read == "answers":
        end = "" if chat else "\n"  # raw prompts have nothing that ends the question
        prompts = [
            encode_prompt(tokenizer, user=question + end, chat_template=chat) for question in questions
        ]
        answers = [encode_completion(tokenizer, text, end_of_turn=False) for text in texts]
        return [_after(prompt, answer) for answer in answers for prompt in prompts]
    asked = [
        encode_prompt(tokenizer, user=question, system=text, chat_template=chat)
        for text in texts
        for question in questions
    ]
    answers = _answers(model, asked, max_new_tokens)
    for number, answer in enumerate(answers):
        if not answer:
            text, question = texts[number // len(questions)], questions[number % len(questions)]
            raise VectorError(
                f"{side}: under {text!r} the model answers {question!r} with nothing; drop one of them"
            )
    return [_after(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]


def _after(prompt: list[int], answer: list[int]) -> HiddenRequest:
    return HiddenRequest(prompt + answer, len(prompt), len(prompt) + len(answer))


def _answers(model: LoadedModel, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Greedy answers' ids, without their ends."""
    rows = [PromptRow(str(number), {"*": ids}) for number, ids in enumerate(prompts)]
    greedy = SamplingSpec(temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)
    replies = {row.row_id: row.token_ids for row in generate(model, rows, [SteeringPlan("base")], greedy)}
    return [replies[row.row_id] for row in rows]


# ------------------------------------------------------------------------------------- what is fitted


def _split(states: np.ndarray, n_positive: int, seed: int, matched: bool) -> _Poles:
    """Which texts are held out: matched ones together, none where a side has too few."""
    positive, negative = states[:n_positive], states[n_positive:]
    rng = np.random.default_rng([seed, 1])
    enough = min(len(positive), len(negative)) >= 2 * MIN_PAIRS
    held = []
    for side in (positive, negative):
        count = max(MIN_PAIRS, round(HELD_OUT_FRACTION * len(side))) if enough else 0
        mask = np.zeros(len(side), dtype=bool)
        mask[rng.permutation(len(side))[:count]] = True
        held.append(mask)
    return _Poles(positive, negative, held[0], held[0] if matched else held[1])


def _fitted(poles: _Poles, seed: int, matched: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """fp32 [n_blocks, hidden], and the evidence as metadata."""
    up, down = poles.positive[~poles.held_positive], poles.negative[~poles.held_negative]
    raw = (up.mean(axis=0, dtype=np.float64) - down.mean(axis=0, dtype=np.float64)).astype(np.float32)
    fewest = min(len(poles.positive), len(poles.negative))
    evidence: dict[str, Any] = {
        "n_train": int(min(len(up), len(down))),
        "n_held_out": int(min(poles.held_positive.sum(), poles.held_negative.sum())),
        "matched": matched,
    }
    if fewest >= MIN_PAIRS:
        cosines = split_half_cosine(up - down, _METHOD, seed) if matched else _halves(up, down, seed)
        evidence["split_half_cosine"] = rounded(cosines)
    if fewest < 2 * MIN_PAIRS:
        evidence["flags"] = [f"{fewest} texts a side: no held-out AUC, {2 * MIN_PAIRS} are needed"]
    elif matched:
        pairs = PairedStates(poles.positive, poles.negative, poles.held_positive)
        evidence |= separation(pairs, _METHOD, seed).as_metadata()
    else:
        evidence |= _unmatched_separation(poles, seed).as_metadata()
    return raw, evidence


def _halves(up: np.ndarray, down: np.ndarray, seed: int) -> np.ndarray:
    """`split_half_cosine` of sides that do not match: [n_blocks]."""
    rng = np.random.default_rng(seed)
    cosines = []
    for _ in range(N_HALVES):
        orders = [rng.permutation(len(side)) for side in (up, down)]
        halves = []
        for first in (True, False):
            a, b = (
                side[order[: len(order) // 2] if first else order[len(order) // 2 :]].mean(
                    axis=0, dtype=np.float64
                )
                for side, order in zip((up, down), orders, strict=True)
            )
            halves.append(a - b)
        norms = np.linalg.norm(halves[0], axis=1) * np.linalg.norm(halves[1], axis=1)
        cosines.append((halves[0] * halves[1]).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return np.mean(cosines, axis=0)


def _unmatched_separation(poles: _Poles, seed: int) -> Separation:
    """`separation` of sides that do not match: labels are permuted over all texts, fitted and held-out ones apart."""
    rng = np.random.default_rng(seed)
    fit = [poles.positive[~poles.held_positive], poles.negative[~poles.held_negative]]
    test = [poles.positive[poles.held_positive], poles.negative[poles.held_negative]]
    n_fit, n_test = len(fit[0]), len(test[0])
    train, held = np.concatenate(fit), np.concatenate(test)  # [texts, blocks, hidden]
    weights = np.r_[np.full(n_fit, 1 / n_fit), np.full(len(fit[1]), -1 / len(fit[1]))]
    rows = [np.arange(len(train)), *(rng.permutation(len(train)) for _ in range(N_SHUFFLES))]
    labels = np.array([np.arange(len(held)), *(rng.permutation(len(held)) for _ in range(N_SHUFFLES))]).T
    mixed = np.array(
        [weights[order] for order in rows]
    )  # [shuffles + 1, texts]; the first has the true labels
    aucs = np.empty((N_SHUFFLES + 1, train.shape[1]))
    for block in range(train.shape[1]):
        scores = np.take_along_axis(held[:, block] @ (mixed @ train[:, block]).T, labels, axis=0)
        aucs[:, block] = auc_columns(scores[:n_test], scores[n_test:])
    return Separation.against(aucs[0], aucs[1:])
