"""The pipeline as a library: load a model, make or read a vector, steer.

In: paths, texts and doses. Out: a `LoadedModel`, `PersonaVector`s, a steered Hugging Face module, texts. All of it is
also there in parts (`loading`, `texts`, `formats`, `steered`, `engine`); this module only spares the parts' arguments.
`steer_pipeline` itself offers its five names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation import engine
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.generation.probe import probe_steering
from steer_pipeline.lab.models import loading
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.vectors.formats import load_vector
from steer_pipeline.lab.vectors.steered import plan_for, steered
from steer_pipeline.lab.vectors.texts import extract
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

__all__ = ["extract", "generate", "load_model", "load_vector", "steered"]

_STREAM = "library"  # all doses draw the same random numbers, so that they differ by the dose alone


def load_model(
    path_or_id: str | Path,
    *,
    backend: Literal["torch", "mlx"] = "torch",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    adapter: str | Path | Sequence[str | Path] | None = None,
) -> LoadedModel:
    """A model directory (relative ones start at the working directory) or hub id, ready to run.

    `model.module` is the Hugging Face model and `model.tokenizer` its tokenizer. The last base stays in memory: asking
    for it again, or for it with other adapters, costs nothing but these. A tokenizer without chat template means raw
    prompts.

    Args:
        dtype: "auto" is float32 on a CPU and the checkpoint's own type elsewhere.
        adapter: a PEFT directory on top, or several that add up.

    Raises:
        ModelLoadError: no such directory, no weights or tokenizer, an unknown device, an adapter that does not fit.
    """
    adapters = [] if adapter is None else [adapter] if isinstance(adapter, str | Path) else list(adapter)
    try:
        spec = ModelSpec(
            path=str(path_or_id),
            backend=backend,
            device=device,
            dtype=dtype,
            adapter=tuple(str(Path(one).absolute()) for one in adapters) or None,
        )
    except ValueError as error:
        raise ModelLoadError(f"load_model: {error}") from error
    home = Path.cwd()
    if not loading.load_tokenizer(spec, home).chat_template:
        spec = spec.model_copy(update={"chat_template": False})
    return loading.load_model(spec, home)


@overload
def generate(
    model: LoadedModel,
    prompts: Sequence[str],
    vector: PersonaVector | None = None,
    dose: float = 0.1,
    block: int | float | None = None,
    *,
    alpha: float | None = None,
    system: str | None = None,
    max_new_tokens: int = 96,
    temperature: float = 0.6,
    top_p: float = 0.9,
    seed: int = 20,
    scope: Literal["all", "generated"] = "all",
    allow_other_model: bool = False,
) -> list[str]: ...


@overload
def generate(
    model: LoadedModel,
    prompts: Sequence[str],
    vector: PersonaVector,
    dose: Sequence[float],
    block: int | float | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int = 96,
    temperature: float = 0.6,
    top_p: float = 0.9,
    seed: int = 20,
    scope: Literal["all", "generated"] = "all",
    allow_other_model: bool = False,
) -> dict[float, list[str]]: ...


@overload
def generate(
    model: LoadedModel,
    prompts: Sequence[str],
    vector: Sequence[SteeringPlan],
    *,
    system: str | None = None,
    max_new_tokens: int = 96,
    temperature: float = 0.6,
    top_p: float = 0.9,
    seed: int = 20,
) -> dict[str, list[str]]: ...


def generate(
    model,
    prompts,
    vector=None,
    dose=0.1,
    block=None,
    *,
    alpha=None,
    system=None,
    max_new_tokens=96,
    temperature=0.6,
    top_p=0.9,
    seed=20,
    scope="all",
    allow_other_model=False,
):
    """The answers to `prompts` (user turns), in their order, from the engine.

    Each prompt is run once and shared by all doses; sampling is keyed by seed and prompt, so that neither batch nor
    other doses change an answer, and doses draw the same numbers. Dose 0 is the model as it is.

    Args:
        vector: None: unsteered. A PersonaVector, added with `dose` at `block` as `steered` does. Or SteeringPlans of
            different `variant` names, which say all that themselves.
        dose: fraction of the mean residual norm at the block, or several.
        alpha: one absolute length in place of `dose`.
        system: system turn of all prompts.
        temperature: 0 is greedy.
        scope: "all" positions are steered, or "generated" ones only.

    Returns:
        One text a prompt. Of several doses {dose: texts}, of plans {variant: texts}.

    Raises:
        VectorError: the vector does not fit the model.
        SteeringHasNoEffect: a dose changes no logit.
        ValueError: prompts are no list, or one is empty or too long.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts: a list of texts is needed; put the one prompt into a list")
    if not prompts:
        return [] if _is_one(vector, dose) else {}
    rows = [
        PromptRow(
            str(number),
            {
                "*": encode_prompt(
                    model.tokenizer, user=one, system=system, chat_template=model.spec.chat_template
                )
            },
        )
        for number, one in enumerate(prompts)
    ]
    plans = _plans(model, vector, dose, block, alpha, scope, allow_other_model)
    sampling = SamplingSpec(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    probe_steering(model, rows[:1], list(plans.values()))
    answers = {
        (row.row_id, row.variant): row.text
        for row in engine.generate(model, rows, list(plans.values()), sampling)
    }
    texts = {key: [answers[row.row_id, plan.variant] for row in rows] for key, plan in plans.items()}
    return next(iter(texts.values())) if _is_one(vector, dose) else texts


def _is_one(vector, dose) -> bool:
    return vector is None or (isinstance(vector, PersonaVector) and isinstance(dose, int | float))


def _plans(model, vector, dose, block, alpha, scope, allow_other_model) -> dict:
    """Plans by the key under which their texts are returned."""
    if vector is None:
        return {"base": SteeringPlan("base", stream=_STREAM)}
    if not isinstance(vector, PersonaVector) and all(isinstance(one, SteeringPlan) for one in vector):
        return {plan.variant: plan for plan in vector}
    doses = [dose] if isinstance(dose, int | float) else list(dose)
    if alpha is not None and len(doses) > 1:
        raise VectorError("alpha is one length and dose gives several fractions; give one of the two")
    if len(set(doses)) != len(doses):
        raise VectorError(f"dose {doses}: a dose comes twice")
    return {
        one: plan_for(
            model, vector, one, block, alpha=alpha, allow_other_model=allow_other_model,
            variant=f"dose {one}", scope=scope, stream=_STREAM,
        )
        for one in doses
    }  # fmt: skip
