"""Whether a model does the job at all, how fast, and whether it fits: a minute of work before hours of it.

In: a loaded model, a profile, a few news rows. Out: a `Diagnosis` (what base makes of the rewrite prompt, tokens per
second, memory), its rewrites as rows, and verdicts with cures. `expected` turns the speed into seconds a stage.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from scipy.stats import binomtest

from steer_pipeline.catalogue.specs import Profile, SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.limits import MAX_COPIES, MIN_BASE_FACTS, MIN_ENDED
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import takes_system_turn
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.quality import kept_facts, scan_suspects
from steer_pipeline.lab.rewrites.source import Source, read_source
from steer_pipeline.lab.rewrites.work import prompts
from steer_pipeline.lab.units import shown_bytes
from steer_pipeline.lab.verdict import Verdict

SAMPLES = 4  # rewrites a row: with 8 rows the 32 sequences that a decoding batch has room for
LOOKED_AT = 64  # first rows, among which those with facts are taken
ECHO = "prompt_echo"  # the suspect rule of a rewrite that only copies
LEVEL = 0.05  # of the test whether base breaks the gate on suspects
FOLLOWS = "base_follows_the_prompt"  # the only claim that stops the pilot
CURES = {
    FOLLOWS: "use an instruction-tuned model, or another rewrites.prompt (what base says is in the "
    "rows of model_diagnosis); diagnosis.min_facts_kept: null goes on all the same",
    "base_keeps_the_facts": "judge variants by what they lose against base, or take a more able model or another "
    "rewrites.prompt",
    "base_is_clean": "read the rewrites; judge packs against base (gates.max_extra_suspects, with "
    "gates.max_suspect_rate: null), or take a more able model",
    "answers_end_by_themselves": "raise rewrites.sampling.max_new_tokens, ask for a length in rewrites.prompt, or see "
    "with `steer doctor` whether eos_token of the tokenizer is what ends a turn",
    "rewrites_are_no_copies": "ask for other words in rewrites.prompt, or use an instruction-tuned model",
    "a_batch_fits_into_memory": "lower model.batch_tokens",
}
FACTS, ROWS = "diagnosis.json", "rows.parquet"


@dataclass(frozen=True)
class Diagnosis:
    """What a model does, unsteered, with a profile's rewrite prompt. Shares are of rewrites, 0 to 1.

    Attributes:
        takes_system_turn: whether the chat template has a place for one; None: prompts are raw.
        judged: rewrites of rows whose lead has facts; `without_fact` of them keep none.
        facts_kept: mean share of the facts; None where no row has any.
        ended: stopped by themselves, not by the token limit.
        copies: consist of one piece of the source.
        prompt_tokens: a row, mean.
        prefill_rate, decode_rate: tokens per second; decoding in a batch of `rewrites` sequences.
        cache_bytes: keys and values of one token; None where the architecture does not tell.
    """

    model: str
    device: str
    dtype: str
    backend: str
    n_blocks: int
    takes_system_turn: bool | None
    rows: int
    rewrites: int
    judged: int
    without_fact: int
    facts_kept: float | None
    suspects: float
    ended: float
    copies: float
    prompt_tokens: float
    prefill_rate: float
    decode_rate: float
    weights_bytes: int
    cache_bytes: int | None
    free_bytes: int


def diagnose(
    model: LoadedModel, profile: Profile, news: pl.DataFrame, known_facts: Path
) -> tuple[Diagnosis, pl.DataFrame]:
    """Lets base rewrite the first of `news` that have facts, `SAMPLES` times each, as the packs will be.

    Args:
        news: rows of `truncated_news`, `LOOKED_AT` of them are enough.
        known_facts: as `read_source` takes it.

    Returns:
        The diagnosis, and one row a rewrite: row_id, sample, source_text, output, facts, kept (those that it keeps),
        suspects, ended.

    Raises:
        ValueError: there are no rows, or a prompt cannot be rendered or does not fit the model.
        BrokenLogits, OutOfMemory: as `generate`.
    """
    source = read_source(news.head(LOOKED_AT), known_facts)
    asked = prompts(_chosen(news, source, profile.diagnosis.n_rows), {}, profile, {}, model)
    finished, speed = _timed(model, asked, profile.rewrites.sampling)
    rows = _scored(finished, source, model.tokenizer.all_special_tokens)
    return Diagnosis(
        model=model.known_as,
        device=model.device,
        dtype=model.dtype,
        backend=model.backend,
        n_blocks=model.n_blocks,
        takes_system_turn=takes_system_turn(model.tokenizer) if profile.model.chat_template else None,
        rows=len(asked),
        rewrites=rows.height,
        **_shares(rows),
        prompt_tokens=_tokens(asked) / len(asked),
        prefill_rate=speed[0],
        decode_rate=speed[1],
        weights_bytes=_weights_bytes(model),
        cache_bytes=_cache_bytes(model),
        free_bytes=_free_bytes(model.device),
    ), rows


def save_diagnosis(diagnosis: Diagnosis, rows: pl.DataFrame, folder: Path) -> None:
    """Writes `diagnosis.json` and `rows.parquet`."""
    (folder / FACTS).write_text(json.dumps(asdict(diagnosis), indent=2) + "\n")
    rows.write_parquet(folder / ROWS)


def load_diagnosis(folder: Path) -> Diagnosis:
    return Diagnosis(**json.loads((folder / FACTS).read_text()))


def _chosen(news: pl.DataFrame, source: Source, wanted: int) -> pl.DataFrame:
    """Rows with facts, filled up with others."""
    if not source.texts:
        raise ValueError("there are no news to rewrite: look at corpus.source of the profile")
    first = sorted(source.texts, key=lambda row_id: not source.facts[row_id])[:wanted]
    return news.filter(pl.col("row_id").is_in(first))


def _timed(
    model: LoadedModel, asked: list[PromptRow], sampling: SamplingSpec
) -> tuple[list[FinishedRow], tuple[float, float]]:
    """Base's rewrites, and tokens read and written per second.

    Half of the rows with one new token each are all reading but for a step. A token that is written is read, too: what
    is written takes at least as long, however short the run and noisy the clock.
    """
    first, one = asked[: (len(asked) + 1) // 2], sampling.model_copy(update={"max_new_tokens": 1})
    started = time.perf_counter()
    list(generate(model, first, [SteeringPlan("base")], one))
    read_first = time.perf_counter() - started
    plans = [SteeringPlan(f"base_{number}") for number in range(SAMPLES)]
    started = time.perf_counter()
    finished = list(generate(model, asked, plans, sampling))
    total = time.perf_counter() - started
    read, written = _tokens(asked), sum(row.n_new_tokens for row in finished)
    prefill = max(_tokens(first) / read_first, (read + written) / total)
    return finished, (prefill, written / max(total - read / prefill, written / prefill))


def _tokens(asked: list[PromptRow]) -> int:
    return sum(len(row.ids["*"]) for row in asked)


def _shares(rows: pl.DataFrame) -> dict[str, Any]:
    """The counts and shares of a `Diagnosis`."""
    judged = rows.filter(pl.col("facts").list.len() > 0)
    kept = pl.col("kept").list.len()
    return {
        "judged": judged.height,
        "without_fact": judged.filter(kept == 0).height,
        "facts_kept": judged.select((kept / pl.col("facts").list.len()).mean()).item(),
        **rows.select(
            suspects=(pl.col("suspects").list.len() > 0).mean(),
            ended=pl.col("ended").mean(),
            copies=pl.col("suspects").list.contains(ECHO).mean(),
        ).row(0, named=True),
    }


def _scored(finished: Sequence[FinishedRow], source: Source, special_tokens: Sequence[str]) -> pl.DataFrame:
    rows = []
    for row in sorted(finished, key=lambda row: (row.row_id, row.variant)):
        text, facts = source.texts[row.row_id], source.facts[row.row_id]
        kept = [fact for fact, is_kept in zip(facts, kept_facts(facts, row.text), strict=True) if is_kept]
        rows.append(
            {
                "row_id": row.row_id,
                "sample": int(row.variant.removeprefix("base_")),
                "source_text": text,
                "output": row.text,
                "facts": facts,
                "kept": kept,
                "suspects": scan_suspects(row.text, text, special_tokens=special_tokens),
                "ended": not row.truncated,
            }
        )
    lists = {name: pl.List(pl.String) for name in ("facts", "kept", "suspects")}
    return pl.DataFrame(rows, schema_overrides=lists)


# ------------------------------------------------------------------------------------------ memory


def _weights_bytes(model: LoadedModel) -> int:
    if model.backend == "mlx":
        from mlx.utils import tree_flatten

        return sum(int(array.nbytes) for _, array in tree_flatten(model.module.parameters()))
    return sum(weight.numel() * weight.element_size() for weight in model.module.parameters())


def _cache_bytes(model: LoadedModel) -> int | None:
    """Of one token in all blocks, by the configuration; windows and latent attention would need less."""
    config = model.module.args if model.backend == "mlx" else model.module.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return None
    stored = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or model.hidden_size // heads
    return 2 * stored * size * model.n_blocks * (4 if model.dtype == "float32" else 2)


def _free_bytes(device: str) -> int:
    """What is left beside the loaded weights."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


# ---------------------------------------------------------------------------------------- verdicts


def diagnosis_verdicts(diagnosis: Diagnosis, profile: Profile) -> Iterator[Verdict]:
    """The first decides whether the model does the job at all; the others inform. All tell how to go on."""
    for verdict in (
        follows_the_prompt(diagnosis, profile.diagnosis.min_facts_kept),
        keeps_the_facts(diagnosis),
        is_clean(diagnosis, profile.gates.max_suspect_rate),
        ends_by_itself(diagnosis, profile.rewrites.sampling.max_new_tokens),
        does_not_copy(diagnosis),
        fits_into_memory(diagnosis, profile.model.batch_tokens),
    ):
        yield replace(verdict, cure=CURES[verdict.claim], blocking=verdict.claim == FOLLOWS)


def follows_the_prompt(diagnosis: Diagnosis, limit: float | None) -> Verdict:
    """Something of the news is left in what base makes of it."""
    claim, kept = FOLLOWS, diagnosis.facts_kept
    if kept is None:
        return Verdict(
            claim, True, f"not judged: none of {diagnosis.rows} leads has a number or name to keep"
        )
    how_many = f"in {diagnosis.without_fact} of {diagnosis.judged} rewrites"
    found = f"base keeps {kept:.0%} of the facts of its sources, none {how_many}"
    numbers = {"facts_kept": kept, "without_fact": diagnosis.without_fact, "judged": diagnosis.judged}
    if limit is None:
        return Verdict(claim, True, f"{found}; diagnosis.min_facts_kept of the profile is null", numbers)
    if kept >= limit:
        return Verdict(claim, True, f"{found}; at least {limit:.0%} is needed", numbers)
    if kept == 0:
        found = f"base keeps no fact of its source {how_many}"
    message = (
        f"{found} (at least {limit:.0%} of the facts is needed): the model does not follow the rewrite prompt"
    )
    return Verdict(claim, False, message, numbers)


def keeps_the_facts(diagnosis: Diagnosis) -> Verdict:
    """Base is as faithful as a good rewriter."""
    kept = diagnosis.facts_kept
    found = "no facts to keep" if kept is None else f"base keeps {kept:.0%} of the facts of its sources"
    passed = kept is None or kept >= MIN_BASE_FACTS
    return Verdict("base_keeps_the_facts", passed, f"{found}; at least {MIN_BASE_FACTS:.0%} is wanted")


def is_clean(diagnosis: Diagnosis, limit: float | None) -> Verdict:
    """Base itself would pass the gate on suspects."""
    found = f"{diagnosis.suspects:.0%} of base's rewrites are suspect"
    numbers = {"suspect_rate": diagnosis.suspects}
    if limit is None:
        return Verdict(
            "base_is_clean", True, f"{found}; gates.max_suspect_rate of the profile is null", numbers
        )
    count = round(diagnosis.suspects * diagnosis.rewrites)
    chance = binomtest(count, diagnosis.rewrites, limit, alternative="greater").pvalue
    return Verdict("base_is_clean", chance >= LEVEL, f"{found}, the gate's limit is {limit:.0%}", numbers)


def ends_by_itself(diagnosis: Diagnosis, max_new_tokens: int) -> Verdict:
    return Verdict(
        "answers_end_by_themselves",
        diagnosis.ended >= MIN_ENDED,
        f"{diagnosis.ended:.0%} of the rewrites end by themselves within {max_new_tokens} tokens, at least "
        f"{MIN_ENDED:.0%} is wanted",
        {"ended": diagnosis.ended},
    )


def does_not_copy(diagnosis: Diagnosis) -> Verdict:
    return Verdict(
        "rewrites_are_no_copies",
        diagnosis.copies <= MAX_COPIES,
        f"{diagnosis.copies:.0%} of the rewrites are a piece of the source, limit {MAX_COPIES:.0%}",
        {"copies": diagnosis.copies},
    )


def fits_into_memory(diagnosis: Diagnosis, batch_tokens: int) -> Verdict:
    """Keys and values of a full batch find room beside the weights."""
    claim, free = "a_batch_fits_into_memory", f"{shown_bytes(diagnosis.free_bytes)} free beside the weights"
    if diagnosis.cache_bytes is None:
        return Verdict(claim, True, f"not judged: the architecture does not tell what a token needs; {free}")
    needed = diagnosis.cache_bytes * batch_tokens
    return Verdict(
        claim,
        needed <= diagnosis.free_bytes,
        f"weights {shown_bytes(diagnosis.weights_bytes)}, a full batch (model.batch_tokens {batch_tokens}) at most "
        f"{shown_bytes(needed)}, {free}",
        {"cache_bytes": needed, "free_bytes": diagnosis.free_bytes},
    )
