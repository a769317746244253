"""A generated pair counts when both sides show their pole; what does not count stays, with its reason."""

import polars as pl
import pytest

from steer_pipeline.catalogue import load_persona
from steer_pipeline.catalogue.specs import ModelSpec, Profile, ScaleSpec
from steer_pipeline.lab.evaluation import Judgement
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.personas.claims import contrast_shows
from steer_pipeline.lab.personas.contrast import ContrastError
from steer_pipeline.lab.personas.filtering import UNFILTERED, filter_generated, require_enough
from steer_pipeline.lab.personas.schema import CONTRAST_SCHEMA, counted, kept, voiced
from steer_pipeline.lab.personas.steps import make_contrast
from steer_pipeline_tests.lab.personas.builders import persona
from steer_pipeline_tests.tiny import tiny_model_dir

PARANOID = load_persona("paranoid")


def said(texts: list[tuple[str, str]], source: str = "generated") -> pl.DataFrame:
    """Rows in which the two sides of context i say texts[i]; every third is held out."""
    rows = [
        {
            "context_id": f"c{number:02}",
            "pair_id": f"c{number:02}",
            "split": "held_out" if number % 3 == 0 else "train",
            "side": side,
            "user": f"question {number}",
            "completion": text,
            "source": source,
        }
        for number, pair in enumerate(texts)
        for side, text in zip(("positive", "negative"), pair, strict=True)
    ]
    return pl.DataFrame(rows, schema=CONTRAST_SCHEMA)


def test_pairs_count_when_both_sides_show_their_pole_on_the_scale_of_the_examples():
    plain = [PARANOID.examples.held_out[number] for number in (0, 2, 6, 7, 5, 9)]
    shown = [(one.positive, one.negative) for one in plain[:4]]
    swapped = [(one.negative, one.positive) for one in plain[4:]]
    positive_only = [(plain[0].positive, plain[4].positive)]
    rows, by = filter_generated(said(shown + swapped + positive_only), PARANOID)
    assert by == "a scale fitted on the persona's examples"
    assert rows.height == 14, "what does not count stays to be read"
    reasons = rows.filter(side="positive")["dropped"].to_list()
    assert reasons[:4] == [None] * 4
    assert reasons[4:] == ["neither side shows its pole"] * 2 + ["the negative side does not show its pole"]
    assert rows.filter(side="negative")["dropped"].to_list() == reasons
    assert kept(rows).height == 8
    assert counted(rows)["contexts"].to_list() == [4, 2, 1]


def test_without_examples_the_judge_decides_and_without_a_judge_nothing():
    trait = persona(kind="trait")
    rows = said([("up", "down"), ("up", "up"), ("REFUSAL", "down")])

    def ask(pairs):
        assert pairs[0] == ("question 0", "up")
        scores = {"up": 90, "down": 10, "REFUSAL": None}
        return [Judgement(scores[text], "scored") for _, text in pairs]

    judged, by = filter_generated(rows, trait, ask)
    assert by == "the judge"
    assert judged.filter(side="positive")["dropped"].to_list() == [
        None,
        "the negative side does not show its pole",
        "no score",
    ]
    untouched, by = filter_generated(rows, trait)
    assert (untouched.equals(rows), by) == (True, UNFILTERED)


def test_too_few_kept_pairs_name_numbers_reasons_and_the_cure():
    rows = said([("a", "b")] * 9).with_columns(
        dropped=pl.when(pl.col("context_id") > "c02").then(pl.lit("neither side shows its pole"))
    )
    with pytest.raises(
        ContrastError,
        match=r"of 9 generated pairs, 3 count \(2 to fit and 1 held out, at least 4 .* neither side shows its pole "
        r"\(6\).*set contrast\.source: pairs",
    ):
        require_enough(rows, "a scale")
    require_enough(said([("a", "b")] * 12), "a scale")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder))), folder)


def profile(**contrast) -> Profile:
    sizes = {"n_contexts": 16, "max_new_tokens": 6}
    return Profile.model_validate(
        {"name": "p", "summary": "s", "model": {"path": "m"}, "contrast": sizes | contrast}
    )


def test_a_model_that_ignores_its_instructions_gets_the_cure_unless_another_source_is_there(model, tmp_path):
    with pytest.raises(ContrastError, match=r"of 16 generated pairs.*set contrast\.source: pairs"):
        make_contrast(model, PARANOID, profile(), pl.DataFrame(), tmp_path)
    made = make_contrast(model, PARANOID, profile(source=["generated", "pairs"]), pl.DataFrame(), tmp_path)
    assert made.filtered_by == "a scale fitted on the persona's examples"
    generated = made.rows.filter(source="generated")
    assert generated.height == 32
    assert generated["dropped"].is_not_null().any()
    assert kept(made.rows).filter(source="pairs").height == made.rows.filter(source="pairs").height
    unfiltered = make_contrast(model, PARANOID, profile(filter=False), pl.DataFrame(), tmp_path)
    assert unfiltered.rows["dropped"].is_null().all()
    assert unfiltered.filtered_by == ""


def test_scorers_see_generated_rows_that_count_and_given_texts_once_where_there_are_none():
    generated = said([("a", "b")] * 3).with_columns(
        dropped=pl.when(pl.col("context_id") == "c01").then(pl.lit("because"))
    )
    given = said([("x", "y"), ("x", "y"), ("v", "w")], "pairs")
    given = given.with_columns(
        pair_id=pl.when(pl.col("completion").is_in(["x", "y"])).then(pl.lit("p")).otherwise(pl.lit("q"))
    )
    assert voiced(pl.concat([generated, given]))["context_id"].to_list() == ["c00", "c00", "c02", "c02"]
    assert voiced(given)["completion"].to_list() == ["x", "y", "v", "w"]
    assert voiced(said([("a", "a")], "prefill")).is_empty()


def test_rows_of_an_older_version_say_what_to_do():
    with pytest.raises(ValueError, match="older version: materialise contrast_set again"):
        kept(said([("a", "b")]).drop("dropped"))


def test_whether_the_model_shows_the_contrast_is_asked_of_all_that_it_said_and_of_nothing_else():
    told = [("a hidden plot", "sincere")] * 6 + [("nothing", "nothing")] * 6
    rows = said(told).with_columns(
        dropped=pl.when(pl.col("completion") == "nothing").then(pl.lit("neither side shows its pole"))
    )
    assert contrast_shows(rows, persona(), ScaleSpec()).numbers["auc"] < 1
    assert contrast_shows(kept(rows), persona(), ScaleSpec()).numbers["auc"] == 1
    given = contrast_shows(said(told, "pairs"), persona(), ScaleSpec())
    assert given.passed
    assert "given" in given.message
