"""Which back end runs the jobs of a model."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.jobs import Generated, Job
from steer_pipeline.lab.models.loaded import FAST, LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan

_READ_AHEAD = 256  # rows of a model whose positions depend on the length, sorted into short and long ones


def back_end(model: LoadedModel) -> Callable[..., Iterator[list[Generated]]]:
    """`run_jobs` of the model's back end."""
    if model.backend == "mlx":
        from steer_pipeline.lab.generation.mlx_engine import run_jobs
    elif model.backend == FAST:
        from steer_pipeline.lab.generation.torch_engine import run_jobs
        from steer_pipeline.lab.models.blocks import blocks_of

        if blocks_of(model).long_after is not None:
            return _short_and_long
    else:
        from steer_pipeline.lab.generation.plain_engine import run_jobs
    return run_jobs


def _short_and_long(
    model: LoadedModel, plans: Sequence[SteeringPlan], sampling: SamplingSpec, jobs: Iterator[Job]
) -> Iterator[list[Generated]]:
    """Rows that stay within the original positions together; the others by the model's own forward, which turns all of
    their positions otherwise, and does so anew where a row grows beyond.
    """
    from steer_pipeline.lab.generation import plain_engine, torch_engine
    from steer_pipeline.lab.models.blocks import blocks_of

    limit = blocks_of(model).long_after or 0
    while chunk := list(islice(jobs, _READ_AHEAD)):
        short: list[Job] = []
        long: list[Job] = []
        for job in chunk:
            if job.plans:
                length = torch_engine.padded_length(job.prompts) + sampling.max_new_tokens
                (short if length <= limit else long).append(job)
        yield from torch_engine.run_jobs(model, plans, sampling, iter(short))
        yield from plain_engine.run_jobs(model, plans, sampling, iter(long))
