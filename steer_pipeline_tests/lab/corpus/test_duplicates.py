import random
import subprocess
import sys

import polars as pl
import pytest

from steer_pipeline.lab.corpus.duplicates import DuplicateFinder, band_rows, mark_duplicates
from steer_pipeline.lab.corpus.identity import normal_form, shingles

WORDS = [
    f"{a}{b}{c}" for a in "bdfgkl" for b in ("an", "er", "os", "ul") for c in ("ta", "ni", "mo", "re", "si")
]


def article(seed: int, n_words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words)) + "."


def edited(text: str, n_changes: int) -> str:
    words = text.split()
    for i in range(n_changes):
        words[len(words) * (2 * i + 1) // (2 * n_changes)] = f"changed{i}"
    return " ".join(words)


def jaccard(a: str, b: str) -> float:
    left, right = set(shingles(normal_form(a))), set(shingles(normal_form(b)))
    return len(left & right) / len(left | right)


def marks(frame: pl.DataFrame, column: str) -> dict[int, int]:
    """Index of each marked row -> index of the row that it points to."""
    position = {row_id: i for i, row_id in reversed(list(enumerate(frame["row_id"])))}
    return {i: position[target] for i, target in enumerate(frame[column]) if target is not None}


def test_same_normal_form_is_an_exact_duplicate_of_the_first(news):
    a, b = article(1), article(2)
    marked = mark_duplicates(news([a, b, a, f"  {a.upper()}\n", b]))
    assert marks(marked, "duplicate_of") == {2: 0, 3: 0, 4: 1}
    assert marked["near_duplicate_of"].null_count() == 5


def test_the_same_row_twice_points_to_its_own_id(news):
    row = news([article(1)])
    twice = pl.concat([row, row.with_columns(source_index=pl.lit(1, dtype=pl.Int64))])
    marked = mark_duplicates(twice)
    assert marked["duplicate_of"].to_list() == [None, row["row_id"][0]]


def test_near_duplicates_are_found_on_the_right_side_of_the_threshold(news):
    base = article(3)
    close, far = edited(base, 4), edited(base, 20)
    assert jaccard(base, close) > 0.87
    assert jaccard(base, far) < 0.6
    marked = mark_duplicates(news([base, article(4), close, far, article(5)]), threshold=0.8)
    assert marks(marked, "near_duplicate_of") == {2: 0}
    assert marked["duplicate_of"].null_count() == 5


def test_near_duplicates_point_to_originals_only(news):
    """b resembles a, c resembles b but not a: c stays an original, for b is none."""
    a = article(6, 400)
    b = edited(a, 13)
    c = " ".join([f"other{i}" for i in range(32)] + b.split()[32:])
    assert jaccard(a, b) > 0.81
    assert jaccard(b, c) > 0.81
    assert jaccard(a, c) < 0.71
    marked = mark_duplicates(news([a, b, c]), threshold=0.8)
    assert marks(marked, "near_duplicate_of") == {1: 0}


def test_recall_and_precision_over_many_pairs(news):
    bases = [article(100 + i) for i in range(60)]
    near = [edited(text, 3) for text in bases]
    far = [edited(text, 25) for text in bases]
    marked = mark_duplicates(news(bases + near + far), threshold=0.8)
    found = marks(marked, "near_duplicate_of")
    assert {i for i in found if i >= 120} == set()
    assert all(target == i - 60 for i, target in found.items())
    assert len(found) >= 59


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_find_a_pair_at_the_threshold_nine_times_in_ten(threshold):
    rows = band_rows(threshold)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.9


def test_marks_do_not_depend_on_batches(news):
    texts = [article(i % 40) if i % 3 else edited(article(i % 40), 3) for i in range(200)]
    rows = news(texts)
    whole = mark_duplicates(rows)
    finder = DuplicateFinder(0.8)
    pieces = [finder.add(rows[start : start + 7]) for start in range(0, 200, 7)]
    joined = pl.concat(pieces).join(
        finder.near_duplicates(), on="source_index", how="left", maintain_order="left"
    )
    assert joined.equals(whole)
    assert whole["duplicate_of"].null_count() < 200


def test_marks_are_the_same_in_another_process(news, tmp_path):
    rows = news([edited(article(i % 30), 4 if i >= 30 else 1) for i in range(60)])
    rows.write_parquet(tmp_path / "rows.parquet")
    code = (
        "import sys, polars as pl; from steer_pipeline.lab.corpus import mark_duplicates; "
        "print(mark_duplicates(pl.read_parquet(sys.argv[1]))['near_duplicate_of'].to_list())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.parquet")]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    here = mark_duplicates(rows)["near_duplicate_of"].to_list()
    assert eval(there.stdout) == here
    assert any(here)


def test_texts_shorter_than_a_shingle_and_an_empty_table(news):
    marked = mark_duplicates(news(["One.", "Two words.", "One!", "..."]))
    assert marks(marked, "near_duplicate_of") == {2: 0}  # same words, other punctuation
    empty = mark_duplicates(news([]))
    assert empty.columns[-2:] == ["duplicate_of", "near_duplicate_of"]
