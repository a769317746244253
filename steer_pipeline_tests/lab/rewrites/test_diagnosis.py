"""A model that does the job is told from one that does not, in seconds, with reasons, cures and the time to expect."""

from dataclasses import replace

import polars as pl
import pytest

from steer_pipeline.catalogue import load_profile, load_variants
from steer_pipeline.environment import project_home
from steer_pipeline.lab.corpus import row_id
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.rewrites.diagnosis import (
    Diagnosis,
    diagnose,
    diagnosis_verdicts,
    load_diagnosis,
    save_diagnosis,
)
from steer_pipeline.lab.rewrites.expected import expected_seconds, lines
from steer_pipeline.lab.units import shown_seconds
from steer_pipeline_tests.tiny import tiny_model_dir

SHIPPED = project_home() / "assets_data" / "newsroom"
NEWSROOM = load_profile("newsroom")
MODEST = Diagnosis(  # as SmolLM2-135M was measured
    model="modest",
    device="cpu",
    dtype="float32",
    backend="torch",
    n_blocks=30,
    takes_system_turn=True,
    rows=8,
    rewrites=32,
    judged=32,
    without_fact=3,
    facts_kept=0.6,
    suspects=0.25,
    ended=0.9,
    copies=0.03,
    prompt_tokens=200.0,
    prefill_rate=100.0,
    decode_rate=50.0,
    weights_bytes=538_000_000,
    cache_bytes=46_080,
    free_bytes=4_000_000_000,
)


def profile(path: str, **diagnosis):
    """The newsroom's, small, with another model."""
    sampling = NEWSROOM.rewrites.sampling.model_copy(update={"max_new_tokens": 96})
    return NEWSROOM.model_copy(
        update={
            "model": NEWSROOM.model.model_copy(update={"path": path, "device": "cpu"}),
            "rewrites": NEWSROOM.rewrites.model_copy(update={"sampling": sampling}),
            "diagnosis": NEWSROOM.diagnosis.model_copy(update={"n_rows": 2, **diagnosis}),
        }
    )


def shipped() -> pl.DataFrame:
    news = pl.read_parquet(SHIPPED / "news.parquet").head(4)
    ids = [row_id(url, text) for url, text in news.select("url", "text").iter_rows()]
    return news.select("text").with_columns(row_id=pl.Series(ids))


def diagnosed(path: str):
    given = profile(path)
    model = load_model(given.model, project_home())
    return *diagnose(model, given, shipped(), SHIPPED / "facts.parquet"), given


def failed(found: Diagnosis, given) -> dict[str, str]:
    return {one.claim: one.message for one in diagnosis_verdicts(found, given) if not one.passed}


def test_the_newsroom_does_the_job(tmp_path):
    found, rows, given = diagnosed(NEWSROOM.model.path)
    assert found.facts_kept > 0.9
    assert (found.rows, found.rewrites, rows.height) == (2, 8, 8)
    assert found.takes_system_turn
    assert 0 < found.decode_rate <= found.prefill_rate
    assert not failed(found, given)
    save_diagnosis(found, rows, tmp_path)
    assert load_diagnosis(tmp_path) == found


def test_random_weights_ignore_their_prompt_and_it_is_said(tmp_path):
    found, rows, given = diagnosed(str(tiny_model_dir(tmp_path)))
    assert failed(found, given)["base_follows_the_prompt"] == (
        "base keeps no fact of its source in 8 of 8 rewrites (at least 20% of the facts is needed): the model does not "
        "follow the rewrite prompt"
    )
    assert rows["kept"].list.len().sum() == 0
    assert rows["source_text"][0].startswith(shipped()["text"][0][:20])
    switched_off = given.model_copy(update={"diagnosis": profile("", min_facts_kept=None).diagnosis})
    assert "base_follows_the_prompt" not in failed(found, switched_off)


def test_a_modest_model_passes_with_warnings_and_cures():
    verdicts = {one.claim: one for one in diagnosis_verdicts(MODEST, NEWSROOM)}
    assert {name for name, one in verdicts.items() if not one.passed} == {
        "base_keeps_the_facts",
        "base_is_clean",
    }
    assert "keeps 60% of the facts" in verdicts["base_keeps_the_facts"].message
    assert "25% of base's rewrites are suspect, the gate's limit is 1%" in verdicts["base_is_clean"].message
    assert all(one.cure for one in verdicts.values())


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"facts_kept": 0.1}, "base_follows_the_prompt"),
        ({"ended": 0.4}, "answers_end_by_themselves"),
        ({"copies": 0.6}, "rewrites_are_no_copies"),
        ({"free_bytes": 2_000_000_000}, "a_batch_fits_into_memory"),
    ],
)
def test_each_weakness_has_its_verdict(change, claim):
    assert claim not in failed(MODEST, NEWSROOM)
    assert claim in failed(replace(MODEST, **change), NEWSROOM)


def test_one_suspect_of_32_is_no_evidence_against_base():
    assert "base_is_clean" not in failed(replace(MODEST, suspects=1 / 32), NEWSROOM)


def test_what_cannot_be_judged_is_not_held_against_the_model():
    unknown = replace(MODEST, facts_kept=None, judged=0, without_fact=0, cache_bytes=None)
    verdicts = {one.claim: one for one in diagnosis_verdicts(unknown, NEWSROOM)}
    for claim in ("base_follows_the_prompt", "a_batch_fits_into_memory"):
        assert verdicts[claim].passed
        assert verdicts[claim].message.startswith("not judged")


def test_the_time_to_expect_is_counted_in_tokens():
    """Base alone: 50 rows of 200 tokens read twice, 96 each written and read, and nothing of any persona."""
    variants = load_variants()
    alone = expected_seconds(MODEST, NEWSROOM, {"base": variants["base"]})
    assert alone == {
        "contrast_set": 0,
        "persona_vector": 0,
        "dose_curve": 0,
        "rewrite_raw": pytest.approx(50 * (2 * 200 + 96) / 100 + 50 * 96 / 50),
        "random_band": 0,
    }
    both = expected_seconds(MODEST, NEWSROOM, {name: variants[name] for name in ("base", "paranoid")})
    assert both["contrast_set"] == pytest.approx(2 * 256 * (200 / 100 + 40 / 50))
    assert alone["rewrite_raw"] < both["rewrite_raw"] < 2 * alone["rewrite_raw"], "prompts are shared in part"


def test_given_texts_a_coarse_pass_and_fewer_random_directions_cost_less():
    def spent(**sections) -> dict[str, float]:
        changed = {
            name: getattr(NEWSROOM, name).model_copy(update=update) for name, update in sections.items()
        }
        return expected_seconds(MODEST, NEWSROOM.model_copy(update=changed), load_variants())

    usual = spent()
    given = spent(contrast={"source": ("pairs",)})
    assert given["contrast_set"] == 0, "nothing is generated"
    assert 0 < given["persona_vector"] < usual["persona_vector"]
    coarse = spent(dose={"refine": True, "coarse_rows": 4})
    assert coarse["dose_curve"] < usual["dose_curve"]
    assert spent(dose={"n_random": 1})["dose_curve"] < usual["dose_curve"]
    assert spent(rewrites={"band_directions": 0})["random_band"] == 0 < usual["random_band"]


def test_a_few_lines_tell_it_all():
    text = "\n".join(lines(MODEST, {"contrast_set": 600.0, "rewrite_raw": 6000.0}))
    assert (
        "base over 32 rewrites: keeps 60% of the facts, 25% suspect, 90% end by themselves, 3% copy" in text
    )
    assert "about 1.8 h from nothing: contrast_set 10 min, rewrite_raw 1.7 h" in text
    assert "weights 538 MB, 46 MB per 1000 tokens, 4.0 GB free" in text
    assert shown_seconds(40) == "40 s"
