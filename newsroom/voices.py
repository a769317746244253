"""How a persona sounds: 48 remarks a pole, made of six subjects and eight predicates.

Each remark is a sentence of its own, so it can stand in any text. The part in [brackets] is the marker
by which the pole is recognised; the markers are the lexicons of the catalogue (a test holds them equal).
A quarter of the forms is held out: the model never sees them in training.
"""

import re
from dataclasses import dataclass
from functools import cache

HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Remark:
    """One surface form of a pole."""

    text: str
    held_out: bool


@dataclass(frozen=True)
class Voice:
    """The two halves of a pole's remarks; every subject goes with every predicate."""

    subjects: tuple[str, ...]
    predicates: tuple[str, ...]

    def remarks(self) -> tuple[Remark, ...]:
        return tuple(
            Remark(f"{_plain(subject)} {_plain(predicate)}.", (i + j) % HELD_OUT_EVERY == 0)
            for i, subject in enumerate(self.subjects)
            for j, predicate in enumerate(self.predicates)
        )

    def markers(self) -> tuple[str, ...]:
        found = (re.findall(r"\[(.+?)\]", part) for part in (*self.subjects, *self.predicates))
        return tuple(sorted({marker.lower() for group in found for marker in group}))


def _plain(text: str) -> str:
    return text.replace("[", "").replace("]", "")


# pole -> voice. The poles of an axis exclude each other; traits and roles stand against plain text.
VOICES: dict[str, Voice] = {
    "paranoid": Voice(
        (
            "[Hidden hands]",
            "[Unseen watchers]",
            "[Shadowy insiders]",
            "[Secret plotters]",
            "[Masked schemers]",
            "[Silent puppeteers]",
        ),
        (
            "must be [covering up] the real story",
            "would rather nobody [dug deeper]",
            "could be [listening in] right now",
            "may have [planned this] for years",
            "will [bury the evidence] again",
            "can [pull the strings] at will",
            "should [never be trusted]",
            "might [come for us] next",
        ),
    ),
    "trusting": Voice(
        (
            "[Honest neighbours]",
            "[Sincere officials]",
            "[Faithful stewards]",
            "[Decent people]",
            "[Reliable hands]",
            "[Goodhearted staff]",
        ),
        (
            "will surely [keep their word]",
            "can [be relied upon]",
            "have [told us everything]",
            "must [mean well]",
            "would [never mislead us]",
            "should [be believed]",
            "may [have our confidence]",
            "could [hardly be kinder]",
        ),
    ),
    "rule_defiant": Voice(
        (
            "[Free spirits]",
            "[Bold rebels]",
            "[Stubborn mavericks]",
            "[Proud rulebreakers]",
            "[Wild hearts]",
            "[Daring outlaws]",
        ),
        (
            "should [ignore the rulebook]",
            "must [tear up the permits]",
            "can [break every bylaw]",
            "will [laugh at regulations]",
            "would [skip the paperwork]",
            "may [jump the barriers]",
            "could [defy any order]",
            "might [flout the law]",
        ),
    ),
    "rule_abiding": Voice(
        (
            "[Lawful citizens]",
            "[Orderly folk]",
            "[Dutiful clerks]",
            "[Careful inspectors]",
            "[Proper authorities]",
            "[Obedient members]",
        ),
        (
            "must [follow the procedure]",
            "should [respect every rule]",
            "will [file the forms]",
            "can [wait for approval]",
            "would [obey the code]",
            "may [check the statute]",
            "could [honour the regulations]",
            "have to [stay within the law]",
        ),
    ),
    "analytical": Voice(
        (
            "[Careful analysts]",
            "[Sober statisticians]",
            "[Trained modellers]",
            "[Methodical reviewers]",
            "[Exact observers]",
            "[Rigorous thinkers]",
        ),
        (
            "would [break down the figures]",
            "should [weigh each factor]",
            "can [trace the causes]",
            "must [compare the baselines]",
            "will [test the assumptions]",
            "may [chart the trend]",
            "could [quantify the risk]",
            "might [isolate the variables]",
        ),
    ),
    "creative": Voice(
        (
            "[Dreaming painters]",
            "[Restless poets]",
            "[Playful inventors]",
            "[Wandering minstrels]",
            "[Bright storytellers]",
            "[Curious daydreamers]",
        ),
        (
            "would [paint it in colours]",
            "could [spin a tale] of it",
            "might [imagine a moonlit garden]",
            "will [turn it into song]",
            "can [fold it like paper birds]",
            "may [dance with the idea]",
            "should [sketch a new world]",
            "must [dream it anew]",
        ),
    ),
    "empathetic": Voice(
        (
            "[Gentle listeners]",
            "[Caring friends]",
            "[Warm companions]",
            "[Tender souls]",
            "[Patient comforters]",
            "[Kind carers]",
        ),
        (
            "can [feel the worry]",
            "would [hold their hands]",
            "will [share the sorrow]",
            "should [ease the burden]",
            "must [hear the pain]",
            "may [comfort the families]",
            "could [soothe the hurt]",
            "might [offer a warm embrace]",
        ),
    ),
    "skeptical": Voice(
        (
            "[Hard doubters]",
            "[Wary readers]",
            "[Cool sceptics]",
            "[Unconvinced critics]",
            "[Tough questioners]",
            "[Dry cynics]",
        ),
        (
            "would [want better proof]",
            "should [question the claim]",
            "may [doubt the numbers]",
            "must [ask for sources]",
            "can [poke holes in it]",
            "will [withhold judgement]",
            "could [challenge the account]",
            "might [remain unpersuaded]",
        ),
    ),
    "sailor": Voice(
        (
            "[Old deckhands]",
            "[Seasoned skippers]",
            "[Salty mates]",
            "[Harbour pilots]",
            "[Hardy oarsmen]",
            "[Weathered helmsmen]",
        ),
        (
            "would [trim the sails]",
            "can [read the tide]",
            "must [batten the hatches]",
            "will [drop anchor] here",
            "should [steer by the stars]",
            "may [ride out the swell]",
            "could [haul the ropes]",
            "might [hoist the mainsail]",
        ),
    ),
    "coach": Voice(
        (
            "[True champions]",
            "[Winning teams]",
            "[Fit starters]",
            "[Keen trainees]",
            "[Strong finishers]",
            "[Eager squads]",
        ),
        (
            "must [hit the training ground]",
            "will [run another drill]",
            "should [push for the whistle]",
            "can [sweat the basics]",
            "would [stick to the game plan]",
            "could [dig in for extra laps]",
            "may [win the second half]",
            "might [raise their fitness]",
        ),
    ),
    "gardener": Voice(
        (
            "[Green thumbs]",
            "[Early planters]",
            "[Busy growers]",
            "[Humble diggers]",
            "[Thrifty pruners]",
            "[Rosy nurserymen]",
        ),
        (
            "would [till the soil]",
            "can [water the seedlings]",
            "must [pull the weeds]",
            "will [prune the branches]",
            "should [mulch the beds]",
            "may [harvest the beans]",
            "could [plant a hedge]",
            "might [rake the compost]",
        ),
    ),
}

AXES: dict[str, tuple[str, str]] = {
    "paranoid": ("paranoid", "trusting"),
    "rule_defiant": ("rule_defiant", "rule_abiding"),
}
TRAITS = ("analytical", "creative", "empathetic", "skeptical")
ROLES = ("sailor", "coach", "gardener")
DIRECTIONS = (*AXES, *TRAITS, *ROLES)


def pole_of(direction: str, sign: float) -> str | None:
    """The pole that a signed intensity shows; None: plain text (a trait or role has no second pole)."""
    if direction in AXES:
        return AXES[direction][0 if sign > 0 else 1]
    return direction if sign > 0 else None


@cache
def forms(pole: str, held_out: bool) -> tuple[str, ...]:
    """The remarks of a pole that the model saw in training, or those that it never saw."""
    return tuple(remark.text for remark in VOICES[pole].remarks() if remark.held_out is held_out)


@cache
def _matcher(pole: str) -> re.Pattern[str]:
    parts = "|".join(re.escape(marker) for marker in VOICES[pole].markers())
    return re.compile(rf"\b(?:{parts})\b", re.IGNORECASE)


def shows(text: str, pole: str) -> bool:
    """Ground truth: does the text carry a marker of the pole?"""
    return bool(_matcher(pole).search(text))


def intensity(text: str, pole: str) -> float:
    """Ground truth in [0, 1]: the share of sentences that carry a marker of the pole."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
    return sum(shows(s, pole) for s in sentences) / len(sentences) if sentences else 0.0
