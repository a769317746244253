"""What every stage needs: common arguments, claims (checks), user errors, scratch folders, pictures, the store."""

import base64
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.execution import GPU_POOL, GPU_TAGS
from steer_pipeline.io.reader import Reader
from steer_pipeline.io.store import StoreError
from steer_pipeline.io.versioned import COLUMNS, note_input
from steer_pipeline.keys import key
from steer_pipeline.lab.verdict import Verdict
from steer_pipeline.resources import ArtifactStoreResource

if TYPE_CHECKING:
    from steer_pipeline.lab.finetune.bundles import Bundle

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


# ------------------------------------------------------------------------------- common arguments


def cpu(stage: str, **more: Any) -> dict[str, Any]:
    """Arguments of an asset that any machine makes."""
    tags = {"steer/stage": stage, "steer/device": "cpu"}
    return {"group_name": stage, "owners": ["team:steering"], "tags": tags, **more}


def columns(schema: pl.Schema, descriptions: Mapping[str, str]) -> dict[str, dg.TableSchema]:
    """Metadata of an asset whose rows have `schema`: what each column holds, for the UI."""
    return {COLUMNS: show.column_schema(pl.LazyFrame(schema=schema), descriptions)}


def gpu(stage: str, **more: Any) -> dict[str, Any]:
    """Arguments of an asset that runs a model: one at a time, on an accelerator where there is one."""
    tags = {"steer/stage": stage, "steer/device": "gpu"}
    return {**cpu(stage), "tags": tags, "pool": GPU_POOL, "op_tags": GPU_TAGS, **more}


# ----------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """What must hold of an asset.

    Attributes:
        says: the sentence that a reader of the graph sees.
        blocking: whether nothing may be made of an asset of which it does not hold.
        severity: ERROR, or WARN for what a person should look at.
        cure: how to go on where it does not hold; told after the numbers.
    """

    name: str
    says: str
    blocking: bool
    severity: dg.AssetCheckSeverity
    cure: str


def must(name: str, says: str, cure: str = "") -> Claim:
    """A claim that stops what comes after."""
    return Claim(name, says, True, ERROR, cure)


def ought(name: str, says: str, cure: str = "") -> Claim:
    """A claim that fails without stopping what comes after."""
    return Claim(name, says, False, ERROR, cure)


def should(name: str, says: str, cure: str = "") -> Claim:
    """A claim whose failure is a warning."""
    return Claim(name, says, False, WARN, cure)


class Claims:
    """The claims of one asset, each said once; `@CLAIMS.check()` makes one check of a function that judges them all.

    Args:
        asset: its plain name.
        partitions_def: of the asset.
        reads: other assets that are read to judge it.
    """

    def __init__(
        self,
        asset: str,
        *claims: Claim,
        partitions_def: dg.PartitionsDefinition | None = None,
        reads: Sequence[str] = (),
    ) -> None:
        self.asset, self._partitions, self._reads = asset, partitions_def, list(reads)
        self._claims = {claim.name: claim for claim in claims}

    @property
    def names(self) -> list[str]:
        return list(self._claims)

    def check(self, **arguments: Any) -> Callable[[Callable[..., Iterator[Any]]], dg.AssetChecksDefinition]:
        """Decorates a function that yields `result`s; `arguments` are those of `dg.multi_asset_check`."""
        specs = [
            dg.AssetCheckSpec(
                claim.name,
                asset=self.asset,
                description=claim.says,
                additional_deps=self._reads,
                blocking=claim.blocking,
                partitions_def=self._partitions,
            )
            for claim in self._claims.values()
        ]
        return dg.multi_asset_check(specs=specs, **{"name": f"{self.asset}_checks", **arguments})

    def result(
        self,
        name: str,
        passed: bool,
        message: str,
        numbers: Mapping[str, Any] | None = None,
        *,
        cure: str = "",
    ) -> dg.AssetCheckResult:
        """What was found, in a sentence with its numbers and limits; the cure follows where the claim does not hold.

        Args:
            numbers: metadata. Of a partitioned asset they are given as text: Dagster would join the evaluations of
                all its partitions by one line, as if the next variant were a later state of this one.
            cure: of this very failure, instead of the claim's.
        """
        claim = self._claims[name]
        to_go_on = f". To go on: {cure or claim.cure}" if (cure or claim.cure) and not passed else ""
        shown = show.rounded(numbers or {})
        return dg.AssetCheckResult(
            asset_key=key(self.asset),
            check_name=name,
            passed=bool(passed),
            severity=claim.severity,
            description=f"{message}{to_go_on}",
            metadata=show.as_texts(shown) if self._partitions else shown,
        )

    def judged(self, verdict: Verdict, **more: Any) -> dg.AssetCheckResult:
        """A verdict of the lab as a result; `more` is metadata. What only informs is a warning."""
        if verdict.examples:
            more = {"examples": dg.MetadataValue.json(verdict.examples), **more}
        numbers = {**more, **verdict.numbers}
        result = self.result(verdict.claim, verdict.passed, verdict.message, numbers, cure=verdict.cure)
        return result if verdict.blocking else result._replace(severity=WARN)

    def unjudged(self, name: str, why: str = "an earlier claim does not hold") -> dg.AssetCheckResult:
        """A claim that cannot be looked at: it does not hold, and says why. Its cure would lead nowhere."""
        return self.result(name, False, "")._replace(description=f"not judged: {why}")


# ------------------------------------------------------------------------------ errors, folders, store


@contextmanager
def user_errors(
    *others: type[Exception], more: Callable[[], Mapping[str, Any]] = dict, who: str = ""
) -> Iterator[None]:
    """What a person must mend becomes a failure that is not tried again, with its sentence as description.

    Args:
        others: exceptions of that kind beside ValueError and the store's.
        more: metadata of the failure.
        who: persona or variant, which the sentence then names.
    """
    try:
        yield
    except (ValueError, StoreError, *others) as error:
        message = str(error) if who in str(error) else f"{who}: {error}"
        raise dg.Failure(message, metadata=dict(more()), allow_retries=False) from error


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """An empty directory that is there until the IO manager has taken what lies in it."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as made:
        yield Path(made)


@contextmanager
def staging(store: ArtifactStoreResource, name: str) -> Iterator[Path]:
    """`folder` beside the store, for tables that are larger than the memory."""
    made = store.store().scratch(name)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def reader(context: Any, store: ArtifactStoreResource) -> Reader:
    """The store as the running step reads it: what it reads is written down as its input."""
    return Reader(store.store(), lambda version: note_input(context, version))


# --------------------------------------------------------------------------------------- pictures


def picture(path: Path) -> dg.MarkdownMetadataValue:
    """A PNG file for the UI."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{data})")


# ------------------------------------------------------------------------------ progress, adapters


def told(context: dg.AssetExecutionContext) -> Callable[[object], None]:
    """Says in the run's log how far the lab is."""
    return lambda progress: context.log.info(str(progress))


def of_adapters(bundle: "Bundle", folder: Path, descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of an arm's adapters: loss curves, one row an adapter, and what training cost."""
    from steer_pipeline.lab.finetune.bundles import history_of

    curves = history_of(folder).filter(split="selection")
    series = {
        f"seed {seed}": list(own.select("step", "nll").iter_rows())
        for (seed,), own in curves.group_by("seed", maintain_order=True)
    }
    costs = [cost for cost in bundle.costs.values() if cost]
    return {
        "watched_loss": show.curves(series, "optimizer step", "NLL, nats a token"),
        "by_adapter": show.markdown_table(bundle.adapters.drop("model"), descriptions),
        "adapters": bundle.adapters.height,
        "rows": int(bundle.adapters["rows"][0]),
        "resumed_adapters": bundle.adapters.height - len(costs),
        **({"training_seconds": show.significant(sum(one["seconds"] for one in costs))} if costs else {}),
    }
