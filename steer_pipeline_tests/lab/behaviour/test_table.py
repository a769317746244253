"""The table finds what is there, finds nothing where nothing is, and keeps scales and failures apart."""

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from steer_pipeline.lab.behaviour.agreement import quadratic_kappa, spearman
from steer_pipeline.lab.behaviour.figures import label_scales
from steer_pipeline.lab.behaviour.report import headline_rows, read_tables, summary_text, write_behaviour
from steer_pipeline.lab.behaviour.schema import DOWN, NONE, UP, PersonaRows, TableError
from steer_pipeline.lab.behaviour.table import (
    MIN_EFFECT,
    arms_table,
    joined,
    make_tables,
    minilm_headline,
    summarise,
)
from steer_pipeline.lab.controls import MOVED
from steer_pipeline_tests.lab.behaviour.builders import ARMS, stored_rollouts, stored_scores

FAST = {"seed": 50, "n_boot": 1000}


def scored(shifts: dict[str, float], seed: int = 0, noise: float = 0.08, **kwargs) -> PersonaRows:
    """Stored rows whose scores are 0.1 plus an arm's shift (by arm, or arm@scale), question effects and noise."""
    rng, rollouts = np.random.default_rng(seed), stored_rollouts(**kwargs)
    by_question = rng.normal(0, 0.05, rollouts["question_index"].max() + 1)
    values = []
    for row in rollouts.iter_rows(named=True):
        named = row["arm"] if row["scale"] is None else f"{row['arm']}@{row['scale']:g}"
        shift = shifts.get(named, shifts.get(row["arm"].partition("_")[0], 0.0))
        values.append(0.1 + shift + by_question[row["question_index"]] + rng.normal(0, noise))
    values = np.clip(values, 0, 1)
    rollouts = rollouts.with_columns(trait_truth=pl.Series(np.where(np.array(values) > 0.35, 0.5, 0.0)))
    return PersonaRows(rollouts, stored_scores(rollouts, values))


def judged(rollouts: pl.DataFrame, scores, statuses=None, top: int = 3) -> pl.DataFrame:
    statuses = statuses or ["scored"] * rollouts.height
    given = [score if status == "scored" else None for score, status in zip(scores, statuses, strict=True)]
    return rollouts.select("row_id", "persona").with_columns(
        pl.Series("score", given, dtype=pl.Int64), pl.Series("status", statuses), scale_max=pl.lit(top)
    )


STEERED = {"prompted": 0.7, "trained@0.5": 0.3, "trained@1": 0.6, "trained@1.5": 0.7, "averaged@1": 0.25}


@pytest.fixture(scope="module")
def tables():
    return make_tables({"sailor": scored(STEERED)}, **FAST)


def test_real_effects_are_found_with_their_sign_and_no_others(tables):
    verdicts = {
        row["arm_name"]: row["verdict"] for row in tables.of("sailor", "minilm").iter_rows(named=True)
    }
    up = {
        "trained@0.5",
        "trained@1",
        "trained@1.5",
        "averaged@1",
        "prompted",
        *(f"prompted_{i}" for i in range(5)),
    }
    assert {name for name, verdict in verdicts.items() if verdict == UP} == up
    assert {name for name, verdict in verdicts.items() if verdict == NONE} == set(verdicts) - up - {"vanilla"}
    assert verdicts["vanilla"] is None
    down = make_tables(
        {"sailor": scored({"trained@-1": -0.5, "vanilla": 0.5, "prompted": 0.6, "trained": 0.5})}, **FAST
    )
    assert down.arm("sailor", "minilm", "trained@-1")["verdict"] == DOWN


@pytest.mark.parametrize("shift, least", [(0.1, 12), (0.2, 19)])
def test_power_a_shift_above_the_noise_of_a_difference_is_found(shift, least):
    found = 0
    for run in range(20):
        rows = joined("sailor", scored({"prompted": 0.7, "trained@1": shift}, seed=run, noise=0.08))
        arm = summarise(rows, seed=run, n_boot=400).filter(metric="minilm", arm_name="trained@1")
        found += arm["verdict"][0] == UP
    assert found >= least  # the noise of one difference is 0.11


def test_noise_of_any_size_is_no_effect_in_95_of_100_runs():
    """All but the prompted arms are vanilla with noise far above the smallest effect."""
    kept = 0
    for run in range(100):
        rows = summarise(
            joined("sailor", scored({"prompted": 0.5}, seed=1000 + run, noise=0.2)), seed=run, n_boot=400
        )
        tested = rows.filter(
            pl.col("metric") == "minilm", pl.col("arm").is_in(["trained", "averaged", "random"])
        )
        kept += set(tested["verdict"]) == {NONE}
    assert kept >= 95


def test_the_gap_is_the_share_of_the_way_from_vanilla_to_prompted(tables):
    row = tables.arm("sailor", "minilm", "trained@1")
    assert row["trait_gap_closed"] == pytest.approx(0.6 / 0.7, abs=0.06)
    assert row["trait_gap_low"] < row["trait_gap_closed"] < row["trait_gap_high"]
    assert row["trait_gap_high"] - row["trait_gap_low"] < 0.2
    assert tables.arm("sailor", "minilm", "prompted")["trait_gap_closed"] == pytest.approx(1.0)
    assert tables.arm("sailor", "minilm", "vanilla")["trait_gap_closed"] == pytest.approx(0.0)
    assert tables.arm("sailor", "minilm", "random")["trait_gap_closed"] == pytest.approx(0.0, abs=0.06)


def test_random_directions_are_judged_together_over_personas_and_scales():
    """One direction in twelve that moves is the spread of directions; all of them are a control that moves."""
    quiet = make_tables(
        {"sailor": scored(STEERED), "coach": scored(STEERED, name="coach")}, **FAST
    ).control_shifts
    assert set(zip(quiet["part"], quiet["metric"], strict=True)) >= {
        ("sailor", "minilm"),
        ("coach", "minilm"),
    }
    assert MOVED not in set(quiet["state"])
    assert (quiet["margin"] >= MIN_EFFECT).all()
    moved = make_tables({"sailor": scored(STEERED | {"random": 0.4})}, **FAST).control_shifts
    assert moved.filter(metric="minilm")["state"].to_list() == [MOVED]


def test_without_an_effect_of_prompting_there_is_no_gap():
    flat = make_tables({"sailor": scored({"trained@1": 0.6})}, **FAST)
    assert flat.of("sailor", "minilm")["trait_gap_closed"].null_count() == len(ARMS) + 2
    assert flat.arm("sailor", "minilm", "trained@1")["verdict"] == UP


def test_sure_but_tiny_shifts_are_no_effect():
    tiny = make_tables({"sailor": scored({"prompted": 0.7, "trained@1": 0.01}, noise=0.0005)}, **FAST)
    row = tiny.arm("sailor", "minilm", "trained@1")
    assert row["p_holm"] < 0.05 < row["difference_low"] + 0.05
    assert row["verdict"] == NONE


def test_the_same_rows_and_seed_give_the_same_tables(tables):
    again = make_tables({"sailor": scored(STEERED)}, **FAST)
    assert again.summary.equals(tables.summary)
    assert again.agreement.equals(tables.agreement)


def test_every_interval_stands_on_questions(tables):
    summary = tables.summary
    assert summary["n_questions"].unique().to_list() == [20]
    assert (summary["low"] <= summary["mean"]).all()
    assert (summary["mean"] <= summary["high"]).all()
    single = summary.filter(pl.col("metric") == "minilm", ~pl.col("pooled"), pl.col("arm") != "vanilla")
    inner = single["difference_high"] - single["difference_low"]
    outer = single["simultaneous_high"] - single["simultaneous_low"]
    assert (outer > inner).all()
    assert (single["p_holm"] >= single["p"]).all()
    assert summary.filter("pooled", metric="minilm")["p"].null_count() == 2


def test_coherence_stands_beside_the_trait(tables):
    arms = arms_table(tables)
    assert arms.height == len(ARMS) + 2
    assert arms["perplexity"].to_list() == pytest.approx([np.exp(0.5)] * arms.height)
    assert set(arms["loop_rate"]) == {0.0}
    assert {"auc", "auc_low", "shuffled_high", "length_auc_before", "brier"} <= set(arms.columns)
    assert minilm_headline({"sailor": scored(STEERED).minilm}) == {"sailor": 0.95}


def test_minilm_and_truth_agree_where_they_do(tables):
    row = tables.agreement.row(0, named=True)
    assert (row["first"], row["second"], row["n_rows"]) == ("minilm", "truth", 20 * len(ARMS))
    assert row["auc"] > 0.99
    assert row["spearman_low"] < row["spearman"] < row["spearman_high"]
    rows = scored(STEERED)
    noise = stored_scores(rows.rollouts, np.random.default_rng(1).uniform(size=rows.rollouts.height))
    chance = make_tables({"sailor": PersonaRows(rows.rollouts, noise)}, **FAST).agreement.row(0, named=True)
    assert 0.4 < chance["auc"] < 0.6
    assert chance["auc_low"] < chance["auc"] < chance["auc_high"]


def test_measures_of_agreement_are_the_known_ones():
    from scipy.stats import spearmanr

    a, b = np.array([0.1, 0.4, 0.4, 0.9, 0.2]), np.array([1, 0, 2, 3, 0])
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman(a, np.ones(5)))
    assert quadratic_kappa(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3])) == 1.0
    assert quadratic_kappa(np.array([0, 0, 3, 3]), np.array([3, 3, 0, 0])) == pytest.approx(-1.0)
    assert np.isnan(quadratic_kappa(np.zeros(3), np.zeros(3)))


# --------------------------------------------------------------------------------------------- judges


def test_judge_scores_are_shares_of_their_scale_and_failures_are_counted_apart():
    rows = scored(STEERED)
    n, truth = rows.rollouts.height, rows.rollouts["trait_truth"].to_numpy()
    statuses = ["scored"] * n
    statuses[0], statuses[len(ARMS)], statuses[2 * len(ARMS)] = "refusal", "invalid", "missing"  # all vanilla
    scores = np.where(truth > 0, 3, 0).tolist()
    made = make_tables(
        {"sailor": PersonaRows(rows.rollouts, rows.minilm, judged(rows.rollouts, scores, statuses))}, **FAST
    )
    assert set(made.rows["judge"].drop_nulls()) == {0.0, 1.0}
    vanilla = made.judged.filter(arm_name="vanilla").row(0, named=True)
    fates = [vanilla[f"judge_{fate}"] for fate in ("scored", "refusal", "invalid", "missing", "not_asked")]
    assert fates == [17, 1, 1, 1, 0]
    assert made.arm("sailor", "judge", "vanilla")["n_questions"] == 17
    assert made.arm("sailor", "judge", "trained@1")["verdict"] == UP
    pairs = {(row["first"], row["second"]): row for row in made.agreement.iter_rows(named=True)}
    assert pairs["judge", "truth"]["auc"] == 1.0
    assert 0.5 < pairs["minilm", "judge"]["kappa"] <= 1.0
    assert pairs["minilm", "truth"]["kappa"] is None


def test_role_and_trait_scales_do_not_mix():
    """Scores of 0 to 3 and of 0 to 100 stood in one column (chatspace 1.10, 2.9)."""
    role, trait = scored(STEERED), scored(STEERED, name="creative", kind="trait")
    top = [100] * trait.rollouts.height
    both = make_tables(
        {
            "sailor": PersonaRows(role.rollouts, role.minilm, judged(role.rollouts, [3] * len(top))),
            "creative": PersonaRows(trait.rollouts, trait.minilm, judged(trait.rollouts, top, top=100)),
        },
        **FAST,
    )
    assert both.summary.filter(metric="judge")["mean"].unique().to_list() == [1.0]
    with pytest.raises(TableError, match="a role is judged on 0 to 3"):
        make_tables(
            {"sailor": PersonaRows(role.rollouts, role.minilm, judged(role.rollouts, top, top=100))}, **FAST
        )
    with pytest.raises(TableError, match="judge score 80 of 3"):
        make_tables(
            {"sailor": PersonaRows(role.rollouts, role.minilm, judged(role.rollouts, [80] * len(top)))},
            **FAST,
        )


def test_without_a_judge_everything_else_is_there(tables):
    assert "judge" not in set(tables.summary["metric"])
    assert tables.judged["judge_not_asked"].sum() == 20 * len(ARMS)
    rows = scored(STEERED)
    asked = judged(rows.rollouts, [None] * rows.rollouts.height, ["not_asked"] * rows.rollouts.height)
    made = make_tables({"sailor": PersonaRows(rows.rollouts, rows.minilm, asked)}, **FAST)
    assert made.summary.equals(tables.summary)


# ----------------------------------------------------------------------------------------- bad rows


def test_rows_that_do_not_go_together_are_named():
    rows = scored(STEERED)
    no_vanilla = rows.rollouts.filter(pl.col("arm") != "vanilla")
    own = rows.minilm.filter(pl.col("arm") != "vanilla")
    with pytest.raises(TableError, match="no vanilla arm"):
        make_tables({"sailor": PersonaRows(no_vanilla, own)}, **FAST)
    with pytest.raises(TableError, match="minilm_scores has 320 rows, 320 of the 340 rollouts"):
        make_tables({"sailor": PersonaRows(rows.rollouts, own)}, **FAST)
    with pytest.raises(TableError, match="null scores"):
        make_tables(
            {"sailor": PersonaRows(rows.rollouts, rows.minilm.with_columns(score=pl.lit(None, pl.Float64)))},
            **FAST,
        )
    partial = rows.rollouts.filter((pl.col("arm") != "vanilla") | (pl.col("question_index") > 0))
    scores = rows.minilm.filter(pl.col("row_id").is_in(partial["row_id"].implode()))
    with pytest.raises(TableError, match="vanilla lacks minilm for 1 questions"):
        make_tables({"sailor": PersonaRows(partial, scores)}, **FAST)
    with pytest.raises(TableError, match="materialise rollouts"):
        make_tables({}, **FAST)


def test_a_persona_without_averaged_arms_or_lexicon_is_compared_all_the_same():
    arms = [arm for arm in ARMS if arm[0] != "averaged"]
    rows = scored(STEERED, arms=arms)
    bare = PersonaRows(rows.rollouts.with_columns(trait_truth=pl.lit(None, pl.Float64)), rows.minilm)
    made = make_tables({"sailor": bare}, **FAST)
    assert not made.of("sailor", "truth").height
    assert made.agreement.is_empty()
    assert arms_table(made)["truth"].null_count() == len(arms) + 2


# ------------------------------------------------------------------------------------------- report


def test_the_report_says_what_the_tables_hold_and_what_they_were_made_from(tables, tmp_path):
    likelihood = pl.DataFrame(
        {
            "arm": ["trained"],
            "perplexity": [1.5],
            "nll_gap_closed": [0.8],
            "nll_gap_low": [0.7],
            "nll_gap_high": [0.9],
        }
    )
    written = write_behaviour(
        tables, {"rollouts[sailor]": "0123456789abcdef"}, tmp_path,
        likelihood={"sailor": likelihood}, missing={"sailor": "12 rows, 30 are needed"},
    )  # fmt: skip
    text = written.markdown.read_text()
    assert "`rollouts[sailor]` version `0123456789abcdef`" in text
    assert "No averaged arms: 12 rows, 30 are needed" in text
    assert "0.80 [0.70, 0.90]" in text
    learned = tables.arm("sailor", "minilm", "trained@1")
    closed, low, high = (learned[f"trait_gap_{name}"] for name in ("closed", "low", "high"))
    assert f"{closed:.2f} [{low:.2f}, {high:.2f}]" in text
    assert [path.name for path in written.plots] == ["dose_response.png", "trait_against_coherence.png"]
    for path in written.plots:
        assert f"plots/{path.name}" in text
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert read_tables(tmp_path).summary.equals(tables.summary)
    head = headline_rows(pl.read_parquet(tmp_path / "arms.parquet")).row(0, named=True)
    assert head["verdict"] == UP
    assert head["trait gap closed"] == closed
    page = written.html.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="plots/' not in page
    assert "NLL gap closed" in page
    assert "1 of 1 personas move up" in summary_text(
        pl.read_parquet(tmp_path / "arms.parquet"), tables.control_shifts
    )


def test_no_label_of_a_scale_covers_another_or_a_point():
    axes = Figure(figsize=(4, 3)).subplots()
    axes.set(xlim=(2, 4), ylim=(0, 1))
    names = [f"{arm}@{scale:g}" for arm in ("trained", "averaged") for scale in (0.5, 1.0, 1.5)]
    points = pl.DataFrame(
        {
            "arm_name": names,
            "family": ["trained"] * 3 + ["averaged"] * 3,
            "scale": [0.5, 1.0, 1.5] * 2,
            "perplexity": [3.0, 3.1, 3.2, 3.0, 3.12, 3.2],
            "score": [0.5, 0.52, 0.97, 0.46, 0.5, 0.95],
        }
    )
    axes.figure.draw_without_rendering()
    label_scales(axes, points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    places = axes.transData.transform(points.select("perplexity", "score").to_numpy())
    assert not any(box.contains(x, y) for box in boxes for x, y in places)


def test_a_judge_that_errs_is_corrected_by_gold_and_the_truth_is_inside():
    stored = scored(STEERED, n_questions=60)
    shows = stored.rollouts["trait_truth"].to_numpy() > 0
    luck = np.random.default_rng(3).random(len(shows))
    said = np.where(
        shows, luck < 0.8, luck < 0.3
    )  # finds four of five, and sees the trait in three plain ones of ten
    tables = make_tables(
        {
            "sailor": PersonaRows(
                stored.rollouts, stored.minilm, judged(stored.rollouts, np.where(said, 3, 0))
            )
        },
        **FAST,
    )
    vanilla, prompted = (
        tables.corrected.filter(arm_name=name).row(0, named=True) for name in ("vanilla", "prompted_0")
    )
    assert vanilla["sensitivity"] == pytest.approx(0.8, abs=0.08)
    assert vanilla["specificity"] == pytest.approx(0.7, abs=0.08)
    assert (vanilla["n_questions"], vanilla["n_gold"]) == (60, 18)
    for row in (vanilla, prompted):
        assert row["corrected_low"] <= row["truth"] <= row["corrected_high"]
        assert row["by_errors_low"] <= row["truth"] <= row["by_errors_high"]
        assert not row["judged_low"] <= row["truth"] <= row["judged_high"]


def test_without_judge_or_truth_nothing_is_corrected(tables, tmp_path):
    assert tables.corrected.is_empty()
    write_behaviour(tables, {}, tmp_path)
    (tmp_path / "corrected.parquet").unlink()  # as an older version left it
    assert read_tables(tmp_path).corrected.is_empty()
