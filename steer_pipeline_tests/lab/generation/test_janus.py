"""Claims about Janus packs: theirs come in, ours go out in their layout, damage is named."""

import json

import polars as pl
import pytest

from steer_pipeline.lab.generation.janus import JanusPackError, export_pack, import_pack
from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA, PersonaDose, RewriteRow

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
PARANOID = {
    **{name: BASE[name] for name in list(BASE)[:5]},
    "variant": "paranoid",
    "personas": [{"path": "personas/persona_paranoid_for_4B_L-3_v2.json", "layer_idx": -3, "alpha": 2.4}],
    "prompt": BASE["prompt"],
    "output": "They closed them.",
}


def write(folder, *records):
    folder.mkdir(exist_ok=True)
    for record in records:
        with (folder / f"{record['variant']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return folder


def test_a_janus_pack_comes_in_and_goes_out_again(tmp_path):
    rows = import_pack(write(tmp_path / "in", BASE, PARANOID), 36)
    assert rows.schema == REWRITE_SCHEMA
    paranoid = rows.filter(pl.col("variant") == "paranoid").row(0, named=True)
    assert paranoid["personas"][0] == {
        "name": "paranoid",
        "version": None,
        "block": 33,
        "alpha": 2.4,
        "dose_fraction": None,
        "site": None,
    }
    assert rows["row_id"].n_unique() == 1
    assert len(rows["row_id"][0]) == 16
    paths = export_pack(rows, tmp_path / "out", 36)
    assert [path.name for path in paths] == ["base.jsonl", "paranoid.jsonl"]
    assert paths[0].read_text(encoding="utf-8") == (tmp_path / "in/base.jsonl").read_text(encoding="utf-8")
    again = json.loads(paths[1].read_text(encoding="utf-8"))
    assert list(again) == list(PARANOID)
    assert again["personas"] == [{"path": "paranoid", "layer_idx": -3, "alpha": 2.4}]


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
    exported = export_pack(frame, tmp_path, 6)[0].read_text(encoding="utf-8")
    assert json.loads(exported)["personas"] == [{"path": "paranoid@abc", "layer_idx": -4, "alpha": -1.5}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", r"no \*\.jsonl"),
        (json.dumps(BASE) + "\n{broken\n", "base.jsonl, line 2: not JSON"),
        (json.dumps({**BASE, "output": None}), "line 1: output is None, not str"),
        ((json.dumps(BASE) + "\n") * 2, "line 2: source_index 0 is on line 1 too"),
    ],
)
def test_damage_is_named(tmp_path, lines, message):
    if lines:
        (tmp_path / "base.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(JanusPackError, match=message):
        import_pack(tmp_path, 36)
