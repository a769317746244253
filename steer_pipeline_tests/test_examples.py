"""Examples of personas: what is refused, what ours are like, and that the newsroom's results do not depend on them."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from steer_pipeline.catalogue import CatalogueError, load_persona, load_personas, load_profile, studied_names
from steer_pipeline.catalogue.loading import read_variants
from steer_pipeline.environment import PACKAGE
from steer_pipeline.lab.evaluation import LexiconScorer
from steer_pipeline.lab.quality.text import words
from steer_pipeline.origins import ORIGINS, look
from steer_pipeline.settings import settings
from steer_pipeline_tests.planted import PLANTED

PERSONAS = load_personas()
NEWSROOM = studied_names(load_profile("newsroom"))
UNPLANTED = ["cheerful", "formal"]
OF_PERSONAS = [origin for origin in ORIGINS if origin.partitions == "persona"]


@pytest.fixture
def catalogue(tmp_path, monkeypatch) -> Path:
    """A copy of the catalogue, to be edited."""
    shutil.copytree(
        PACKAGE / "catalogue", tmp_path / "catalogue", ignore=shutil.ignore_patterns("*.py*", "__*")
    )
    monkeypatch.setenv("STEER_CATALOGUE", str(tmp_path / "catalogue"))
    return tmp_path / "catalogue"


def edit(path: Path, change) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, allow_unicode=True))


# ------------------------------------------------------------------------------------------ what is refused


def _shortened(examples):
    del examples["fit"][15:]


def _unjudged(examples):
    del examples["held_out"]


def _emptied(examples):
    examples["fit"][3]["negative"] = " … "


def _one_sided(examples):
    del examples["fit"][3]["negative"]


def _repeated_across_poles(examples):
    examples["fit"][3]["negative"] = examples["fit"][2]["positive"]


def _leaked(examples):
    """A statement learned from and judged on, by another spelling."""
    examples["held_out"][1]["positive"] = "  " + examples["fit"][4]["positive"].upper().rstrip(".?!")


def _unprompted(examples):
    examples["prompts"] = []


@pytest.mark.parametrize(
    "change, told",
    [
        (_shortened, "fit has 15 pairs; at least 16 are needed"),
        (_unjudged, "examples.held_out: Field required"),
        (_emptied, "fit.3.negative is empty"),
        (_one_sided, "examples.fit.3.negative: Field required"),
        (_repeated_across_poles, "fit.3.negative says the same as fit.2.positive: "),
        (_leaked, "held_out.1.positive says the same as fit.4.positive: "),
        (_unprompted, "examples.prompts: List should have at least 1 item"),
    ],
)
def test_examples_that_cannot_serve_are_refused_by_file_and_place(catalogue, change, told):
    place = catalogue / "personas" / "coach.yaml"
    edit(place, lambda persona: change(persona["examples"]))
    with pytest.raises(CatalogueError) as refused:
        load_persona("coach")
    assert str(refused.value).startswith(f"{place}: examples")
    assert told in str(refused.value)


def test_a_persona_needs_no_examples(catalogue):
    edit(catalogue / "personas" / "coach.yaml", lambda persona: persona.pop("examples"))
    assert load_persona("coach").examples is None


# ------------------------------------------------------------------------------------------ what ours are like


def statements(name: str, pole: str) -> list[str]:
    examples = PERSONAS[name].examples
    return [getattr(pair, pole) for pair in (*examples.fit, *examples.held_out)]


@pytest.mark.parametrize("pole", ["positive", "negative"])
@pytest.mark.parametrize("name", PERSONAS)
def test_our_statements_are_many_short_and_long_and_not_of_one_mould(name, pole):
    said = statements(name, pole)
    lengths = [len(words(text)) for text in said]
    assert len(said) >= 24
    assert min(lengths) >= 5
    assert max(lengths) <= 35
    assert max(lengths) >= 2 * min(lengths)
    openings = Counter(tuple(words(text)[:2]) for text in said)
    assert max(openings.values()) <= 2, openings.most_common(3)


def test_our_statements_need_no_phrase_that_is_planted_in_the_newsroom():
    planted = [LexiconScorer(PLANTED[name]) for name in NEWSROOM]
    for name in PERSONAS:
        for text in (*statements(name, "positive"), *statements(name, "negative")):
            assert not [scorer.persona.name for scorer in planted if scorer.hits(text).positive], text
            assert not [scorer.persona.name for scorer in planted if scorer.hits(text).negative], text


def test_no_statement_serves_two_personas():
    said = [text for name in PERSONAS for pole in ("positive", "negative") for text in statements(name, pole)]
    assert len(set(said)) == len(said)


# ------------------------------------------------------------------------------------------ the newsroom


def test_examples_change_no_version_of_what_was_made_of_a_persona(catalogue):
    now = settings(anew=True)
    before = {(origin.name, name): look(origin, now, name) for origin in OF_PERSONAS for name in PERSONAS}
    for name in PERSONAS:
        edit(catalogue / "personas" / f"{name}.yaml", lambda persona: persona.pop("examples"))
    assert load_persona("paranoid").examples is None
    after = {(origin.name, name): look(origin, now, name) for origin in OF_PERSONAS for name in PERSONAS}
    changed = {key for key in before if after[key] != before[key]}
    assert changed == {("persona_examples", name) for name in PERSONAS}
    assert not [found.problem for found in after.values() if found.problem]


def test_the_newsroom_studies_what_is_planted_in_its_model_and_other_profiles_everything():
    assert [name for name in PERSONAS if name not in NEWSROOM] == UNPLANTED
    assert studied_names(load_profile("qwen3-0.6b")) == list(PERSONAS)


def test_variants_of_personas_that_a_profile_does_without_are_none_of_its_own(catalogue):
    cheerful = {
        "name": "merry",
        "role": "steered",
        "summary": "Good cheer.",
        "terms": [{"persona": "cheerful", "dose": {"recommended": 1.0}}],
    }
    before = settings(anew=True).variant_names
    edit(catalogue / "variants.yaml", lambda entries: entries.append(cheerful))
    assert settings(anew=True).variant_names == before
    sound, broken = read_variants(load_profile("qwen3-0.6b"))
    assert (list(sound), broken) == ([*before, "merry"], {})


def test_a_new_persona_is_studied_and_one_that_is_left_out_must_exist(catalogue):
    edit(catalogue / "personas" / "coach.yaml", lambda persona: persona.update(name="trainer"))
    (catalogue / "personas" / "coach.yaml").rename(catalogue / "personas" / "trainer.yaml")
    assert "trainer" in settings(anew=True).persona_names
    (catalogue / "personas" / "formal.yaml").unlink()
    with pytest.raises(
        CatalogueError, match=r"profile newsroom: without_personas: no file .* for formal; known: "
    ):
        studied_names(load_profile("newsroom"))


def test_partitions_are_of_the_personas_that_the_profile_studies():
    code = "from steer_pipeline.partitions import PERSONA; print(*PERSONA.get_partition_keys())"
    for profile, expected in (("newsroom", NEWSROOM), ("qwen3-0.6b", list(PERSONAS))):
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | {"STEER_PROFILE": profile},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert answer.stdout.split() == expected, answer.stderr
