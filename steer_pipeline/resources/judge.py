"""The judge as a Dagster resource: an OpenAI-compatible endpoint, or none. It holds no key."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from steer_pipeline.catalogue.scale import SCALES
from steer_pipeline.catalogue.specs import JudgeSpec, Persona
from steer_pipeline.io.journals import mirror_of
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.settings import settings

if TYPE_CHECKING:
    from steer_pipeline.lab.evaluation.judgement import Judgement

CACHE = "judge"


class JudgeResource(dg.ConfigurableResource):
    """Judges answers: `judge.ask(persona, pairs, store)`, where there is an endpoint."""

    url: str | None = Field(
        default=None,
        description="Base address of the endpoint, e.g. http://localhost:8000/v1; default: STEER_JUDGE_URL. "
        "The key comes from STEER_JUDGE_KEY alone.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the profile's `judge` to replace on this machine."
    )

    def endpoint(self) -> str | None:
        """Where the judge is; None: nothing is judged."""
        return self.url or settings().judge_url

    def spec(self) -> JudgeSpec:
        """How it is asked.

        Raises:
            pydantic.ValidationError: an override is not a field of JudgeSpec, or has a wrong value.
        """
        return JudgeSpec.model_validate({**settings().profile.judge.model_dump(), **self.overrides})

    def ask(
        self, persona: Persona, pairs: Sequence[tuple[str, str]], store: ArtifactStore
    ) -> "list[Judgement]":
        """A judgement for every (question, answer); all are `not_asked` where there is no endpoint.

        The judge's replies are kept in the store's work folder, one file for all personas, so that they outlive
        runs and versions; beside a remote store all machines share them.

        Raises:
            JudgeError, JudgeUnavailable: see `judge_texts`.
        """
        from steer_pipeline.lab.evaluation.judge import judge_texts
        from steer_pipeline.lab.evaluation.judgement import NOT_ASKED

        if (url := self.endpoint()) is None:
            return [NOT_ASKED] * len(pairs)
        mirror = mirror_of(store, CACHE, "answers")
        return judge_texts(persona, pairs, self.spec(), url, store.work(CACHE), mirror)

    def asking(
        self, persona: Persona, store: ArtifactStore
    ) -> "Callable[[Sequence[tuple[str, str]]], list[Judgement]] | None":
        """`ask` for one persona; None where there is no endpoint, or where the persona has no rubric or scale."""
        if self.endpoint() is None or not persona.judge_rubric or persona.kind not in SCALES:
            return None
        return lambda pairs: self.ask(persona, pairs, store)
