"""How much faster persona vectors are computed here than with the packages steering-vectors and repeng.

The same pairs of texts (prompt and completion, both poles; `--contexts` says of what), the same model, every block,
the state of the last token. steering-vectors: `train_steering_vector` with its mean aggregator; repeng:
`ControlVector.train` with `pca_center`, which is the first component of the differences about the origin, our `pca`.
Ours: tokenisation, `collect_means`, `fit_directions`, what `extract_vector` does before it measures its evidence.
One process, alternating rounds, medians; the first round runs all pairs and gives the directions that are compared,
later ones run `--pairs-again` of them (every way's cost is linear in pairs). Each package runs at its own default
batch size (`over_*`) and at the best of `--batch-sizes` (`over_*_best`). Peak memory is that of subprocesses.
Every model but the newsroom is taken for a large one: fewer pairs, about ten minutes on two cores for SmolLM2-135M.

The packages are no dependencies of the product: they are installed on first use, without their own dependencies, into
`.venv-bench`, with pip as it is configured. Prints one JSON line.
"""

import argparse
import contextlib
import importlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.models import HELP, HOME, profile_for
from steer_pipeline.catalogue.loading import load_personas, load_profile
from steer_pipeline.lab.dialogues.encoding import encode_dialogue
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.personas.contexts import news_contexts, split_contexts
from steer_pipeline.lab.personas.contrast import build_contrast_prompts, complete_contrast
from steer_pipeline.lab.vectors.extracted import fit_directions

PACKAGES = HOME / ".venv-bench"
PINNED = ("steering-vectors==0.12.2", "repeng==0.4.0")
DEFAULT_BATCH = {"steering_vectors": 1, "repeng": 32}  # of the packages' own signatures
MEMORY_PAIRS = 32
SIZES: dict[str, dict[str, Any]] = {  # what is measured, where the command line does not say
    "newsroom": {
        "pairs": 256,
        "pairs_again": 96,
        "pairs_search": 16,
        "batch_sizes": [1, 4, 16, 32],
        "rounds": 5,
    },
    "others": {"pairs": 12, "pairs_again": 6, "pairs_search": 4, "batch_sizes": [1, 4, 8], "rounds": 3},
}

Pairs = list[tuple[str, str]]


def install() -> None:
    """Makes both packages importable.

    Raises:
        SystemExit: pip could not install them; with the command to run by hand.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(PACKAGES), *PINNED]
    done = PACKAGES / "installed.txt"
    if not done.is_file() or done.read_text() != "\n".join(PINNED):
        print(f"installing {', '.join(PINNED)} into {PACKAGES.name}, once", file=sys.stderr)
        if subprocess.run([*command, "--upgrade"], stdout=sys.stderr).returncode:
            raise SystemExit(
                "the packages to compare with could not be installed (see pip's message above); where no "
                f"index can be reached, install them elsewhere and copy them here: {' '.join(command)}"
            )
        (PACKAGES / ".gitignore").write_text("*\n")
        done.write_text("\n".join(PINNED))
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))  # last: whatever the product has too is the product's
    if not hasattr(np, "float_"):
        # repeng 0.4.0 was written for NumPy 1 and names it, in annotations alone
        np.float_ = np.float64  # noqa: NPY201


def contrast_texts(model: LoadedModel, n_pairs: int, kind: str) -> tuple[Pairs, list[int]]:
    """(positive, negative) texts of contrast pairs, and the number of tokens of each pair.

    Args:
        kind: "dialogues": shipped answers to questions under both instructions, short as in these packages' own
            examples; "news": rewrites of news items, what the pilot makes its vectors from.

    Raises:
        SystemExit: there are fewer pairs.
    """
    ids = (_dialogue_ids if kind == "dialogues" else _news_ids)(model, n_pairs)
    texts = [model.tokenizer.decode(one) for one in ids]
    if len(texts) != 2 * n_pairs:
        raise SystemExit(f"{kind}: there are {len(texts) // 2} pairs; ask for no more by --pairs")
    lengths = [len(one) for one in model.tokenizer(texts).input_ids]  # as all ways read them
    lengths = [a + b for a, b in zip(lengths[::2], lengths[1::2], strict=True)]
    return list(zip(texts[::2], texts[1::2], strict=True)), lengths


def _dialogue_ids(model: LoadedModel, n_pairs: int) -> list[list[int]]:
    rows = pl.read_parquet(HOME / "assets_data" / "newsroom" / "dialogues.parquet")
    rows = rows.filter(kind="trait", score_status="scored")
    sides = [rows.filter(label=label) for label in ("pos", "neg")]
    pairs = sides[0].join(sides[1], on=["persona", "question_index"], suffix="_neg")
    ids = []
    for row in pairs.sort("question_index", "persona", "prompt_index").head(n_pairs).iter_rows(named=True):
        for side in ("", "_neg"):
            told = {"response": row[f"response{side}"], "instruction": row[f"system_prompt{side}"]}
            ids.append(encode_dialogue(model.tokenizer, question=row["question"], **told).ids)
    return ids


def _news_ids(model: LoadedModel, n_pairs: int) -> list[list[int]]:
    profile = load_profile("newsroom")
    news = pl.read_parquet(HOME / "assets_data" / "newsroom" / "news.parquet").head(n_pairs)
    rows = news.with_row_index("row_id").with_columns(pl.col("row_id").cast(pl.String))
    contexts = split_contexts(news_contexts(rows, profile.rewrites), 0.25, 0)
    spec = profile.contrast.model_copy(update={"n_contexts": n_pairs})
    prompts = build_contrast_prompts(load_personas()["paranoid"], spec, contexts)
    contrast = complete_contrast(model, prompts, spec)
    return [a + b for a, b in contrast.select("prompt_ids", "completion_ids").iter_rows()]


def ours(model: LoadedModel, pairs: Pairs, method: str, blocks: Sequence[int] | None = None) -> np.ndarray:
    """fp32 [blocks, hidden]."""
    return fit_directions(_differences(last_states(model, pairs, blocks)), method)


def last_states(model: LoadedModel, pairs: Pairs, blocks: Sequence[int] | None = None) -> np.ndarray:
    """fp32 [2 * pairs, blocks, hidden]: block outputs at the last token, positive and negative in turn."""
    ids = model.tokenizer([text for pair in pairs for text in pair]).input_ids
    return collect_means(model, [HiddenRequest(one, len(one) - 1, len(one)) for one in ids], blocks=blocks)


def _differences(states: np.ndarray) -> np.ndarray:
    return states[::2] - states[1::2]


def steering_vectors(
    model: LoadedModel, pairs: Pairs, batch: int, blocks: Sequence[int] | None = None
) -> np.ndarray:
    train = importlib.import_module("steering_vectors").train_steering_vector
    layers = list(range(model.n_blocks) if blocks is None else blocks)
    vector = train(model.module, model.tokenizer, pairs, layers=layers, read_token_index=-1, batch_size=batch)
    return np.stack([vector.layer_activations[layer].float().cpu().numpy() for layer in layers])


def repeng(model: LoadedModel, pairs: Pairs, batch: int, blocks: Sequence[int] | None = None) -> np.ndarray:
    package = importlib.import_module("repeng")
    layers = list(range(model.n_blocks) if blocks is None else blocks)  # its default leaves block 0 out
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        vector = package.ControlVector.train(
            model.module,
            model.tokenizer,
            [package.DatasetEntry(positive, negative) for positive, negative in pairs],
            hidden_layers=layers,
            batch_size=batch,
            method="pca_center",
        )
    return np.stack([vector.directions[layer] for layer in layers])


THEIRS: dict[str, Callable[..., np.ndarray]] = {"steering_vectors": steering_vectors, "repeng": repeng}


def as_repeng_reads(model: LoadedModel, states: np.ndarray) -> np.ndarray:
    """The same states with the last block's final-normed: what transformers calls its hidden state."""
    blocks = blocks_of(model)
    with torch.inference_mode():
        last = blocks.norm(torch.from_numpy(states[:, -1]).to(blocks.device, blocks.dtype))
    return np.concatenate([states[:, :-1], last.float().cpu().numpy()[:, None]], axis=1)


def least_cosine(a: np.ndarray, b: np.ndarray, signed: bool) -> float:
    """The smallest cosine over blocks of [blocks, hidden] each."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float((cosines if signed else np.abs(cosines)).min())


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best_batch(model: LoadedModel, way: Callable[..., np.ndarray], pairs: Pairs, sizes: Sequence[int]) -> int:
    """The fastest of the batch sizes on these pairs, the better of two timings each."""
    times = dict.fromkeys(sizes, float("inf"))
    for _ in range(2):
        for size in sizes:
            times[size] = min(times[size], seconds(partial(way, model, pairs, size)))
    return min(times, key=lambda size: times[size])


def measure(
    model: LoadedModel, options: argparse.Namespace, pairs: Pairs, lengths: list[int]
) -> dict[str, Any]:
    search = pairs[: options.pairs_search]
    ours(model, search, "pca")
    best = {name: best_batch(model, way, search, options.batch_sizes) for name, way in THEIRS.items()}
    ways: dict[str, Callable[[Pairs], np.ndarray]] = {
        "ours_mean": lambda chosen: ours(model, chosen, "mean_difference"),
        "ours_pca": lambda chosen: ours(model, chosen, "pca"),
    }
    for name, way in THEIRS.items():
        for batch in sorted({DEFAULT_BATCH[name], best[name]}):
            ways[f"{name}_{batch}"] = partial(_with_batch, way, model, batch)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, np.ndarray] = {}
    for round_ in range(options.rounds):
        n = options.pairs if round_ == 0 else min(options.pairs, options.pairs_again)
        first = (round_ * n) % (options.pairs - n + 1)
        for name, work in ways.items():
            start = time.perf_counter()
            directions = work(pairs[first : first + n])
            rates[name].append(sum(lengths[first : first + n]) / (time.perf_counter() - start))
            found.setdefault(name, directions)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    for name in THEIRS:  # the search was short: the rounds have the last word
        best[name] = max(
            (DEFAULT_BATCH[name], best[name]), key=lambda size, name=name: rate[f"{name}_{size}"]
        )
    states = as_repeng_reads(model, last_states(model, pairs))
    cosines = {
        "steering_vectors": min(
            least_cosine(found["ours_mean"], directions, signed=True)
            for name, directions in found.items()
            if name.startswith("steering_vectors")
        ),
        "repeng": min(
            least_cosine(fit_directions(_differences(states), "pca"), directions, signed=False)
            for name, directions in found.items()
            if name.startswith("repeng")
        ),
    }

    def over(name: str, batch: int) -> float:
        mine = rate["ours_mean" if name == "steering_vectors" else "ours_pca"]
        return round(mine / rate[f"{name}_{batch}"], 2)

    return {
        **{f"over_{name}": over(name, DEFAULT_BATCH[name]) for name in THEIRS},
        "cosine": round(min(cosines.values()), 6),
        **{f"over_{name}_best": over(name, best[name]) for name in THEIRS},
        "batch_default": DEFAULT_BATCH,
        "batch_best": best,
        "cosines": {name: round(value, 6) for name, value in cosines.items()},
        "tokens_per_second": {name: round(value, 1) for name, value in rate.items()},
        "device": str(blocks_of(model).device),
        "threads": torch.get_num_threads(),
        "dtype": model.dtype,
        "pairs": options.pairs,
        "pairs_again": options.pairs_again,
        "tokens": sum(lengths),
        "blocks": model.n_blocks,
        "rounds": options.rounds,
    }


def _with_batch(way: Callable[..., np.ndarray], model: LoadedModel, batch: int, pairs: Pairs) -> np.ndarray:
    return way(model, pairs, batch)


def memory(model: str, pairs: Pairs) -> dict[str, dict[str, float]] | None:
    """MiB that each way adds at its peak to a fresh process that has the model loaded and warm, when it
    reads one block and when it reads all. None where the system does not tell a process its peak (Linux does).

    What ours adds for more blocks is the read-outs themselves, fp32 [2 * pairs, blocks, hidden]; the
    packages, whose peaks grow with their batches more than with pairs, run on `MEMORY_PAIRS` of them.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        for way in ("ours", *THEIRS):
            texts.write_text(json.dumps(pairs if way == "ours" else pairs[:MEMORY_PAIRS]))
            command = [sys.executable, "-m", "benchmarks.bench_extract", "--model", model]
            out = subprocess.run(
                [*command, "--memory-of", way, "--texts", str(texts)],
                cwd=HOME,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            result[way] = json.loads(out.stdout)
    return result


def memory_of(model: LoadedModel, way: str, pairs: Pairs) -> dict[str, float]:
    if way == "ours":
        work = partial(ours, model, method="mean_difference")
    else:
        work = partial(THEIRS[way], model, batch=DEFAULT_BATCH[way])
    every = list(range(model.n_blocks))
    work(pairs=pairs[:2], blocks=every)
    before = _status("VmRSS")
    peaks = {}
    for kept, blocks in (("one", every[-1:]), ("all", every)):  # the last: all blocks run either way
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
        work(pairs=pairs, blocks=blocks)
        peaks[f"{kept}_mib"] = round((_status("VmHWM") - before) / 1024, 1)
    return peaks


def _status(field: str) -> int:
    """kB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="newsroom", help=HELP)
    parser.add_argument("--contexts", choices=("news", "dialogues"), default="news")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--pairs-again", type=int, help="pairs of every round but the first")
    parser.add_argument("--pairs-search", type=int, help="pairs on which batch sizes are tried")
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--memory-of", choices=["ours", *THEIRS], help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, size in SIZES.get(options.model, SIZES["others"]).items():
        if getattr(options, name) is None:
            setattr(options, name, size)

    install()
    spec = profile_for(options.model).model.model_copy(update={"device": "cpu"})
    model = load_model(spec, HOME)
    if options.memory_of:
        pairs = [tuple(pair) for pair in json.loads(options.texts.read_text())]
        print(json.dumps(memory_of(model, options.memory_of, pairs)))
        return
    pairs, lengths = contrast_texts(model, options.pairs, options.contexts)
    result = measure(model, options, pairs, lengths)
    result |= {
        "contexts": options.contexts,
        "peak_memory": memory(options.model, pairs),
        "model": options.model,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
