"""Dose curves find the smallest dose that works, beside random directions, and say why when there is none."""

import re

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import CoherenceSpec, DoseSpec, ModelSpec, RewriteSpec, SamplingSpec
from steer_pipeline.lab.evaluation import ScaleError, Scales
from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.personas.claims import beyond_random
from steer_pipeline.lab.personas.dose import random_cells, sweep_blocks, sweep_rows
from steer_pipeline.lab.personas.dose_plot import plot_sweep
from steer_pipeline.lab.personas.dose_table import best_cells, recommend_dose, sweep_table
from steer_pipeline.lab.vectors.doses import Recommendation, load_recommendation, save_recommendation
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError
from steer_pipeline_tests.lab.personas.builders import vector
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = DoseSpec(
    blocks=[2, -1],
    fractions=[-0.5, 0.0, 0.25, 0.5],
    n_rows=6,
    n_random=4,
    kl_rows=3,
    max_kl_nats=100,
)
LIMITS = CoherenceSpec(  # a random model's text is suspect by any rule, and steered to one token it is a loop
    max_extra_suspects=None,
    max_lost_facts=None,
    max_extra_loops=None,
    max_length_ratio=None,
    max_extra_nll=20,
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
    return PersonaVector("paranoid", raw, metadata), Scales("paranoid", {"count": scorer}, "for tests")


@pytest.fixture(scope="module")
def news():
    texts = [f"The council of Northport spent {i} million on the harbour." for i in range(2, 8)]
    return pl.DataFrame({"row_id": [f"r{i}" for i in range(6)], "text": texts, "facts": [["Northport"]] * 6})


@pytest.fixture(scope="module")
def rows(model, steerable, news):
    return sweep_rows(model, steerable[0], SPEC, news, REWRITE, steerable[1], limits=LIMITS, both_poles=True)


def test_every_cell_holds_every_row_once_and_base_is_made_once(rows):
    counts = dict(rows.group_by("variant").len().iter_rows())
    assert set(counts.values()) == {6}
    persona_cells = {f"persona_block{b:02d}_dose{f:+.3f}" for b in (2, 3) for f in (-0.5, 0.25, 0.5)}
    assert persona_cells | {"base"} < set(counts)
    controls = set(counts) - persona_cells - {"base"}
    assert len(controls) == SPEC.n_random
    assert all(name.startswith("random0") for name in controls)


def test_random_directions_have_the_norm_of_the_recommended_dose_at_its_block(rows):
    table = sweep_table(rows, SPEC, LIMITS)
    recommended = recommend_dose(table, "paranoid", both_poles=True)
    control = rows.filter(pl.col("direction") == "random")
    assert set(control.get_column("block")) == {recommended.block}
    assert set(control.get_column("alpha")) == {recommended.alpha}
    assert set(control.get_column("draw")) == {0, 1, 2, 3}
    assert control.filter(row_id="r0")["text"].n_unique() > 1, "the directions differ"


def test_random_directions_differ_between_personas_and_stay_the_same_for_one(steerable):
    other = PersonaVector("rule_defiant", steerable[0].raw, steerable[0].metadata)
    one, two, again = (
        random_cells(which, 2, 0.5, "all", n=2, seed=13)[0].plan.terms[0].unit
        for which in (steerable[0], other, steerable[0])
    )
    assert abs(one @ two) < 0.5
    assert np.array_equal(one, again)


def test_the_trait_grows_with_the_dose_turns_with_its_sign_and_ignores_a_random_direction(rows):
    table = sweep_table(rows, SPEC, LIMITS)
    cells = {(row["direction"], row["block"], row["fraction"]): row for row in table.iter_rows(named=True)}
    top = cells["persona", 3, 0.5]
    assert top["shift_low"] > 0.25
    assert top["shown_rate"] == 1
    assert cells["persona", 3, -0.5]["shift_high"] < -0.25
    assert cells["persona", 3, -0.5]["opposite_rate"] == 1
    random = table.filter(pl.col("direction") == "random")
    assert random.get_column("shift").abs().max() < top["shift"] / 3
    assert top["kl"] > cells["persona", 3, 0.25]["kl"] > cells["persona", 3, 0.0]["kl"] == 0
    assert top["kl_low"] <= top["kl"] <= top["kl_high"]
    assert rows.filter(pl.col("kl").is_not_null())["row_id"].n_unique() == SPEC.kl_rows


def test_kl_is_measured_on_rows_drawn_at_random_and_told_with_its_interval(rows, news):
    """The four shortest prompts gave 1.11 nats where all rows give 1.54."""
    measured = set(rows.drop_nulls("kl")["row_id"])
    order = np.random.default_rng(SPEC.seed).permutation(news.height)
    assert measured == {sorted(news["row_id"])[place] for place in order[: SPEC.kl_rows]}
    lengths = dict(zip(news["row_id"], news["text"].str.len_chars(), strict=True))
    assert measured != set(sorted(lengths, key=lengths.get)[: SPEC.kl_rows])
    strict = sweep_table(rows, SPEC.model_copy(update={"max_kl_nats": 1e-6}), LIMITS)
    assert re.search(r"KL \d\.\d\d \[.+, .+\] nats a token, limit 1e-06", "; ".join(strict["beyond"]))


def test_every_row_has_its_likelihood_under_the_unsteered_model_given_its_prompt(rows, model, news):
    row = rows.filter(variant="persona_block03_dose+0.500", row_id="r2").row(0, named=True)
    text = news.filter(row_id="r2")["text"][0]
    prompt = encode_prompt(model.tokenizer, user=f"Rewrite: {text}", system=None)
    said = model.tokenizer.encode(row["text"], add_special_tokens=False)
    assert len(said) == row["n_tokens"]
    sums, counts = sequence_nll(model, [[*prompt, *said]], [len(prompt)])
    assert row["cost_nll"] == pytest.approx(sums[0] / counts[0], abs=1e-3)


def test_costs_are_paired_with_base_and_what_is_beyond_a_limit_is_said(rows):
    strict = LIMITS.model_copy(update={"max_extra_nll": 0.01, "max_extra_loops": 0.01})
    table = sweep_table(rows, SPEC, strict)
    base = table.filter(direction="persona", block=3, fraction=0.0).row(0, named=True)
    assert (base["extra_nll"], base["strain"], base["beyond"], base["coherent"]) == (0.0, 0.0, "", True)
    top = table.filter(direction="persona", block=3, fraction=0.5).row(0, named=True)
    assert top["extra_nll"] == pytest.approx(top["nll"] - base["nll"])
    assert top["extra_nll_low"] < top["extra_nll"] < top["extra_nll_high"]
    assert not top["coherent"]
    assert top["strain"] >= abs(top["extra_nll"]) / 0.01 > 1
    assert f"nll {top['extra_nll']:+.3g} nats a token" in top["beyond"]
    assert sweep_table(rows, SPEC, LIMITS).filter(direction="persona")["coherent"].all()


def test_absolute_limits_are_judged_only_where_they_are_given(rows):
    held = SPEC.model_copy(update={"max_suspect_rate": 0.0, "min_facts_kept": 1.0, "max_kl_nats": 1e-6})
    steered = sweep_table(rows, held, LIMITS).filter(direction="persona", block=3, fraction=0.5)
    assert "suspects 100.0%, limit 0.0%" in steered["beyond"][0]
    assert "facts kept 0%, limit 100%" in steered["beyond"][0]
    assert "nats a token, limit 1e-06" in steered["beyond"][0]


def test_a_poor_base_makes_no_dose_incoherent(rows):
    """The first real model: suspects at dose 0 already were 25%, and every dose was refused for it."""
    table = sweep_table(
        rows, SPEC.model_copy(update={"max_kl_nats": None}), CoherenceSpec(max_extra_nll=None)
    )
    base = table.filter(direction="persona", fraction=0.0)
    assert base["suspect_rate"].to_list() == [1.0, 1.0]
    mild = table.filter(direction="persona", fraction=0.25, block=2).row(0, named=True)
    assert mild["suspect_rate"] == 1
    assert mild["extra_suspects"] == 0


def test_the_frontier_has_no_cell_that_another_beats(rows):
    table = sweep_table(rows, SPEC, LIMITS).filter(direction="persona")
    best = table.filter("frontier")
    assert 1 <= best.height < table.filter(pl.col("fraction") > 0).height + 1
    for cell in best.iter_rows(named=True):
        better = table.filter(
            pl.col("fraction") > 0, pl.col("shift") > cell["shift"], pl.col("strain") < cell["strain"]
        )
        assert better.is_empty()


def test_a_scale_that_is_the_same_everywhere_is_an_error_and_no_zero(model, steerable, news):
    silent = Scales("paranoid", {"lexicon": CountScorer("xyzzy", "plugh")}, "")
    with pytest.raises(
        ScaleError, match=r"persona paranoid.*none has a marker.*lexicons: \{paranoid: \{\}\}"
    ):
        sweep_rows(model, steerable[0], SPEC, news, REWRITE, silent, limits=LIMITS)


def test_with_scope_generated_the_prompt_is_left_alone(model, steerable, news, rows):
    generated = REWRITE.model_copy(update={"scope": "generated"})
    spec = SPEC.model_copy(update={"blocks": [-1], "n_random": 2})
    found = sweep_rows(model, steerable[0], spec, news, generated, steerable[1], limits=LIMITS)
    assert found.filter(direction="base")["text"].to_list() == rows.filter(direction="base")["text"].to_list()
    name = "persona_block03_dose+0.500"
    assert found.filter(variant=name)["text"].to_list() != rows.filter(variant=name)["text"].to_list()
    assert sweep_table(found, spec, LIMITS).filter(direction="persona", fraction=0.5)["shift"][0] > 0.15


def test_from_coarse_to_fine_only_the_best_cells_see_all_rows(model, steerable, news):
    spec = SPEC.model_copy(
        update={"refine": True, "coarse_rows": 4, "fractions": [-0.5, 0.0, 0.05, 0.25, 0.5, 0.6]}
    )
    found = sweep_rows(model, steerable[0], spec, news, REWRITE, steerable[1], limits=LIMITS, both_poles=True)
    table = sweep_table(found, spec, LIMITS)
    assert found.select("row_id", "variant").is_duplicated().sum() == 0
    steered = table.filter(pl.col("direction") == "persona", pl.col("fraction") != 0)
    assert set(steered["n"]) == {4, 6}
    assert table.filter(direction="persona", fraction=0.0)["n"].to_list() == [6, 6]
    full = steered.filter(n=6)
    assert 0 < full.filter(pl.col("fraction") > 0).height < steered.filter(pl.col("fraction") > 0).height
    chosen = recommend_dose(table, "paranoid", both_poles=True)
    assert full.filter(block=chosen.block, fraction=chosen.fraction).height == 1
    assert set(table.filter(direction="random")["n"]) == {6}


def test_base_is_fraction_zero_of_every_block(rows):
    zero = sweep_table(rows, SPEC, LIMITS).filter(
        (pl.col("direction") == "persona") & (pl.col("fraction") == 0)
    )
    assert zero.get_column("block").to_list() == [2, 3]
    assert zero.drop("block").unique().height == 1
    assert zero.get_column("changed_rate").to_list() == [0, 0]


def test_the_table_is_made_of_the_rows_alone(rows, tmp_path):
    rows.write_parquet(tmp_path / "rows.parquet")
    again = sweep_table(pl.read_parquet(tmp_path / "rows.parquet").reverse(), SPEC, LIMITS)
    assert again.equals(sweep_table(rows, SPEC, LIMITS))
    one = rows.filter(pl.col("variant") == "persona_block03_dose+0.500")
    line = again.filter(
        (pl.col("block") == 3) & (pl.col("fraction") == 0.5) & (pl.col("direction") == "persona")
    )
    assert line.get_column("trait")[0] == pytest.approx(one.get_column("trait").mean())
    assert line.get_column("kl")[0] == pytest.approx(one.get_column("kl").mean())


def test_a_vector_of_another_model_is_not_swept(model, steerable, news):
    other = PersonaVector("paranoid", steerable[0].raw, {**steerable[0].metadata, "weights_sha": "x"})
    with pytest.raises(VectorError, match="another model"):
        sweep_rows(model, other, SPEC, news, REWRITE, steerable[1], limits=LIMITS)


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
        "extra_nll": abs(fraction) / 2,
        "extra_suspects": 0.0 if coherent else 0.5,
        "strain": abs(fraction) if coherent else 10.0,
        "beyond": "" if coherent else "suspects +50 points [40, 60], limit 5",
        "coherent": coherent,
        "draw": None,
    }
    return row | fields


def sweep(*cells):
    return pl.DataFrame([cell(1, 0.0, 0.0, width=0.0), *cells], schema_overrides={"draw": pl.Int32})


def randoms(block, fraction, *shifts):
    return [cell(block, fraction, shift, direction="random", draw=i) for i, shift in enumerate(shifts)]


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
    table = sweep(cell(1, 0.2, 0.3), *randoms(1, 0.2, 0.9))
    assert recommend_dose(table, "paranoid").reason.count("of +0.300") == 1


@pytest.mark.parametrize(
    ("next_dose", "told"),
    [
        ([cell(1, 0.3, 0.9, coherent=False)], r"next dose, \+0.3, is stopped by suspects \+50 points"),
        ([cell(1, 0.3, 0.51)], r"next dose, \+0.3, is coherent too and shifts by \+0.510"),
        ([cell(2, 0.3, 0.51)], "no larger dose was measured at that block"),
    ],
)
def test_the_reason_says_what_stopped_the_next_dose(next_dose, told):
    assert re.search(told, recommend_dose(sweep(cell(1, 0.2, 0.5), *next_dose), "paranoid").reason)


def test_only_cells_on_all_rows_are_recommended():
    coarse = cell(2, 0.2, 0.9, n=8)
    assert recommend_dose(sweep(cell(1, 0.3, 0.5), coarse), "paranoid").block == 1


def test_a_dose_has_its_rank_among_random_directions_and_so_has_its_opposite():
    table = sweep(cell(1, 0.3, 0.5), cell(1, -0.3, -0.2), *randoms(1, 0.3, 0.1, 0.0, -0.3, 0.6))
    found = recommend_dose(table, "paranoid", both_poles=True)
    assert (found.random_n, found.random_min, found.random_max) == (4, -0.3, 0.6)
    assert found.random_mean == pytest.approx(0.1)
    assert (found.random_rank_p, found.negative_rank_p) == (2 / 5, 2 / 5)
    assert recommend_dose(table, "paranoid").negative_rank_p is None


def test_without_a_dose_the_rank_is_of_where_the_trait_moved_most():
    found = recommend_dose(sweep(cell(1, 0.3, 0.05), *randoms(1, 0.3, 0.1, 0.0, 0.2)), "paranoid")
    assert not found.found
    assert found.random_rank_p == 3 / 4


@pytest.mark.parametrize(
    ("shift", "negative", "others", "passed"),
    [
        (0.5, -0.5, (0.1, 0.0, -0.1, 0.05, -0.05, 0.02), True),
        (0.5, -0.5, (0.55, 0.0, 0.1, -0.1, 0.05, -0.05), False),  # a direction goes further
        (0.5, -0.5, (0.4, -0.4, 0.3, -0.3, 0.2, -0.2), False),  # none does, and by their spread another might
        (
            0.5,
            -0.2,
            (0.1, -0.15, 0.1, -0.1, 0.05, -0.05),
            False,
        ),  # the opposite dose does no more than chance
        (0.5, None, (0.1, -0.2, 0.1, -0.1, 0.05, -0.05), True),
        (0.05, None, (0.01, -0.01, 0.0, 0.005, -0.005, 0.002), False),  # its interval holds zero
    ],
)
def test_the_trait_must_move_beyond_every_random_direction(shift, negative, others, passed):
    negatives = [] if negative is None else [cell(1, -0.3, negative)]
    table = sweep(cell(1, 0.3, shift), *negatives, *randoms(1, 0.3, *others))
    advice = recommend_dose(table, "paranoid", both_poles=negative is not None)
    verdict = beyond_random(table, advice if advice.found else recommend_dose(table, "paranoid"))
    assert verdict.passed is passed
    assert f"from {min(others):+.3f} to {max(others):+.3f}" in verdict.message
    assert verdict.numbers["random_rank_p"] == advice.random_rank_p


def test_without_a_positive_dose_there_is_nothing_to_compare():
    table = sweep(cell(1, -0.3, -0.5))
    assert beyond_random(table, recommend_dose(table, "paranoid")).message == "no positive dose was swept"


def test_a_second_pass_takes_the_best_block_the_doses_beside_the_best_and_their_opposites():
    grid = [cell(1, f, s) for f, s in ((0.1, 0.1), (0.2, 0.4), (0.3, 0.6), (0.4, 0.61), (0.6, 0.62))]
    other = [cell(2, f, s) for f, s in ((0.1, 0.1), (0.2, 0.2), (0.3, 0.3))]
    negatives = [cell(1, f, -0.3) for f in (-0.6, -0.3)]
    table = sweep(*grid, *other, *negatives)
    assert best_cells(table, both_poles=False) == {(1, 0.2), (1, 0.3), (1, 0.4)}
    assert best_cells(table, both_poles=True) == {(1, 0.2), (1, 0.3), (1, 0.4), (1, -0.3), (1, -0.6)}


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
        (
            [cell(1, 0.3, 0.5, coherent=False)],
            False,
            r"mildest, \+0.3 at block 1, is stopped by suspects \+50",
        ),
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
        Recommendation("paranoid", 2, 0.3, 9.5, "fine", 10, 0.1, 0.0, 0.2, 1 / 11),
        Recommendation("paranoid", None, None, None, "nothing moved"),
    ):
        save_recommendation(recommendation, tmp_path)
        assert load_recommendation(tmp_path) == recommendation
    (tmp_path / "recommendation.json").write_text("{}")
    with pytest.raises(VectorError, match=r"recommendation\.json.*materialise dose_curve"):
        load_recommendation(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_a_small_file(rows, tmp_path, suffix):
    table = sweep_table(rows, SPEC, LIMITS)
    for number, recommendation in enumerate(
        (
            Recommendation("paranoid", 3, 0.5, 30.0, "fine"),
            Recommendation("paranoid", None, None, None, "none"),
        )
    ):
        path = tmp_path / f"{number}.{suffix}"
        plot_sweep(table, recommendation, LIMITS, path)
        assert 1_000 < path.stat().st_size < 200_000


def test_the_same_table_gives_the_same_png(rows, tmp_path):
    table = sweep_table(rows, SPEC, LIMITS)
    recommendation = recommend_dose(table, "paranoid")
    for name in ("a.png", "b.png"):
        plot_sweep(table, recommendation, LIMITS, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_dose_holds_both_ways_for_axes_unless_the_profile_says_for_whom():
    personas = load_personas()
    assert DoseSpec().holds_both_ways(personas["rule_defiant"])
    assert not DoseSpec().holds_both_ways(personas["sailor"])
    only = DoseSpec(both_poles=["paranoid"])
    assert only.holds_both_ways(personas["paranoid"])
    assert not only.holds_both_ways(personas["rule_defiant"])
