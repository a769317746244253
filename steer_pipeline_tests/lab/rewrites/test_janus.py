"""Claims about Janus packs: ours go out in their layout."""

import json

import polars as pl

from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA, PersonaDose, RewriteRow
from steer_pipeline.lab.rewrites.janus import export_pack

BASE = {
    "model": "Qwen/Qwen3-4B-Instruct-2507",
    "source_index": 0,
    "domain": "news.example",
    "date": "2018-01-02",
    "url": "https://news.example/ä",
    "variant": "base",
    "prompt": "Rewrite: A storm closed schools.\n\nRewritten text:\n",
    "output": "Schools closed.\nStorm “Ä”.",
}


def test_a_rewrite_row_fits_the_stored_schema(tmp_path):
    row = RewriteRow(
        **dict(BASE.items()),
        row_id="0" * 16,
        personas=[PersonaDose(name="paranoid", version="abc", block=2, alpha=-1.5, dose_fraction=-0.3)],
        seed=20,
        stream="base",
        decoding_hash="f" * 16,
        n_prompt_tokens=9,
        n_new_tokens=4,
        finish_reason="eos",
        truncated=False,
        profile="newsroom",
        size="pilot",
        made_with="{}",
    )
    frame = pl.DataFrame([row.model_dump()], schema=REWRITE_SCHEMA)
    assert frame.rows(named=True)[0] == row.model_dump()
    (path,) = export_pack(frame, tmp_path, 6)
    assert path.name == "base.jsonl"
    exported = path.read_text(encoding="utf-8")
    assert json.loads(exported) == BASE | {
        "personas": [{"path": "paranoid@abc", "layer_idx": -4, "alpha": -1.5}]
    }
    assert list(json.loads(exported)) == [*list(BASE)[:6], "personas", "prompt", "output"]
    plain = export_pack(frame.with_columns(personas=pl.lit([], frame.schema["personas"])), tmp_path / "b", 6)
    assert json.loads(plain[0].read_text(encoding="utf-8")) == BASE
