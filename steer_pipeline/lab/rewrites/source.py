"""What the news says: texts and facts of the rows of a pack, and how a pack holds against them.

In: the truncated news, from the store or as a frame, and for the shipped sample its ground-truth facts. Out: lists
in a pack's row order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from steer_pipeline.io.reader import ROWS, Reader
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.quality import facts_kept, lead_facts, scan_suspects
from steer_pipeline.lab.quality.suspects import reworded_digits
from steer_pipeline.lab.rewrites import Refused

KNOWN_FACTS = "facts.parquet"


@dataclass(frozen=True)
class Source:
    """row_id -> text and row_id -> facts of the news that packs are made from."""

    texts: Mapping[str, str]
    facts: Mapping[str, list[str]]

    def suspects(self, pack: pl.DataFrame) -> list[list[str]]:
        """Rules that each row of `pack` trips; a row without text counts as empty."""
        if not {"row_id", "output"} <= set(pack.columns):
            return [[] for _ in range(pack.height)]
        pairs = zip(pack["row_id"], pack["output"], strict=True)
        return [scan_suspects(output or "", self.texts.get(row_id, "")) for row_id, output in pairs]

    def reworded(self, pack: pl.DataFrame) -> int:
        """Rows whose digits only seem foreign; they are no suspects."""
        if not {"row_id", "output"} <= set(pack.columns):
            return 0
        pairs = zip(pack["row_id"], pack["output"], strict=True)
        return sum(
            bool(reworded_digits(output or "", self.texts.get(row_id, ""))) for row_id, output in pairs
        )

    def facts_kept(self, pack: pl.DataFrame) -> list[float | None]:
        """Share of the lead's facts that each row of `pack` keeps; None where there are none."""
        shares = [
            facts_kept(self.facts.get(row_id, []), output or "")
            for row_id, output in zip(pack["row_id"], pack["output"], strict=True)
        ]
        return [None if math.isnan(share) else share for share in shares]

    def beside(self, pack: pl.DataFrame) -> pl.DataFrame:
        """`pack` with the news text of each row in a column `source_text`."""
        texts = [self.texts.get(row_id, "") for row_id in pack["row_id"]]
        return pack.with_columns(pl.Series("source_text", texts, dtype=pl.String))


def source_of(read: Reader, rows: pl.DataFrame, shipped: Path) -> Source:
    """Texts and facts of the stored news that `rows` (with row_id) were made from.

    Args:
        shipped: the folder that holds the facts of the shipped sample.

    Raises:
        Refused: there are no news in the store.
    """
    news = read.current("truncated_news")
    if news is None:
        raise Refused("truncated_news has not been made: materialise it first")
    texts = pl.scan_parquet(news.path / ROWS).select("row_id", "text")
    wanted = rows.lazy().select("row_id").unique()
    return read_source(texts.join(wanted, on="row_id", how="semi").collect(), shipped / KNOWN_FACTS)


def news_count(store: ArtifactStore) -> int:
    """News items that can be rewritten."""
    news = store.current("truncated_news", None)
    return 0 if news is None else pl.scan_parquet(news.path / ROWS).select(pl.len()).collect().item()


def read_source(news: pl.DataFrame, known_facts: Path) -> Source:
    """Texts of `news`, with the facts of `known_facts` (row_id, facts) where it has the row.

    For any other news the facts are the numbers and names of the lead.
    """
    texts = dict(zip(news["row_id"], news["text"], strict=True))
    known: dict[str, list[str]] = {}
    if known_facts.is_file():
        listed = pl.read_parquet(known_facts, columns=["row_id", "facts"])
        known = dict(zip(listed["row_id"], listed["facts"].to_list(), strict=True))
    return Source(
        texts, {row: known[row] if row in known else lead_facts(text) for row, text in texts.items()}
    )
