"""What the lab does on a CUDA device: one script of at most eight minutes for whoever has one.

Parity with the CPU on the shipped newsroom; then, at the shape of Qwen3-4B with random bf16 weights: tokens per second
of one variant, of eight, and of plain batched `generate`; means of every block against a plain forward pass; bf16 and
fp16 without NaN; `compile` off and on. Prints one JSON line and writes it to `benchmarks/results/<device>.json`. Needs
torch, transformers, peft and pydantic alone. `--shape tiny --device cpu` is a rehearsal on any machine.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import bench_rewrite
from benchmarks.bench_rewrite import plain_generate, plans_for, prompts, random_model
from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import forget_models, load_model
from steer_pipeline.lab.models.sites import SteeringPlan

HOME = Path(__file__).resolve().parent.parent
RESULTS = HOME / "benchmarks" / "results"
NEWSROOM = HOME / "assets_data" / "newsroom" / "model"
bench_rewrite.SHAPES.setdefault(
    "tiny",
    {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    },
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="qwen3-4b", choices=sorted(bench_rewrite.SHAPES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=380)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    begun = time.monotonic()
    result: dict[str, Any] = {"device": name_of(options.device), "shape": options.shape, "rows": options.rows}
    result["parity"] = parity(options.device)
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(options.shape, Path(folder) / "model", torch.bfloat16, options.device)
        for dtype in ("float16", "bfloat16"):
            with ready(path, dtype, options.device) as model:
                result[f"finite_{dtype}"] = finite(model, options)
        with ready(path, "bfloat16", options.device) as model:
            result |= speeds(model, options)
            result["all_blocks_over_forward"] = extraction(model, options)
        with ready(path, "bfloat16", options.device, compile=True) as model:
            result["compiled"] = {"variants_8": rate(model, options, 8)}
    result["seconds"] = round(time.monotonic() - begun, 1)
    line = json.dumps(result)
    print(line)
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", result["device"].lower()).strip("_")
    if options.device == "cuda":
        (RESULTS / f"{slug}.json").write_text(line + "\n")


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


@contextmanager
def ready(path: Path, dtype: str, device: str, **more: Any) -> Iterator[LoadedModel]:
    """The model, whose sequences nothing ends early; its memory is free again afterwards."""
    spec = ModelSpec(path=str(path), dtype=dtype, device=device, batch_tokens=262_144, **more)
    try:
        yield replace(load_model(spec, HOME), eos_ids=frozenset())
    finally:
        forget_models()
        if device == "cuda":
            torch.cuda.empty_cache()


def parity(device: str) -> dict[str, float]:
    """The shipped model in fp32 on the CPU and on the device: greedy tokens, and cosine of mean states."""
    greedy = SamplingSpec(temperature=0.0, max_new_tokens=32)
    texts, states = [], []
    for where in ("cpu", device):
        spec = ModelSpec(path=str(NEWSROOM), dtype="float32", device=where)
        model = load_model(spec, HOME)
        rows = prompts(model, 8, 200)
        plans = plans_for(model, rows, "all", 2)
        found = {(r.row_id, r.variant): r.token_ids for r in generate(model, rows, plans, greedy)}
        texts.append(found)
        ids = [row.ids["*"] for row in rows]
        states.append(collect_means(model, [HiddenRequest(one, 1, len(one)) for one in ids]))
        forget_models()
    same = [texts[0][key] == texts[1][key] for key in texts[0]]
    a, b = (one.reshape(-1, one.shape[-1]) for one in states)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {"equal_texts": round(float(np.mean(same)), 4), "worst_cosine": round(float(cosines.min()), 6)}


def finite(model: LoadedModel, options: argparse.Namespace) -> bool:
    """A few rows in all variants: logits that are not finite raise BrokenLogits."""
    rows = prompts(model, 4, options.prompt_tokens)
    plans = plans_for(model, rows, "all", model.n_blocks // 2)
    done = list(generate(model, rows, plans, SamplingSpec(max_new_tokens=8)))
    states = collect_means(model, [HiddenRequest(r.ids["*"], 0, len(r.ids["*"])) for r in rows])
    return len(done) == len(rows) * len(plans) and bool(np.isfinite(states).all())


def eight(model: LoadedModel, rows: list[PromptRow]) -> list[SteeringPlan]:
    """Eight variants that differ from the block in the middle on."""
    plans = plans_for(model, rows, "all", model.n_blocks // 2)
    return [*plans, replace(plans[1], variant="eighth", scope="generated")]


def rate(model: LoadedModel, options: argparse.Namespace, variants: int) -> float:
    """Tokens per second of the engine, the median of the rounds after one that warms up."""
    plans = eight(model, prompts(model, 4, options.prompt_tokens))[:variants]
    rows = prompts(model, options.rows // variants, options.prompt_tokens)
    sampling = SamplingSpec(temperature=0.6, top_p=0.9, max_new_tokens=options.new_tokens)

    def work() -> None:
        list(generate(model, rows, plans, sampling))

    work()
    taken = statistics.median(timed(work, options.device) for _ in range(options.rounds))
    return round(len(rows) * variants * options.new_tokens / taken, 1)


def speeds(model: LoadedModel, options: argparse.Namespace) -> dict[str, Any]:
    """The same number of sequences unsteered, in eight variants, and by plain batched generate under hooks."""
    rows = prompts(model, options.rows // 8, options.prompt_tokens)
    sampling = SamplingSpec(temperature=0.6, top_p=0.9, max_new_tokens=options.new_tokens)

    def batched() -> None:
        for plan in eight(model, rows):
            plain_generate(model, rows, plan, sampling)

    batched()
    plain = len(rows) * 8 * options.new_tokens / timed(batched, options.device)
    one, many = rate(model, options, 1), rate(model, options, 8)
    return {
        "tokens_per_second": {"unsteered": one, "variants_8": many, "batched_generate": round(plain, 1)},
        "eight_over_unsteered": round(many / one, 3),
        "eight_over_batched": round(many / plain, 2),
    }


def extraction(model: LoadedModel, options: argparse.Namespace) -> float:
    """Time of means of every block's output over time of a plain forward pass of the decoder, the same sequences."""
    ids = [row.ids["*"] for row in prompts(model, max(8, options.rows // 4), options.prompt_tokens)]
    ids = [one[: min(map(len, ids))] for one in ids]
    requests = [HiddenRequest(one, 0, len(one)) for one in ids]
    decoder, batch = model.module.get_decoder(), torch.tensor(ids, device=blocks_of(model).device)

    def forward() -> None:
        with torch.inference_mode():
            for part in batch.split(max(1, 65_536 // batch.shape[1])):
                decoder(part, use_cache=False)

    def means() -> None:
        collect_means(model, requests)

    ways = {"forward": forward, "means": means}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, work in ways.items():
            spent = timed(work, options.device)
            if number:
                taken[name].append(spent)
    return round(statistics.median(taken["means"]) / statistics.median(taken["forward"]), 3)


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds, with everything on the device done."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
