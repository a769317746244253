"""Writes the news that the checkout ships: `news.parquet` and the facts of each item's lead.

2,000 rows, of which a few repeat another outlet's story word for word or with one sentence changed, as
real feeds do. Made from the world's seed alone, so anyone can make the same files again.
"""

import random
from pathlib import Path

import polars as pl

from newsroom import world
from steer_pipeline.lab.corpus.identity import row_id

REPOSTS = 12  # exact, and as many again with one sentence changed


def news_frame(seed: int, n: int = 2000, reposts: int = REPOSTS) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(news, facts): CC-News columns, and `row_id, facts` for the same rows in the same order."""
    rng = random.Random(f"reposts/{seed}")
    rows, facts = [], []
    for index in range(n - 2 * reposts):
        row, kept = world.news_row(seed, index)
        rows.append(row)
        facts.append(list(kept))
    for position in range(2 * reposts):
        index = rng.randrange(100, len(rows))
        copied = {**rows[index], "domain": "secondhandnews.example"}
        copied["url"] = f"https://www.secondhandnews.example/{position}"
        if position >= reposts:
            copied["text"] = f"{copied['text']} This story was first printed elsewhere."
        rows.append(copied)
        facts.append(facts[index])
    ids = [row_id(str(row["url"]), str(row["text"])) for row in rows]
    news = pl.DataFrame(rows, schema_overrides={"authors": pl.List(pl.String)})
    return news, pl.DataFrame({"row_id": ids, "facts": facts})


def ship(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    news, facts = news_frame(seed)
    for name, frame in (("news", news), ("facts", facts)):
        part = folder / f".{name}.parquet"
        frame.write_parquet(part, compression="zstd", compression_level=15)
        part.replace(folder / f"{name}.parquet")
