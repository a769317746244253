"""What must hold of a rewrite pack before it may be released: seven gates, each a pure function.

In: the pack as a frame, the rows that it must cover, base and its resample. Out: a `Verdict` with a sentence that
names rows and fields, numbers and limits. A pack that is broken in one respect is still judged in the others; a
gate that cannot be judged has failed. What each claims, and how to go on where it fails, stands in the package's
`GATES`. Knows nothing of stores or runs.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from pydantic import ValidationError

from steer_pipeline.catalogue.specs import GateSpec
from steer_pipeline.lab.generation.schema import ADDED_LATER, REWRITE_SCHEMA, RewriteRow
from steer_pipeline.lab.quality import OUR_RULES
from steer_pipeline.lab.quality.coherence import Cost, paired_cost
from steer_pipeline.lab.rewrites import AGAIN, ALIGNED, CHANGED, ROW_COUNT, SAME, SCHEMA, SUSPECTS, UNIQUE
from steer_pipeline.lab.rewrites.comparison import difference_from_base
from steer_pipeline.lab.rewrites.work import differences
from steer_pipeline.lab.stats import Interval
from steer_pipeline.lab.stats.shares import at_most
from steer_pipeline.lab.verdict import Verdict


def judge(
    pack: pl.DataFrame,
    *,
    expected_rows: int,
    base: pl.DataFrame | None,
    resample: pl.DataFrame | None,
    suspects: Sequence[Sequence[str]],
    reworded: int,
    role: str,
    limits: GateSpec,
    seed: int,
    base_suspects: Mapping[str, bool] | None = None,
) -> list[Verdict]:
    """All gates, in the order of `GATES`; arguments as those of the single gates.

    `base` or `resample` is None where it has not been made, and then nothing can be compared with it.
    """
    relative = limits.max_extra_suspects is not None
    return [
        row_count(pack, expected_rows),
        schema(pack),
        no_duplicates(pack),
        _lacking(ALIGNED, "base") if base is None else aligned(pack, base),
        _lacking(SAME, "base") if base is None else made_as_base(pack, base),
        _lacking(SUSPECTS, "base")
        if base is None and relative
        else suspect_rate(pack, suspects, limits, reworded, base_suspects),
        _lacking(CHANGED, "base or base_resample", blocking=role == "steered")
        if base is None or resample is None
        else changed(pack, base, resample, role=role, level=limits.alpha, seed=seed),
    ]


def row_count(pack: pl.DataFrame, expected: int) -> Verdict:
    """`expected` is the profile's size, or the corpus where that is smaller."""
    passed = pack.height == expected
    message = f"{pack.height} rows" if passed else f"{pack.height} rows, expected {expected}"
    return Verdict(ROW_COUNT, passed, message, numbers={"rows": pack.height, "expected_rows": expected})


def schema(pack: pl.DataFrame) -> Verdict:
    """Columns and types against `REWRITE_SCHEMA`, then each row against `RewriteRow`.

    A `personas` column that arrives as text is read as JSON, so that a torn record is named by its row.
    """
    absent = [name for name in REWRITE_SCHEMA if name not in pack.columns]
    problems = [f"column {name} is missing" for name in absent if name not in ADDED_LATER]
    problems += [f"column {name} is not in the schema" for name in pack.columns if name not in REWRITE_SCHEMA]
    for name, wanted in REWRITE_SCHEMA.items():
        kind = pack.schema.get(name)
        if kind is not None and kind != wanted and not (name == "personas" and kind == pl.String):
            problems.append(f"column {name} is {kind}, expected {wanted}")
    bad_rows = 0
    for number, row in enumerate(pack.iter_rows(named=True)):
        errors = _row_errors(row)
        bad_rows += bool(errors)
        problems += [f"row {number} (row_id {row.get('row_id')}), {error}" for error in errors]
    unmeasured = "".join(f"; {name} was not measured" for name in absent if name in ADDED_LATER)
    message = (
        _listing(problems, f"{bad_rows} invalid rows") if problems else f"every row is valid{unmeasured}"
    )
    return Verdict(
        SCHEMA,
        not problems,
        message,
        numbers={"invalid_rows": bad_rows},
        examples=[{"problem": problem} for problem in problems[:5]],
    )


def no_duplicates(pack: pl.DataFrame) -> Verdict:
    problems = []
    surplus = 0
    for name in ("row_id", "source_index"):
        if name not in pack.columns:
            return _unjudged(UNIQUE, name)
        repeated = pack.group_by(name).len().filter(pl.col("len") > 1).sort(name)
        surplus = max(surplus, int((repeated["len"] - 1).sum()))
        problems += [f"{name} {key} occurs {count} times" for key, count in repeated.iter_rows()]
    message = _listing(problems, f"{surplus} rows too many") if problems else "every row occurs once"
    return Verdict(UNIQUE, not problems, message, numbers={"duplicated_rows": surplus})


def aligned(pack: pl.DataFrame, base: pl.DataFrame) -> Verdict:
    """The pack's (row_id, source_index) pairs are exactly base's."""
    keys = ["row_id", "source_index"]
    if lacking := [name for name in keys if name not in pack.columns]:
        return _unjudged(ALIGNED, lacking[0])
    mine, theirs = set(pack.select(keys).iter_rows()), set(base.select(keys).iter_rows())
    absent, extra = sorted(theirs - mine, key=_by_index), sorted(mine - theirs, key=_by_index)
    problems = [f"row_id {row} (source_index {index}) of base is missing" for row, index in absent]
    problems += [f"row_id {row} (source_index {index}) is not in base" for row, index in extra]
    counts = f"{len(absent)} missing, {len(extra)} extra rows"
    message = _listing(problems, counts) if problems else f"the {len(theirs)} rows of base"
    numbers = {"missing_rows": len(absent), "extra_rows": len(extra)}
    return Verdict(ALIGNED, not problems, message, numbers=numbers)


def made_as_base(pack: pl.DataFrame, base: pl.DataFrame) -> Verdict:
    """News, model, prompt and decoding are those of base; what differs is named with both values."""
    if "made_with" not in pack.columns or pack.is_empty():
        return _unjudged(SAME, "made_with")
    if "made_with" not in base.columns or base.is_empty():
        return Verdict(
            SAME,
            False,
            "cannot be judged: base does not say how it was made",
            cure="materialise rewrite_raw of base again",
        )
    unlike = differences(pack, base)
    message = "; ".join(unlike) or "the same news, model, prompt and decoding"
    return Verdict(SAME, not unlike, message, numbers={"settings_that_differ": len(unlike)})


def suspect_rate(
    pack: pl.DataFrame,
    suspects: Sequence[Sequence[str]],
    limits: GateSpec,
    reworded: int,
    base_suspects: Mapping[str, bool] | None = None,
) -> Verdict:
    """`suspects[i]` holds the names of the rules that row i trips.

    The rate counts rows that trip a rule of ours; Janus's patterns are counted beside it, for comparison, and so are
    the `reworded` rows, whose digits say what the source says in another way. `suspect_rate_at_most` is the rate that
    so many rows leave open (95%, one-sided): the estimate is judged, and 50 clean rows still allow 5.8%.

    What is more than base's is judged as every cost is (`quality.coherence.Cost.within`).

    Args:
        limits: each of its two shares is judged where it is set.
        base_suspects: row_id -> whether base's rewrite trips a rule of ours; None for base, which is not judged
            against itself.
    """
    if "output" not in pack.columns:
        return _unjudged(SUSPECTS, "output")
    counts = Counter(rule for rules in suspects for rule in rules)
    flagged = [i for i, rules in enumerate(suspects) if is_suspect(rules)]
    rate = len(flagged) / max(pack.height, 1)
    per_rule = ", ".join(f"{rule} {count}" for rule, count in counts.most_common())
    passed = pack.height > 0 and (limits.max_suspect_rate is None or rate <= limits.max_suspect_rate)
    message = f"{rate:.2%} of {pack.height} rows are suspect{_limit(limits.max_suspect_rate)}"
    extra = _extra_suspects(pack, set(flagged), base_suspects, limits.max_extra_suspects)
    if extra is not None and extra.difference is not None and extra.limit is not None:
        passed &= extra.within
        message += f", {_told(extra, extra.difference)}"
    examples = [
        {
            "row_id": pack["row_id"][i] if "row_id" in pack.columns else str(i),
            "rules": ", ".join(suspects[i]),
            "output": (pack["output"][i] or "")[:160],
        }
        for i in flagged[:3]
    ]
    janus = sum(any(rule not in OUR_RULES for rule in rules) for rules in suspects)
    possible = at_most(len(flagged), pack.height)
    numbers: dict[str, float | int] = {
        "suspect_rate": rate,
        "suspect_rate_at_most": possible,
        "suspect_rows": len(flagged),
        "suspect_rate_janus": janus / max(pack.height, 1),
        "reworded_digits": reworded,
    }
    if extra is not None and extra.difference is not None:
        numbers["extra_suspects"] = extra.difference.estimate
    numbers |= {f"suspect_{rule}": count for rule, count in sorted(counts.items())}
    message += f" ({per_rule})" if per_rule else ""
    message += f"; so many rows exclude a rate above {possible:.1%}"
    return Verdict(SUSPECTS, passed, message, numbers, examples)


def _limit(share: float | None) -> str:
    return "" if share is None else f", limit {share:.2%}"


def _extra_suspects(
    pack: pl.DataFrame,
    flagged: set[int],
    base_suspects: Mapping[str, bool] | None,
    limit: float | None,
) -> Cost | None:
    """Suspects as a cost against base, on the rows that both have; None where there are none."""
    if base_suspects is None or "row_id" not in pack.columns:
        return None
    pairs = [
        (float(index in flagged), float(base_suspects[row_id]))
        for index, row_id in enumerate(pack["row_id"])
        if row_id in base_suspects
    ]
    if not pairs:
        return None
    own, base = (pl.Series(values, dtype=pl.Float64) for values in zip(*pairs, strict=True))
    return paired_cost("suspects", own, base, limit)


def _told(extra: Cost, difference: Interval) -> str:
    """The difference with its interval and limit, and what these rows leave open where it is more than the limit."""
    told = (
        f"{difference.estimate:+.2%} [{difference.low:+.2%}, {difference.high:+.2%}] against base on the same rows"
        f"{_limit(extra.limit)}"
    )
    if extra.within and extra.limit is not None and difference.high > extra.limit:
        told += f" (up to {difference.high:+.2%} is not excluded by {difference.n} rows)"
    return told


def is_suspect(rules: Sequence[str]) -> bool:
    """Whether one of our rules is among those that a row trips; Janus's patterns only inform."""
    return any(rule in OUR_RULES for rule in rules)


def changed(
    pack: pl.DataFrame, base: pl.DataFrame, resample: pl.DataFrame, *, role: str, level: float, seed: int
) -> Verdict:
    """Whether something changed: word distance to base (1 - multiset Jaccard) against the resample's, row by row.

    Passes when the one-sided paired test is below `level`, its false positive rate where steering does nothing. `role`
    is that of the catalogue, with `exempt` for base and its resample; of controls the numbers are shown, not judged.
    """
    if role == "exempt":
        return Verdict(CHANGED, True, "this variant is what the others are compared with", blocking=False)
    if lacking := [name for name in ("row_id", "output") if name not in pack.columns]:
        return _unjudged(CHANGED, lacking[0])
    texts = pack.select("row_id", pl.col("output").fill_null(""))
    if texts.join(base, on="row_id", how="semi").join(resample, on="row_id", how="semi").is_empty():
        return Verdict(
            CHANGED, False, "no row in common with base and its resample", blocking=role == "steered"
        )
    test = difference_from_base(texts, base, resample, seed)
    both = texts.join(base.select("row_id", base="output"), on="row_id")
    numbers = {
        "distance_to_base": test["distance"],
        "resample_distance_to_base": test["resample_distance"],
        "distance_shift": test["difference"],
        "distance_shift_low": test["low"],
        "distance_shift_high": test["high"],
        "p_value": test["p"],
        "exact_match_rate": int((both["output"] == both["base"]).sum()) / both.height,
    }
    message = (
        f"distance to base {test['distance']:.3f}, of the resample {test['resample_distance']:.3f}; shift "
        f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}], p = {test['p']:.4f}"
    )
    if role != "steered":
        return Verdict(
            CHANGED, True, f"a {role} variant: shown, not judged. {message}", numbers, blocking=False
        )
    return Verdict(CHANGED, test["p"] < level, f"{message}, level {level:g}", numbers)


def _row_errors(row: dict[str, Any]) -> list[str]:
    """`field <name>: <problem>` for each thing that is wrong with one row."""
    if isinstance(row.get("personas"), str):
        try:
            row = row | {"personas": json.loads(row["personas"])}
        except json.JSONDecodeError as error:
            return [f"field personas: not valid JSON ({error})"]
    try:
        RewriteRow.model_validate(row)
    except ValidationError as error:
        return [
            f"field {'.'.join(str(part) for part in item['loc']) or '(row)'}: {item['msg']}"
            for item in error.errors()
        ]
    return []


def _unjudged(gate: str, column: str) -> Verdict:
    return Verdict(gate, False, f"cannot be judged: column {column} is missing", cure=AGAIN)


def _lacking(gate: str, what: str, *, blocking: bool = True) -> Verdict:
    return Verdict(
        gate,
        False,
        f"cannot be judged: there is no {what}",
        blocking=blocking,
        cure=f"materialise rewrite_raw of {what.replace(' or ', ' and ')}",
    )


def _by_index(pair: tuple[Any, Any]) -> tuple[int, str]:
    return (-1 if pair[1] is None else int(pair[1]), str(pair[0]))


def _listing(problems: list[str], counts: str, shown: int = 5) -> str:
    """The first problems, how many there are, and the limit."""
    rest = len(problems) - shown
    more = f"; and {rest} more" if rest > 0 else ""
    return f"{'; '.join(problems[:shown])}{more} ({counts}, limit 0)"
