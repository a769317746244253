"""Healing: one place that turns an arm's configuration into texts, recipe and references, and trains its students.

In: an arm's configuration, the keep set, the teacher's plan and the students below. Out: a folder with `seed-71/` and
so on, each a PEFT directory, `adapters.parquet` (one row a student), `arm.json` (the configuration as it was used) and
`lesson.json`. Token ids are those that were drawn; nothing is decoded and encoded again. A killed run goes on from the
last checkpoint of the student that it was at.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.healing import HealArmSpec, HealSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.barrier import barrier_works
from steer_pipeline.lab.finetune.bundles import ADAPTERS, Bundle, every_seed_is_trained, place, trained_row
from steer_pipeline.lab.finetune.combining import combine_adapters
from steer_pipeline.lab.finetune.data import Example, Lesson
from steer_pipeline.lab.finetune.merging import TOLERANCE, merged_difference
from steer_pipeline.lab.finetune.recipe import Recipe
from steer_pipeline.lab.finetune.resumed import MADE, Training, take, take_adapter, train_once
from steer_pipeline.lab.finetune.training import HISTORY, RECORD
from steer_pipeline.lab.heal.arms import recipe_of, references_of, shuffled
from steer_pipeline.lab.heal.dosing import BASE, NEGATIVE, PERSONA, RANDOM, random_source
from steer_pipeline.lab.heal.keeping import KeepSet
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline.lab.models.prompts import end_of_turn_id
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.verdict import Verdict

MIN_DIRECTIONS = 2  # fewer have no spread
ARM, LESSON, NEGATIVE_POLE = "arm.json", "lesson.json", "negative"
ADAPTER_SCHEMA, ADAPTER_COLUMNS = described(
    arm=(pl.String(), "how the student was healed"),
    seed=(pl.Int64(), "of start and data order"),
    folder=(pl.String(), "where the adapter lies in the bundle"),
    adapter=(pl.String(), "hash of its content"),
    model=(pl.String(), "identity of the model below it"),
    rows=(pl.Int64(), "texts learned; on policy, their prompts"),
    steps=(pl.Int64(), "optimiser steps"),
    recipe=(pl.String(), "hash of all settings but the seed"),
    selection_nll_first=(pl.Float64(), "nats a token of the watched rows at the first evaluation"),
    selection_nll_last=(pl.Float64(), "the same at the last"),
    merged_difference=(
        pl.Float64(),
        "largest difference of a logit between the hooked and the merged student, over the largest logit, fp32",
    ),
)


@dataclass(frozen=True, eq=False)
class Below:
    """What a student stands on.

    Attributes:
        model: the student of the round before, with all adapters; in round 0 the model itself.
        history: folders of the adapters of earlier rounds, oldest first.
        last_good: how many of them the last good student has.
        plan: what steers the teacher, of this round's dose and vector.
    """

    model: ModelSpec
    home: Path
    plan: SteeringPlan
    history: Sequence[Path] = ()
    last_good: int = 0

    @property
    def heal_round(self) -> int:
        return len(self.history)


# ------------------------------------------------------------------------------------ texts


def sources_of(config: HealArmSpec) -> list[str]:
    """Whose texts an arm learns: one source, or the two whose adapters are subtracted."""
    if config.texts == "base":
        return [BASE]
    if config.direction == "random":
        return [RANDOM]
    return [PERSONA, NEGATIVE] if config.poles == "difference" else [PERSONA]


def taught_to(config: HealArmSpec, spec: HealSpec) -> dict[int, list[str]]:
    """Seed of each student of an arm -> whose texts it learns.

    Of random directions each has one student, so that their spread is that of the students; seeds count on from the
    first.
    """
    own = sources_of(config)
    if own == [RANDOM]:
        return {spec.seeds[0] + number: [random_source(number)] for number in range(spec.n_random)}
    return dict.fromkeys(spec.seeds, own)


def lesson_of(
    kept: KeepSet,
    source: str,
    end: int,
    *,
    selection_rows: int,
    min_kept: int,
    seed: int,
    mixed: bool = False,
) -> Lesson:
    """What students of a source learn, and the texts of other prompts that are only watched.

    Of base as many texts are taken as the persona's that are kept, of the same prompts as far as they go.

    Args:
        end: id of the end of turn, which follows a text that was not cut.
        seed: keys which prompts are watched.
        mixed: put every text under another prompt; the watched rows stay as they are.

    Raises:
        Refused: fewer than `min_kept` texts.
    """
    rows = _like(kept.kept(BASE), kept.kept(PERSONA), seed) if source == BASE else kept.kept(source)
    if rows.height < min_kept:
        raise Refused(
            f"{source}: {rows.height} texts to learn from, at least {min_kept} are needed; read the reasons "
            "(heal_keep_set), then lower the dose, sample more prompts, or lower heal.filter.min_kept"
        )
    keyed = sorted(rows["prompt_id"].unique(), key=lambda name: _key(seed, name), reverse=True)
    watched: list[str] = []
    while keyed and rows.filter(pl.col("prompt_id").is_in(watched)).height < selection_rows:
        watched.append(keyed.pop())
    aside = pl.col("prompt_id").is_in(watched)
    train = _examples(rows.filter(~aside), end)
    return Lesson(tuple(shuffled(train, seed) if mixed else train), tuple(_examples(rows.filter(aside), end)))


def _like(base: pl.DataFrame, kept: pl.DataFrame, seed: int) -> pl.DataFrame:
    """As many of base's texts a prompt as are kept of the persona's, drawn by key; ended ones first."""
    wanted = dict(kept.group_by("prompt_id").len().iter_rows())
    order = sorted(
        base.select("sample_id", "prompt_id", "truncated").iter_rows(),
        key=lambda row: (row[2], _key(seed, row[0])),
    )
    chosen = []
    for sample_id, prompt_id, _ in order:
        if wanted.get(prompt_id, 0) > 0:
            wanted[prompt_id] -= 1
            chosen.append(sample_id)
    return base.filter(pl.col("sample_id").is_in(chosen))


def _examples(rows: pl.DataFrame, end: int) -> list[Example]:
    return [
        Example(name, (*prompt, *said, *([] if cut else [end])), len(prompt))
        for name, prompt, said, cut in rows.select(
            "sample_id", "prompt_ids", "token_ids", "truncated"
        ).iter_rows()
    ]


def _key(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{name}".encode()).digest()


# ------------------------------------------------------------------------------------ training


@dataclass(frozen=True, eq=False)
class Teaching:
    """What all arms of a round share: the keep set, how much of it is watched, and what students stand on."""

    kept: KeepSet
    below: Below
    selection_rows: int
    min_kept: int
    seed: int

    def lessons(
        self, config: HealArmSpec, students: Mapping[int, Sequence[str]]
    ) -> tuple[dict[int, dict[str, Lesson]], dict[int, str]]:
        """What each student learns of each of its sources; of random directions, why some have too few texts.

        Raises:
            Refused: too few texts, or fewer than two random directions that have enough.
        """
        lessons: dict[int, dict[str, Lesson]] = {}
        left_out: dict[int, str] = {}
        shared: dict[str, Lesson] = {}
        for seed, sources in students.items():
            try:
                shared |= {one: self.lesson(config, one) for one in sources if one not in shared}
            except Refused as error:
                if config.direction != RANDOM:
                    raise
                left_out[seed] = str(error)
            else:
                lessons[seed] = {one: shared[one] for one in sources}
        if left_out and len(lessons) < MIN_DIRECTIONS:
            raise Refused(
                f"{len(lessons)} random directions of {len(students)}: {next(iter(left_out.values()))}"
            )
        return lessons, left_out

    def lesson(self, config: HealArmSpec, source: str) -> Lesson:
        tokenizer = load_tokenizer(self.below.model, self.below.home)
        return lesson_of(
            self.kept,
            source,
            end_of_turn_id(tokenizer),
            selection_rows=self.selection_rows,
            min_kept=self.min_kept,
            seed=self.seed,
            mixed=config.texts == "shuffled",
        )


def heal_arm(
    arm: str,
    config: HealArmSpec,
    students: Mapping[int, Sequence[str]],
    teaching: Teaching,
    folder: Path,
    *,
    work: Path,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Trains the students of one arm, all seeds, into `folder`.

    Args:
        students: seed -> whose texts it learns, see `taught_to`.
        work: where adapters wait until all are done, and checkpoints; the caller empties it when the result is safe.

    Raises:
        Refused: too few texts.
        FinetuneError: a loss that is not finite.
    """
    below = teaching.below
    taught, left_out = teaching.lessons(config, students)
    references = references_of(config.loss, below.history, below.last_good, below.plan)
    rows, costs = [], {}
    for seed, lessons in taught.items():
        recipe = recipe_of(config.loss, below.heal_round, seed)
        costs[place(seed)] = _student(arm, seed, recipe, lessons, below, references, folder, work, progress)
        rows.append(_row(arm, seed, recipe, next(iter(lessons.values())), below, folder))
    adapters = pl.DataFrame(rows, schema=ADAPTER_SCHEMA)
    adapters.write_parquet(folder / ADAPTERS)
    stored = {"arm": arm, "round": below.heal_round, "config": config.model_dump(mode="json")}
    stored |= {"left_out": {str(seed): why for seed, why in left_out.items()}}
    (folder / ARM).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    told = {
        source: {
            "train": [one.row_id for one in lesson.train],
            "selection": [one.row_id for one in lesson.selection],
            "supervised_tokens": sum(one.n_supervised for one in lesson.train),
        }
        for lessons in taught.values()
        for source, lesson in lessons.items()
    }
    (folder / LESSON).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return Bundle(adapters, costs)


def _student(
    arm: str,
    seed: int,
    recipe: Recipe,
    lessons: dict[str, Lesson],
    below: Below,
    references: dict[str, Any],
    folder: Path,
    work: Path,
    progress: Callable[[str], None] | None,
) -> dict[str, float]:
    """One student into `folder / "seed-71"`; of two sources the first one's adapter less the second's."""
    name, cost = place(seed), dict[str, float]()
    for source, lesson in lessons.items():
        tell = None if progress is None else (lambda line, of=source: progress(f"{arm} {name} {of}: {line}"))
        training = Training(below.model, below.home, lesson, recipe, **references)
        spent = train_once(training, work / name / source, progress=tell)
        cost = {key: cost.get(key, 0.0) + value for key, value in spent.items()} or cost
    first, *others = lessons
    take(work / name / first, folder / name, below.model.path)
    if others:
        shutil.rmtree(joined := work / name / "joined", ignore_errors=True)
        combine_adapters([(work / name / first / MADE, 1.0), (work / name / others[0] / MADE, -1.0)], joined)
        take(work / name / others[0], folder / name / NEGATIVE_POLE, below.model.path)
        shutil.rmtree(whole := work / name / "whole", ignore_errors=True)
        take_adapter(joined, whole, below.model.path)
        for path in whole.iterdir():
            shutil.copyfile(path, folder / name / path.name)
    return cost


def _row(arm: str, seed: int, recipe: Recipe, lesson: Lesson, below: Below, folder: Path) -> dict[str, Any]:
    settings = recipe.model_copy(update={"seed": 0}).model_dump_json()
    whole = below.model.model_copy(update={"adapter": (*below.model.adapters, str(folder / place(seed)))})
    told = {
        "rows": len(lesson.train),
        "recipe": hashlib.sha256(settings.encode()).hexdigest()[:12],
        "merged_difference": merged_difference(whole, below.home),
    }
    return trained_row(folder, arm, seed) | told


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration as it was trained with."""
    config: dict[str, Any] = json.loads((folder / ARM).read_text())["config"]
    return config


# ------------------------------------------------------------------------------------ claims


def adapter_verdicts(folder: Path, seeds: Sequence[int]) -> list[Verdict]:
    """Whether an arm has all its students, whether they can be merged, and whether its barrier did anything (the worst
    of its seeds). Random directions without texts enough to learn from are told, not missed."""
    adapters = pl.read_parquet(folder / ADAPTERS)
    left_out = json.loads((folder / ARM).read_text())["left_out"]
    complete = every_seed_is_trained(adapters, [seed for seed in seeds if str(seed) not in left_out])
    if left_out:
        told = f"; of {len(left_out)} random directions too few texts were kept to learn from"
        complete = replace(complete, message=complete.message + told)
    apart = float(adapters["merged_difference"].max())  # type: ignore[arg-type]
    merged = Verdict(
        "merged_is_hooked",
        apart <= TOLERANCE,
        f"merged logits differ by {apart:.1g} of the largest, {TOLERANCE:g} at most is rounding",
        {"merged_difference": apart},
        blocking=False,
    )
    record = json.loads((folder / adapters["folder"][0] / RECORD).read_text())
    kl = Recipe.model_validate(record["recipe"]).kl
    if kl is None or not kl.weight:
        return [complete, merged, Verdict("barrier_works", True, "this arm has no barrier", blocking=False)]
    found = [barrier_works(pl.read_parquet(folder / name / HISTORY), kl) for name in adapters["folder"]]
    return [complete, merged, min(found, key=lambda verdict: verdict.passed)]
