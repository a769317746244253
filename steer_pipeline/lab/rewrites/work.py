"""Between the catalogue and the engine: what to generate, under which identity, and the rows that come back.

In: news rows, the profile, variants and their steering terms. Out: prompts and plans for
`lab.generation.generate`, and its finished rows as frames with `REWRITE_SCHEMA`, one a variant.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile, VariantSpec
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan

SHOWN = 12  # characters of a hash that identify a recipe
NLL_DIGITS = (
    3  # what else went through the model with a text moves its last bits, and must make no other version
)


@dataclass(frozen=True)
class Identity:
    """What a row of a pack was made with. Two packs of one identity differ only in which rows they hold."""

    profile: str
    decoding_hash: str
    stream: str
    personas: tuple[dict, ...]

    @property
    def recipe(self) -> str:
        """sha256 over all of it."""
        text = json.dumps([self.profile, self.decoding_hash, self.stream, self.personas], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:SHOWN]


def rows_wanted(profile: Profile, size: str) -> int:
    """Rows of a `pilot` or `full` pack, where the corpus has as many."""
    return {"pilot": profile.rewrites.pilot_rows, "full": profile.rewrites.full_rows}[size]


def user_turn(profile: Profile, text: str) -> str:
    return profile.rewrites.prompt.replace("{text}", text)


def prompts(
    news: pl.DataFrame,
    variants: Mapping[str, VariantSpec],
    profile: Profile,
    personas: Mapping[str, Persona],
    model: LoadedModel,
) -> list[PromptRow]:
    """One `PromptRow` a news item, in the frame's order.

    Every variant has the profile's neutral system turn, except that a prompted one has the first positive
    instruction of its persona.
    """

    def encode(turn: str, system: str | None) -> list[int]:
        return encode_prompt(
            model.tokenizer, user=turn, system=system, chat_template=profile.model.chat_template
        )

    own = {name: system_turn(spec, profile, personas) for name, spec in variants.items() if spec.prompted_by}
    rows = []
    for row_id, text in news.select("row_id", "text").iter_rows():
        turn = user_turn(profile, text)
        ids = {"*": encode(turn, profile.rewrites.system)}
        ids |= {name: encode(turn, instruction) for name, instruction in own.items()}
        rows.append(PromptRow(row_id, ids))
    return rows


def system_turn(variant: VariantSpec, profile: Profile, personas: Mapping[str, Persona]) -> str | None:
    """The neutral system turn of the profile, or the instruction of a prompted variant."""
    if variant.prompted_by:
        return personas[variant.prompted_by].positive.instructions[0]
    return profile.rewrites.system


def settings_hash(engine_hash: str, profile: Profile, system: str | None) -> str:
    """The engine's decoding hash together with everything else that shapes a prompt: 16 hex digits."""
    template, cap = profile.model.chat_template, profile.corpus.max_tokens
    parts = [engine_hash, system, profile.rewrites.prompt, template, cap]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def made_with(profile: Profile, model: LoadedModel, corpus: str | None) -> str:
    """JSON of what all variants that are compared with each other must share; the same order for the same content.

    Args:
        corpus: version of `truncated_news`.
    """
    shared = {
        "profile": profile.name,
        "model": str(model.identity),
        "dtype": model.dtype,
        "backend": model.backend,
        "corpus": corpus,
        "prompt": profile.rewrites.prompt,
        "system": profile.rewrites.system,
        "chat_template": profile.model.chat_template,
        **{f"sampling.{name}": value for name, value in profile.rewrites.sampling.model_dump().items()},
    }
    return json.dumps(shared, sort_keys=True)


def differences(pack: pl.DataFrame, other: pl.DataFrame) -> list[str]:
    """In what two packs were made otherwise: `sampling.temperature is 0.7, in base 0.9`.

    Args:
        pack, other: with `made_with`, the same in all rows, and `variant`.
    """
    mine, theirs = (json.loads(rows["made_with"][0]) for rows in (pack, other))
    return [
        f"{name} is {mine.get(name)!r}, in {other['variant'][0]} {theirs.get(name)!r}"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]


def identity(profile: Profile, decoding_hash: str, steering: SteeringPlan) -> Identity:
    """Identity of the rows that `steering` makes under `profile`."""
    personas = tuple(_undrawn(dose) for dose in doses(steering))
    return Identity(profile.name, decoding_hash, steering.stream or steering.variant, personas)


def doses(steering: SteeringPlan) -> list[dict]:
    """What a row says of each term that was added to it: name, version, block, alpha, dose fraction, site."""
    return [
        {
            "name": term.name,
            "version": term.version,
            "block": term.site.block,
            "alpha": float(term.alpha),
            "dose_fraction": term.dose_fraction,
        }
        | ({} if term.site.kind == "output" else {"site": term.site.kind})
        for term in steering.terms
    ]


def _undrawn(dose: dict) -> dict:
    """A dose without the random direction that it was drawn: rows of one pack differ in that."""
    return dose | {"version": "random"} if str(dose.get("name")).startswith("random:") else dose


def unsteered_nll(
    model: LoadedModel, rows: Sequence[PromptRow], finished: Sequence[FinishedRow]
) -> dict[tuple[str, str], float | None]:
    """(row_id, variant) -> nats a token under the unsteered model, given the row's neutral prompt; None for no text.

    The prompt is the same for all variants of a row, so that what a prompted variant was told counts as a cost of what
    it says. A row's variants go through the model together, in the order of `rows` and of their names: a resumed run
    measures what an undisturbed one does.
    """
    from steer_pipeline.lab.models.completions import completion_nll

    texts: dict[str, dict[str, list[int]]] = {row.row_id: {} for row in rows}
    for row in sorted(finished, key=lambda row: row.variant):
        texts[row.row_id][row.variant] = row.token_ids if row.text.strip() else []
    found = completion_nll(
        model, [row.ids["*"] for row in rows], [list(texts[row.row_id].values()) for row in rows]
    )
    return {
        (row.row_id, variant): round(value, NLL_DIGITS) if math.isfinite(value) else None
        for row, values in zip(rows, found, strict=True)
        for variant, value in zip(texts[row.row_id], values, strict=True)
    }


def pack_rows(
    finished: Sequence[FinishedRow],
    news: pl.DataFrame,
    identities: Mapping[str, Identity],
    plans: Mapping[str, tuple[str, SteeringPlan]],
    model_name: str,
    profile: Profile,
    size: str,
    shared: str,
    nll: Mapping[tuple[str, str], float | None],
) -> dict[str, pl.DataFrame]:
    """Finished rows as one frame a variant, with `REWRITE_SCHEMA`, sorted by source index.

    Args:
        plans: name of a finished row's variant -> the variant that its pack is of, and what was added.
        shared: of `made_with`.
        nll: of `unsteered_nll`; rows that it lacks were not measured.
    """
    items = {row["row_id"]: row for row in news.iter_rows(named=True)}
    rows: dict[str, list[dict]] = {name: [] for name in identities}
    for row in finished:
        variant, plan = plans[row.variant]
        item, made = items[row.row_id], identities[variant]
        rows[variant].append(
            {name: item[name] or "" for name in ("domain", "date", "url")}
            | {
                "source_index": item["source_index"],
                "model": model_name,
                "variant": variant,
                "personas": doses(plan),
                "prompt": user_turn(profile, item["text"]),
                "output": row.text,
                "row_id": row.row_id,
                "seed": row.seed,
                "stream": made.stream,
                "decoding_hash": made.decoding_hash,
                "n_prompt_tokens": row.n_prompt_tokens,
                "n_new_tokens": row.n_new_tokens,
                "finish_reason": row.finish_reason,
                "truncated": row.truncated,
                "profile": made.profile,
                "size": size,
                "made_with": shared,
                "nll": nll.get((row.row_id, row.variant)),
            }
        )
    return {name: pl.DataFrame(own, schema=REWRITE_SCHEMA).sort("source_index") for name, own in rows.items()}


def identity_of(pack: pl.DataFrame) -> Identity:
    """The identity that a pack's rows carry, read from its first row.

    Raises:
        ValueError: the pack is empty.
    """
    if pack.is_empty():
        raise ValueError("an empty pack has no identity: materialise rewrite_raw again")
    row = pack.row(0, named=True)
    # rows of block outputs say nothing of a site, as rows did before there were others: one recipe for both
    personas = tuple(
        _undrawn({key: value for key, value in dose.items() if key != "site" or value is not None})
        if isinstance(dose, dict)
        else dose  # a broken column; the schema gate names it
        for dose in row["personas"] or ()
    )
    return Identity(row["profile"], row["decoding_hash"], row["stream"], personas)
