"""What an arm says to prompts that nobody learned, and what it costs: the rows that every table of arms is made from.

In: an arm as a model, a plan or a system turn, and the model without changes. Out: one row a text: trait, other traits,
coherence signals, divergence from the model without changes; and where a profile asks for them, forced choices. All
arms are asked alike and draw the same random numbers.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealArmSpec, HealFoundationsSpec
from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.finetune.bundles import ADAPTERS
from steer_pipeline.lab.foundations import measure, own_vignettes, read_vignettes, stratified
from steer_pipeline.lab.foundations.numbers import Intent
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.heal.healing import ARM
from steer_pipeline.lab.heal.prompts import held_against, prompt_rows
from steer_pipeline.lab.heal.signals import text_rows, text_signals
from steer_pipeline.lab.heal.task import Task
from steer_pipeline.lab.heal.teacher import STREAM
from steer_pipeline.lab.models.completions import completion_nll
from steer_pipeline.lab.models.hidden import answer_logits
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.verdict import Verdict

ROWS, CHOICES = "rows.parquet", "choices.parquet"
VERSION = 1  # of what is asked and how it is read: rows of different versions do not meet in a table
SHOWN = ("arm", "seed", "row_id", "prompt_id", "number", "output", "truncated", "n_tokens")
_TOGETHER = 4  # sequences whose logits under both models exist at the same time

Open = Callable[[str], Journal]
Load = Callable[[Path], LoadedModel]


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of changing the model, of one seed.

    Attributes:
        model: with the student's adapters, or without.
        plan: what steers it; None: nothing.
        system: the system turn in place of the prompts' own; None: theirs.
    """

    name: str
    model: LoadedModel
    seed: int | None = None
    plan: SteeringPlan | None = None
    system: str | None = None

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"{self.name}-{self.seed}"


@dataclass(frozen=True, eq=False)
class Exam:
    """What all arms are asked and how they are read.

    Attributes:
        base: the model without any change.
        home: where relative paths start.
    """

    task: Task
    base: LoadedModel
    home: Path
    journal: Open | None = None
    told: Callable[[str], None] = field(default=lambda line: None)

    def rows(self, arm: Arm) -> pl.DataFrame:
        """One row a text: `SHOWN`, `made_with`, target, `off_target_…` and the signals of `lab.heal.signals`."""
        asked = self._asked(arm)
        said = self._said(arm, asked)
        texts = [row.text for row in said]
        prompts = self._prompts
        suspects, kept = held_against(prompts, texts, self.base.tokenizer.all_special_tokens)
        nll = completion_nll(
            self.base, [row.ids["*"] for row in self._plain], [[row.token_ids] for row in said]
        )
        signals = text_signals(
            texts,
            [None if np.isnan(value) else value for (value,) in nll],
            suspects=suspects,
            facts_kept=kept,
        ).with_columns(kl=pl.Series(self._kl(arm, asked, said), dtype=pl.Float64))
        measured = text_rows(
            [row.row_id for row in said],
            signals,
            arm=arm.name,
            seed=arm.seed,
            made_with=self.made_with,
            target=np.asarray(self.task.scorer.score_many(texts), dtype=np.float64).tolist(),
            off_target={
                name: np.asarray(scorer.score_many(texts), dtype=np.float64).tolist()
                for name, scorer in self.task.off_target.items()
            },
        )
        shown = pl.DataFrame(
            {
                "prompt_id": prompts["prompt_id"],
                "number": [int(row.row_id.rpartition("/")[2]) for row in said],
                "output": texts,
                "truncated": [row.truncated for row in said],
                "n_tokens": [row.n_new_tokens for row in said],
            }
        )
        return measured.with_columns(*shown).select(*SHOWN, pl.exclude(*SHOWN))

    def choices(self, arm: Arm) -> pl.DataFrame | None:
        """Forced choices of an arm; None where the profile asks for none."""
        if self.vignettes is None:
            return None
        return measure(
            arm.model, self.vignettes, arm=arm.name, seed=arm.seed, plan=arm.plan, system=arm.system
        )

    @cached_property
    def vignettes(self) -> pl.DataFrame | None:
        spec = self.task.heal.foundations
        if spec is None:
            return None
        found = own_vignettes(self.home) if spec.path is None else read_vignettes(self.home / spec.path).rows
        return stratified(found, spec.per_foundation, seed=spec.seed)

    @cached_property
    def sampling(self) -> SamplingSpec:
        spec = self.task.heal.evaluation
        drawn = self.task.heal.prompts.sampling(spec.max_new_tokens)
        return drawn.model_copy(update={"seed": spec.seed})

    @cached_property
    def made_with(self) -> str:
        """16 hex digits of what compared arms share: base, precision, prompts, sampling and scales."""
        profile = self.task.profile
        shared = {
            "version": VERSION,
            "model": str(self.base.identity),
            "precision": [self.base.dtype, self.base.backend],
            "prompts": self._prompts.select("prompt_id", "prompt", "system", "facts").rows(),
            "sampling": self.sampling.model_dump(),
            "scales": [self.task.persona.name, *self.task.off_target, profile.scales.model_dump()],
        }
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _prompts(self) -> pl.DataFrame:
        """Held-out prompts, each as often as it is asked."""
        n = self.task.heal.evaluation.samples_per_prompt
        prompts = self.task.held_out
        return prompts[[index for index in range(prompts.height) for _ in range(n)]]

    @cached_property
    def _plain(self) -> list[PromptRow]:
        return self._numbered(self.task.held_out)

    def _numbered(self, prompts: pl.DataFrame) -> list[PromptRow]:
        n = self.task.heal.evaluation.samples_per_prompt
        return [
            PromptRow(f"{row.row_id}/{number}", row.ids)
            for row in prompt_rows(self.base, prompts)
            for number in range(n)
        ]

    def _asked(self, arm: Arm) -> list[PromptRow]:
        """The prompts as this arm is given them, in the order of `_prompts`."""
        if arm.system is None:
            return self._plain
        return self._numbered(self.task.held_out.with_columns(system=pl.lit(arm.system)))

    def _said(self, arm: Arm, asked: Sequence[PromptRow]) -> list[FinishedRow]:
        plan = arm.plan or SteeringPlan(arm.label, stream=STREAM)
        journal = None if self.journal is None else self.journal(arm.label)
        made = generate(
            arm.model,
            asked,
            [plan],
            self.sampling,
            journal=journal,
            progress=lambda progress: self.told(f"{arm.label}: {progress}"),
        )
        said = {row.row_id: row for row in made}
        return [said[row.row_id] for row in asked]

    def _kl(self, arm: Arm, asked: Sequence[PromptRow], said: Sequence[FinishedRow]) -> list[float | None]:
        """Nats a token of each text: KL(arm || model without changes) along what the arm itself says."""
        if arm.model is self.base and arm.plan is None and arm.system is None:
            return [0.0] * len(said)
        end = min(self.base.eos_ids)
        answers = [[*row.token_ids, *([] if row.truncated else [end])] for row in said]
        own, plain = (
            [(row.ids["*"], ids) for row, ids in zip(rows, answers, strict=True)]
            for rows in (asked, self._plain)
        )
        return token_kl(arm.model, arm.plan, own, self.base, plain)


def token_kl(
    model: LoadedModel,
    plan: SteeringPlan | None,
    own: Sequence[tuple[Sequence[int], Sequence[int]]],
    base: LoadedModel,
    plain: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[float | None]:
    """Mean over the answer's tokens, nats, of KL(model || base); None for an empty answer.

    Args:
        own, plain: prompt and answer of each sequence, as the model and as base is given them; answers are the same.
    """
    found: list[float | None] = []
    for at in range(0, len(own), _TOGETHER):
        pairs = [
            _logits(one, steered, rows[at : at + _TOGETHER])
            for one, steered, rows in ((model, plan, own), (base, None, plain))
        ]
        for changed, unchanged in zip(*pairs, strict=True):
            p, q = (_log_softmax(logits) for logits in (changed, unchanged))
            values = (np.exp(p) * (p - q)).sum(axis=1)
            found.append(float(values.mean()) if len(values) else None)
    return found


def _logits(
    model: LoadedModel, plan: SteeringPlan | None, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[np.ndarray]:
    """fp32 [answer tokens, vocabulary]: what predicts each of them."""
    ids = [[*prompt, *answer] for prompt, answer in rows]
    return [
        logits[:-1] for logits in answer_logits(model, ids, [len(prompt) - 1 for prompt, _ in rows], plan)
    ]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def students_of(
    arm: str, config: HealArmSpec | None, exam: Exam, dose: float, adapters: Path | None, load: Load
) -> list[Arm]:
    """What is asked of one arm: the model itself, steered or prompted, or one student a seed.

    Args:
        config: None for base.
        dose: at which the texts were made that students learn.
        adapters: folder of `healing.heal_arm`, of arms that train.
        load: gives the model with the adapter of a folder on it.
    """
    if config is None:
        return [Arm(arm, exam.base)]
    if config.intervention == "steer":
        return [Arm(arm, exam.base, plan=exam.task.teacher.plan(dose, arm))]
    if config.intervention == "prompt":
        return [Arm(arm, exam.base, system=exam.task.persona.positive.instructions[0])]
    if adapters is None:
        raise Refused(f"{arm}: its students have not been trained; materialise heal_adapter")
    rows = pl.read_parquet(adapters / ADAPTERS)
    return [Arm(arm, load(adapters / row["folder"]), row["seed"]) for row in rows.iter_rows(named=True)]


# ------------------------------------------------------------------------------------ as a folder


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rows of one arm, all seeds; `choices` (`CHOICE_SCHEMA`) where the profile asks for them.

    Attributes:
        config: the arm's configuration, as its students were trained with; None for base.
    """

    rows: pl.DataFrame
    choices: pl.DataFrame | None
    config: Mapping[str, Any] | None = None


def evaluate(
    exam: Exam, arms: Sequence[Arm], folder: Path, config: Mapping[str, Any] | None = None
) -> Evaluation:
    """Asks the seeds of one arm and writes what they say, with the arm's configuration."""
    rows = pl.concat([exam.rows(arm) for arm in arms])
    asked = [exam.choices(arm) for arm in arms]
    choices = None if asked[0] is None else pl.concat([one for one in asked if one is not None])
    rows.write_parquet(folder / ROWS)
    if choices is not None:
        choices.write_parquet(folder / CHOICES)
    (folder / ARM).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return Evaluation(rows, choices, config)


def read_evaluation(folder: Path) -> Evaluation:
    """What `evaluate` wrote."""
    choices = folder / CHOICES
    return Evaluation(
        pl.read_parquet(folder / ROWS),
        pl.read_parquet(choices) if choices.is_file() else None,
        json.loads((folder / ARM).read_text()),
    )


def answers_everything(rows: pl.DataFrame) -> Verdict:
    """Every seed has answered the same prompts, each once."""
    asked = rows["row_id"].n_unique()
    short = {
        str(seed): own["row_id"].n_unique()
        for (seed,), own in rows.group_by("seed", maintain_order=True)
        if own["row_id"].n_unique() != asked or own.height != asked
    }
    return Verdict(
        "every_prompt_is_answered",
        not short,
        f"answers by seed {short}, {asked} prompts"
        if short
        else f"{rows.height} texts, {asked} of each seed",
        {"texts": rows.height, "prompts": asked},
    )


def intent_of(spec: HealFoundationsSpec) -> Intent:
    """Target foundation -> 1 (blamed more) or -1 (less)."""
    signs: Mapping[str, int] = {"more": 1, "less": -1}
    return {name: signs[way] for name, way in spec.intent.items()}
