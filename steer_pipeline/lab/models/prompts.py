"""The only tokenisation of prompts and completions.

In: texts and a tokenizer. Out: token ids, with chat template or raw. Text that spells a special token (a
news item that quotes `<|im_end|>`) is split inside that token, so that it stays text and never becomes a
control id.
"""

import copy
import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from steer_pipeline.catalogue.specs import ModelSpec

_TODAY = ModelSpec.model_fields["date"].default  # of tokenizers that were not pinned to a day
_PINNED = "pinned_date"  # attribute of a tokenizer
_MARKS = [chr(code) for code in range(0xE000, 0xF900)]  # private use: breakpoints inside rendered templates


def encode_prompt(
    tokenizer: Any,
    *,
    user: str,
    system: str | None = None,
    chat_template: bool = True,
    earlier: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Ids of a prompt that ends where the answer begins.

    Templates without a system role (Gemma's raise, others drop it) get the system text before the user's,
    one blank line apart; so do raw prompts, which begin with the tokenizer's own BOS, if it has one.

    Args:
        earlier: turns of the same conversation before, each what the user said and the answer to it.

    Raises:
        ValueError: the tokenizer has no chat template, the template drops or changes one of the texts, or a text has
            lone surrogates (broken UTF-8).
    """
    if not chat_template:
        before = [text for turn in earlier for text in turn]
        text = "\n\n".join([*([] if system is None else [system]), *before, user])
        return _bos(tokenizer) + _encode_text(tokenizer, text)
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template; set model.chat_template: false in the profile, or put one beside it "
            "(chat_template.jinja)"
        )
    said = [("user", user)]
    for question, answer in reversed(earlier):
        said[:0] = [("user", question), ("assistant", answer)]
    if system is not None and takes_system_turn(tokenizer):
        said.insert(0, ("system", system))
    elif system is not None:
        said[0] = ("user", f"{system}\n\n{said[0][1]}")
    mark = _unused_mark("".join(text for _, text in said))
    turns = [{"role": role, "content": _broken(tokenizer, text, mark)} for role, text in said]
    text = _render(tokenizer, turns, True)
    for turn in turns:
        if turn["content"].strip() not in text:
            raise ValueError(
                f"the chat template drops or changes the text of the {turn['role']} turn; repair it "
                "(chat_template.jinja beside the tokenizer), or set model.chat_template: false in the profile"
            )
    return _encode_pieces(tokenizer, text, mark)


def pinned(tokenizer: Any, day: date) -> Any:
    """The tokenizer, whose chat template takes `day` for today; a copy where it is pinned to another day."""
    if getattr(tokenizer, _PINNED, day) != day:
        tokenizer = copy.copy(tokenizer)
    setattr(tokenizer, _PINNED, day)
    return tokenizer


def encode_completion(tokenizer: Any, text: str, *, end_of_turn: bool) -> list[int]:
    """Ids of an answer, to be appended to a prompt's. `end_of_turn` adds the token that ends the assistant's
    turn.
    """
    ids = _encode_text(tokenizer, text)
    return [*ids, end_of_turn_id(tokenizer)] if end_of_turn else ids


@lru_cache(maxsize=8)
def end_of_turn_id(tokenizer: Any) -> int:
    """The special token that follows an assistant's turn in the chat template; without a template, the EOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    of_template = template_end(tokenizer)
    if of_template is not None:
        return of_template
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-turn and no EOS token; set eos_token in tokenizer_config.json"
        )
    return tokenizer.eos_token_id


@lru_cache(maxsize=8)
def template_end(tokenizer: Any) -> int | None:
    """The first special or added token after an assistant's text, as the chat template renders it; None where there is
    no template, or none such in it.
    """
    if not tokenizer.chat_template:
        return None
    mark = _MARKS[0]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    try:
        rest = _render(tokenizer, turns, False).partition(mark)[2]
    except TemplateError:
        return None
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((one for one in tokenizer.encode(rest, add_special_tokens=False) if one in control), None)


def _render(tokenizer: Any, turns: list[dict[str, str]], answer_next: bool) -> str:
    # Templates with a thinking switch (Qwen3) are asked for the plain answer; others ignore the variable.
    dated = "strftime_now" in str(tokenizer.chat_template)
    return tokenizer.apply_chat_template(
        turns,
        chat_template=_on_the_day(getattr(tokenizer, _PINNED, _TODAY)) + tokenizer.get_chat_template()
        if dated
        else None,
        tokenize=False,
        add_generation_prompt=answer_next,
        enable_thinking=False,
    )


@lru_cache(maxsize=8)
def _on_the_day(day: date) -> str:
    """What a template that asks for the time begins with, so that `strftime_now` tells this day at midnight.

    It is written in Jinja: transformers hands no functions to templates. The new line at its end is trimmed away.
    """
    replaced = "".join(
        f" | replace('%{sign}', {day.strftime('%' + sign)!r})"
        for sign in (*(f"-{one}" for one in "dmHIMSj"), *"aAbBcdDeFHIjmMpSTuUVwWxXyYZ")
    )
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


@lru_cache(maxsize=8)
def takes_system_turn(tokenizer: Any) -> bool:
    """Whether the chat template has a place for a system turn; others raise, or drop it."""
    mark = _MARKS[0]
    try:
        text = _render(
            tokenizer,
            [{"role": "system", "content": mark}, {"role": "user", "content": "a"}],
            answer_next=True,
        )
    except TemplateError:
        return False
    return mark in text


@lru_cache(maxsize=8)
def _control_text(tokenizer: Any) -> re.Pattern[str]:
    """Finds the start of each text that the tokenizer would turn into a control token.

    Special tokens, and added tokens that the chat template uses (Qwen's `<think>` is added but not special).
    """
    template = tokenizer.chat_template or ""
    names = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if len(token.content.strip()) > 1 and (token.special or token.content in template)
    ]
    return re.compile("(?=" + "|".join(map(re.escape, names)) + ")" if names else r"(?!)")


def _broken(tokenizer: Any, text: str, mark: str) -> str:
    """`text` with `mark` after the first character of each control token that it spells."""
    at = [match.start() + 1 for match in _control_text(tokenizer).finditer(text)]
    parts = [text[start:stop] for start, stop in zip([0, *at], [*at, len(text)], strict=True)]
    return mark.join(parts)


def _unused_mark(text: str) -> str:
    return next(mark for mark in _MARKS if mark not in text)


def _encode_pieces(tokenizer: Any, text: str, mark: str) -> list[int]:
    broken = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
    if broken is not None:
        raise ValueError(
            f"the text is not valid Unicode: half a character ({text[broken]!a}) near {text[:broken][-40:]!r}; "
            "decode the source with errors='replace' or drop the row"
        )
    ids: list[int] = []
    for piece in text.split(mark):
        ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    mark = _unused_mark(text)
    return _encode_pieces(tokenizer, _broken(tokenizer, text, mark), mark)


def _bos(tokenizer: Any) -> list[int]:
    with_specials = tokenizer.encode("a", add_special_tokens=True)
    return with_specials[:1] if with_specials and with_specials[0] == tokenizer.bos_token_id else []
