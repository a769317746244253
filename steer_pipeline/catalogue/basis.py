"""What all parts of the catalogue's schema stand on: strict models, names, and how text is decoded."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-z0-9][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME)]


class Strict(BaseModel):
    """Frozen, and an unknown field is an error: a typo in YAML must not pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def each_once(value: Any) -> Any:
    """For `field_validator`: a list in which nothing stands twice; None passes."""
    if value is not None and len(set(value)) < len(value):
        raise ValueError(f"{value}: each may stand there once")
    return value


class SamplingSpec(Strict):
    """Decoding settings; identical for base, variants and controls."""

    temperature: float = Field(default=0.6, ge=0, description="0 is greedy.")
    top_k: int = Field(default=0, ge=0, description="0: off.")
    top_p: float = Field(default=0.9, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = Field(default=0, ge=0, description="0: off.")
    penalty_scope: Literal["generated", "prompt_and_generated"] = "generated"
    max_new_tokens: int = Field(default=96, ge=1)
    seed: int = 20
