"""Trains one LoRA adapter on transformers' Trainer with our losses, and writes it with everything that made it.

In: encoded examples, a model's spec and a recipe. Out: a folder with `adapter_model.safetensors` and
`adapter_config.json` as PEFT writes them, `finetune.json` (recipe, identity, data, versions, numbers) and
`history.parquet` (loss curves). A killed run goes on from its last checkpoint, which lies in a folder of its own, to
the same bytes on the same machine.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune import losses
from steer_pipeline.lab.finetune.data import (
    IGNORED,
    Example,
    FinetuneError,
    batch_inputs,
    digest,
    in_keyed_order,
    supervised_span,
)
from steer_pipeline.lab.finetune.on_policy import SAMPLES, Rollouts, collate_drawn
from steer_pipeline.lab.finetune.prevention import Steered
from steer_pipeline.lab.finetune.recipe import LoraRecipe, Recipe
from steer_pipeline.lab.finetune.references import Bound, Reference
from steer_pipeline.lab.generation.jobs import OutOfMemory, is_out_of_memory, peak_memory, plan_hash
from steer_pipeline.lab.models.identity import ModelIdentity, adapter_folders
from steer_pipeline.lab.models.loading import as_loaded, load_for_training, load_tokenizer
from steer_pipeline.lab.models.sites import SteeringPlan

log = logging.getLogger(__name__)

RECORD, HISTORY = "finetune.json", "history.parquet"
HISTORY_SCHEMA = pl.Schema(
    {
        "step": pl.Int64(),
        "split": pl.String(),  # train | selection
        "loss": pl.Float64(),  # all terms, weighted
        "nll": pl.Float64(),  # nats a supervised token; on policy, of the student's own samples
        "kl": pl.Float64(),  # nats, aggregated as the recipe says; null without a barrier
        "barrier": pl.Float64(),  # share of passes in which that was above tau
        "gradient_ratio": pl.Float64(),  # gradient norm of the weighted barrier over that of nll or distill
        "distill": pl.Float64(),  # nats a token to the teacher, on policy; null without one
        "spectral": pl.Float64(),
        "learning_rate": pl.Float64(),
        "gradient_norm": pl.Float64(),
    }
)
TERMS = ("loss", "nll", "kl", "barrier", "gradient_ratio", "distill", "spectral")


@dataclass(frozen=True)
class Finetuned:
    """What a run made.

    Attributes:
        below: identity of the model that the adapter lies on.
        numbers: tokens per second, peak memory in bytes, steps, first and last losses.
    """

    folder: Path
    below: ModelIdentity
    numbers: dict[str, float | int]
    history: pl.DataFrame


def finetune(
    spec: ModelSpec,
    home: Path,
    train: Sequence[Example],
    selection: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    work: Path,
    keep: Path | None = None,
    reference: Reference | None = None,
    teacher: Reference | None = None,
    during: SteeringPlan | None = None,
    progress: Callable[[str], None] | None = None,
) -> Finetuned:
    """Trains an adapter for `spec` into `folder`, which must be empty or absent.

    Args:
        train: what is learned.
        selection: held out: its loss is measured during training, and early stopping looks at it. Not the rows that
            a result is evaluated on.
        work: where checkpoints lie; a run that was killed goes on from there. Emptied at the end.
        keep: where the adapter is kept as it was at each evaluation, as `step-12/` and so on; None: nowhere.
        reference: what the barrier (`recipe.kl`) is a divergence to; default: the model below the new adapter.
        teacher: what `recipe.on_policy` distils, a steered model; nothing else has one.
        during: steers the learner while it trains, and is gone afterwards: `prevention` says what for.
        progress: told a line now and then.

    Raises:
        FinetuneError: no rows, a row in both splits, a teacher too few or too many, or a loss that is not finite.
        OutOfMemory: one row alone does not fit.
        ModelLoadError: as `load_for_training`.
    """
    _require_rows(train, selection)
    _require_teacher(recipe, teacher)
    job = _Job(spec, home, train, selection, recipe, folder, work, keep, reference, teacher, during, progress)
    rows_at_once = min(recipe.rows_at_once, recipe.batch_rows)
    while True:
        try:
            return _attempt(job, rows_at_once)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows_at_once == 1:
                raise OutOfMemory(
                    f"one row of {max(len(e.ids) for e in train)} tokens does not fit into memory; lower "
                    "max_tokens, set gradient_checkpointing, or train on a larger device"
                ) from error
        rows_at_once = _next_smaller(rows_at_once, recipe.batch_rows)
        log.warning("memory ran out: going on with %d rows at once, the batch stays the same", rows_at_once)


def lora_config(recipe: LoraRecipe, n_blocks: int) -> Any:
    """PEFT's configuration; the depth band becomes `layers_to_transform`."""
    from peft import LoraConfig

    low, high = (round(edge * n_blocks) for edge in recipe.depth)
    if low == high:
        raise FinetuneError(
            f"lora.depth {recipe.depth}: holds no block of a model of {n_blocks}; widen the band"
        )
    every = recipe.targets == ("all-linear",)
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha or 2 * recipe.rank,
        lora_dropout=0.0,
        target_modules="all-linear" if every else list(recipe.targets),
        layers_to_transform=None if (low, high) == (0, n_blocks) else list(range(low, high)),
        task_type="CAUSAL_LM",
    )


# ----------------------------------------------------------------------------------------- one attempt


def _require_rows(train: Sequence[Example], selection: Sequence[Example]) -> None:
    for name, examples in (("train", train), ("selection", selection)):
        if not examples:
            raise FinetuneError(f"no {name} rows; give at least one")
    shared = {e.row_id for e in train} & {e.row_id for e in selection}
    if shared:
        raise FinetuneError(f"row {min(shared)!r} is in train and in selection; split by row first")


def _require_teacher(recipe: Recipe, teacher: Reference | None) -> None:
    if (teacher is None) != (recipe.on_policy is None):
        raise FinetuneError(
            "on-policy distillation needs both recipe.on_policy and a teacher; give both or neither"
        )


def _next_smaller(rows: int, batch: int) -> int:
    """The largest divisor of `batch` that is at most half of `rows`."""
    return max(n for n in range(1, rows // 2 + 1) if batch % n == 0)


@dataclass(frozen=True)
class _Job:
    """The arguments of `finetune`."""

    spec: ModelSpec
    home: Path
    train: Sequence[Example]
    selection: Sequence[Example]
    recipe: Recipe
    folder: Path
    work: Path
    keep: Path | None
    reference: Reference | None
    teacher: Reference | None
    during: SteeringPlan | None
    progress: Callable[[str], None] | None

    @property
    def steps(self) -> int:
        rows = self.recipe.batch_rows
        return self.recipe.max_steps or max(1, round(self.recipe.epochs * -(-len(self.train) // rows)))

    def made_of(self, below: ModelIdentity) -> dict[str, Any]:
        """What decides the adapter."""
        others = {"reference": self.reference, "teacher": self.teacher}
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "model": str(below),
            "train": digest(self.train),
            "selection": digest(self.selection),
            **{name: other.digest() for name, other in others.items() if other is not None},
            **({} if self.during is None else {"during": plan_hash(self.during)}),
        }


def _attempt(job: _Job, rows_at_once: int) -> Finetuned:
    recipe = job.recipe
    set_seed(recipe.seed)  # the adapter's start is drawn from it
    model, below = load_for_training(
        job.spec, job.home, lora_config(recipe.lora, _n_blocks(job.spec, job.home))
    )
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()  # the frozen embeddings would cut the graph
    made_of = job.made_of(below)
    _claim(job.work, made_of)
    trainer = _trainer(job, model, below, rows_at_once)
    checkpoint, begun = get_last_checkpoint(str(job.work)), time.monotonic()
    if job.keep is not None and checkpoint is None:  # what lies there is of another run
        shutil.rmtree(job.keep, ignore_errors=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - begun
    numbers = trainer.numbers(seconds) | {"rows_at_once": rows_at_once}
    sizes = {"rows": len(job.train), "selection_rows": len(job.selection)}
    done = Finetuned(job.folder, below, numbers, pl.DataFrame(trainer.recorded(), schema=HISTORY_SCHEMA))
    _write(done, model, made_of | sizes)
    if trainer.rollouts is not None:
        trainer.rollouts.samples().write_parquet(job.folder / SAMPLES)
    shutil.rmtree(job.work, ignore_errors=True)
    return done


def _trainer(job: _Job, model: Any, below: ModelIdentity, rows_at_once: int) -> "_SteerTrainer":
    """The Trainer with data, references and, on policy, samples of the model that it trains."""
    recipe = job.recipe
    tokenizer = load_tokenizer(job.spec, job.home)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    reference = teacher = rollouts = during = None
    if recipe.kl is not None or recipe.on_policy is not None or job.during is not None:
        live = as_loaded(model, job.spec, job.home, below)
        folders = adapter_folders(job.spec, job.home)
        if recipe.kl is not None:
            reference = Bound(job.reference or Reference(), live, folders)
        if job.during is not None:
            during = Steered(job.during, live)
        if job.teacher is not None:
            teacher = Bound(job.teacher, live, folders)
            rollouts = Rollouts(live, job.train, recipe, steps=job.steps, work=job.work, pad_id=pad_id)
    arguments = _arguments(recipe, job.steps, rows_at_once, job.work, model.device)
    trainer = _SteerTrainer(
        model=model,
        args=arguments,
        train_dataset=rollouts.draws if rollouts else in_keyed_order(job.train, recipe.seed),
        eval_dataset=in_keyed_order(job.selection, recipe.seed),
        data_collator=partial(collate_drawn, pad_id=pad_id),
        callbacks=_callbacks(job, min(int(arguments.eval_steps or 1), 10)),
        recipe=recipe,
        reference=reference,
        teacher=teacher,
        rollouts=rollouts,
        during=during,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _callbacks(job: _Job, every: int) -> list[TrainerCallback]:
    found: list[TrainerCallback] = [_Lines(job.progress, every)]
    if job.recipe.patience:
        found.append(EarlyStoppingCallback(job.recipe.patience))
    return found if job.keep is None else [*found, _Kept(job.keep)]


def _write(done: Finetuned, model: Any, made_of: dict[str, Any]) -> None:
    """The adapter, its loss curves and what made it."""
    done.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(done.folder, selected_adapters=["default"])
    done.history.write_parquet(done.folder / HISTORY)
    record = made_of | {"numbers": done.numbers, "libraries": _versions()}
    (done.folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))


def _n_blocks(spec: ModelSpec, home: Path) -> int:
    from transformers import AutoConfig

    from steer_pipeline.lab.models.identity import model_source

    config = AutoConfig.from_pretrained(model_source(spec, home), revision=spec.revision)
    return int(config.get_text_config().num_hidden_layers)


def _claim(work: Path, made_of: dict[str, Any]) -> None:
    """Checkpoints of another recipe, model or data are no use: they go."""
    work.mkdir(parents=True, exist_ok=True)
    path, text = work / "made_of.json", json.dumps(made_of, sort_keys=True)
    if not path.is_file() or path.read_text() != text:
        shutil.rmtree(work)
        work.mkdir(parents=True)
        path.write_text(text)


def _arguments(
    recipe: Recipe, steps: int, rows_at_once: int, work: Path, device: torch.device
) -> TrainingArguments:
    every = max(1, steps // recipe.evaluations)
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=rows_at_once,
        per_device_eval_batch_size=rows_at_once,
        gradient_accumulation_steps=max(1, recipe.batch_rows // rows_at_once),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(recipe.schedule, recipe.schedule),
        warmup_steps=round(recipe.warmup * steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        **({"gradient_checkpointing": True} if recipe.gradient_checkpointing else {}),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        logging_steps=1,
        save_total_limit=2,
        load_best_model_at_end=bool(recipe.patience),
        metric_for_best_model="eval_distill" if recipe.on_policy else "eval_nll",
        greater_is_better=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
    )


def _versions() -> dict[str, str]:
    import accelerate
    import peft
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "accelerate": accelerate.__version__,
    }


_SHOWN = ("loss", "nll", "eval_nll", "kl", "distill")
_Terms = dict[str, tuple[float, float]]  # term -> (value, weight)


class _Lines(TrainerCallback):
    """Passes the Trainer's log lines on, those of every few steps, with the time left."""

    def __init__(self, progress: Callable[[str], None] | None, every: int) -> None:
        self._progress, self._every = progress, every
        self._begun, self._first = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        done = state.global_step - self._first
        if self._progress is None or not logs or done <= 0 or state.global_step % self._every:
            return
        left = (time.monotonic() - self._begun) / done * (state.max_steps - state.global_step)
        shown = ", ".join(f"{name} {value:.3g}" for name, value in logs.items() if name in _SHOWN)
        self._progress(f"step {state.global_step} of {state.max_steps}, {shown}, {left:.0f} s left")


class _Kept(TrainerCallback):
    """Keeps the adapter at each evaluation, under `step_folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.save_pretrained(step_folder(self._folder, state.global_step), selected_adapters=["default"])


def step_folder(keep: Path, step: int) -> Path:
    """Where the adapter of an optimiser step lies that was kept."""
    return keep / f"step-{step}"


def kept_steps(keep: Path) -> list[int]:
    """Optimiser steps of which an adapter was kept, in order."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in keep.glob("step-*"))


class _SteerTrainer(Trainer):
    """Trainer whose loss is the recipe's, a mean over the supervised tokens of the whole batch."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        reference: Bound | None,
        teacher: Bound | None,
        rollouts: Rollouts | None,
        during: Steered | None,
        **kwargs: Any,
    ) -> None:
        self.rollouts = rollouts
        self._during = during
        super().__init__(**kwargs)
        self._recipe, self._reference, self._teacher = recipe, reference, teacher
        self.model_accepts_loss_kwargs = True  # so that the tokens of all accumulated passes are counted
        self.tokens_seen = 0
        self._weight = recipe.kl.weight if recipe.kl else 0.0
        self._measured = -1  # step of the last gradient ratio
        self._terms: dict[str, list[tuple[float, float]]] = {}  # term -> (value, weight) since the last line

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.rollouts is not None:
            return SequentialSampler(self.rollouts.draws)
        return super()._get_train_sampler(train_dataset)

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if self._during is None:
            return super().training_step(model, inputs, *args, **kwargs)
        with self._during.on():  # backward is in it, which runs blocks again under gradient checkpointing
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if "draw" in inputs:
            assert self.rollouts is not None
            said, num_items_in_batch = self.rollouts.batch(inputs["draw"], self.state.global_step)
            inputs = self._prepare_inputs(said)
        if self._during is not None:
            self._during.reads(inputs["labels"] != IGNORED)
        logits, targets = self._logits(model, inputs)
        total = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss, terms = self._learned(model, inputs, logits, targets, total)
        if self._reference is not None and (self._weight or not model.training):
            barrier, more = self._barrier(model, inputs, logits, len(targets) / total)
            if self._is_measured(model):
                terms["gradient_ratio"] = (self._gradient_ratio(model, barrier, loss), 1.0)
            loss, terms = loss + barrier, terms | more
        if self._recipe.spectral:
            spectral = losses.spectral_penalty(losses.lora_pairs(model))
            loss = loss + self._recipe.spectral * spectral * (len(targets) / total)
            terms["spectral"] = (float(spectral.detach()), 1.0)
        if not torch.isfinite(loss):
            raise FinetuneError(
                f"step {self.state.global_step}: the loss is {float(loss.detach())}; lower learning_rate, or "
                "use bfloat16 or float32 for float16"
            )
        # this pass's share of the step's loss, such that the mean over passes by tokens is that loss
        terms["loss"] = (float(loss.detach()) * float(total) / len(targets), len(targets))
        self._note(model, inputs, terms)
        return (loss, {"logits": inputs["labels"]}) if return_outputs else loss

    def _learned(
        self, model: Any, inputs: dict[str, Tensor], logits: Tensor, targets: Tensor, total: Any
    ) -> tuple[Tensor, _Terms]:
        """What the rows teach: their NLL, or what the teacher says after them."""
        count = len(targets)
        nll = losses.nll_sum(logits, targets)
        loss = self._recipe.nll * nll / total
        terms: _Terms = {"nll": (float(nll.detach()) / count, count)}
        if self._teacher is not None and self._recipe.on_policy is not None:
            said = self._said(self._teacher, model, inputs)
            distilled = losses.generalised_jsd(logits, said, self._recipe.on_policy.beta).sum()
            loss = loss + distilled / total
            terms["distill"] = (float(distilled.detach()) / count, count)
        return loss, terms

    def _barrier(
        self, model: Any, inputs: dict[str, Tensor], logits: Tensor, share: Any
    ) -> tuple[Tensor, _Terms]:
        """The weighted divergence from the reference, as a share of the step's."""
        kl = self._recipe.kl
        assert kl is not None
        assert self._reference is not None
        reference = self._said(self._reference, model, inputs)
        found = losses.aggregate(losses.divergence(logits, reference, kl.direction), kl.over)
        terms: _Terms = {
            "kl": (float(found.detach()), len(logits)),
            "barrier": (float(found.detach() > kl.tau), 1.0),
        }
        return kl.weight * losses.hinge(found, kl.tau) * share, terms

    def _said(self, reference: Bound, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), self._unsteered(), reference.on(inputs["labels"] != IGNORED):
            return self._logits(model, inputs)[0]

    def _unsteered(self) -> Any:
        """What others than the learner say is not steered."""
        return nullcontext() if self._during is None else self._during.paused()

    def _logits(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        keep = supervised_span(inputs["labels"]) + 1
        logits = model(**batch_inputs(inputs), logits_to_keep=keep, use_cache=False).logits
        return losses.supervised_logits(logits[:, -keep:], inputs["labels"])

    def _is_measured(self, model: Any) -> bool:
        """Whether this pass is the first of a step at which gradients are compared."""
        step, every = self.state.global_step, self._recipe.kl.ratio_every if self._recipe.kl else 0
        learns = self._recipe.nll or self._teacher
        if not (model.training and learns and every) or step % every or step == self._measured:
            return False
        self._measured = step
        return True

    def _gradient_ratio(self, model: Any, barrier: Tensor, learned: Tensor) -> float:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norms = [losses.gradient_norm(term, parameters) for term in (barrier, learned)]
        return norms[0] / max(norms[1], 1e-12)

    def _note(self, model: Any, inputs: dict[str, Tensor], terms: _Terms) -> None:
        if not model.training:
            self._held_out = terms
            return
        self.tokens_seen += int(inputs["attention_mask"].sum())
        for name, entry in terms.items():
            self._terms.setdefault(name, []).append(entry)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Means over the supervised tokens of the selection rows."""
        model = self.model
        was_training = model.training
        model.eval()
        weighted: dict[str, list[tuple[float, float]]] = {}
        for batch in self.get_eval_dataloader():
            inputs = self._prepare_inputs(batch)
            with torch.no_grad():
                self.compute_loss(model, inputs)
            for name, entry in self._held_out.items():
                weighted.setdefault(name, []).append(entry)
        model.train(was_training)
        metrics = {f"eval_{name}": _mean(entries) for name, entries in weighted.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            means = {name: _mean(entries) for name, entries in self._terms.items()}
            logs = logs | means
            self._terms.clear()
        super().log(logs, *args, **kwargs)

    def recorded(self) -> list[dict[str, Any]]:
        """The log as rows of `HISTORY_SCHEMA`."""
        rows = []
        for entry in self.state.log_history:
            prefix = "eval_" if "eval_loss" in entry else ""
            if f"{prefix}loss" not in entry:
                continue
            rows.append(
                {"step": entry["step"], "split": "selection" if prefix else "train"}
                | {name: entry.get(prefix + name) for name in TERMS}
                | {"learning_rate": entry.get("learning_rate"), "gradient_norm": entry.get("grad_norm")}
            )
        return rows

    def numbers(self, seconds: float) -> dict[str, float | int]:
        """What a training of this many seconds came to; first and last NLL of the selection rows among it."""
        found = [entry["eval_nll"] for entry in self.state.log_history if "eval_nll" in entry]
        return {
            "steps": self.state.global_step,
            "seconds": seconds,
            "tokens_per_second": self.tokens_seen / max(seconds, 1e-9),
            "peak_memory_bytes": peak_memory(str(self.model.device.type)),
            **({"selection_nll_first": found[0], "selection_nll_last": found[-1]} if found else {}),
        }


def _mean(entries: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in entries) / max(sum(w for _, w in entries), 1e-12)
