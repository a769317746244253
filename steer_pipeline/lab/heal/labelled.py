"""What the filter makes of labelled texts: how many loops and how much babble it drops, how many sound texts it keeps.

In: the labelled texts that come with the checkout, and what a model thinks of each token of them, stored or measured
anew. Out: shares with exact intervals, and a verdict. Thresholds were chosen on the half `fit`; the figures are those
of the half `held_out`, none of whose sentences stand in the other. The sound texts of `fit` stand for base's.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealFilterSpec
from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab import limits
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.heal.filtering import judge, likelihood_criteria, loop_criteria
from steer_pipeline.lab.heal.scores import score_samples, with_surprise
from steer_pipeline.lab.models.completions import completion_losses
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.quality.leaks import Told
from steer_pipeline.lab.stats import share_interval
from steer_pipeline.lab.verdict import Verdict

TEXTS = Path("assets_data/filter_texts/texts.jsonl")
LOSSES = Path("assets_data/filter_texts/losses_smollm2-135m.parquet")
Measured = Mapping[str, tuple[list[int], list[float]]]  # text_id -> its token ids, and the nats of each
PROMPT = "Write a short text."  # what every text counts as an answer to
CLAIM = "filter_tells"
FIT, HELD_OUT = "fit", "held_out"
SOUND = ("fluent", "on_trait")
BAD = ("loop", "babble", "leak", "refusal")
LABELLED_SCHEMA, LABELLED_COLUMNS = described(
    text_id=(pl.String(), "Half, label, kind and number."),
    split=(pl.String(), "`fit` or `held_out`."),
    label=(pl.String(), "fluent, on_trait, loop, babble, leak or refusal."),
    kind=(pl.String(), "Style of a sound text, or how a bad one was made."),
    persona=(pl.String(), "Whose trait it shows, or whose instructions it leaks."),
    period=(pl.Int64(), "Words of a loop's cycle, where it has one."),
    text=(pl.String(), ""),
)
LOSSES_SCHEMA = pl.Schema(
    {
        "text_id": pl.String(),
        "sha": pl.String(),
        "token_ids": pl.List(pl.Int64()),
        "losses": pl.List(pl.Float32()),
    }
)
FIGURES_SCHEMA, FIGURES_COLUMNS = described(
    label=(pl.String(), "Of the texts counted; `dropped`: all that the filter drops."),
    kind=(pl.String(), "Null: all kinds."),
    what=(
        pl.String(),
        "`recall`: dropped, of bad texts; `kept`, of sound ones; `precision`: bad, of dropped ones.",
    ),
    n=(pl.Int64(), "Texts."),
    hits=(pl.Int64(), "Of them."),
    share=(pl.Float64(), "hits / n."),
    low=(pl.Float64(), "Lower end of the exact 95% interval (Clopper and Pearson)."),
    high=(pl.Float64(), "Upper end."),
)


def read_texts(root: Path) -> pl.DataFrame:
    """Rows of `LABELLED_SCHEMA`.

    Args:
        root: the checkout.
    """
    return pl.read_ndjson(root / TEXTS, schema=LABELLED_SCHEMA)


def read_losses(root: Path, texts: pl.DataFrame) -> Measured:
    """What SmolLM2-135M-Instruct thinks of each text, as stored beside the texts.

    Raises:
        ValueError: a text has changed since (it is named).
    """
    stored = pl.read_parquet(root / LOSSES)
    found = {name: (sha, ids, losses) for name, sha, ids, losses in stored.iter_rows()}
    for name, text in texts.select("text_id", "text").iter_rows():
        if name not in found or found[name][0] != _sha(text):
            raise ValueError(
                f"{LOSSES.name} has no losses of {name} as it stands now; measure them again "
                "(python -m steer_pipeline_tests.labelled --losses MODEL_FOLDER)"
            )
    return {name: found[name][1:] for name in texts["text_id"]}


def measure_losses(texts: pl.DataFrame, model: LoadedModel, *, at_once: int = 16) -> pl.DataFrame:
    """Rows of `LOSSES_SCHEMA`: each text as the answer to `PROMPT`, in millinats."""
    ids = [encode_completion(model.tokenizer, text, end_of_turn=False) for text in texts["text"]]
    prompt = encode_prompt(model.tokenizer, user=PROMPT, chat_template=bool(model.tokenizer.chat_template))
    losses: list[np.ndarray] = []
    for start in range(0, len(ids), at_once):
        losses += completion_losses(model, [prompt], [ids[start : start + at_once]])[0]
    return pl.DataFrame(
        {
            "text_id": texts["text_id"],
            "sha": [_sha(text) for text in texts["text"]],
            "token_ids": ids,
            "losses": [np.round(one.astype(np.float64), 3).tolist() for one in losses],
        },
        schema=LOSSES_SCHEMA,
    )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judge_texts(
    texts: pl.DataFrame,
    personas: Mapping[str, Persona],
    measured: Measured | None,
    spec: HealFilterSpec = HealFilterSpec(),
) -> pl.DataFrame:
    """The texts with every score, `reasons` and `passes`.

    Args:
        personas: whose instructions the leaks repeat; a text without persona is searched for generic signs alone.
        measured: None: texts are judged by measures of text alone, and babble is not seen.
    """
    parts = []
    for (name,), own in texts.group_by("persona", maintain_order=True):
        parts.append(score_samples(_as_samples(own, measured), spec, told=_told(personas.get(str(name)))))
    scored = pl.concat(parts)
    criteria = loop_criteria(spec)
    if measured is not None:
        base = scored.filter((pl.col("split") == FIT) & (pl.col("label") == "fluent"))
        expected, likelihood = likelihood_criteria(base, spec)
        criteria += likelihood
        scored = with_surprise(scored, expected, spec.nll_window)
    order = texts.select(sample_id="text_id")
    return order.join(judge(scored, None, criteria, spec), on="sample_id", maintain_order="left")


def _as_samples(texts: pl.DataFrame, measured: Measured | None) -> pl.DataFrame:
    rows = texts.rename({"text_id": "sample_id", "text": "output"}).with_columns(
        prompt_id="sample_id",
        dose=pl.lit(None, dtype=pl.Float64),
        prompt=pl.lit(PROMPT),
        truncated=pl.lit(False),
    )
    if measured is None:
        return rows.with_columns(token_ids=pl.lit([], dtype=pl.List(pl.Int64())))
    own = [measured[name] for name in rows["sample_id"]]
    return rows.with_columns(
        pl.Series("token_ids", [ids for ids, _ in own], dtype=pl.List(pl.Int64())),
        pl.Series("losses", [losses for _, losses in own], dtype=pl.List(pl.Float32())),
    )


def _told(persona: Persona | None) -> Told:
    if persona is None:
        return Told()
    return Told((persona.positive.name,), tuple(persona.positive.instructions))


def figures(judged: pl.DataFrame) -> pl.DataFrame:
    """Rows of `FIGURES_SCHEMA`, of the half `held_out`: by label, by label and kind, and the precision of dropping."""
    own = judged.filter(pl.col("split") == HELD_OUT).with_columns(bad=pl.col("label").is_in(BAD))
    rows = []
    for label in (*BAD, *SOUND):
        of_label = own.filter(pl.col("label") == label)
        kinds = [None, *sorted(of_label["kind"].unique())]
        for kind in kinds:
            some = of_label if kind is None else of_label.filter(pl.col("kind") == kind)
            passed = int(some["passes"].sum())
            hits = some.height - passed if label in BAD else passed
            rows.append(_figure(label, kind, "recall" if label in BAD else "kept", hits, some.height))
    dropped = own.filter(~pl.col("passes"))
    rows.append(_figure("dropped", None, "precision", int(dropped["bad"].sum()), dropped.height))
    return pl.DataFrame(rows, schema=FIGURES_SCHEMA)


def _figure(label: str, kind: str | None, what: str, hits: int, n: int) -> dict[str, object]:
    one = share_interval(hits, n)
    return {
        "label": label, "kind": kind, "what": what, "n": n, "hits": hits, "share": one.estimate,
        "low": one.low, "high": one.high,
    }  # fmt: skip


def filter_told_by_labels(root: Path, personas: Mapping[str, Persona], spec: HealFilterSpec) -> Verdict:
    """`filter_verdict` of a profile's filter on the labelled texts of the checkout; without them nothing is claimed."""
    if not (root / TEXTS).is_file():
        return Verdict(CLAIM, True, f"there are no labelled texts ({TEXTS})", blocking=False)
    texts = read_texts(root)
    return filter_verdict(judge_texts(texts, personas, read_losses(root, texts), spec))


def filter_verdict(judged: pl.DataFrame) -> Verdict:
    """Whether the filter drops loops and babble and keeps fluent on-trait texts, as far as the limits ask.

    Args:
        judged: of `judge_texts`, with losses.
    """
    found = {
        row["label"]: row for row in figures(judged).filter(pl.col("kind").is_null()).iter_rows(named=True)
    }
    wanted = {
        "loop": limits.MIN_FILTER_RECALL,
        "babble": limits.MIN_FILTER_RECALL,
        "on_trait": limits.MIN_SOUND_KEPT,
    }
    told = [
        f"{label} {row['what']} {row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['n']}"
        + (f" (limit {wanted[label]:g})" if label in wanted else "")
        for label, row in found.items()
    ]
    passed = all(found[label]["share"] >= limit for label, limit in wanted.items())
    wrong = judged.filter((pl.col("split") == HELD_OUT) & (pl.col("passes") == pl.col("label").is_in(BAD)))
    return Verdict(
        CLAIM,
        passed,
        "; ".join(told),
        {label: round(row["share"], 4) for label, row in found.items()},
        wrong.select("sample_id", "label", "reasons", "output").to_dicts(),
        cure="read the examples, and move thresholds on the half `fit` alone",
    )
