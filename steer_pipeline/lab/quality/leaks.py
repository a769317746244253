"""Whether a text speaks of what its model was told, or declines to answer.

In: a text, the persona's instructions and the prompt. Out: what gave it away, in the text's own words. What another
person says, in quotation marks, gives nothing away, and nor does what stands in the prompt.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steer_pipeline.lab.quality.text import sentences, straight, words

MIN_SHARED_WORDS = 6  # of an instruction, in a row
MIN_CONTENT_WORDS = 2  # of an instruction, in a sentence in which the text says who it is
_QUOTED = re.compile(r'"[^"\n]{1,400}"')
_SAID = r"(?:told|asked|instructed|prompted|programmed|directed|requested|assigned|given)"
_SPEAK = r"(?:be|act|speak|sound|write|reply|respond|answer|pretend|adopt|stay)"
_TALKS = re.compile(
    r"\b(?:my|the system|your|these|those) (?:instructions?|prompts?|guidelines|programming)\b"
    r"|\bthe prompt (?:says|said|asks|asked|wants|tells|told|requires)\b"
    rf"|\b(?:i|i've|i'm) (?:\w+ ){{0,2}}{_SAID} to {_SPEAK}\b"
    r"|\b(?:instructions?|guidelines|persona|role|part|voice|tone|character)\b"
    rf"[^.!?]{{0,20}} (?:i|you) (?:\w+ )?{_SAID}\b"
    rf"|\byou (?:\w+ )?{_SAID} me to {_SPEAK}\b"
    r"|\b(?:stay|staying|remain|remaining|keep|keeping|speaking) in character\b"
    r"|\b(?:this|the|my|your) (?:assigned )?persona\b"
    r"|\bplay(?:ing)? (?:the|my|a) (?:role|part) (?:of|you|i)\b"
    r"|\bmy (?:role|task|job) here is\b|\bmy tone (?:is|should|must)\b",
    re.IGNORECASE,
)
_WHO = re.compile(
    r"\b(?:i am|i'm|as|being|to be|to sound|in) (?:an? |the |someone |somebody )?", re.IGNORECASE
)
_DOES = (
    r"(?:assist|help|comply|fulfil|provide|write|produce|answer|continue|create|rewrite|generate|engage|support|discuss"
    r"|respond|do that|do this)"
)
_REFUSES = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|ai \w+|assistant)\b"
    r"|\bi(?:'m| am) (?:very |so |really )?(?:sorry|afraid)\b[^.!?]{0,12} i (?:can|could|am|won|must|will)(?:'t| not)\b"
    rf"|\bi (?:cannot|can't|can not|could not|won't|will not) (?:\w+ )?{_DOES}\b"
    r"|\bi(?:'m| am) (?:unable|not able|not allowed|not permitted) to\b"
    r"|\bi (?:must|have to|need to) (?:respectfully )?(?:decline|refuse)\b|\bi (?:decline|refuse) to\b"
    r"|\bi (?:don't|do not) feel comfortable\b|\bi(?:'d| would) rather not\b"
    r"|\b(?:against|outside|violates?) (?:my|our) (?:guidelines|policy|policies|programming)\b"
    r"|\bmy (?:policy|guidelines) (?:does|do) not allow\b"
    r"|\b(?:not|in)(?: be)? ?appropriate for me to\b",
    re.IGNORECASE,
)
_LITTLE = frozenset(
    words(
        "a an and are as at be by do every everywhere from go has have he her his in is it its let like make no not of "
        "on or out person she show someone something that the their them they this to too voice was were what when who "
        "with write writer reporter editor assistant you your adopt believe"
    )
)


@dataclass(frozen=True)
class Told:
    """What a model was told to be, and so must not repeat.

    Attributes:
        names: of the pole, such as `rule_defiant`.
        instructions: the pole's system turns.
    """

    names: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()


def _unquoted(text: str) -> str:
    """The text without what stands in quotation marks, unless that is nearly all of it."""
    plain = straight(text)
    left = _QUOTED.sub('""', plain)
    return left if len(words(left)) >= 3 else plain


def refusal(text: str, prompt: str = "") -> str | None:
    """The words in which the text declines, or None."""
    match = _REFUSES.search(_unquoted(text))
    return match[0] if match and match[0].lower() not in straight(prompt).lower() else None


def persona_leak(text: str, told: Told = Told(), prompt: str = "") -> str | None:
    """The words in which the text speaks of its instructions or says what it was told to be, or None.

    Four signs: talk of instructions, prompts, roles and characters; a sentence that says who speaks and has the pole's
    name in it; the same with two content words of one instruction; six words of an instruction in a row.
    """
    given = straight(prompt).lower()
    for found in _signs(_unquoted(text), told):
        if found.lower() not in given:
            return found
    return None


def _signs(text: str, told: Told) -> Iterator[str]:
    yield from (match[0] for match in _TALKS.finditer(text))
    asked = [words(one) for one in told.instructions]
    names = {" ".join(words(name.replace("_", " "))) for name in told.names}
    for sentence in sentences(text):
        if _WHO.search(sentence):
            yield from _self_portraits(sentence, names, asked)
    said = f" {' '.join(words(text))} "
    for own in asked:
        for start in range(len(own) - MIN_SHARED_WORDS + 1):
            block = " ".join(own[start : start + MIN_SHARED_WORDS])
            if f" {block} " in said:
                yield block


def _self_portraits(sentence: str, names: set[str], asked: Sequence[Sequence[str]]) -> Iterator[str]:
    for match in _WHO.finditer(sentence):
        following = " ".join(words(sentence[match.end() :]))
        yield from (
            f"{match[0].strip()} {name}" for name in names if re.match(rf"{re.escape(name)}\b", following)
        )
    if re.search(r"\b(?:i am|i'm|as) (?:an?|someone|somebody)\b", sentence, re.IGNORECASE):
        content = set(words(sentence)) - _LITTLE
        for own in asked:
            if len(content & set(own)) >= MIN_CONTENT_WORDS:
                yield sentence
