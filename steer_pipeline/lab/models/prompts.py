"""The only tokenisation of prompts and completions.

In: texts and a tokenizer. Out: token ids, with chat template or raw. Text that spells a special token (a
news item that quotes `<|im_end|>`) is split inside that token, so that it stays text and never becomes a
control id.
"""

import re
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

_MARKS = [chr(code) for code in range(0xE000, 0xF900)]  # private use: breakpoints inside rendered templates


def encode_prompt(
    tokenizer: Any, *, user: str, system: str | None = None, chat_template: bool = True
) -> list[int]:
    """Ids of a prompt that ends where the answer begins.

    Templates without a system role (Gemma's raise, others drop it) get the system text before the user's,
    one blank line apart; so do raw prompts, which begin with the tokenizer's own BOS, if it has one.

    Raises:
        ValueError: the tokenizer has no chat template, or the text has lone surrogates (broken UTF-8).
    """
    if not chat_template:
        text = user if system is None else f"{system}\n\n{user}"
        return _bos(tokenizer) + _encode_text(tokenizer, text)
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template; set model.chat_template: false in the profile, or put one beside it "
            "(chat_template.jinja)"
        )
    mark = _unused_mark(user + (system or ""))
    if system is not None and not _has_system_role(tokenizer):
        user, system = f"{system}\n\n{user}", None
    turns = [{"role": "user", "content": _broken(tokenizer, user, mark)}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": _broken(tokenizer, system, mark)})
    return _encode_pieces(tokenizer, _render(tokenizer, turns, True), mark)


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
    if tokenizer.chat_template:
        mark = _MARKS[0]
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        rest = _render(tokenizer, turns, False).partition(mark)[2]
        special = set(tokenizer.all_special_ids)
        for token in tokenizer.encode(rest, add_special_tokens=False):
            if token in special:
                return token
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-turn and no EOS token; set eos_token in tokenizer_config.json"
        )
    return tokenizer.eos_token_id


def _render(tokenizer: Any, turns: list[dict[str, str]], answer_next: bool) -> str:
    # Templates with a thinking switch (Qwen3) are asked for the plain answer; others ignore the variable.
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=answer_next, enable_thinking=False
    )


@lru_cache(maxsize=8)
def _has_system_role(tokenizer: Any) -> bool:
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
