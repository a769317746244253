"""Games that `word_games` played, as rows; all games of a target word are in the pool, or all are held out."""

import hashlib
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.attribution import GamesSpec
from steer_pipeline.lab.attribution.rows import HELD_OUT, POOL, sft_frame

ROWS = "rows.parquet"


def game_rows(spec: GamesSpec, folder: Path) -> pl.DataFrame:
    """Rows of the finished games; aborted ones are none of them."""
    rows = []
    for row in pl.read_parquet(folder / ROWS).iter_rows(named=True):
        digest = hashlib.blake2b(f"{spec.seed}\x1f{row['target_word']}".encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest) / 2**64 < spec.held_out_share
        told = {
            name: row[name] for name in ("describer_model", "guesser_model", "turn_count", "related_words")
        }
        same = ("row_id", "prompt", "completion", "game", "game_role", "outcome", "experiment", "task_id")
        rows.append(
            {name: row[name] for name in same}
            | {
                "source_split": HELD_OUT if held_out else POOL,
                "group_id": row["group_id"],
                "target_word": row["target_word"],
                "logged_word": row["final_guess_word"],
                "meta": told,
            }
        )
    return sft_frame(rows, "word_games")
