"""How fast rows are ranked by their gradients: ours and Bergson's, batched, against a backward pass for each row.

The same adapter, pool, queries, projection and signs in all three; `gradient` with `preconditioning: none`, so that
what is timed is the gradients. The loop is what one writes without hooks: a row at a time, `autograd.grad` of its loss
by the adapter's weights, each gradient projected on both sides. Rounds alternate, medians count; the loop runs some of
the rows (its cost is linear in them). Bergson is left out where it is not installed (`make bergson`), with a line on
standard error; its time is that of all its steps, data set and model included, once its imports are done. Seconds are
those of the processor: what else the machine does counts little.

Peak memory is what a fresh process adds to the loaded model while it scores the pool and a pool ten times as large.
Prints one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.bench_extract import _status
from benchmarks.models import HELP, HOME, profile_for
from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec, GradientMethod
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.attribution.scoring import bergson
from steer_pipeline.lab.attribution.scoring.gradients import Gradients, row_loss
from steer_pipeline.lab.attribution.scoring.methods import Scoring, score
from steer_pipeline.lab.attribution.scoring.projection import projection
from steer_pipeline.lab.attribution.scoring.quality import agreement
from steer_pipeline.lab.attribution.scoring.ranking import Ranking, ranking
from steer_pipeline.lab.attribution.scoring.similarity import Task, similarities
from steer_pipeline.lab.finetune.data import Example, TextRow, collate, encode_examples
from steer_pipeline.lab.models.loading import load_for_training, load_model, load_tokenizer

METHOD = GradientMethod(preconditioning="none")
TEXT = 90  # characters of a prompt, as in a word game


def adapter(spec: ModelSpec, folder: Path) -> str:
    """A LoRA of rank 8 on all linear modules, random on both sides."""
    from peft import LoraConfig

    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model, _ = load_for_training(spec, HOME, config)
    model.save_pretrained(folder, selected_adapters=["default"])
    return str(folder)


def rows(spec: ModelSpec, name: str, n: int) -> tuple[Example, ...]:
    """Pieces of the shipped news with their next words as completion; rows beyond the news repeat it."""
    news = pl.read_parquet(HOME / "assets_data" / "newsroom" / "news.parquet")["text"].to_list()
    texts = []
    for index in range(n):
        text, at = news[index % len(news)], (index // len(news)) % 40
        texts.append(TextRow(f"{name}{index}", text[at : at + TEXT], text[at + TEXT : at + TEXT + 40]))
    return tuple(encode_examples(load_tokenizer(spec, HOME), texts, max_tokens=128))


def made(spec: ModelSpec, tuned: ModelSpec, options: argparse.Namespace, times: int = 1) -> Scoring:
    settings = AttributionScoringSpec(
        batch_tokens=options.batch_tokens,
        methods={
            "native": METHOD,
            "bergson": METHOD.model_copy(update={"back_end": "bergson"}),
        },
    )
    pool, queries = rows(spec, "row", options.rows * times), rows(spec, "query", options.queries)
    return Scoring(tuned, spec, HOME, pool, queries, settings)


def looped(scoring: Scoring, examples: tuple[Example, ...]) -> Ranking:
    """Row by row, a backward pass each."""
    model = load_model(scoring.tuned, HOME)
    reader = Gradients(model, side=METHOD.projection)
    modules = reader.modules
    sides = [
        (
            projection(name, "left", METHOD.seed, METHOD.projection, one.out_features),
            projection(name, "right", METHOD.seed, METHOD.projection, one.in_features).T,
        )
        for name, one in modules.items()
    ]
    weights = [one.weight.requires_grad_() for one in modules.values()]

    def gradient(example: Example) -> torch.Tensor:
        loss = row_loss(scoring.settings.loss)(model.module, collate([example], 0)).sum()
        found = torch.autograd.grad(loss, weights)
        row = torch.cat(
            [(left @ one @ right).flatten() for one, (left, right) in zip(found, sides, strict=True)]
        )
        return row / row.norm()

    aim = torch.stack([gradient(one) for one in scoring.queries]).mean(0)
    scores = {one.row_id: float(gradient(one) @ aim) for one in examples}
    for weight in weights:
        weight.requires_grad_(False)
    return ranking("loop", [one.row_id for one in examples], scores)


def native(scoring: Scoring) -> Ranking:
    reader = Gradients(load_model(scoring.tuned, HOME), side=METHOD.projection)
    task = Task(
        reader, scoring.pool, scoring.queries, row_loss(scoring.settings.loss), scoring.settings.batch_tokens
    )
    scores, failed = similarities(task, METHOD)
    return ranking("native", [one.row_id for one in scoring.pool], scores, failed)


def measure(scoring: Scoring, options: argparse.Namespace) -> dict[str, Any]:
    some = scoring.pool[: options.loop_rows]
    rates: dict[str, list[float]] = {"loop": [], "native": [], "bergson": []}
    found: dict[str, Ranking] = {}
    if not bergson.installed():
        print(f"Bergson is left out: {bergson.CURE}", file=sys.stderr)
        rates.pop("bergson")
    native(scoring)  # warm
    for round_ in range(options.rounds):
        for name in rates:
            begun = time.process_time()
            if name == "loop":
                found[name], n = looped(scoring, some), len(some)
            elif name == "native":
                found[name], n = native(scoring), len(scoring.pool)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    found[name], n = score("bergson", scoring, Path(folder)), len(scoring.pool)
            if round_ or options.rounds == 1:  # the first one warms
                rates[name].append((n + len(scoring.queries)) / (time.process_time() - begun))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "native_over_loop": round(rate["native"] / rate["loop"], 2),
        "bergson_over_loop": round(rate["bergson"] / rate["loop"], 2) if "bergson" in rate else None,
        "largest_difference": {
            name: agreement(found["native"], one)["largest_difference"]
            for name, one in found.items()
            if name != "native"
        },
        "rows_per_second": {name: round(one, 2) for name, one in rate.items()},
        "tokens_a_row": round(float(np.mean([len(one.ids) for one in scoring.pool])), 1),
    }


def memory(options: argparse.Namespace, tuned: str) -> dict[str, float] | None:
    """MiB that scoring adds at its peak, for the pool and ten times the pool; None where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_attribution",
        "--model",
        options.model,
        "--adapter",
        tuned,
    ]
    command += ["--rows", str(options.rows), "--queries", str(options.queries)]
    command += ["--batch-tokens", str(options.batch_tokens)]
    found = {}
    for name, times in (("pool", 1), ("ten_pools", 10)):
        out = subprocess.run(
            [*command, "--memory-of", str(times)], cwd=HOME, stdout=subprocess.PIPE, check=True
        )
        found[f"{name}_mib"] = float(out.stdout)
    return found


def memory_of(scoring: Scoring) -> float:
    load_model(scoring.tuned, HOME)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    native(scoring)
    return round((_status("VmHWM") - before) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="newsroom", help=HELP)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--loop-rows", type=int, default=64, help="rows that the loop runs")
    parser.add_argument("--rounds", type=int, default=3, help="the first one warms up, where there are more")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--adapter", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()

    spec = profile_for(options.model).model.model_copy(update={"device": "cpu", "dtype": "float32"})
    with tempfile.TemporaryDirectory() as folder:
        tuned = options.adapter or adapter(spec, Path(folder) / "adapter")
        scoring = made(spec, spec.model_copy(update={"adapter": tuned}), options, options.memory_of or 1)
        if options.memory_of:
            print(memory_of(scoring))
            return
        result = measure(scoring, options)
        result["peak_memory"] = memory(options, tuned)
    result |= {
        "model": options.model,
        "rows": options.rows,
        "queries": options.queries,
        "loop_rows": options.loop_rows,
        "projection": METHOD.projection,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
