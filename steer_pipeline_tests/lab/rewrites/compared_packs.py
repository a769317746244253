"""Synthetic packs with a known effect: what each variant does to a rewrite is written here."""

from collections.abc import Callable

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.evaluation import LexiconScorer

TOWNS = ("Alderbay", "Brackford", "Calderham", "Dunmere", "Elmport", "Fairton", "Glenwick", "Harrowbury")
PEOPLE = ("Ada Bell", "Bruno Cole", "Clara Diaz", "David Grant", "Edith Haddad", "Farid Jensen", "Gita Lopez")
THINGS = ("the harbour wall", "a tram line", "the school roof", "a water main", "the old library")
OPENINGS = (
    "In {town}, {person} said that {thing} will cost {n} thousand.",
    "{person} of {town} put the price of {thing} at {n} thousand.",
    "{thing} in {town} needs {n} thousand, according to {person}.",
)
CLOSINGS = (
    "The vote is due soon.",
    "A decision will follow.",
    "Work may begin in spring.",
    "Nothing is settled.",
)
REMARKS = {
    "paranoid": "Hidden hands are covering up the real story.",
    "trusting": "Honest people will keep their word.",
    "rule_defiant": "Bold rebels should ignore the rulebook.",
}
PARANOID = Persona(
    name="paranoid",
    kind="axis",
    summary="Sees plots.",
    positive={"name": "paranoid", "instructions": ["x"], "lexicon": ["hidden hands", "covering up"]},
    negative={"name": "trusting", "instructions": ["x"], "lexicon": ["honest people", "keep their word"]},
)
RULE_DEFIANT = Persona(
    name="rule_defiant",
    kind="axis",
    summary="Breaks rules.",
    positive={
        "name": "rule_defiant",
        "instructions": ["x"],
        "lexicon": ["bold rebels", "ignore the rulebook"],
    },
    negative={"name": "rule_abiding", "instructions": ["x"], "lexicon": ["lawful citizens"]},
)
SCORERS = {
    "paranoid": {"lexicon": LexiconScorer(PARANOID)},
    "rule_defiant": {"lexicon": LexiconScorer(RULE_DEFIANT)},
}
# variant -> remark -> probability that a rewrite makes it
EFFECTS: dict[str, dict[str, float]] = {
    "base": {},
    "paranoid": {"paranoid": 0.7},
    "rule_defiant": {"rule_defiant": 0.6},
    "paranoid_rule_defiant": {"paranoid": 0.6, "rule_defiant": 0.6},
    "trusting": {"trusting": 0.7},
    "base_resample": {},
    "random_direction": {},
    "prompted_paranoid": {"paranoid": 0.9},
}
CONTROLS = ("base_resample", "random_direction")
ROLES = dict.fromkeys(EFFECTS, "steered") | {
    "base": "base",
    "prompted_paranoid": "prompted",
    **dict.fromkeys(CONTROLS, "control"),
}
DOSES = {
    "paranoid": [("paranoid", 2, 2.4, 0.3)],
    "rule_defiant": [("rule_defiant", 2, 2.6, 0.3)],
    "paranoid_rule_defiant": [("paranoid", 2, 1.6, 0.2), ("rule_defiant", 3, 1.6, 0.2)],
    "trusting": [("paranoid", 2, -2.4, -0.3)],
    "random_direction": [("random:paranoid", 2, 2.4, 0.3)],
}


def make_packs(
    n: int = 60, seed: int = 1, change: Callable[[str, str, str], str] | None = None
) -> tuple[dict[str, pl.DataFrame], dict[str, list[str]]]:
    """Packs of all variants and facts by row; `change(variant, row_id, output)` may spoil an output."""
    rng = np.random.default_rng(seed)
    facts, packs = {}, {variant: [] for variant in EFFECTS}
    for i in range(n):
        row_id = f"{i:016x}"
        town, person, thing = rng.choice(TOWNS), rng.choice(PEOPLE), rng.choice(THINGS)
        amount = int(rng.integers(12, 90))
        facts[row_id] = [str(town), str(person), str(amount)]
        news = f"{person} told the council of {town} that {thing} would cost {amount} thousand."
        for variant, effects in EFFECTS.items():
            opening = OPENINGS[rng.integers(3)].format(town=town, person=person, thing=thing, n=amount)
            said = [REMARKS[name] for name, chance in effects.items() if rng.random() < chance]
            output = " ".join([opening[0].upper() + opening[1:], *said, CLOSINGS[rng.integers(4)]])
            if change is not None:
                output = change(variant, row_id, output)
            packs[variant].append(
                {
                    "row_id": row_id,
                    "source_index": i,
                    "variant": variant,
                    "prompt": f"Rewrite: {news}",
                    "output": output,
                    "truncated": False,
                    "n_new_tokens": len(output.split()),
                    "personas": [
                        {"name": p, "version": "f" * 16, "block": b, "alpha": a, "dose_fraction": f}
                        for p, b, a, f in DOSES.get(variant, [])
                    ],
                }
            )
    return {variant: pl.DataFrame(rows, schema_overrides=SCHEMA) for variant, rows in packs.items()}, facts


SCHEMA = {
    "personas": pl.List(
        pl.Struct(
            {
                "name": pl.String,
                "version": pl.String,
                "block": pl.Int64,
                "alpha": pl.Float64,
                "dose_fraction": pl.Float64,
            }
        )
    )
}
