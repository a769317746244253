"""`make behaviour`: the behaviour lab in one process, from scored dialogues to the table of all personas.

For every trait and role: learns vectors, compares them with prompting, averaged and random ones, lets all of
them speak and scores it. What is already made from the same code, inputs and profile is left alone. A persona
that fails is named and the others go on. Progress goes to stdout, its last line is one JSON object; what went
wrong goes to stderr, and then the exit status is 1.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from steer_pipeline.catalogue import load_personas
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.settings import settings
from steer_pipeline.tools.campaign import Campaign, Stopped, rounded
from steer_pipeline.tools.driver import open_driver

CHAIN = (
    "behaviour_set",
    "lr_sweep",
    "trained_vector",
    "vector_comparison",
    "rollouts",
    "minilm_scores",
    "judge_scores",
)
TABLE = "behaviour_table"
SECTIONS = {"model", "behaviour", "training", "rollouts", "judge"}  # of the profile: what the lab reads


@dataclass
class Behaviour(Campaign):
    """One pass over the behaviour lab."""

    personas: Sequence[str]

    def run(self) -> None:
        for persona in self.personas:
            self.bring_up(CHAIN, persona, stop=False)
        self.bring_up((TABLE,), None, stop=False)

    def says(self, asset: str, partition: str | None) -> list[Any]:
        profile, personas = settings().profile.model_dump(include=SECTIONS), load_personas()
        named = [partition] if partition else TRAIT_OR_ROLE.get_partition_keys()
        told = [profile, self.weights, *(personas[name].model_dump() for name in named)]
        if asset == CHAIN[0] and settings().profile.behaviour.source.kind == "newsroom":
            shipped = settings().shipped / "dialogues.parquet"
            told.append(hashlib.sha256(shipped.read_bytes()).hexdigest() if shipped.is_file() else None)
        return told

    def numbers(self) -> dict[str, dict[str, float | None]]:
        """What the last line shows of every persona that was asked for and has been compared."""
        from steer_pipeline.lab.behaviour.table import minilm_headline
        from steer_pipeline.lab.vectors.tables import headline

        compared = {name: self.store.current("vector_comparison", name) for name in self.personas}
        scored = {name: self.store.current("minilm_scores", name) for name in self.personas}
        aucs = minilm_headline(
            {name: pl.read_parquet(v.path / "data.parquet") for name, v in scored.items() if v}
        )
        return {
            name: {**headline(version.path), "minilm_auc": aucs.get(name)}
            for name, version in compared.items()
            if version
        }


def chosen(only: Sequence[str]) -> list[str]:
    """The personas named, or all traits and roles.

    Raises:
        Stopped: a name is not one of them.
    """
    known = TRAIT_OR_ROLE.get_partition_keys()
    if unknown := [name for name in only if name not in known]:
        raise Stopped(f"--only: no trait or role {', '.join(unknown)}; the catalogue has {', '.join(known)}")
    return [name for name in known if not only or name in only]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m steer_pipeline.tools.behaviour", description=__doc__)
    parser.add_argument("--only", default="", help="personas, separated by commas; default: all")
    parser.add_argument("--force", action="store_true", help="make everything again, fresh or not")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    warnings.filterwarnings("ignore")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)

    from steer_pipeline.definitions import defs

    numbers: dict[str, dict[str, float | None]] = {}
    try:
        personas = chosen([name.strip() for name in options.only.split(",") if name.strip()])
        with open_driver(defs, settings().home) as driver:
            lab = Behaviour(driver, personas, force=options.force, started=started)
            lab.run()
            numbers, problems = lab.numbers(), lab.problems
    except Stopped as error:
        problems = [str(error)]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"seconds": seconds, "personas": rounded(numbers)}, allow_nan=False), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
