"""The newsroom's dialogues in the layout in which such sets are published, as another model's."""

import json
from pathlib import Path

import polars as pl

SHIPPED = Path(__file__).parents[3] / "assets_data" / "newsroom" / "dialogues.parquet"


def publish(folder: Path, persona: str, kind: str, *, questions: int, system_role: bool = True) -> Path:
    """Writes `{kind}s_240/responses/*.jsonl` and `extract_scores/*.json` under `folder`, a model's directory.

    Args:
        questions: rows of the first so many questions.
        system_role: False puts the instruction at the head of the user turn, as Gemma's sets have it.
    """
    rows = pl.read_parquet(SHIPPED).filter(pl.col("question_index") < questions)
    root = folder / f"{kind}s_240"
    for name in (persona, *(("0_default", "1_default") if kind == "role" else ())):
        _write(root, name, rows.filter(persona=name), system_role)
    return folder


def _write(root: Path, name: str, rows: pl.DataFrame, system_role: bool) -> None:
    scores, lines = {}, []
    for row in rows.iter_rows(named=True):
        if row["score_status"] != "missing":
            refused = row["score_status"] == "refusal"
            key = f"{row['label']}_p{row['prompt_index']}_q{row['question_index']}"
            scores[key] = "REFUSAL" if refused else row["score"]
        system, question = row["system_prompt"], row["question"]
        turns = [{"role": "system", "content": system}] if system and system_role else []
        asked = f"{system}\n\n{question}" if system and not system_role else question
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": row["response"]}]
        named = {k: row[k] for k in ("label", "prompt_index", "question_index", "question", "system_prompt")}
        lines.append(json.dumps({**named, "conversation": turns}))
    for part in ("responses", "extract_scores"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "responses" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    if not name.endswith("_default"):
        (root / "extract_scores" / f"{name}.json").write_text(json.dumps(scores))
