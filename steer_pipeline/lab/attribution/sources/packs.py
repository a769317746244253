"""Our own rewrites as rows: the neutral prompt over a news item, and what a variant made of it."""

import hashlib

import polars as pl

from steer_pipeline.catalogue.attribution import PackSpec
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.attribution.rows import HELD_OUT, POOL, sft_frame


def pack_rows(spec: PackSpec, kept: pl.DataFrame, profile: Profile) -> pl.DataFrame:
    """Rows of a released pack that its gates and the filter kept; a group is a news item.

    Args:
        kept: the keep set of the pack, with row_id, prompt, output, truncated and keep.
    """
    rows = []
    for row in kept.filter("keep").iter_rows(named=True):
        digest = hashlib.blake2b(f"{spec.seed}\x1f{row['row_id']}".encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest) / 2**64 < spec.held_out_share
        rows.append(
            {
                "row_id": f"{spec.variant}-{row['row_id']}",
                "prompt": row["prompt"],
                "completion": row["output"],
                "system": profile.rewrites.system,
                "ended": not row["truncated"],
                "source": f"pack {spec.variant}",
                "source_split": HELD_OUT if held_out else POOL,
                "game": "rewrite",
                "game_role": "editor",
                "group_id": row["row_id"],
                "category": spec.variant,
            }
        )
    return sft_frame(rows, f"pack {spec.variant}")
