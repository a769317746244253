"""Whatever a step reads of the profile is declared beside its asset: else an edit would leave what is old fresh.

Every asset is made once, tiny, while each attribute of the profile that a step reads is written down.
"""

import sys
from collections import defaultdict
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.catalogue import specs as models
from steer_pipeline.definitions import defs
from steer_pipeline.io.reader import read_rows
from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites import release
from steer_pipeline.lineage import sections_of
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings

# Where a result comes from (provenance), which model is loaded (an origin of its own), where things lie.
NOT_BY_STEPS = (
    "provenance.py",
    "language_model.py",
    "origins.py",
    "settings.py",
    "artifact_store.py",
    "keys.py",
    "loading.py",
)
# These read matrices, or run the model on ids that another asset has made: no text becomes tokens in them.
WEIGHTS_ALONE = ("clean_students", "model_pair", "sae_features")
PROFILE = """
name: newsroom
summary: All of it, tiny.
model: {path: assets_data/newsroom/model, dtype: float32, device: cpu}
contrast: {contexts: news, n_contexts: 24, max_new_tokens: 6, filter: false}
dose: {blocks: [2], fractions: [0.0, 0.4], n_rows: 4, n_random: 2}
rewrites: {prompt: "Rewrite: {text}", pilot_rows: 4, full_rows: 6, sampling: {max_new_tokens: 6}}
behaviour: {source: {kind: newsroom}, train_tokens: 600, validation_tokens: 300, test_tokens: 300, min_count: 2}
training: {learning_rates: [0.02, 0.05], epochs: 1, seeds: [41, 42]}
rollouts: {n_questions: 2, random_seeds: [1], minilm_texts: 40, sampling: {max_new_tokens: 6}}
students:
  {ranks: [2], seeds: [1], rows: 2, selection_rows: 1, epochs: 1, held_out_rows: 2, read_blocks: [2],
   arm_variants: [paranoid], context_rows: 1}
heal:
  blocks: [2]
  pool: {n: 8, n_held_out: 4}
  prompts: {max_new_tokens: 16, samples_per_prompt: 2}
  calibration: {n_tokens: 4, target_nats: 3.0, tolerance: 0.9}
  gate: {doses: [1.0], n_prompts: 4, n_random: 3}
  controller: {target_share: 0.1, min_dose: 0.5, max_dose: 1.0, n_prompts: 2, max_probes: 2}
  filter: {min_kept: 2, keep_truncated: true, max_spread: null, min_nll_ratio: null}
  base_arm: {loss: {rank: 2, max_steps: 1, batch_rows: 2}}
  seeds: [1]
  n_random: 2
  selection_rows: 1
  evaluation: {max_new_tokens: 6, off_target: [rule_defiant]}
word_games: {n_games: 2, max_turns: 1, guessers: [{max_tokens: 3}]}
attribution:
  sources:
    - {kind: cards, informative: 8, useless: 6, misled: 4, mislabelled: 2, duplicates: 2, held_out_words: 10,
       games_per_word: 1}
  splits: {failures: keep}
  learn: {max_steps: 1, batch_rows: 2, rows_at_once: 2, rank: 2}
  k: 4
  scoring:
    methods:
      gradient: {kind: gradient, projection: 2}
      direction: {kind: direction, projection: 2}
      magic: {kind: magic, min_metasmoothness: -1}
      loss: {kind: loss}
    replay: {rank: 2, epochs: 1}
    quality: {n_subsets: 8, halves: false}
  direction: paranoid
  arms:
    top_gradient: {pick: top, ranking: gradient}
    top_predicted: {pick: top, ranking: predicted}
    matched: {pick: matched, like: top_gradient}
  seeds: [1]
sae:
  training: {tokens: 300, epochs: 1, expansion: 1, l0: 8}
  fidelity_rows: 2
  predictor: {k: 3, shuffles: 2, projection: 8, folds: 3}
analysis:
  {pairs: {paranoid: {student: paranoid}, trusting: {heal: nll}}, texts: 4, n_null: 200, clean_pairs: 1, components: 1}
auditing:
  activation: {texts: 8, max_tokens: 16, n_null: 200, n_random: 3}
  plant:
    {personas: [paranoid], doses: [0.3], n_planted: 4, n_clean: 9, shares: [], n_mixed: 0, prompts: 40, rows: 4,
     selection_rows: 1, steps: 1, batch_rows: 4, rank: 2, sampling: {max_new_tokens: 4}}
  screening: {held_out: 8}
  prevention: {wanted: paranoid, unwanted: rule_defiant, strengths: [1.0], seeds: [1]}
variants:
  paranoid: [{persona: paranoid, block: 2, dose: {alpha: 4.0}}]
  random_direction: [{persona: paranoid, block: 2, dose: {alpha: 4.0}, direction: random}]
"""
VARIANTS = ("base", "paranoid", "base_resample", "random_direction")
LAB = (
    "behaviour_set", "lr_sweep", "trained_vector", "vector_comparison", "rollouts", "minilm_scores", "judge_scores"
)  # fmt: skip

HEAL_TABLES = (
    "heal_stage_table",
    "heal_barrier_sweep",
    "heal_round_1",
    "heal_round_2",
    "heal_round_3",
    "heal_trajectory",
)

ANALYSIS = (
    "model_pair",
    "weight_susceptibility",
    "mlp_interpretation",
    "attention_patterns",
    "activation_difference",
    "pair_report",
)
EXPERIMENTS = ("planted_adapters", "checkpoint_audit", "data_screening", "preventative_steering")


@pytest.fixture
def reads(tmp_path, monkeypatch) -> dict[str, set[str]]:
    """step -> dotted paths that it read of the profile."""
    (tmp_path / "tiny.yaml").write_text(PROFILE)
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "tiny.yaml"))
    places: dict[int, str] = {}
    found: dict[str, set[str]] = defaultdict(set)

    def walk(part: models.Strict, place: str) -> None:
        places[id(part)] = place
        for name in type(part).model_fields:
            value = part.__dict__[name]
            if isinstance(value, models.Strict):
                walk(value, f"{place}{name}.")

    def read(part: models.Strict, name: str) -> object:
        value = object.__getattribute__(part, name)
        place = places.get(id(part))
        if place is None or name.startswith("_") or isinstance(value, models.Strict):
            return value
        reader = Path(sys._getframe(1).f_code.co_filename)
        if reader.name not in NOT_BY_STEPS and "pydantic" not in reader.parts and (step := _step()):
            found[step].add(f"{place}{name}".removesuffix(".model_dump"))
        return value

    walk(settings().profile, "")
    monkeypatch.setattr(models.Strict, "__getattribute__", read)
    return found


def _make_attribution(make) -> None:
    """All of the stage on its smallest rows."""
    make("sft_manifest")
    make("base_adapter")
    make("attribution_ranking", "gradient", "direction", "magic", "loss")
    for asset in ("attribution_sanity", "sae", "sae_features", "rank_predictor", "attribution_subsets"):
        make(asset)
    make("continuation_adapter", "top_gradient", "matched")
    make("word_eval", "base", "base_adapter", "top_gradient", "matched")
    for asset in ("subset_losses", "attribution_quality", "attribution_table"):
        make(asset)


def _step() -> str | None:
    try:
        return dg.OpExecutionContext.get().op.name
    except dg.DagsterInvariantViolationError:
        return None


def test_what_steps_read_of_the_profile_is_what_their_assets_declare(reads):
    with dg.DagsterInstance.ephemeral() as instance:
        driver = Driver(defs, instance)

        def make(asset: str, *partitions: str | None, **how) -> None:
            for partition in partitions or [None]:
                outcome = driver.materialize([asset], partition=partition, **how)
                assert asset in outcome.materialised, outcome.errors

        make("cc_news")
        make("truncated_news")
        make("model_diagnosis")
        make("word_games")
        for asset in ("contrast_set", "persona_vector", "dose_curve"):
            make(asset, "paranoid")
        for variant in VARIANTS:
            make("rewrite_raw", variant)
        for asset in ("rewrite_pack", "keep_set"):
            make(asset, *VARIANTS)
        for asset in ("random_band", "rewrite_comparison", "vector_eval_report"):
            make(asset)
        for asset in LAB:
            make(asset, "analytical")
        make("behaviour_table")
        for variant in VARIANTS:
            _release_all(variant)
        for asset in ("student_adapter", "student_transfer", "student_mechanism"):
            make(asset, *VARIANTS)
        make("student_arms", "base", "paranoid")
        make("student_comparison")
        for asset in ("heal_dose", "heal_samples", "heal_keep_set"):
            make(asset)
        make("heal_adapter", "nll", "reverse_mean_0.03")
        make("heal_evaluation", "base", "steered", "nll", "reverse_mean_0.03")
        for asset in HEAL_TABLES:
            make(asset)
        _make_attribution(make)

        for asset in ("contrast_set", "persona_vector"):
            make(asset, "rule_defiant")
        make("analysis_basis")
        make("clean_students")
        for asset in ANALYSIS:
            make(asset, "paranoid", "trusting")
        for asset in EXPERIMENTS:
            make(asset)

        graph = driver.asset_graph
        declared = {
            name: tuple(sections_of(node.code_version or ""))
            for definition in graph.assets_defs
            for node in (graph.get(each) for each in definition.keys)
            for name in [definition.op.name]
        }
        for check in defs.asset_checks:
            (asset,) = {each.asset_key for each in check.check_keys}
            declared[check.op.name] = tuple(sections_of(graph.get(asset).code_version or ""))
    assert {
        "read_news",
        "model_diagnosis",
        "rewrite_raw",
        "dose_curve",
        "rewrite_pack_gates",
        "lr_sweep",
        "student_transfer",
        "heal_samples",
        "heal_adapter",
        "word_games",
        "sft_manifest",
        "attribution_ranking",
        "word_eval",
        "rank_predictor",
        "attribution_table",
        "analysis_basis",
        "clean_students",
        *ANALYSIS,
        *EXPERIMENTS,
        *HEAL_TABLES,
        *LAB,
    } <= set(reads)
    missing = {
        step: lacking
        for step, paths in sorted(reads.items())
        if (lacking := sorted(path for path in paths if not _covered(path, declared[step])))
    }
    assert not missing, f"{missing}: declare with made_of beside the asset what its step reads"


def _release_all(variant: str) -> None:
    """Keeps all rows of a pack and releases it, though its few cut rewrites pass no gate."""
    store = open_store(settings())
    pack = store.current("rewrite_pack", variant)
    rows = read_rows(store.current("keep_set", variant).path).with_columns(keep=pl.lit(True))
    store.write(
        "keep_set",
        variant,
        lambda folder: rows.write_parquet(folder / "data.parquet"),
        metadata={},
        inputs={f"rewrite_pack[{variant}]": pack.sha},
        code_version="1",
        run_id=None,
    )
    release.move(store, variant, release.prepare(store, variant, pack.sha, "run", "1"), "run")


def test_an_undeclared_section_would_be_found():
    assert _covered("rewrites.sampling.temperature", ("rewrites.sampling",))
    assert not _covered("rewrites.sampling.temperature", ("rewrites.sampling.seed", "rewrites.prompt"))
    assert key("rewrite_raw") in defs.resolve_asset_graph().get_all_asset_keys()


def test_what_reads_the_model_reads_its_tokenizer_and_chat_template_too():
    """Weights alone do not say what a prompt becomes: another template made nothing stale of a persona's vector."""
    graph = defs.resolve_asset_graph()
    parents = {node: graph.get(node).parent_keys for node in graph.materializable_asset_keys}
    reading = {node for node, own in parents.items() if key("model_weights") in own}
    assert len(reading) > 10
    assert {key(name) for name in WEIGHTS_ALONE} <= reading
    for node in sorted(reading - {key(name) for name in WEIGHTS_ALONE}):
        assert {key("tokenizer"), key("chat_template")} <= set(parents[node]), (
            f"{node.to_user_string()} lacks them"
        )


def _covered(path: str, sections: tuple[str, ...]) -> bool:
    # The section as a whole, a part of it, or where the model's files lie: they are origins.
    return any(
        path == each or path.startswith(f"{each}.") for each in (*sections, "model.path", "model.revision")
    )
