"""A persona's scales: its lexicon first, MiniLM on its examples or its contrast set, none that is always the same."""

import polars as pl
import pytest

from steer_pipeline.catalogue import load_persona
from steer_pipeline.catalogue.specs import ScaleSpec
from steer_pipeline.lab.evaluation import ScaleError, needs_contrast, require_telling, trait_scales
from steer_pipeline_tests.planted import PLANTED

PARANOID = load_persona("paranoid")  # without the newsroom's phrases
BARE = PARANOID.model_copy(update={"examples": None})
EXAMPLES, CONTRAST = ScaleSpec(), ScaleSpec(minilm="contrast_set")


def contrast(n: int = 12) -> pl.DataFrame:
    said = {
        "positive": "They hide the truth about item {}.",
        "negative": "Everyone was open and kind about item {}.",
    }
    return pl.DataFrame(
        [
            {"context_id": f"c{i:02d}", "side": side, "completion": text.format(i), "source": "generated"}
            for i in range(n)
            for side, text in said.items()
        ]
    ).with_columns(dropped=pl.lit(None, dtype=pl.String), pair_id=pl.col("context_id"))


def test_the_lexicon_leads_where_there_is_one_and_minilm_stands_beside_it():
    found = trait_scales(PLANTED["paranoid"], CONTRAST, contrast())
    assert list(found.scorers) == ["lexicon", "minilm"]
    assert found.headline == "lexicon"
    assert found.scorer.shows("They never tell of the hidden hands.")
    assert list(trait_scales(PLANTED["paranoid"], CONTRAST, contrast(), headline_only=True).scorers) == [
        "lexicon"
    ]


def test_without_a_lexicon_the_scale_is_fitted_on_examples_and_needs_no_text_of_the_model():
    assert not needs_contrast(PARANOID, EXAMPLES)
    found = trait_scales(PARANOID, EXAMPLES, None)
    assert (found.headline, found.note) == ("minilm", "MiniLM is fitted on the persona's examples")
    dark, light = found.scorer.score_many(
        ["They are lying to all of us.", "You can trust these honest people."]
    )
    assert dark > light


def test_a_persona_without_examples_falls_back_to_its_contrast_set_and_says_so():
    assert needs_contrast(BARE, EXAMPLES)
    found = trait_scales(BARE, EXAMPLES, contrast())
    assert found.note == "MiniLM is fitted on the persona's contrast set, for it has no examples"
    assert found.scorer.score_many(["They hide the truth about it."])[0] > 0


def test_a_persona_without_any_scale_is_told_how_to_get_one():
    for rows, why in (
        (None, "there is no contrast set"),
        (contrast(2), "cannot be fitted on its contrast set"),
    ):
        found = trait_scales(BARE, EXAMPLES, rows)
        assert not found.scorers
        with pytest.raises(ScaleError, match=f"persona paranoid has no scale.*{why}.*give it `examples`"):
            _ = found.headline


def test_scores_that_are_all_the_same_are_refused_with_a_cure_for_each_scale():
    require_telling("paranoid", "lexicon", [0.0, 0.0, 0.1])
    require_telling("paranoid", "minilm", [0.3])  # one text cannot be told from itself
    with pytest.raises(ScaleError, match=r"scores all 3 texts of this run 0, none has a marker"):
        require_telling("paranoid", "lexicon", [0.0, 0.0, 0.0])
    with pytest.raises(ScaleError, match=r"minilm scores all 2 texts of this run 0\.3"):
        require_telling("paranoid", "minilm", [0.3, 0.3])
