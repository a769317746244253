"""The engine on many GPUs: one replica of the model an actor, rows handed out by Ray Data.

In: jobs (row, plans, prompt ids) and how many replicas. Out: what each sequence generated, task by task as they finish.
It is one more back end of `generate`: journal, texts and progress stay with the driver, so rows that are done are
not sent out and a killed driver resumes. Random numbers are keyed and batches do not matter, so the pack is that of
one process. Who runs what, and again after a worker's death, is Ray's business. Needs the extra [ray].
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation.backends import back_end
from steer_pipeline.lab.generation.jobs import (
    BrokenLogits,
    Generated,
    Job,
    OutOfMemory,
    decoding_hash,
    peak_memory,
)
from steer_pipeline.lab.models.identity import ModelIdentity, ModelLoadError
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import SteeringPlan

_JOBS = pa.schema(
    {
        "row_id": pa.binary(),  # UTF-8; ids may hold lone surrogates
        "plans": pa.list_(pa.int32()),
        "prompts": pa.list_(pa.list_(pa.int32())),  # distinct ones
        "prompt_of": pa.list_(pa.int32()),  # each plan's place in `prompts`
    }
)
_GENERATED = {
    "row_id": pa.binary(),
    "plan": pa.int32(),
    "n_prompt_tokens": pa.int32(),
    "tokens": pa.list_(pa.int32()),
    "ended": pa.bool_(),
}
_ANSWER = pa.schema(
    {
        "generated": pa.list_(pa.struct(_GENERATED)),
        "memory_bytes": pa.int64(),  # peak of the replica
        "error": pa.string(),  # name of an exception, or null
        "message": pa.string(),
    }
)


class FanoutError(RuntimeError):
    """Rows cannot be fanned out: Ray, GPUs or the same model are missing. The message names the cure."""


_NAMED = {
    kind.__name__: kind for kind in (BrokenLogits, OutOfMemory, FanoutError, ModelLoadError, ValueError)
}


@dataclass
class Fanout:
    """How `generate` spreads over replicas of its model.

    Uses the Ray that this process is connected to, else the cluster that RAY_ADDRESS names, else a Ray of its own on
    this machine, which ends with the call. Replicas load the model's spec themselves, so its files must lie at the
    same place on every machine; the driver's own copy leaves its GPU to them meanwhile.

    Attributes:
        workers: replicas, at least 1.
        home: project root, where a relative model path starts.
        gpus: of each replica, perhaps a part of one; None: 1 where the model is on cuda, else 0.
        rows_a_task: at most so many rows go out and come back together: what a worker's or the driver's death costs.
        memory_bytes: peak of the largest replica so far.
    """

    workers: int
    home: Path
    gpus: float | None = None
    rows_a_task: int = 64
    memory_bytes: int = field(default=0, init=False)

    def run_jobs(
        self, model: LoadedModel, plans: Sequence[SteeringPlan], sampling: SamplingSpec, jobs: Iterator[Job]
    ) -> Iterator[list[Generated]]:
        """Runs every job; yields finished sequences a task at a time, some lists empty.

        All jobs are read into Ray's object store, which spills to disk, before the first one runs.

        Raises:
            FanoutError: Ray is not installed, this machine has fewer GPUs than asked for, or a replica is another
            model than the driver's. Otherwise as `generate`.
        """
        gpus = float(model.device == "cuda") if self.gpus is None else self.gpus
        with _ray(self.workers, gpus) as ray:
            tasks: list[Any] = []
            waiting: list[Job] = []
            while part := list(islice(jobs, self.rows_a_task)):
                waiting += [job for job in part if job.plans]
                while len(waiting) >= self.workers * self.rows_a_task:
                    tasks.append(ray.put(_packed(waiting[: self.rows_a_task])))
                    del waiting[: self.rows_a_task]
                yield []
            share = math.ceil(
                len(waiting) / (2 * self.workers)
            )  # the rest in small tasks, so that all end together
            tasks += [ray.put(_packed(waiting[i : i + share])) for i in range(0, len(waiting), share or 1)]
            if not tasks:
                return
            with _set_aside(model):
                answers = ray.data.from_arrow_refs(tasks).map_batches(
                    Replica,
                    fn_constructor_args=(
                        *(model.spec, self.home, tuple(plans), sampling),
                        *(model.identity, decoding_hash(sampling, model)),
                    ),
                    batch_size=None,  # a task stays together
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(tasks))),
                    num_cpus=1,
                    num_gpus=gpus,
                )
                # closed before Ray goes, also after an error: a loose iterator would start Ray anew
                with closing(iter(answers.iter_batches(batch_size=None, batch_format="pyarrow"))) as arriving:
                    for answer in arriving:
                        yield self._unpacked(answer)

    def _unpacked(self, answers: pa.Table) -> list[Generated]:
        generated = []
        for answer in answers.to_pylist():
            if answer["error"] is not None:
                raise _NAMED[answer["error"]](answer["message"])
            self.memory_bytes = max(self.memory_bytes, answer["memory_bytes"])
            generated += [Generated(**one | {"row_id": _text(one["row_id"])}) for one in answer["generated"]]
        return generated


class Replica:
    """One actor's model. What the user can mend comes back as an answer, so that its message arrives plain."""

    def __init__(
        self,
        spec: ModelSpec,
        home: Path,
        plans: Sequence[SteeringPlan],
        sampling: SamplingSpec,
        identity: ModelIdentity,
        decoding: str,
    ):
        self._plans, self._sampling = plans, sampling
        self._broken: Exception | None = None
        try:
            self._model = load_model(spec, home)
        except ModelLoadError as error:
            self._broken = error
            return
        if differing := identity.differences(self._model.identity):
            self._broken = FanoutError(
                f"model {spec.path}: a worker loaded another one than the driver, {differing}; put the same files on "
                "every machine"
            )
        elif decoding_hash(sampling, self._model) != decoding:
            self._broken = FanoutError(
                f"model {spec.path}: a worker loaded it with another dtype ({self._model.dtype}) than the driver; "
                "name model.dtype in the profile"
            )

    def __call__(self, task: pa.Table) -> pa.Table:
        try:
            if self._broken is not None:
                raise self._broken
            run = back_end(self._model)(self._model, self._plans, self._sampling, _jobs(task))
            generated = [asdict(one) | {"row_id": _bytes(one.row_id)} for some in run for one in some]
        except tuple(_NAMED.values()) as error:
            kind = next(name for name, known in _NAMED.items() if isinstance(error, known))
            return _answer(error=kind, message=str(error))
        return _answer(generated=generated, memory_bytes=peak_memory(self._model.device))


def _packed(jobs: Sequence[Job]) -> pa.Table:
    rows = []
    for job in jobs:
        places: dict[tuple[int, ...], int] = {}
        prompt_of = [places.setdefault(tuple(prompt), len(places)) for prompt in job.prompts]
        rows.append(
            {
                "row_id": _bytes(job.row_id),
                "plans": job.plans,
                "prompts": list(places),
                "prompt_of": prompt_of,
            }
        )
    return pa.Table.from_pylist(rows, schema=_JOBS)


def _jobs(task: pa.Table) -> Iterator[Job]:
    for row in task.to_pylist():
        prompts = tuple(row["prompts"][place] for place in row["prompt_of"])
        yield Job(_text(row["row_id"]), tuple(row["plans"]), prompts)


def _answer(**columns: Any) -> pa.Table:
    """One row, whatever the task: it arrives whole or not at all."""
    return pa.Table.from_pylist([dict.fromkeys(_ANSWER.names) | columns], schema=_ANSWER)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


@contextmanager
def _ray(workers: int, gpus: float) -> Iterator[Any]:
    """The module `ray`, connected; what this opens it closes again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise FanoutError(
            "more than one worker needs Ray, which is not installed: pip install 'steer-pipeline[ray]', or ask for "
            "one worker"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        cluster = bool(os.environ.get("RAY_ADDRESS"))
        here: dict[str, Any] = {} if cluster else {"num_cpus": max(os.cpu_count() or 1, workers + 1)}
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False, **here)
    try:
        if ours and not cluster and ray.cluster_resources().get("GPU", 0) < workers * gpus:
            raise FanoutError(
                f"{workers} workers of {gpus:g} GPUs each, but this machine has "
                f"{ray.cluster_resources().get('GPU', 0):g}; ask for fewer workers, or name a cluster in RAY_ADDRESS"
            )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        yield ray
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _set_aside(model: LoadedModel) -> Iterator[None]:
    """The driver's copy waits in main memory: its GPU belongs to a replica."""
    if model.device != "cuda":
        yield
        return
    import torch

    model.module.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.module.to(model.device)
