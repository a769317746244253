"""What models say in held-out games, and how arms compare: the true target first, the logged word beside it.

In: rows of eval, models with and without adapters. Out: one row an arm, seed and game; accuracies and paired
differences with intervals over games and seeds. A word that the log has and that is wrong is no success.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.attribution.encoding import note_seen
from steer_pipeline.lab.attribution.rows import FAILURE, AttributionError
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.completions import completion_nll
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.stats import crossed_intervals, minimum_detectable
from steer_pipeline.lab.verdict import Verdict
from steer_pipeline.lab.word_games import read_guess

GUESSES = "guesses.parquet"
NO_SEED = 0  # of models that nothing was drawn for
GUESS_SCHEMA, GUESS_COLUMNS = described(
    arm=(pl.String(), "base, base_adapter or an arm"),
    seed=(pl.Int64(), "of the adapter; 0 for base"),
    row_id=(pl.String(), "of eval"),
    group_id=(pl.String(), "games of one group are resampled together"),
    output=(pl.String(), "what the model says, greedy"),
    word=(pl.String(), "the word that it guesses; null: none"),
    target_word=(pl.String(), "the word that was to be guessed; null: nobody knows"),
    logged_word=(pl.String(), "what the guesser of the log said, right or wrong"),
    correct=(pl.Boolean(), "word is the target; null without one"),
    agrees=(pl.Boolean(), "word is the logged one; null without one"),
    nll=(pl.Float64(), "nats a token of the logged completion; null where the log is known to be wrong"),
)
ACCURACY_SCHEMA, ACCURACY_COLUMNS = described(
    arm=(pl.String(), "who guesses"),
    n_seeds=(pl.Int64(), "adapters"),
    n_games=(pl.Int64(), "games with a known target"),
    accuracy=(pl.Float64(), "share of games in which the guess is the target, mean over seeds"),
    low=(pl.Float64(), "lower end of its 95% interval, over games and seeds"),
    high=(pl.Float64(), "upper end"),
    agreement=(pl.Float64(), "share of games in which the guess is the logged word"),
    nll=(pl.Float64(), "nats a token of logged completions that are not known to be wrong"),
)
EFFECT_SCHEMA, EFFECT_COLUMNS = described(
    arm=(pl.String(), "who guesses"),
    reference=(pl.String(), "whom it is compared with, game by game and seed by seed"),
    measure=(pl.String(), "accuracy, or nll where no game has a target; more is better in both"),
    difference=(pl.Float64(), "of the means"),
    low=(pl.Float64(), "lower end of its interval; those of one arm hold together at 95%"),
    high=(pl.Float64(), "upper end"),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    verdict=(pl.String(), "beats | ties | loses"),
)
Journal = Callable[[str], Any]


def play(
    arm: str,
    model: LoadedModel,
    rows: pl.DataFrame,
    examples: Sequence[Example],
    *,
    seed: int = NO_SEED,
    max_new_tokens: int = 16,
    journal: Any = None,
) -> pl.DataFrame:
    """`GUESS_SCHEMA`: one model's greedy answers to the prompts of eval, and its loss on what the log says there.

    Args:
        rows: eval rows of the manifest.
        examples: their ids, in the same order: the prompt is what stands before the completion.
    """
    prompts = [list(one.ids[: one.start]) for one in examples]
    asked = [PromptRow(one.row_id, {"*": ids}) for one, ids in zip(examples, prompts, strict=True)]
    sampling = SamplingSpec(temperature=0, max_new_tokens=max_new_tokens)
    said = {
        row.row_id: row.text
        for row in generate(
            model, asked, [SteeringPlan("base", stream="word_eval")], sampling, journal=journal
        )
    }
    losses = completion_nll(model, prompts, [[one.ids[one.start :]] for one in examples])
    found = []
    for row, loss in zip(rows.iter_rows(named=True), losses, strict=True):
        output = said[row["row_id"]]
        word, target, logged = read_guess(output) or None, row["target_word"], row["logged_word"]
        found.append(
            {name: row.get(name) for name in ("row_id", "group_id", "target_word", "logged_word")}
            | {"arm": arm, "seed": seed, "output": output, "word": word}
            | {"correct": None if target is None else word == target}
            | {"agrees": None if logged is None else word == logged}
            | {"nll": None if row["outcome"] == FAILURE else float(loss[0])}
        )
    return pl.DataFrame(found, schema=GUESS_SCHEMA)


def write_guesses(guesses: pl.DataFrame, examples: Sequence[Example], folder: Path) -> None:
    """`guesses.parquet` and what was seen."""
    guesses.write_parquet(folder / GUESSES)
    note_seen(examples, folder)


# ------------------------------------------------------------------------------------ comparing


def measure_of(guesses: pl.DataFrame) -> str:
    """By what arms are compared: `accuracy` where targets are known, else `nll`."""
    return "accuracy" if guesses["correct"].is_not_null().any() else "nll"


def accuracies(guesses: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """`ACCURACY_SCHEMA`, one row an arm, in the order of `guesses`."""
    rows = []
    measure = measure_of(guesses)
    for arm in guesses["arm"].unique(maintain_order=True):
        own = guesses.filter(arm=arm)
        row: dict[str, Any] = {
            "arm": arm,
            "n_seeds": own["seed"].n_unique(),
            "n_games": own.filter(pl.col("correct").is_not_null())["row_id"].n_unique(),
            "agreement": own["agrees"].mean(),
            "nll": own["nll"].mean(),
        }
        if measure == "accuracy":
            (one,) = crossed_intervals(_cells(guesses, arm, measure)[1][:, :, None], seed=seed)
            row |= {"accuracy": one.estimate, "low": max(one.low, 0.0), "high": min(one.high, 1.0)}
        rows.append(row)
    return pl.DataFrame(rows, schema=ACCURACY_SCHEMA)


def effects(guesses: pl.DataFrame, arm: str, references: Sequence[str], *, seed: int) -> pl.DataFrame:
    """`EFFECT_SCHEMA`: one arm against others, game by game and seed by seed; intervals of all hold together.

    Raises:
        AttributionError: an arm has not played, or played other games.
    """
    measure = measure_of(guesses)
    groups, own = _cells(guesses, arm, measure)
    differences = []
    for reference in references:
        others, cells = _cells(guesses, reference, measure)
        if others != groups:
            raise AttributionError(f"{arm} and {reference} played other games; make word_eval of both again")
        if cells.shape[1] not in (1, own.shape[1]) and own.shape[1] != 1:
            raise AttributionError(f"{arm} and {reference} have other seeds; make word_eval of both again")
        differences.append(np.broadcast_to(own - cells, (len(groups), max(own.shape[1], cells.shape[1]))))
    seeds = max(one.shape[1] for one in differences)
    stacked = np.stack([np.broadcast_to(one, (len(groups), seeds)) for one in differences], axis=2)
    found = crossed_intervals(stacked, seed=seed)
    return pl.DataFrame(
        [
            {
                "arm": arm,
                "reference": reference,
                "measure": measure,
                "difference": one.estimate,
                "low": one.low,
                "high": one.high,
                "detectable": minimum_detectable(stacked[:, :, place]),
                "verdict": "ties" if one.includes_zero else ("beats" if one.estimate > 0 else "loses"),
            }
            for place, (reference, one) in enumerate(zip(references, found, strict=True))
        ],
        schema=EFFECT_SCHEMA,
    )


def _cells(guesses: pl.DataFrame, arm: str, measure: str) -> tuple[list[str], np.ndarray]:
    """Groups, and means [groups, seeds] of what is better when it is more."""
    value = pl.col("correct").cast(pl.Float64) if measure == "accuracy" else -pl.col("nll")
    own = guesses.filter(arm=arm).with_columns(value=value).drop_nulls("value")
    if not own.height:
        raise AttributionError(f"{arm} has played no game; make word_eval of it")
    table = (
        own.group_by("group_id", "seed")
        .agg(pl.col("value").mean())
        .pivot("seed", index="group_id", values="value")
    )
    table = table.sort("group_id")
    seeds = sorted((name for name in table.columns if name != "group_id"), key=int)
    return table["group_id"].to_list(), table.select(seeds).to_numpy()


def best_reference(table: pl.DataFrame, references: Sequence[str], measure: str) -> str:
    """The arm with which others must compare: the best of these by their means.

    Args:
        table: `ACCURACY_SCHEMA`.
    """
    own = table.filter(pl.col("arm").is_in(list(references)))
    order = own.sort(
        "accuracy" if measure == "accuracy" else "nll", descending=measure == "accuracy", nulls_last=True
    )
    return str(order["arm"][0])


def games_are_the_same(guesses: pl.DataFrame, wanted: Sequence[str], seeds: Mapping[str, int]) -> Verdict:
    """Whether every arm and seed has answered every eval row once.

    Args:
        wanted: row ids of eval.
        seeds: arm -> number of adapters.
    """
    counts = guesses.group_by("arm", "row_id").len()
    expected = pl.DataFrame(
        {"arm": list(seeds), "n": list(seeds.values())}, schema={"arm": pl.String, "n": pl.UInt32}
    )
    wrong = counts.join(expected, on="arm", how="left").filter(pl.col("len") != pl.col("n"))
    lacking = [arm for arm in seeds if set(guesses.filter(arm=arm)["row_id"]) != set(wanted)]
    passed = not wrong.height and not lacking
    message = f"{guesses.height} guesses in {len(wanted)} games"
    if not passed:
        others = ", ".join(lacking) or "none"
        message += f"; {wrong.height} games have too few or too many of them; arms with other games: {others}"
    return Verdict("every_game_is_played", passed, message, {"guesses": guesses.height, "games": len(wanted)})
