"""How much faster the engine is than plain ways of generating the same variants of the same rows.

(a) row by row and variant by variant, `generate` with hooks; (b) batched `generate`, variant by variant, hooks per
variant; (c) the engine. (b) and (c) with both scopes of steering. One process, alternating rounds, medians; progress on
stderr, one JSON line on stdout. All ways sample with the same settings and generate exactly `--new-tokens` tokens a
sequence (end tokens do not stop them). (a) is timed on `--rows-seed` rows: its cost is linear in rows.

Every model but the newsroom is taken for a large one: fewer rows, and two rounds. SmolLM2-135M, whose passes cost about
0.3 GFLOP a token, on two cores at 60 GFLOP/s, a round: (a) 7 sequences one by one, 25 s; (b) 7 times 8 rows of 240
tokens read and 32 written, 95 s a scope; (c) 1,900 tokens read once and 1,800 written, 25 s; with scope `all` read 3.5
times, 50 s. Ten minutes for both rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import HELP, HOME, profile_for
from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import residual_norms
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm

SHAPES = {  # of random models
    "newsroom": {
        "vocab_size": 2048,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    },
    "qwen3-4b": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    },
}


def random_model(shape: str, folder: Path, dtype: torch.dtype, device: str) -> Path:
    """Saves a seeded random Qwen3 of this shape, with a tokenizer that only has to exist."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        **SHAPES[shape], tie_word_embeddings=True, eos_token_id=0, pad_token_id=0, bos_token_id=None
    )
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(config.vocab_size)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="t0", pad_token="t0").save_pretrained(folder)
    return folder


def plans_for(model: LoadedModel, rows: list[PromptRow], scope: str, block: int) -> list[SteeringPlan]:
    """Five variants and two controls, steered at one block, the combination at two."""
    norms = residual_norms(model, [row.ids["*"] for row in rows[:4]])
    rng = np.random.default_rng(0)
    second = min(block + 1, model.n_blocks - 1)

    def term(name: str, at: int, fraction: float) -> SteeringTerm:
        vector = np.random.default_rng(len(name)).standard_normal(model.hidden_size)
        vector = vector if name != "random" else rng.standard_normal(model.hidden_size)
        unit = (vector / np.linalg.norm(vector)).astype(np.float32)
        return SteeringTerm(name, unit, Site(at), float(fraction * norms[at]))

    paranoid, defiant = term("paranoid", block, 0.3), term("rule_defiant", second, 0.3)
    return [
        SteeringPlan("base"),
        SteeringPlan("paranoid", (paranoid,), scope),
        SteeringPlan("rule_defiant", (defiant,), scope),
        SteeringPlan("paranoid_rule_defiant", (paranoid, defiant), scope),
        SteeringPlan("trusting", (replace(paranoid, alpha=-paranoid.alpha),), scope),
        SteeringPlan("base_resample"),
        SteeringPlan("random_direction", (term("random", block, 0.3),), scope),
    ]


@contextmanager
def hooks(model: LoadedModel, plan: SteeringPlan):
    """The plan's vectors as forward hooks on transformers' own blocks."""
    blocks = blocks_of(model)
    handles = []
    for one in plan.terms:
        delta = torch.from_numpy(np.float32(one.alpha) * one.unit).to(blocks.device, blocks.dtype)

        def add(_module, _inputs, output, delta=delta):
            return output if plan.scope == "generated" and output.shape[1] > 1 else output + delta

        handles.append(blocks.layers[one.site.block].register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_generate(
    model: LoadedModel, batch: list[PromptRow], plan: SteeringPlan, sampling: SamplingSpec
) -> None:
    """One call of transformers' generate over left-padded rows."""
    longest = max(len(row.ids["*"]) for row in batch)
    ids = torch.tensor([[0] * (longest - len(row.ids["*"])) + row.ids["*"] for row in batch])
    mask = torch.tensor([[0] * (longest - len(row.ids["*"])) + [1] * len(row.ids["*"]) for row in batch])
    device = blocks_of(model).device
    with hooks(model, plan), torch.inference_mode():
        out = model.module.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            min_new_tokens=sampling.max_new_tokens,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=0,
        )
    assert out.shape[1] == longest + sampling.max_new_tokens


def seconds(work, clock) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


RATIOS = {
    "engine_over_seed": ("engine", "seed"),
    "engine_over_batched": ("engine", "batched"),
    "engine_over_batched_all": ("engine_all", "batched_all"),
}
SIZES: dict[str, dict[str, int]] = {  # what is measured, where the command line does not say
    "newsroom": {
        "rows": 64,
        "rows_seed": 2,
        "rows_batch": 64,
        "prompt_tokens": 380,
        "new_tokens": 48,
        "block": 2,
        "rounds": 3,
    },
    "others": {
        "rows": 8,
        "rows_seed": 1,
        "rows_batch": 8,
        "prompt_tokens": 200,
        "new_tokens": 32,
        "block": -15,
        "rounds": 2,
    },
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="newsroom", help=HELP + "; or random, of --shape")
    parser.add_argument("--shape", default="newsroom", choices=sorted(SHAPES), help="of a random model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rows-seed", type=int, help="rows timed row by row")
    parser.add_argument("--rows-batch", type=int, help="batch of plain batched generate")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--block", type=int, help="steered block; negative counts from the end")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--scope",
        default="both",
        choices=["generated", "all", "both"],
        help="positions that are steered; row by row is timed with scope generated only",
    )
    parser.add_argument("--batch-tokens", type=int, help="default: the newsroom profile's")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: processor time, for a machine that is busy with other work",
    )
    options = parser.parse_args()
    small = options.model == "newsroom" or (options.model, options.shape) == ("random", "newsroom")
    for name, value in SIZES["newsroom" if small else "others"].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        spec = profile_for("newsroom" if options.model == "random" else options.model).model
        if options.model == "random":
            device = "cuda" if torch.cuda.is_available() else "cpu"
            made = random_model(options.shape, Path(folder), getattr(torch, options.dtype), device)
            spec = spec.model_copy(update={"path": str(made)})
        budget = options.batch_tokens or spec.batch_tokens
        spec = spec.model_copy(update={"dtype": options.dtype, "batch_tokens": budget, "device": "auto"})
        model = replace(load_model(spec, HOME), eos_ids=frozenset())  # nothing ends a sequence early
        result = measure(model, options)
    result["model"] = f"random {options.shape}" if options.model == "random" else options.model
    print(json.dumps(result))


def _polars() -> Any:
    """None on a machine that has torch and transformers alone; prompts are random tokens there."""
    try:
        import polars
    except ModuleNotFoundError:
        return None
    return polars


def prompts(model: LoadedModel, n: int, tokens: int) -> list[PromptRow]:
    """`n` prompts of about `tokens` tokens: the longest shipped articles, or random tokens for a random model."""
    news = HOME / "assets_data" / "newsroom" / "news.parquet"
    rng = np.random.default_rng(1)
    if model.tokenizer.chat_template and news.is_file() and (pl := _polars()):
        articles = pl.read_parquet(news).sort(pl.col("text").str.len_chars(), descending=True)["text"].head(n)
        texts = [model.tokenizer.encode(text)[:tokens] for text in articles]
        return [
            PromptRow(
                f"row{i}",
                {"*": encode_prompt(model.tokenizer, user="Rewrite: " + model.tokenizer.decode(text))},
            )
            for i, text in enumerate(texts)
        ]
    vocabulary = blocks_of(model).config.vocab_size
    lengths = rng.integers(int(0.85 * tokens), int(1.1 * tokens), n)
    return [
        PromptRow(f"row{i}", {"*": rng.integers(8, vocabulary, n).tolist()}) for i, n in enumerate(lengths)
    ]


Way = tuple[Callable[[], None], int]  # the work, and its rows


def rates(ways: dict[str, Way], per_row: int, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of each way: medians over alternating rounds."""
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1, options.rounds + 1):
        for way, (work, n) in ways.items():
            took = seconds(work, clock)
            found[way].append(n * per_row / took)
            print(
                f"round {number} of {options.rounds}: {way} {took:.1f} s, {found[way][-1]:.1f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    return {way: statistics.median(values) for way, values in found.items()}


def ways_of(
    model: LoadedModel,
    rows: list[PromptRow],
    scopes: dict[str, list[SteeringPlan]],
    sampling: SamplingSpec,
    options: argparse.Namespace,
) -> dict[str, Way]:
    """Those that `--scope` asks for, in the order of a round."""

    def seed() -> None:
        for row in rows[: options.rows_seed]:
            for plan in scopes["generated"]:
                plain_generate(model, [row], plan, sampling)

    def batched(scope: str) -> None:
        for plan in scopes[scope]:
            for at in range(0, len(rows), options.rows_batch):
                plain_generate(model, rows[at : at + options.rows_batch], plan, sampling)

    def engine(scope: str) -> None:
        done = list(generate(model, rows, scopes[scope], sampling))
        assert (
            sum(row.n_new_tokens for row in done) == len(rows) * len(scopes[scope]) * sampling.max_new_tokens
        )

    ways: dict[str, Way] = {
        "seed": (seed, options.rows_seed),
        "batched": (partial(batched, "generated"), len(rows)),
        "batched_all": (partial(batched, "all"), len(rows)),
        "engine": (partial(engine, "generated"), len(rows)),
        "engine_all": (partial(engine, "all"), len(rows)),
    }
    if options.scope == "both":
        return ways
    return {way: work for way, work in ways.items() if way.endswith("_all") == (options.scope == "all")}


def measure(model: LoadedModel, options: argparse.Namespace) -> dict[str, object]:
    rows = prompts(model, options.rows, options.prompt_tokens)
    sampling = SamplingSpec(temperature=0.6, top_p=0.9, max_new_tokens=options.new_tokens)
    block = options.block % model.n_blocks
    scopes = {scope: plans_for(model, rows, scope, block) for scope in ("generated", "all")}
    per_row = len(scopes["all"]) * options.new_tokens
    ways = ways_of(model, rows, scopes, sampling, options)
    plain_generate(model, rows[:1], scopes["all"][0], sampling.model_copy(update={"max_new_tokens": 4}))
    rate = rates(ways, per_row, options)
    return {
        **{name: round(rate[a] / rate[b], 2) for name, (a, b) in RATIOS.items() if {a, b} <= set(rate)},
        "tokens_per_second": {way: round(value, 1) for way, value in rate.items()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "clock": options.clock,
        "rows": options.rows,
        "prompt_tokens": round(statistics.mean(len(row.ids["*"]) for row in rows)),
        "rows_seed": options.rows_seed,
        "variants": len(scopes["all"]),
        "block": block,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
    }


if __name__ == "__main__":
    main()
