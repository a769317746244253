"""How fast vectors are trained: five learning rates against one, and our epoch against transformers' Trainer.

`five_over_one`: the time of a sweep of five rates over that of one of them, each from encoded rows to its best vector,
validation included, with the profile's settings. Rates that fall behind leave the sweep (`training.prune`), so the
five train for fewer epochs than five runs would: `lane_epochs` says for how many. `five_over_one_full` is the same
with every rate trained to the end, measured once.

`over_trainer`: an epoch of transformers' Trainer (the vector in a hook at the same site, same rows, same batch size,
batches padded to their longest row, labels of -100 on the prompt, no evaluation) over an epoch of ours. Ours brings the
rows of a question two by two and runs the prompt that they share once; a Trainer's rows come in its own random order.
`over_trainer_with_lower` adds to ours its share of running the lower blocks, which is done once a run.
`products_over_trainer` is the same ratio of multiply-adds in matrix products: what is left to gain once both run at
the machine's speed.

Every model but the newsroom learns from the newsroom's dialogues at half its depth, and is taken for a large one: fewer
rows, about ten minutes on two cores for SmolLM2-135M. One process, alternating rounds, medians; prints one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import HELP, HOME, profile_for
from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.dialogues.building import make_behaviour_set
from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm, resolve_site
from steer_pipeline.lab.vectors.learned.data import Dialogues, encode_split
from steer_pipeline.lab.vectors.learned.loop import Lane, Trained, Trainer

SIZES = {  # what is measured, where the command line does not say
    "newsroom": {"train_tokens": 8000, "rounds": 5},
    "others": {"train_tokens": 3000, "rounds": 2},
}


class Hooked(nn.Module):
    """The model with a trainable vector at the output of a block: what users of Trainer write."""

    def __init__(self, model: LoadedModel, site: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(model.hidden_size, device=model.device))
        self.__dict__["inner"] = model.module  # no submodule: its weights are frozen and not saved
        self._handle = model.module.get_decoder().layers[site].register_forward_hook(self._add)

    def _add(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output + self.vector.to(output.dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> object:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)

    def unhook(self) -> None:
        self._handle.remove()


def trainer_run(model: LoadedModel, site: int, data: Dialogues, profile: Profile, rate: float) -> np.ndarray:
    """The usual way; returns the vector after the last epoch."""
    from transformers import PrinterCallback, TrainingArguments
    from transformers import Trainer as HubTrainer

    def padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
            for name, value in fill.items()
        }

    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * start + ids[start:]}
        for ids, start in zip(data.ids, data.starts, strict=True)
    ]
    spec, hooked = profile.training, Hooked(model, site)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=spec.epochs,
            per_device_train_batch_size=spec.batch_rows,
            learning_rate=rate,
            lr_scheduler_type=spec.schedule,
            warmup_steps=round(spec.warmup * spec.epochs * len(data) / spec.batch_rows),
            max_grad_norm=0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=model.device == "cpu",
            seed=spec.seeds[0],
        )
        trainer = HubTrainer(model=hooked, args=arguments, train_dataset=rows, data_collator=padded)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    hooked.unhook()
    return hooked.vector.detach().cpu().numpy()


def nll_under(model: LoadedModel, site: int, vector: np.ndarray, data: Dialogues) -> float:
    """Nats a response token."""
    length = float(np.linalg.norm(vector))
    plan = SteeringPlan("x", (SteeringTerm("x", vector / length, Site(site), length),))
    sums, tokens = sequence_nll(model, list(data.ids), list(data.starts), plan)
    return float(sums.sum() / tokens.sum())


def multiply_adds(work: Callable[[], object]) -> int:
    """Of the matrix products that `work` does."""
    with FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts()["Global"]
    products = ("mm", "addmm", "bmm", "baddbmm")
    return sum(count for op, count in counts.items() if str(op).rpartition(".")[2] in products) // 2


def products_over_trainer(
    model: LoadedModel, site: int, train: Dialogues, validation: Dialogues, profile: Profile, rate: float
) -> float:
    """Multiply-adds of an epoch of a Trainer over those of ours, validation and lower blocks left out."""
    spec = profile.training.model_copy(update={"epochs": 1})
    profile = profile.model_copy(update={"training": spec})
    trainer, results = Trainer(model, site, train, validation, spec), []
    once = multiply_adds(trainer.vanilla)
    run = multiply_adds(lambda: results.extend(trainer.run([Lane(rate, spec.seeds[0])])))
    evaluations = sum(point["validation_nll"] is not None for point in results[0].curve[1:])
    theirs = multiply_adds(lambda: trainer_run(model, site, train, profile, rate))
    return theirs / (run - evaluations * once)


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="newsroom", help=HELP)
    parser.add_argument("--persona", default="analytical")
    parser.add_argument("--epochs", type=int, default=None, help="default: the profile's")
    parser.add_argument("--train-tokens", type=int, help="response tokens; a quarter as many for validation")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, on a busy machine"
    )
    options = parser.parse_args()
    for name, size in SIZES.get(options.model, SIZES["others"]).items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    profile = profile_for(options.model)
    tokens = {"train_tokens": options.train_tokens, "validation_tokens": options.train_tokens // 4}
    behaviour = profile.behaviour.model_copy(update=tokens)
    training = profile.training.model_copy(update={"epochs": options.epochs or profile.training.epochs})
    profile = profile.model_copy(update={"behaviour": behaviour, "training": training})
    model = load_model(profile.model, HOME)
    persona = load_personas()[options.persona]
    rows, _ = make_behaviour_set(
        persona,
        profile,
        model.tokenizer,
        home=HOME,
        shipped=HOME / "assets_data" / "newsroom",
        model=lambda: model,
    )
    train, validation = (encode_split(rows, split, model, profile) for split in ("train", "validation"))
    print(json.dumps(measure(model, train, validation, profile, options)))


def measure(
    model: LoadedModel, train: Dialogues, validation: Dialogues, profile: Profile, options: argparse.Namespace
) -> dict[str, object]:
    spec = profile.training
    site = resolve_site(spec.block, model.n_blocks).block
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    steps_an_epoch = -(-len(train) // spec.batch_rows)
    last: dict[str, list[Trained]] = {}
    parts: dict[str, list[dict[str, float]]] = {"one": [], "five": [], "five_full": []}
    vectors: list[np.ndarray] = []

    def ours(name: str, rates: list[float], prune: bool) -> None:
        trainer = Trainer(model, site, train, validation, spec, clock=clock)
        last[name] = trainer.run([Lane(rate, spec.seeds[0]) for rate in rates], prune=prune)
        parts[name].append(dict(trainer.seconds))

    trainer = Trainer(model, site, train, validation, spec)
    trainer.vanilla()  # warms up
    full = seconds(lambda: ours("five_full", spec.learning_rates, False), clock)
    choice = _choice(last["five_full"])
    rate = choice * (trainer.residual_norm / model.hidden_size**0.5 if spec.units == "residual" else 1.0)
    ways: dict[str, Callable[[], object]] = {
        "one": lambda: ours("one", [choice], False),
        "five": lambda: ours("five", spec.learning_rates, spec.prune),
        "trainer": lambda: vectors.append(trainer_run(model, site, train, profile, rate)),
    }
    times: dict[str, list[float]] = {"five_full": [full], **{name: [] for name in ways}}
    for _ in range(options.rounds):
        for name, work in ways.items():
            times[name].append(seconds(work, clock))
    middle = {name: statistics.median(values) for name, values in times.items()}
    split = {
        name: {part: statistics.median(one[part] for one in ones) for part in ones[0]}
        for name, ones in parts.items()
    }
    epochs = {name: sum(one.steps for one in ones) / steps_an_epoch for name, ones in last.items()}
    our_epoch, their_epoch = split["one"]["train"] / epochs["one"], middle["trainer"] / spec.epochs
    return {
        "five_over_one": round(middle["five"] / middle["one"], 3),
        "over_trainer": round(their_epoch / our_epoch, 3),
        "five_over_one_full": round(middle["five_full"] / middle["one"], 3),
        "over_trainer_with_lower": round(their_epoch / (our_epoch + split["one"]["lower"] / spec.epochs), 3),
        "products_over_trainer": round(
            products_over_trainer(model, site, train, validation, profile, choice), 3
        ),
        "lane_epochs": {name: round(value, 2) for name, value in epochs.items()},
        "same_choice": _choice(last["five"]) == choice,
        "learning_rate": choice,
        "validation_nll": {
            "ours": round(last["one"][0].best_nll, 4),
            "trainer": round(nll_under(model, site, vectors[-1], validation), 4),
            "vanilla": round(last["one"][0].vanilla_nll, 4),
        },
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "seconds_by_part": {
            name: {part: round(value, 3) for part, value in values.items()} for name, values in split.items()
        },
        "tokens_per_second": round(sum(len(ids) for ids in train.ids) / our_epoch),
        "rounds": options.rounds,
        "clock": options.clock,
        "device": model.device,
        "threads": torch.get_num_threads(),
        "model": model.name,
        "block": site,
        "rows": len(train),
        "response_tokens": int(train.n_tokens.sum()),
        "validation_rows": len(validation),
        "epochs": spec.epochs,
        "batch_rows": spec.batch_rows,
        "learning_rates": list(spec.learning_rates),
    }


def _choice(results: list[Trained]) -> float:
    return min(results, key=lambda one: one.best_nll).lane.learning_rate


if __name__ == "__main__":
    main()
