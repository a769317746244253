"""Dose curves find the smallest dose that works, beside a random direction, and say why when there is none."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import DoseSpec, ModelSpec, RewriteSpec, SamplingSpec
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.personas.dose import (
    plot_sweep,
    recommend_dose,
    sweep_blocks,
    sweep_rows,
    sweep_table,
)
from steer_pipeline.lab.vectors.doses import Recommendation, load_recommendation, save_recommendation
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError
from steer_pipeline_tests.lab.personas.builders import vector
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = DoseSpec(
    blocks=[2, -1],
    fractions=[-0.5, 0.0, 0.25, 0.5],
    n_rows=6,
    max_kl_nats=100,
    max_suspect_rate=1,  # a random model's text is suspect by any rule
)
REWRITE = RewriteSpec(prompt="Rewrite: {text}", sampling=SamplingSpec(max_new_tokens=8, temperature=0.9))


class CountScorer:
    """Share of words that are one of the two marker words."""

    def __init__(self, positive, negative):
        self.positive, self.negative = positive, negative

    def score_many(self, texts):
        return np.array([self._share(t, self.positive) - self._share(t, self.negative) for t in texts])

    def _share(self, text, marker):
        return min(1.0, text.count(marker) * len(marker) / max(1, len(text)))

    def shows(self, text):
        return self.positive in text

    def shows_opposite(self, text):
        return self.negative in text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder))), folder)


@pytest.fixture(scope="module")
def steerable(model):
    """A vector that asks for one token and, with its sign turned, for another; and the scorer of the two."""
    table = model.module.get_output_embeddings().weight.detach().float().numpy()
    ids = [model.tokenizer.encode(word)[0] for word in ("vaccine", "harbour")]
    towards, away = (table[i] / np.linalg.norm(table[i]) for i in ids)
    raw = np.tile((towards - away).astype(np.float32), (model.n_blocks, 1))
    metadata = {
        "model": model.name,
        "weights_sha": model.weights_sha,
        "n_blocks": model.n_blocks,
        "hidden_size": model.hidden_size,
        "residual_norms": [60.0] * model.n_blocks,
    }
    scorer = CountScorer(*(model.tokenizer.decode([i]) for i in ids))
    return PersonaVector("paranoid", raw, metadata), scorer


@pytest.fixture(scope="module")
def news():
    texts = [f"The council of Northport spent {i} million on the harbour." for i in range(2, 8)]
    return pl.DataFrame({"row_id": [f"r{i}" for i in range(6)], "text": texts, "facts": [["Northport"]] * 6})


@pytest.fixture(scope="module")
def rows(model, steerable, news):
    return sweep_rows(model, steerable[0], SPEC, news, REWRITE, steerable[1], both_poles=True)


def test_every_cell_holds_every_row_once_and_base_is_made_once(rows):
    counts = dict(rows.group_by("variant").len().iter_rows())
    assert set(counts.values()) == {6}
    persona_cells = {f"persona_block{b:02d}_dose{f:+.3f}" for b in (2, 3) for f in (-0.5, 0.25, 0.5)}
    assert persona_cells | {"base"} < set(counts)
    controls = set(counts) - persona_cells - {"base"}
    assert len(controls) == 2
    assert all(name.startswith("random_block") for name in controls)


def test_the_control_has_the_norms_of_the_doses_at_the_recommended_block(rows):
    table = sweep_table(rows, SPEC)
    recommended = recommend_dose(table, "paranoid", both_poles=True)
    control = rows.filter(pl.col("direction") == "random")
    assert set(control.get_column("block")) == {recommended.block}
    assert set(control.get_column("alpha")) == {15.0, 30.0}


def test_the_trait_grows_with_the_dose_turns_with_its_sign_and_ignores_a_random_direction(rows):
    table = sweep_table(rows, SPEC)
    cells = {(row["direction"], row["block"], row["fraction"]): row for row in table.iter_rows(named=True)}
    top = cells["persona", 3, 0.5]
    assert top["shift_low"] > 0.3
    assert top["shown_rate"] == 1
    assert cells["persona", 3, -0.5]["shift_high"] < -0.3
    assert cells["persona", 3, -0.5]["opposite_rate"] == 1
    random = table.filter(pl.col("direction") == "random")
    assert random.get_column("shift").abs().max() < top["shift"] / 3
    assert top["kl"] > cells["persona", 3, 0.25]["kl"] > cells["persona", 3, 0.0]["kl"] == 0


def test_base_is_fraction_zero_of_every_block(rows):
    zero = sweep_table(rows, SPEC).filter((pl.col("direction") == "persona") & (pl.col("fraction") == 0))
    assert zero.get_column("block").to_list() == [2, 3]
    assert zero.drop("block").unique().height == 1
    assert zero.get_column("changed_rate").to_list() == [0, 0]


def test_the_table_is_made_of_the_rows_alone(rows, tmp_path):
    rows.write_parquet(tmp_path / "rows.parquet")
    again = sweep_table(pl.read_parquet(tmp_path / "rows.parquet").reverse(), SPEC)
    assert again.equals(sweep_table(rows, SPEC))
    one = rows.filter(pl.col("variant") == "persona_block03_dose+0.500")
    line = again.filter(
        (pl.col("block") == 3) & (pl.col("fraction") == 0.5) & (pl.col("direction") == "persona")
    )
    assert line.get_column("trait")[0] == pytest.approx(one.get_column("trait").mean())
    assert line.get_column("kl")[0] == pytest.approx(one.get_column("kl").mean())


def test_a_vector_of_another_model_is_not_swept(model, steerable, news):
    other = PersonaVector("paranoid", steerable[0].raw, {**steerable[0].metadata, "weights_sha": "x"})
    with pytest.raises(VectorError, match="another model"):
        sweep_rows(model, other, SPEC, news, REWRITE, steerable[1])


def test_blocks_are_resolved_once_and_an_imported_vector_is_swept_where_it_has_directions():
    spec = DoseSpec(blocks=[0.5, 2, -1, 1])
    assert sweep_blocks(vector(), spec) == [1, 2, 3]
    assert sweep_blocks(vector(blocks=(0, 3)), spec) == [3]
    with pytest.raises(ValueError, match=r"no direction at blocks \[1, 2, 3\].*it has \[0\]"):
        sweep_blocks(vector(blocks=(0,)), spec)


# ---------------------------------------------------------------------------------------- recommending


def cell(block, fraction, shift, *, coherent=True, width=0.1, **fields):
    row = {
        "direction": "persona",
        "block": block,
        "fraction": fraction,
        "alpha": 10.0 * fraction,
        "n": 24,
        "trait": shift,
        "shift": shift,
        "shift_low": shift - width,
        "shift_high": shift + width,
        "suspect_rate": 0.0 if coherent else 0.5,
        "facts_kept": 1.0,
        "kl": abs(fraction),
        "coherent": coherent,
    }
    return row | fields


def sweep(*cells):
    return pl.DataFrame([cell(1, 0.0, 0.0, width=0.0), *cells])


def test_the_smallest_dose_with_ninety_percent_of_the_best_coherent_shift_wins():
    table = sweep(cell(1, 0.2, 0.3), cell(1, 0.3, 0.55), cell(1, 0.4, 0.6), cell(1, 0.6, 0.9, coherent=False))
    chosen = recommend_dose(table, "paranoid")
    assert (chosen.block, chosen.fraction, chosen.alpha) == (1, 0.3, 3.0)
    assert chosen.found
    assert "+0.550 [+0.450, +0.650] of +0.600" in chosen.reason


def test_between_blocks_the_smaller_fraction_wins_and_then_the_larger_shift():
    table = sweep(cell(1, 0.3, 0.58), cell(2, 0.2, 0.55), cell(3, 0.2, 0.57), cell(3, 0.4, 0.6))
    chosen = recommend_dose(table, "paranoid")
    assert (chosen.block, chosen.fraction) == (3, 0.2)


def test_controls_are_never_recommended():
    table = sweep(cell(1, 0.2, 0.3), cell(1, 0.2, 0.9, direction="random"))
    assert recommend_dose(table, "paranoid").reason.count("of +0.300") == 1


@pytest.mark.parametrize(
    ("negative", "found"),
    [
        ([cell(1, -0.3, -0.5)], True),
        ([cell(1, -0.4, -0.5)], True),
        ([cell(1, -0.4, -0.5, coherent=False)], False),
        ([cell(1, -0.2, -0.5)], False),
        ([cell(1, -0.3, -0.5), cell(1, -0.6, -0.5, coherent=False)], True),
        ([cell(2, -0.3, -0.5)], False),
        ([], False),
    ],
)
def test_an_axis_needs_its_negative_dose_to_be_coherent_too(negative, found):
    table = sweep(cell(1, 0.3, 0.5), *negative)
    assert recommend_dose(table, "paranoid", both_poles=True).found is found
    assert recommend_dose(table, "paranoid").found


@pytest.mark.parametrize(
    ("cells", "both", "told"),
    [
        ([cell(1, -0.3, -0.2)], False, "no positive dose; add some"),
        ([cell(1, 0.3, 0.5, coherent=False)], False, r"mildest, \+0.3 at block 1, has KL 0.30"),
        ([cell(1, 0.3, 0.05)], False, r"no coherent dose moves the trait: the best, \+0.3 at block 1"),
        ([cell(1, 0.3, 0.5)], True, "at none is the negative dose of that size coherent"),
    ],
)
def test_when_no_dose_will_do_the_reason_has_the_numbers(cells, both, told, tmp_path):
    none = recommend_dose(sweep(*cells), "paranoid", both_poles=both)
    assert (none.block, none.fraction, none.alpha, none.found) == (None, None, None, False)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(none.reason)


def test_a_recommendation_is_stored_as_json_and_read_back(tmp_path):
    for recommendation in (
        Recommendation("paranoid", 2, 0.3, 9.5, "fine"),
        Recommendation("paranoid", None, None, None, "nothing moved"),
    ):
        save_recommendation(recommendation, tmp_path)
        assert load_recommendation(tmp_path) == recommendation
    (tmp_path / "recommendation.json").write_text("{}")
    with pytest.raises(VectorError, match=r"recommendation\.json.*materialise dose_curve"):
        load_recommendation(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_a_small_file(rows, tmp_path, suffix):
    table = sweep_table(rows, SPEC)
    for number, recommendation in enumerate(
        (
            Recommendation("paranoid", 3, 0.5, 30.0, "fine"),
            Recommendation("paranoid", None, None, None, "none"),
        )
    ):
        path = tmp_path / f"{number}.{suffix}"
        plot_sweep(table, recommendation, path)
        assert 1_000 < path.stat().st_size < 60_000


def test_the_same_table_gives_the_same_png(rows, tmp_path):
    table = sweep_table(rows, SPEC)
    recommendation = recommend_dose(table, "paranoid")
    for name in ("a.png", "b.png"):
        plot_sweep(table, recommendation, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
