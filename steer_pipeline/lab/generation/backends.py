"""Which back end runs the jobs of a model."""

from collections.abc import Callable, Iterator

from steer_pipeline.lab.generation.jobs import Generated
from steer_pipeline.lab.models.loaded import LoadedModel


def back_end(model: LoadedModel) -> Callable[..., Iterator[list[Generated]]]:
    """`run_jobs` of the model's back end."""
    if model.backend == "mlx":
        from steer_pipeline.lab.generation.mlx_engine import run_jobs
    else:
        from steer_pipeline.lab.generation.torch_engine import run_jobs
    return run_jobs
