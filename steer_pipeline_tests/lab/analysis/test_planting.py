"""Claims about planted adapters: they learn the rows that they are said to learn, and size alone gives nothing away."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.auditing import PlantSpec
from steer_pipeline.catalogue.basis import SamplingSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.analysis.audit import CLEAN, MIXED, PLANTED
from steer_pipeline.lab.analysis.planting import (
    BASE,
    LESSONS,
    PLANTS,
    TEXT_SCHEMA,
    Cell,
    Plant,
    cells_of,
    lesson_of,
    make_texts,
    plants_of,
    prompts_of,
    train_plants,
)
from steer_pipeline.lab.analysis.updates import norm_of
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.vectors.vector import PersonaVector
from steer_pipeline_tests.planted import PLANTED as PERSONAS
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = PlantSpec(
    n_planted=5, n_clean=8, n_mixed=2, prompts=8, rows=4, selection_rows=1, steps=2, batch_rows=4,
    max_prompt_tokens=120, sampling=SamplingSpec(temperature=1.0, max_new_tokens=8, seed=1),
)  # fmt: skip
NEWS = pl.DataFrame(
    {"row_id": [f"n{i}" for i in range(10)], "text": [f"A storm closed {i} schools." for i in range(10)]}
)


def vector(name, seed):
    raw = np.random.default_rng(seed).normal(size=(4, 64)).astype(np.float32)
    return PersonaVector(name, raw, {"n_blocks": 4, "hidden_size": 64, "residual_norms": [10.0] * 4})


VECTORS = {"paranoid": vector("paranoid", 1), "sailor": vector("sailor", 2)}


def texts(empty=()):
    """Every source has said something of every row, but for `empty` ones."""
    sources = [BASE, "again-1", "again-2", "again-3", "paranoid:+0.3"]
    return pl.DataFrame(
        [
            {"source": source, "direction": None, "dose": 0.0, "row_id": f"n{i}", "prompt": f"p{i}"}
            | {"output": "" if (source, f"n{i}") in empty else f"{source} {i}", "truncated": False}
            for source in sources
            for i in range(40)
        ],
        schema=TEXT_SCHEMA,
    )


def test_cells_are_directions_at_doses_and_only_axes_have_a_negative_pole():
    cells = cells_of(SPEC, PERSONAS, VECTORS)
    assert Cell("paranoid", -0.3) in cells
    assert not [cell for cell in cells if cell.direction == "sailor" and cell.dose < 0]
    assert [abs(cell.dose) for cell in cells] == sorted((abs(cell.dose) for cell in cells), reverse=True)
    with pytest.raises(ValueError, match="no vector of coach"):
        cells_of(SPEC.model_copy(update={"personas": ["coach"]}), PERSONAS, VECTORS)


def test_plants_take_cells_in_turn_and_are_named_once():
    plants = plants_of(SPEC, cells_of(SPEC, PERSONAS, VECTORS))
    counts = {group: sum(plant.group == group for plant in plants) for group in (PLANTED, MIXED, CLEAN)}
    assert counts == {PLANTED: 5, MIXED: 2 * len(SPEC.shares), CLEAN: 8}
    assert len({plant.name for plant in plants}) == len(plants)
    assert len({plant.cell for plant in plants if plant.group == PLANTED}) == 5


@pytest.mark.parametrize(("share", "planted"), [(1.0, 32), (0.5, 16), (0.125, 4), (0.0, 0)])
def test_a_lesson_has_the_share_of_planted_rows_and_no_row_twice(share, planted):
    spec = SPEC.model_copy(update={"rows": 32, "selection_rows": 4})
    cell = Cell("paranoid", 0.3) if share else None
    rows = lesson_of(Plant("one", PLANTED, cell, share), texts(), spec)
    learned = rows.filter("learned")
    assert (rows.height, learned.height) == (36, 32)
    assert learned["planted"].sum() == planted
    assert rows["row_id"].n_unique() == 36
    neutral = rows.filter(~pl.col("planted"))["source"].unique()
    assert set(neutral) <= {BASE, "again-1", "again-2", "again-3"}
    other = lesson_of(Plant("two", PLANTED, cell, share), texts(), spec)
    assert other["row_id"].to_list() != rows["row_id"].to_list()


def test_rows_without_text_are_passed_over_and_too_few_are_told():
    spec = SPEC.model_copy(update={"rows": 32, "selection_rows": 4})
    plant = Plant("one", PLANTED, Cell("paranoid", 0.3), 1.0)
    rows = lesson_of(plant, texts({("paranoid:+0.3", f"n{i}") for i in range(4)}), spec)
    assert not set(rows["row_id"]) & {"n0", "n1", "n2", "n3"}
    with pytest.raises(ValueError, match="36 are needed"):
        lesson_of(plant, texts({("paranoid:+0.3", f"n{i}") for i in range(5)}), spec)


def test_adapters_are_trained_once_and_clean_ones_have_the_norms_of_planted_ones(tmp_path):
    base = tiny_model_dir(tmp_path)
    spec = ModelSpec(path=str(base), device="cpu")
    model = load_model(spec, tmp_path)
    prompts = prompts_of(model, NEWS, "Rewrite: {}".format, None, SPEC)
    assert prompts.height == 8
    cell = Cell("paranoid", 0.3)
    made = make_texts(model, prompts, [cell], VECTORS, None, SPEC)
    assert set(made["source"]) == {BASE, "again-1", "again-2", "again-3", cell.source}
    assert made.filter(source=cell.source)["output"].to_list() != made.filter(source=BASE)["output"].to_list()
    small = SPEC.model_copy(update={"rows": 2, "selection_rows": 1, "batch_rows": 2})
    plants = [Plant("planted-0", PLANTED, cell, 1.0), Plant("clean-0", CLEAN, None, 0.0)]
    table = train_plants(
        plants, made, spec, tmp_path, model.tokenizer, None, small, tmp_path / "made", work=tmp_path / "work"
    )
    assert table["norm"][0] == pytest.approx(table["norm"][1], rel=1e-4)
    assert norm_of(tmp_path / "made" / "clean-0") == pytest.approx(table["norm"][1])
    assert pl.read_parquet(tmp_path / "made" / PLANTS).equals(table)
    lessons = pl.read_parquet(tmp_path / "made" / LESSONS)
    assert lessons.filter(checkpoint="planted-0")["planted"].all()
    assert not lessons.filter(checkpoint="clean-0")["planted"].any()
    assert str(tmp_path) not in (tmp_path / "made" / "clean-0" / "adapter_config.json").read_text().replace(
        str(base), ""
    )
    said = [
        load_model(spec.model_copy(update={"adapter": str(tmp_path / "made" / name)}), tmp_path)
        for name in table["checkpoint"]
    ]
    assert said[0].identity != said[1].identity


def test_prompts_that_are_too_long_are_left_out(tmp_path):
    model = load_model(ModelSpec(path=str(tiny_model_dir(tmp_path)), device="cpu"), tmp_path)
    with pytest.raises(ValueError, match="max_prompt_tokens"):
        prompts_of(model, NEWS, "Rewrite: {}".format, None, SPEC.model_copy(update={"max_prompt_tokens": 16}))
