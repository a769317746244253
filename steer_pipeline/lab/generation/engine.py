"""The rewrite engine: rows and steering plans in, finished rows out, every variant of a row in one pass.

A prompt is run once. Variants stay together until the first block that steers them apart (with scope
"generated": through the whole prompt), and keep reading the shared keys and values while they generate.
Sequences of many rows and variants share a batch under a token budget; finished ones leave, new ones enter.
What a sequence says depends on its own row, plan and random stream, not on the batch. It knows token ids;
where prompts come from is not its business.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.backends import back_end
from steer_pipeline.lab.generation.jobs import (
    FinishedRow,
    Generated,
    Job,
    PromptRow,
    Workers,
    decoding_hash,
    peak_memory,
    plan_hash,
)
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.models.identity import ModelIdentity
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.plans import check_plans
from steer_pipeline.lab.models.sites import SteeringPlan

log = logging.getLogger(__name__)

_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        sequences_done: those that came from the journal (`sequences_resumed`) included.
        sequences_total: None for a stream of unknown length.
        tokens: generated in this run, of finished sequences.
        memory_bytes: peak of device or process; of the largest replica where there are several.
    """

    sequences_done: int
    sequences_total: int | None
    sequences_resumed: int
    tokens: int
    seconds: float
    tokens_per_second: float
    eta_seconds: float | None
    memory_bytes: int

    def __str__(self) -> str:
        of = "" if self.sequences_total is None else f" of {self.sequences_total}"
        left = "unknown time" if self.eta_seconds is None else f"{self.eta_seconds:.0f} s"
        return (
            f"{self.sequences_done}{of} sequences, {self.tokens_per_second:.0f} tokens/s, {left} left, "
            f"peak memory {self.memory_bytes / 1e9:.1f} GB"
        )


def generate(
    model: LoadedModel,
    rows: Iterable[PromptRow],
    plans: Sequence[SteeringPlan],
    sampling: SamplingSpec,
    *,
    journal: Path | Journal | None = None,
    config_hash: str = "",
    progress: Callable[[Progress], None] | None = None,
    fanout: Workers | None = None,
) -> Iterator[FinishedRow]:
    """Every plan on every row that wants it, in the order in which they finish.

    Randomness is keyed by (seed, row id, plan's stream or variant, step): batch size, row order, resume and
    the set of other variants do not change what is drawn. With a `journal`, finished rows are on disk
    before they are yielded, and come from there after a restart; a row counts as done only for the same
    prompt ids, plan, sampling settings, model weights and `config_hash`. Scope "generated" steers the
    positions of generated tokens; the first token comes from the unsteered prompt. `rows` may be a stream:
    memory does not grow with its length. With `fanout`, replicas of the model do the work; the rows are the
    same.

    Raises:
        ValueError: a plan does not fit the model, a prompt is missing, empty or too long, a row id comes
        twice. BrokenLogits: NaN or infinity in the logits, with row and variant. OutOfMemory: a single row
        does not fit even alone.
    """
    check_plans(model, plans)
    run = _Run(model, plans, sampling, config_hash, progress, _length(rows, plans), fanout)
    with _opened(journal, model) as book:
        _tell_others(book, model)
        finished_before: list[FinishedRow] = []
        jobs = run.jobs(rows, book, finished_before)
        work = back_end(model) if fanout is None else fanout.run_jobs
        for generated in work(model, plans, sampling, jobs):
            run.report()
            yield from _drain(finished_before)
            done = [run.finish(one) for one in generated]
            if book is not None and done:
                book.record(done, [run.fingerprints.pop((row.row_id, row.variant)) for row in done])
            yield from done
        yield from _drain(finished_before)
        if book is not None:
            book.finished()
    run.report(last=True)


class _Run:
    """Book-keeping of one call of `generate`: jobs, texts, fingerprints and progress."""

    def __init__(
        self,
        model: LoadedModel,
        plans: Sequence[SteeringPlan],
        sampling: SamplingSpec,
        config_hash: str,
        progress: Callable[[Progress], None] | None,
        total: int | None,
        fanout: Workers | None,
    ):
        self.model, self.plans, self.sampling, self.total = model, plans, sampling, total
        self.fanout = fanout
        self.fingerprints: dict[tuple[str, str], str] = {}  # of sequences that are under way
        base = f"{config_hash}:{decoding_hash(sampling, model)}"
        self._plan_hashes = [f"{base}:{plan_hash(plan)}" for plan in plans]
        self._progress = progress
        self._start = self._reported = time.monotonic()
        self._done = self._resumed = self._tokens = 0
        self._bar = _bar(total)

    def jobs(
        self, rows: Iterable[PromptRow], book: Journal | None, finished: list[FinishedRow]
    ) -> Iterator[Job]:
        """What is left to do of each row; what the journal has goes to `finished`."""
        seen: set[int] = set()
        for row in rows:
            key = int.from_bytes(hashlib.blake2b(row.row_id.encode(), digest_size=8).digest(), "little")
            if key in seen:
                raise ValueError(
                    f"row {row.row_id!r} comes twice; row ids must be unique, drop the duplicate"
                )
            seen.add(key)
            todo, prompts = [], []
            for index, plan in enumerate(self.plans):
                if not row.wants(plan.variant):
                    continue
                ids = self._prompt(row, plan.variant)
                if book is not None:
                    fingerprint = _fingerprint(self._plan_hashes[index], ids)
                    before = book.take(row.row_id, plan.variant, fingerprint)
                    if before is not None:
                        finished.append(before)
                        self._resumed += 1
                        continue
                    self.fingerprints[row.row_id, plan.variant] = fingerprint
                todo.append(index)
                prompts.append(ids)
            yield Job(row.row_id, tuple(todo), tuple(prompts))

    def finish(self, generated: Generated) -> FinishedRow:
        self._done += 1
        self._tokens += len(generated.tokens) + generated.ended
        return FinishedRow(
            row_id=generated.row_id,
            variant=self.plans[generated.plan].variant,
            text=self.model.tokenizer.decode(generated.tokens, skip_special_tokens=True),
            token_ids=generated.tokens,
            n_prompt_tokens=generated.n_prompt_tokens,
            n_new_tokens=len(generated.tokens) + generated.ended,
            finish_reason="eos" if generated.ended else "length",
            truncated=not generated.ended,
            seed=self.sampling.seed,
        )

    def report(self, last: bool = False) -> None:
        """Logs, and tells `progress`, every few seconds and at the end."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._done + self._resumed - self._bar.n)
        if now - self._reported < _REPORT_SECONDS and not last:
            return
        self._reported = now
        seconds = max(now - self._start, 1e-9)
        left = None if self.total is None else self.total - self._done - self._resumed
        state = Progress(
            sequences_done=self._done + self._resumed,
            sequences_total=self.total,
            sequences_resumed=self._resumed,
            tokens=self._tokens,
            seconds=seconds,
            tokens_per_second=self._tokens / seconds,
            eta_seconds=left * seconds / self._done if left is not None and self._done else None,
            memory_bytes=self._memory(),
        )
        log.info("%s", state)
        if self._progress is not None:
            self._progress(state)
        if last and self._bar is not None:
            self._bar.close()

    def _memory(self) -> int:
        return peak_memory(self.model.device) if self.fanout is None else self.fanout.memory_bytes

    def _prompt(self, row: PromptRow, variant: str) -> list[int]:
        ids = row.ids.get(variant, row.ids.get("*"))
        where = f"row {row.row_id!r}, variant {variant!r}"
        if ids is None:
            raise ValueError(f"{where}: no prompt ids; give ids under {variant!r} or '*'")
        if not ids:
            raise ValueError(f"{where}: the prompt has no tokens; drop the row or give it text")
        room = self.model.max_positions - self.sampling.max_new_tokens
        if len(ids) > room:
            raise ValueError(
                f"{where}: prompt of {len(ids)} tokens and {self.sampling.max_new_tokens} new "
                "ones do not fit the "
                f"model's {self.model.max_positions} positions; shorten the text "
                "(corpus.max_tokens) or max_new_tokens"
            )
        return ids


def _opened(journal: Path | Journal | None, model: LoadedModel) -> AbstractContextManager[Journal | None]:
    if journal is None:
        return nullcontext()
    book = journal if isinstance(journal, Journal) else Journal(journal)
    book.model = str(model.identity)
    return book


def _tell_others(book: Journal | None, model: LoadedModel) -> None:
    for text, count in (book.others if book is not None else {}).items():
        differing = ModelIdentity.parse(text).differences(model.identity)
        log.warning("%s: %d rows of another model are left alone (%s)", book and book.path, count, differing)


def _fingerprint(plan_hash_: str, ids: list[int]) -> str:
    digest = hashlib.blake2b(plan_hash_.encode(), digest_size=12)
    digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _drain(rows: list[FinishedRow]) -> Iterator[FinishedRow]:
    while rows:
        yield rows.pop()


def _length(rows: Iterable[PromptRow], plans: Sequence[SteeringPlan]) -> int | None:
    if not isinstance(rows, Sized):
        return None
    return sum(row.wants(plan.variant) for row in rows for plan in plans)


def _bar(total: int | None) -> Any:
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=total, unit="seq", desc="rewriting", leave=False)
