"""Persona-steering research on language models: a library of five names, and a Dagster asset graph built on it.

    from steer_pipeline import extract, generate, load_model, steered

    model = load_model("path/or/hub-id")
    vector = extract(model, ["They are hiding something.", …], ["They told us everything.", …])
    with steered(model, vector, dose=0.2):  # a fraction of the residual norm; the other pole: -0.2
        model.module.generate(**model.tokenizer("Today", return_tensors="pt"))
    generate(model, ["What happened today?"], vector, dose=[-0.2, 0, 0.2])

`load_vector` reads vectors that others made. The names are loaded when they are used: importing the package loads
neither torch nor dagster.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer_pipeline.lab.library import extract, generate, load_model, load_vector, steered

__version__ = "0.1.0"
__all__ = ["extract", "generate", "load_model", "load_vector", "steered"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from steer_pipeline.lab import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
