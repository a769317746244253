"""What the engine is asked, and under which identity its rows are kept."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue import load_personas, load_profile, load_variants
from steer_pipeline.lab.generation.jobs import FinishedRow
from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA, RewriteRow
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.rewrites import work
from steer_pipeline_tests.lab.rewrites.packs import news


@pytest.fixture(scope="module")
def profile():
    return load_profile("newsroom")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from steer_pipeline.lab.models.loading import load_model
    from steer_pipeline_tests.tiny import tiny_model_dir

    folder = tiny_model_dir(tmp_path_factory.mktemp("models"))
    return load_model(load_profile("newsroom").model.model_copy(update={"path": str(folder)}), folder)


def test_only_prompted_variants_have_a_system_turn_of_their_own(profile, model):
    personas, variants = load_personas(), load_variants(profile)
    rows = work.prompts(news(2), variants, profile, personas, model)
    assert [row.row_id for row in rows] == ["0" * 16, "0" * 15 + "1"]
    assert set(rows[0].ids) == {"*", "prompted_paranoid"}
    neutral, asked = (model.tokenizer.decode(rows[0].ids[name]) for name in ("*", "prompted_paranoid"))
    assert profile.rewrites.system in neutral
    assert personas["paranoid"].positive.instructions[0] in asked
    assert all("council of Northport" in text for text in (neutral, asked))


def test_braces_in_the_news_are_text(profile):
    assert work.user_turn(profile, "a {text} {0}") == "Rewrite: a {text} {0}"


def test_finished_rows_become_packs_sorted_by_source_index_with_their_identity(profile):
    term = SteeringTerm("paranoid", np.ones(4, np.float32) / 2, Site(2), 2.5, 0.3, "abc")
    plans = {
        "base": ("base", SteeringPlan("base")),
        "paranoid": ("paranoid", SteeringPlan("paranoid", (term,))),
    }
    identities = {name: work.identity(profile, "h", plan) for name, plan in plans.values()}
    finished = [
        FinishedRow(f"{i:016x}", variant, f"{variant} {i}", [1], 5, 2, "eos", False, 20)
        for i in (3, 1, 2)
        for variant in ("paranoid", "base")
    ]
    packs = work.pack_rows(finished, news(), identities, plans, "tiny", profile, "pilot", "{}", {})
    assert packs["paranoid"].schema == REWRITE_SCHEMA
    assert packs["paranoid"]["output"].to_list() == ["paranoid 1", "paranoid 2", "paranoid 3"]
    assert packs["paranoid"]["personas"][0].to_list() == [
        {"name": "paranoid", "version": "abc", "block": 2, "alpha": 2.5, "dose_fraction": 0.3, "site": None}
    ]
    for name, pack in packs.items():
        assert work.identity_of(pack) == identities[name]
        assert work.identity_of(pack.head(1)).recipe == identities[name].recipe


def test_a_logit_bias_is_another_recipe_and_survives_the_pack(profile):
    def plan(kind):
        term = SteeringTerm("paranoid", np.ones(4, np.float32) / 2, Site(2, kind), 2.5, 0.3, "abc")
        return SteeringPlan("paranoid", (term,))

    def made(kind):
        return work.identity(profile, "h", plan(kind))

    assert made("logits").recipe != made("output").recipe
    for kind, told in (("logits", "logits"), ("output", None)):
        finished = [FinishedRow(f"{1:016x}", "paranoid", "text", [1], 5, 2, "eos", False, 20)]
        plans = {"paranoid": ("paranoid", plan(kind))}
        packs = work.pack_rows(
            finished, news(), {"paranoid": made(kind)}, plans, "tiny", profile, "pilot", "{}", {}
        )
        pack = packs["paranoid"]
        assert pack["personas"][0][0]["site"] == told
        RewriteRow.model_validate(pack.row(0, named=True))
        assert work.identity_of(pack) == made(kind)
    (dose,) = pack["personas"][0]
    before = {
        name: value for name, value in dose.items() if name != "site"
    }  # a pack of before there were sites
    unaware = pack.with_columns(personas=pl.Series([[before]]))
    assert work.identity_of(unaware).recipe == made("output").recipe


def test_rows_of_several_random_directions_are_one_pack_and_one_recipe(profile):
    """Each row says which direction it got; the recipe, by which a pilot's gates let the full pack pass, does not."""
    term = SteeringTerm("random:paranoid", np.ones(4, np.float32) / 2, Site(2), 2.5, 0.3, "random-1")
    drawn = [
        SteeringPlan(
            f"random_direction~{draw}", (replace(term, version=f"random-{draw}"),), stream="random_direction"
        )
        for draw in range(2)
    ]
    plans = {plan.variant: ("random_direction", plan) for plan in drawn}
    identities = {"random_direction": work.identity(profile, "h", drawn[0])}
    finished = [
        FinishedRow(f"{i:016x}", drawn[i % 2].variant, f"text {i}", [1], 5, 2, "eos", False, 20)
        for i in range(4)
    ]
    pack = work.pack_rows(finished, news(), identities, plans, "tiny", profile, "pilot", "{}", {})[
        "random_direction"
    ]
    assert [row[0]["version"] for row in pack["personas"]] == ["random-0", "random-1", "random-0", "random-1"]
    assert set(pack["variant"]) == {"random_direction"}
    assert work.identity_of(pack.tail(1)).recipe == work.identity_of(pack).recipe
    assert work.identity_of(pack).recipe == identities["random_direction"].recipe


def test_a_change_of_dose_or_prompt_or_decoding_is_another_recipe(profile):
    def recipe(profile=profile, decoding="h", alpha=2.5, system="Be neutral."):
        term = SteeringTerm("paranoid", np.ones(4, np.float32) / 2, Site(2), alpha, 0.3, "abc")
        hashed = work.settings_hash(decoding, profile, system)
        return work.identity(profile, hashed, SteeringPlan("paranoid", (term,))).recipe

    other_prompt = profile.model_copy(
        update={"rewrites": profile.rewrites.model_copy(update={"prompt": "Say: {text}"})}
    )
    more_rows = profile.model_copy(update={"rewrites": profile.rewrites.model_copy(update={"pilot_rows": 7})})
    changed = [recipe(alpha=2.6), recipe(decoding="i"), recipe(other_prompt), recipe(system="Be wary.")]
    assert len({recipe(), *changed}) == 5
    assert recipe(more_rows) == recipe()


def test_an_empty_pack_has_no_identity():
    with pytest.raises(ValueError, match="empty pack"):
        work.identity_of(pl.DataFrame(schema=REWRITE_SCHEMA))
