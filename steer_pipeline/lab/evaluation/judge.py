"""A judge behind an OpenAI-compatible endpoint: how much of a persona an answer shows, by the persona's rubric.

In: a persona with a `judge_rubric`, and pairs of question and answer. Out: one judgement a pair. Temperature 0.
Answers are on disk as soon as they come, keyed by their content, so that a run after a killed or stopped one
asks only what is missing, whichever endpoint serves the model. How endpoints are asked, and which failures are tried
again, is `lab/endpoints`' business. The key comes from STEER_JUDGE_KEY.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steer_pipeline.catalogue.scale import ScoreScale
from steer_pipeline.catalogue.specs import JudgeSpec, Persona
from steer_pipeline.lab.endpoints import (
    AnswerCache,
    Client,
    Endpoint,
    EndpointError,
    EndpointUnavailable,
    Patience,
    run,
    sendable,
)
from steer_pipeline.lab.evaluation.judgement import MISSING, Judgement, read_judgement
from steer_pipeline.lab.generation.journal import Mirror

log = logging.getLogger(__name__)

KEY_VARIABLE = "STEER_JUDGE_KEY"
URL_VARIABLE = "STEER_JUDGE_URL"
TEMPERATURE = 0.0

_REPORT_SECONDS = 5.0

JudgeError = EndpointError  # what callers of the judge catch
JudgeUnavailable = EndpointUnavailable


def judge_texts(
    persona: Persona,
    pairs: Sequence[tuple[str, str]],
    spec: JudgeSpec,
    url: str,
    cache_dir: Path,
    mirror: Mirror | None = None,
) -> list[Judgement]:
    """A judgement for every (question, answer), in order; equal pairs are asked once.

    Args:
        url: base address of the endpoint, e.g. http://localhost:8000/v1.
        cache_dir: where the judge's answers are kept; it may be shared by personas, models and processes.
        mirror: shares them with other machines.

    Raises:
        JudgeError: the persona has no rubric, the address or key is of no use, the endpoint refuses
            (401, 403, 404), package openai is missing, or the cache cannot be written.
        ValueError: an axis has no scale.
        JudgeUnavailable: too many rows failed one after the other.
    """
    return run(_judge_all(persona, pairs, spec, url, AnswerCache(cache_dir, mirror)))


def fill_rubric(rubric: str, question: str, answer: str) -> str:
    """The rubric with `{question}` and `{answer}` filled in; braces in either text stay as they are."""
    values = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{question\}|\{answer\}", lambda field: values[field[0]], rubric)


def cache_key(spec: JudgeSpec, rubric: str, question: str, answer: str) -> str:
    """64 hex digits of everything that decides the reply; the endpoint is not part of it."""
    parts = [spec.model, rubric, question, answer, TEMPERATURE, spec.max_tokens]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ----------------------------------------------------------------------------------------- asking


@dataclass
class _Asked:
    """What the workers of one call share."""

    answers: dict[str, Judgement]
    patience: Patience
    reported: float = 0.0


async def _judge_all(
    persona: Persona, pairs: Sequence[tuple[str, str]], spec: JudgeSpec, url: str, answers: AnswerCache
) -> list[Judgement]:
    scale, rubric = persona.scale, persona.judge_rubric
    if not rubric:
        raise JudgeError(
            f"persona {persona.name}: judge_rubric is empty; write one with {{question}} and {{answer}}"
        )
    texts = [(sendable(question), sendable(answer)) for question, answer in pairs]
    keys = [cache_key(spec, rubric, question, answer) for question, answer in texts]
    endpoint = _endpoint(spec, url)
    with answers as cache:
        asked = _Asked({}, Patience(endpoint))
        todo: dict[str, str] = {}
        for key, (question, answer) in zip(keys, texts, strict=True):
            if key in todo or key in asked.answers:
                continue
            if (before := cache.get(key)) is not None:
                asked.answers[key] = replace(read_judgement(before, scale), cached=True)
            else:
                todo[key] = fill_rubric(rubric, question, answer)
        if todo:
            await _ask_all(todo, spec, endpoint, cache, asked, scale)
    _report(asked, len(asked.answers), last=True)
    return [asked.answers[key] for key in keys]


async def _ask_all(
    todo: dict[str, str],
    spec: JudgeSpec,
    endpoint: Endpoint,
    cache: AnswerCache,
    asked: _Asked,
    scale: ScoreScale,
) -> None:
    client = Client(endpoint)
    jobs = iter(todo.items())
    total = len(asked.answers) + len(todo)

    async def work() -> None:
        for name, prompt in jobs:
            messages = [{"role": "user", "content": prompt}]
            reply = await client.ask(messages, max_tokens=spec.max_tokens, temperature=TEMPERATURE)
            if reply.text is None:
                asked.answers[name] = MISSING
            else:
                cache.put(name, spec.model, reply.text)
                asked.answers[name] = read_judgement(reply.text, scale)
            asked.patience.take(reply)
            _report(asked, total)

    stopped: list[BaseException] = []
    async with client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(spec.concurrency, len(todo))):
                    group.create_task(work())
        except* (EndpointError, EndpointUnavailable) as failed:
            stopped += failed.exceptions
    if stopped:
        raise stopped[0]


def _endpoint(spec: JudgeSpec, url: str) -> Endpoint:
    return Endpoint(
        url,
        spec.model,
        who="judge",
        section="judge",
        url_variable=URL_VARIABLE,
        key_variable=KEY_VARIABLE,
        requests_per_second=spec.requests_per_second,
        timeout_s=spec.timeout_s,
        max_retries=spec.max_retries,
    )


def _report(asked: _Asked, total: int, *, last: bool = False) -> None:
    now = time.monotonic()
    if now - asked.reported < _REPORT_SECONDS and not last:
        return
    asked.reported = now
    counts = Counter(judgement.status for judgement in asked.answers.values())
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    log.info("judged %d of %d texts: %s", len(asked.answers), total, by_status or "none")
    if last and asked.patience.failures:
        log.warning(
            "%d texts got no answer from the judge, the last: %s",
            asked.patience.failures,
            asked.patience.last,
        )
