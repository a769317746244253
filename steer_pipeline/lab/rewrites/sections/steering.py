"""What was added to the model: doses and where they come from, vectors, and how well the scorers tell poles apart."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from steer_pipeline.lab.report.document import Block, Figure, Heading, Paragraph, Table
from steer_pipeline.lab.report.tables import (
    Column,
    code,
    estimate,
    number,
    of,
    share,
    short_code,
    table,
    text,
)
from steer_pipeline.lab.rewrites import figures
from steer_pipeline.lab.rewrites.report_inputs import DoseInfo, ReportInputs, VectorInfo

# ------------------------------------------------------------------------------------------- doses


def doses(inputs: ReportInputs) -> list[Block]:
    """What each variant was given, what was recommended, and the sweeps behind that."""
    blocks: list[Block] = [Heading("Doses"), _applied(inputs)]
    if not inputs.doses:
        return [*blocks, Paragraph("No dose sweep was handed to this report.")]
    sweeps = {dose.persona: dose.sweep for dose in inputs.doses}
    chosen = {dose.persona: (dose.advice.fraction, dose.advice.block) for dose in inputs.doses}
    blocks += [
        _recommended(inputs.doses),
        Figure(
            "dose_response",
            figures.dose_response(sweeps, chosen),
            "Dose, response and cost. Dotted: the recommended dose. Grey dots: random directions of that norm there.",
        ),
    ]
    for dose in inputs.doses:
        blocks += [Heading(f"Sweep of {dose.persona}", 3), _sweep(dose.sweep)]
    return blocks


def _applied(inputs: ReportInputs) -> Table:
    columns = [
        Column("variant", "variant", code),
        Column("vector", "vector"),
        Column("version", "version", short_code),
        Column("block", "block", text, "0-based block whose output was steered."),
        Column("alpha", "alpha", number(signed=True), "Length added; negative: towards the other pole."),
        Column("residual norm", "norm", number(2), "Mean length of the residual stream there."),
        Column("alpha / norm", "ratio", share),
        Column("as recorded", "fraction", share, "Dose fraction that the pack's rows carry."),
    ]
    return table(
        columns,
        _applied_rows(inputs),
        "Alpha is the length added to the residual stream at the block's output; the residual norm is the mean "
        "length of that stream there. A dose far below 1% of it can hardly do anything.",
    )


def _applied_rows(inputs: ReportInputs) -> Iterator[dict[str, Any]]:
    vectors = {info.persona: info for info in inputs.vectors}
    nothing = dict.fromkeys(("version", "block", "alpha", "norm", "ratio", "fraction"))
    for name in inputs.tables.variants:
        terms = _terms(inputs.packs[name])
        if not terms:
            yield {"variant": name, "vector": "nothing added", **nothing}
        for term in terms:
            info = vectors.get(term["name"].removeprefix("random:"))
            # A logit bias is dosed in norms of the last block, which its fraction already says.
            at_block = info is not None and term.get("site") != "logits"
            norm = info.at("residual_norms", term["block"]) if at_block and info else None
            yield {
                "variant": name,
                "vector": term["name"],
                "version": term["version"],
                "block": term["block"],
                "alpha": term["alpha"],
                "norm": norm,
                "ratio": term["alpha"] / norm if norm else term["dose_fraction"],
                "fraction": term["dose_fraction"],
            }


def _terms(pack: pl.DataFrame) -> list[dict[str, Any]]:
    """What was added to the variant, from its rows; random directions of one length in one."""
    if pack.is_empty():
        return []
    terms = pack["personas"].explode().drop_nulls().unique(maintain_order=True).to_list()
    drawn = [term["version"] for term in terms if term["name"].startswith("random:")]
    found: dict[tuple, dict[str, Any]] = {}
    for term in terms:
        if term["name"].startswith("random:") and len(drawn) > 1:
            term = term | {"version": f"{len(drawn)} directions"}
        found.setdefault(tuple(term.values()), term)
    return list(found.values())


def _recommended(infos: Sequence[DoseInfo]) -> Table:
    columns = [
        Column("persona", lambda dose: dose.persona),
        Column("version", lambda dose: dose.version, short_code),
        Column("block", lambda dose: dose.advice.block),
        Column("dose", lambda dose: dose.advice.fraction, share, "Fraction of the mean residual norm."),
        Column("alpha", lambda dose: dose.advice.alpha, number(), "The same as a length."),
        Column("random, mean", lambda dose: dose.advice.random_mean, number(3, signed=True)),
        Column("random, least", lambda dose: dose.advice.random_min, number(3, signed=True)),
        Column("random, most", lambda dose: dose.advice.random_max, number(3, signed=True)),
        Column(
            "rank p", lambda dose: dose.advice.random_rank_p, number(3), "Of the shift among random ones."
        ),
        Column(
            "rank p, turned", lambda dose: dose.advice.negative_rank_p, number(3), "At the opposite dose."
        ),
        Column("why", lambda dose: dose.advice.reason),
    ]
    counts = sorted({dose.advice.random_n for dose in infos if dose.advice.random_n})
    return table(
        columns,
        infos,
        "Recommended doses, and the trait shifts of random directions of the same norm at the same block "
        f"({', '.join(map(str, counts)) or 'none'} a persona). Rank p: (1 + those that shift as far) / (1 + all).",
    )


def _sweep(sweep: pl.DataFrame) -> Table:
    columns = [
        Column("direction", "direction"),
        Column("block", "block"),
        Column("dose", "fraction", number(2, signed=True), "Fraction of the mean residual norm."),
        Column("alpha", "alpha", number(2, signed=True), "The same as a length."),
        Column("N", "n"),
        Column("shift", of("shift", "shift_low", "shift_high"), estimate(), "Trait score against no dose."),
        Column("shown", "shown_rate", share, "Rows that show the trait."),
        Column("opposite shown", "opposite_rate", share, "Rows that show the other pole."),
        Column("suspects", "suspect_rate", share, "Rows that break a rule of ours."),
        Column("facts", "facts_kept", share, "Share of the lead's facts kept."),
        Column("extra NLL", of("extra_nll", "extra_nll_low", "extra_nll_high"), estimate()),
        Column(
            "extra suspects", of("extra_suspects", "extra_suspects_low", "extra_suspects_high"), estimate()
        ),
        Column("extra loops", of("extra_loops", "extra_loops_low", "extra_loops_high"), estimate()),
        Column(
            "facts lost", of("extra_facts_lost", "extra_facts_lost_low", "extra_facts_lost_high"), estimate()
        ),
        Column("KL", "kl", number(2), "Mean nats a token to base."),
        Column("coherent", lambda row: "yes" if row["coherent"] else "no"),
        Column(
            "frontier", lambda row: "yes" if row["frontier"] else "", text, "Nothing gives more for less."
        ),
        Column("beyond its limit", "beyond"),
    ]
    return table(
        columns,
        sweep.iter_rows(named=True),
        "Extra and lost: paired differences to base on the same news, shares of texts or of facts; NLL: nats a token "
        "under the unsteered model. KL: mean nats a token to base, on the rows where it was measured.",
    )


# ----------------------------------------------------------------------------------------- vectors


def vectors(inputs: ReportInputs) -> list[Block]:
    """Quality of the vectors by block, and of the scorers."""
    blocks: list[Block] = [Heading("Vectors and scorers")]
    if inputs.vectors:
        metadata = {info.persona: info.metadata for info in inputs.vectors}
        blocks += [
            _vectors(inputs.vectors),
            Figure("vectors", figures.vector_quality(metadata), "Vectors by block."),
        ]
    else:
        blocks.append(Paragraph("No vector was handed to this report."))
    if inputs.tables.scorers.height:
        blocks.append(_scorers(inputs.tables.scorers))
    return blocks


def _vectors(infos: Sequence[VectorInfo]) -> Table:
    def fact(*names: str) -> Any:
        return lambda info: next((info.metadata[name] for name in names if name in info.metadata), None)

    def at_best(name: str) -> Any:
        return lambda info: info.at(name, info.best_block)

    columns = [
        Column("persona", lambda info: info.persona),
        Column("version", lambda info: info.version, short_code),
        Column("model", fact("model")),
        Column("method", fact("method", "source")),
        Column("read-out", fact("readout"), text, "Positions that hidden states were read at."),
        Column("train", fact("n_train"), text, "Contexts that the direction was made from."),
        Column("held out", fact("n_held_out"), text, "Contexts that it was tested on."),
        Column(
            "best block",
            lambda info: info.best_block,
            text,
            "Highest held-out AUC; of equals the steadiest halves.",
        ),
        Column("AUC there", at_best("held_out_auc"), number(), "How well it tells held-out poles apart."),
        Column("null, 95th", at_best("auc_null_95th"), number(), "95th percentile with shuffled labels."),
        Column("split-half cosine", at_best("split_half_cosine"), number(), "Of directions of two halves."),
        Column("vector norm", at_best("raw_norms"), number(2)),
        Column("residual norm", at_best("residual_norms"), number(2)),
    ]
    return table(
        columns,
        infos,
        "AUC: held-out contexts projected on the direction; null: the same with shuffled labels. Best block: the "
        "highest AUC, the lowest block of equals; the block that was steered stands under Doses.",
    )


def _scorers(scorers: pl.DataFrame) -> Table:
    columns = [
        Column("persona", "persona"),
        Column("scale", "scale"),
        Column("texts", "n_texts"),
        Column("contexts", "n_contexts"),
        Column("held-out AUC", of("auc", "auc_low", "auc_high"), estimate(signed=False)),
        Column("shuffled, mean", "shuffled_mean", number(), "The same with labels shuffled within contexts."),
        Column("shuffled, 95th", "shuffled_high", number()),
        Column("length alone", "length_auc", number(), "AUC of the number of words; 0.5 tells nothing."),
    ]
    caption = "How well each trained scorer separates the poles in contexts it has not seen."
    return table(columns, scorers.iter_rows(named=True), caption)
