"""What things are made of: an edit makes stale exactly what was made of it, and two profiles never meet."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from steer_pipeline.catalogue.loading import CatalogueError, load_profile, read_personas
from steer_pipeline.definitions import defs
from steer_pipeline.environment import PACKAGE, project_home
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.keys import key
from steer_pipeline.lineage import changes, made_of, sections_of
from steer_pipeline.observing import changed, observe
from steer_pipeline.origins import versions
from steer_pipeline.settings import settings
from steer_pipeline.staleness import Staleness

NEWSROOM = load_profile("newsroom")


@pytest.fixture
def catalogue(tmp_path, monkeypatch) -> Path:
    """A copy of the catalogue, and of the model that its profile names, to be edited."""
    folder = tmp_path / "catalogue"
    for name in ("personas", "profiles"):
        shutil.copytree(PACKAGE / "catalogue" / name, folder / name)
    shutil.copy(PACKAGE / "catalogue" / "variants.yaml", folder / "variants.yaml")
    shutil.copytree(project_home() / NEWSROOM.model.path, tmp_path / "model")
    edit(
        folder / "profiles" / "newsroom.yaml",
        lambda profile: profile["model"].update(path=str(tmp_path / "model")),
    )
    monkeypatch.setenv("STEER_CATALOGUE", str(folder))
    return folder


def edit(path: Path, change) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, allow_unicode=True))


def seen(instance: dg.DagsterInstance) -> set[tuple[str, str | None]]:
    """What has changed since it was last looked at, as `catalogue_watch` would report it."""
    events = list(changed(instance, settings(anew=True)))
    for event in events:
        instance.report_runless_asset_event(event)
    return {(event.asset_key.path[-1], event.partition) for event in events}


# ------------------------------------------------------------------------------- sections of the profile


def with_section(**sections) -> object:
    return NEWSROOM.model_copy(update=sections)


def test_a_code_version_changes_with_declared_sections_and_with_no_other():
    before = made_of("1", "rewrites.sampling", "corpus", profile=NEWSROOM)
    assert list(sections_of(before)) == ["corpus", "rewrites.sampling"]
    hotter = NEWSROOM.rewrites.sampling.model_copy(update={"temperature": 0.1})
    edited = with_section(rewrites=NEWSROOM.rewrites.model_copy(update={"sampling": hotter}))
    now = made_of("1", "rewrites.sampling", "corpus", profile=edited)
    assert changes(before, now) == ["profile section rewrites.sampling has changed"]
    unrelated = with_section(rewrites=NEWSROOM.rewrites.model_copy(update={"pilot_rows": 7}), summary="Else.")
    assert made_of("1", "rewrites.sampling", "corpus", profile=unrelated) == before


def test_what_differs_between_two_code_versions_is_said_in_words():
    assert changes("1 a=11 b=22", "2 a=11 c=33") == [
        "is now made of profile section c",
        "is no longer made of profile section b",
        "its code has changed (1 to 2)",
    ]
    with pytest.raises(AttributeError):
        made_of("1", "rewrites.temprature")


# ------------------------------------------------------------------------------- personas, variants, files


def test_an_edit_is_seen_as_the_one_thing_that_it_changes(catalogue):
    with dg.DagsterInstance.ephemeral() as instance:
        everything = seen(instance)
        assert {("persona_spec", "paranoid"), ("variant_spec", "base"), ("model_weights", None)} <= everything
        assert seen(instance) == set(), "looking twice reports nothing"
        paranoid, variants = catalogue / "personas" / "paranoid.yaml", catalogue / "variants.yaml"
        edit(paranoid, lambda persona: persona.update(summary="Another line for the UI."))
        assert seen(instance) == set()
        edit(paranoid, lambda persona: persona["positive"]["instructions"].append("Suspect everybody."))
        assert seen(instance) == {("persona_spec", "paranoid")}
        profile = catalogue / "profiles" / "newsroom.yaml"
        edit(profile, lambda content: content["lexicons"]["paranoid"]["positive"].append("shadow cabinet"))
        assert seen(instance) == {("persona_scale", "paranoid")}, (
            "the profile's lexicon is the persona's scale"
        )
        edit(paranoid, lambda persona: persona["positive"].update(lexicon=["never read here"]))
        assert seen(instance) == set(), "the profile's lexicon takes the place of the file's"
        edit(paranoid, lambda persona: persona["examples"]["held_out"][0].update(positive="They did it."))
        assert seen(instance) == {("persona_examples", "paranoid")}, (
            "this profile fits its scales on other texts"
        )
        edit(profile, lambda content: content.pop("scales"))
        assert ("persona_scale", "paranoid") in seen(instance)
        edit(
            paranoid,
            lambda persona: persona["examples"]["held_out"][0].update(positive="They know. They do."),
        )
        assert seen(instance) == {("persona_scale", "paranoid"), ("persona_examples", "paranoid")}
        edit(variants, lambda entries: entries[4]["terms"][0]["dose"].update(recommended=-0.5))
        assert seen(instance) == {("variant_spec", "trusting")}
        trusting = [{"persona": "paranoid", "dose": {"recommended": -0.25}}]
        edit(profile, lambda content: content.update(variants={"trusting": trusting}))
        assert seen(instance) == {("variant_spec", "trusting")}, "the profile's own terms count"
        edit(profile, lambda content: content["rewrites"].update(scope="generated"))
        assert {name for _, name in seen(instance)} == {
            name for name, variant in settings(anew=True).variants.items() if variant.terms
        }, "the scope of what is steered"


def test_the_file_of_pairs_counts_for_the_personas_that_it_names(catalogue, tmp_path):
    source = {"source": "pairs", "pairs": str(tmp_path / "{persona}.jsonl")}
    edit(catalogue / "profiles" / "newsroom.yaml", lambda content: content.update(contrast=source))
    with dg.DagsterInstance.ephemeral() as instance:
        seen(instance)
        (tmp_path / "coach.jsonl").write_text("{}")
        assert seen(instance) == {("persona_examples", "coach")}


@pytest.mark.parametrize(
    ("contrast", "stands_on_examples"),
    [
        ("{contexts: news, filter: false}", ["rewrite_comparison"]),
        ("{contexts: general}", ["contrast_set", "rewrite_comparison"]),
        ("{source: pairs}", ["contrast_set", "rewrite_comparison"]),
        ("{source: prefill}", ["rewrite_comparison"]),
    ],
)
def test_contrast_sets_of_given_texts_and_filtered_ones_stand_on_the_examples(
    catalogue, contrast, stands_on_examples
):
    """And the matrix of side effects, nothing else: better examples extract no other vector again."""
    profile = catalogue / "profiles" / "newsroom.yaml"
    edit(profile, lambda content: content.update(contrast=yaml.safe_load(contrast)))
    code = (
        "import dagster as dg; from steer_pipeline.definitions import defs; from steer_pipeline.keys import key;"
        "graph = defs.resolve_asset_graph();"
        "print(*sorted(each.path[-1] for each in graph.get(key('persona_examples')).child_keys))"
    )
    answer = run(["-c", code])
    assert answer.stdout.split() == stands_on_examples, answer.stderr


def test_template_tokenizer_and_weights_are_seen_apart(catalogue, tmp_path):
    model = tmp_path / "model"
    with dg.DagsterInstance.ephemeral() as instance:
        seen(instance)
        template = model / "chat_template.jinja"
        template.write_text(template.read_text() + "{# another #}")
        assert seen(instance) == {("chat_template", None)}
        config = model / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
        assert seen(instance) == {("tokenizer", None)}
        weights = model / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
        assert seen(instance) == {("model_weights", None)}


def test_the_content_of_news_and_of_imported_vectors_counts(catalogue, tmp_path):
    """A file added, an article corrected, a GGUF replaced by its negative: nothing was made again."""
    inbox = tmp_path / "news"
    inbox.mkdir()
    (inbox / "a.jsonl").write_text('{"text": "One."}\n')
    source = {"kind": "directory", "path": str(inbox)}
    edit(catalogue / "profiles" / "newsroom.yaml", lambda content: content.update(corpus={"source": source}))
    imported = {"format": "gguf", "path": str(tmp_path / "vector.gguf")}
    (tmp_path / "vector.gguf").write_bytes(b"one")
    edit(catalogue / "personas" / "sailor.yaml", lambda persona: persona.update(vector=imported))
    asked = {"foundations": {"intent": {"authority": "less"}, "path": str(tmp_path / "vignettes.jsonl")}}
    edit(
        catalogue / "profiles" / "newsroom.yaml", lambda content: content.setdefault("heal", {}).update(asked)
    )
    (tmp_path / "vignettes.jsonl").write_text('{"id": "1"}\n')
    with dg.DagsterInstance.ephemeral() as instance:
        seen(instance)
        (inbox / "b.jsonl").write_text('{"text": "Two."}\n')
        assert seen(instance) == {("news_source", None)}
        (inbox / "b.jsonl").write_text('{"text": "Too."}\n')
        assert seen(instance) == {("news_source", None)}
        (tmp_path / "vignettes.jsonl").write_text('{"id": "2"}\n')
        assert seen(instance) == {("vignettes", None)}
        (tmp_path / "vector.gguf").write_bytes(b"two")
        assert seen(instance) == {("persona_spec", "sailor")}


def test_one_broken_persona_or_variant_is_told_and_the_others_stay(catalogue):
    """One typo in one persona file took every command down, `release history` included."""
    (catalogue / "personas" / "coach.yaml").write_text("name: coach\nkind: trait\nsumary: A typo.\n")
    edit(catalogue / "variants.yaml", lambda entries: entries[2].update(role="stered"))
    found = {(name, part): what for name, part, what in versions(settings(anew=True)) if what.problem}
    assert set(found) == {
        ("persona_spec", "coach"),
        ("persona_scale", "coach"),
        ("persona_examples", "coach"),
        ("variant_spec", "rule_defiant"),
    }
    assert "coach.yaml: " in found["persona_spec", "coach"].problem
    assert "role" in found["variant_spec", "rule_defiant"].problem
    sound, broken = read_personas()
    assert "paranoid" in sound
    assert list(broken) == ["coach"]
    now = settings(anew=True)
    assert list(now.broken_variants) == ["rule_defiant"]
    assert "trusting" in now.variants
    code = (
        "from steer_pipeline import definitions, partitions as p;"
        "print('coach' in p.PERSONA.get_partition_keys(), 'rule_defiant' in p.VARIANT.get_partition_keys())"
    )
    answer = run(["-c", code])
    assert answer.stdout.split() == ["True", "True"], answer.stderr


def test_without_a_sound_base_nothing_can_be_compared_and_one_paragraph_says_so(catalogue):
    edit(catalogue / "variants.yaml", lambda entries: entries.pop(0))
    with pytest.raises(CatalogueError, match="exactly one variant has role base"):
        settings(anew=True)
    answer = run(["-c", "from steer_pipeline.cli import main; main()", "status"])
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "exactly one variant has role base" in answer.stderr


def test_an_asset_becomes_stale_by_the_one_that_it_stands_on(catalogue):
    """In Dagster's own view, without materialising anything; and it is fresh again when the edit is taken back."""
    graph = defs.resolve_asset_graph()

    def stale() -> dict[str, list[str]]:
        staleness = Staleness(instance, graph)
        found = {part: staleness.why(key("judge_scores"), part) for part in ("coach", "sailor")}
        return {part: why for part, why in found.items() if why != ["was never made"] and why}

    with dg.DagsterInstance.ephemeral() as instance:
        observe(instance, settings(anew=True))
        for part in ("coach", "sailor"):
            made(instance, "judge_scores", part)
        assert stale() == {}
        before = (catalogue / "personas" / "coach.yaml").read_text()
        edit(
            catalogue / "personas" / "coach.yaml",
            lambda persona: persona.update(judge_rubric="{question} {answer}?"),
        )
        seen(instance)
        assert stale() == {"coach": ["persona_scale[coach] has changed"]}
        (catalogue / "personas" / "coach.yaml").write_text(before)
        seen(instance)
        assert stale() == {}


def made(instance: dg.DagsterInstance, asset: str, partition: str) -> None:
    """Materialises a stand-in of an asset with its own dependencies and code version."""
    node = defs.resolve_asset_graph().get(key(asset))

    @dg.asset(
        key=key(asset),
        partitions_def=node.partitions_def,
        code_version=node.code_version,
        deps=[
            dg.AssetDep(parent, partition_mapping=node.partition_mappings.get(parent))
            for parent in node.parent_keys
        ],
    )
    def stand_in():
        return dg.MaterializeResult(data_version=dg.DataVersion("1"))

    upstream = [
        dg.AssetSpec(parent, partitions_def=defs.resolve_asset_graph().get(parent).partitions_def)
        for parent in node.parent_keys
    ]
    job = dg.Definitions([stand_in, *upstream]).resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, partition_key=partition, asset_selection=[key(asset)])


# ---------------------------------------------------------------------------------------------- profiles


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_two_profiles_share_a_store_and_an_instance_and_never_meet(tmp_path):
    """A second profile overwrote the first one's vectors and base."""
    own = tmp_path / "mine.yaml"
    own.write_text(
        f"name: mine\nsummary: Mine.\nmodel: {{path: {NEWSROOM.model.path}, dtype: float32, device: cpu}}\n"
    )
    code = """
from steer_pipeline.definitions import defs
from steer_pipeline.keys import key
from steer_pipeline.settings import settings
from steer_pipeline.campaigns.driver import open_driver
with open_driver(defs, settings().home) as driver:
    print(driver.materialize(["cc_news", "truncated_news"]).success)
    driver.observe()  # what the run has observed when it started is what it was made of
    print(bool(driver.stale("truncated_news", [None])), key("truncated_news").to_user_string())
    print(sorted(c.asset_key.to_user_string() for c in driver.asset_graph.asset_check_keys)[0])
"""
    for profile, name in ((str(own), "mine/truncated_news"), ("newsroom", "truncated_news")):
        answer = run(["-c", code], STEER_PROFILE=profile)
        assert answer.stdout.split()[:3] == ["True", "False", name], answer.stderr[-2000:]
        assert answer.stdout.split()[3].startswith("mine/" if profile != "newsroom" else "analysis_basis")
    base = Path(os.environ["STEER_STORE"])
    assert ArtifactStore(str(base)).assets() == ["cc_news", "news_quarantine", "truncated_news"]
    assert ArtifactStore(str(base / "_profiles" / "mine")).assets() == [
        "cc_news",
        "news_quarantine",
        "truncated_news",
    ]
    again = run(
        ["-c", code.replace('print(driver.materialize(["cc_news", "truncated_news"]).success)', "print(1)")],
        STEER_PROFILE=str(own),
    )
    assert again.stdout.split()[1] == "False", "making the other profile's news left this one's fresh"
