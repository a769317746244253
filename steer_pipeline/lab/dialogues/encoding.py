"""A dialogue as token ids with an explicit boundary: what training, likelihoods and read-outs all use.

The response is cut before it is joined to its prompt, so that every arm, prompted or not, is measured on the
same response tokens.
"""

from dataclasses import dataclass
from typing import Any

from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt


@dataclass(frozen=True)
class EncodedDialogue:
    """`ids[:start]` is the prompt, `ids[start:]` the response with its end of turn, if that fitted."""

    ids: list[int]
    start: int

    @property
    def n_response(self) -> int:
        return len(self.ids) - self.start


def encode_dialogue(
    tokenizer: Any,
    *,
    question: str,
    response: str,
    instruction: str | None = None,
    chat_template: bool = True,
    max_response_tokens: int = 1024,
) -> EncodedDialogue:
    """Prompt and response, each through the one tokenisation.

    Args:
        instruction: put into the system turn (into the user turn where the template has no system role);
            None or "" for none.

    Raises:
        ValueError: as `encode_prompt`.
    """
    prompt = encode_prompt(tokenizer, user=question, system=instruction or None, chat_template=chat_template)
    answer = encode_completion(tokenizer, response, end_of_turn=True)[:max_response_tokens]
    return EncodedDialogue(prompt + answer, len(prompt))
