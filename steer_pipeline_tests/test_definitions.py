"""Facts about the whole graph and the package that no single module can hold."""

import ast
import difflib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

from steer_pipeline import origins
from steer_pipeline.definitions import defs
from steer_pipeline.execution import EXECUTOR, GPU_POOL, GPU_TAGS
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline_tests.graph import graph_text

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "steer_pipeline"
HEAVY = ("torch", "transformers", "peft", "mlx", "mlx_lm", "sentence_transformers", "sklearn", "matplotlib")
OTHERWISE_NAMED = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
GRAPH = defs.resolve_asset_graph()
KEYS = sorted(GRAPH.materializable_asset_keys)
ORIGINS = sorted(GRAPH.observable_asset_keys)
ON_GPU = {
    "model_diagnosis",
    "contrast_set",
    "persona_vector",
    "dose_curve",
    "rewrite_raw",
    "random_band",
    "lr_sweep",
    "trained_vector",
    "vector_comparison",
    "rollouts",
    "student_adapter",
    "student_arms",
    "student_mechanism",
    "student_transfer",
    "vector_transport",
    "heal_dose",
    "heal_samples",
    "heal_adapter",
    "heal_evaluation",
    "heal_round_1",
    "heal_round_2",
    "heal_round_3",
    "word_games",
    "base_adapter",
    "attribution_ranking",
    "attribution_sanity",
    "continuation_adapter",
    "word_eval",
    "subset_losses",
    "attribution_quality",
    "sae",
    "sae_features",
    "analysis_basis",
    "weight_susceptibility",
    "mlp_interpretation",
    "attention_patterns",
    "clean_students",
    "activation_difference",
    "planted_adapters",
    "checkpoint_audit",
    "data_screening",
    "preventative_steering",
}


def _parsed(tag: object) -> object:
    """A tag's value as it was written; Dagster keeps some as JSON text."""
    return json.loads(tag) if isinstance(tag, str) and tag.startswith("{") else tag


def name(key: dg.AssetKey) -> str:
    return key.to_user_string()


def definition(key: dg.AssetKey) -> dg.AssetsDefinition:
    return next(asset for asset in GRAPH.assets_defs if key in asset.keys)


def test_the_graph_is_the_committed_one():
    committed = (ROOT / "steer_pipeline_tests" / "graph.txt").read_text()
    change = "\n".join(
        difflib.unified_diff(committed.splitlines(), graph_text(defs).splitlines(), lineterm="")
    )
    assert not change, (
        f"the graph has changed; if so meant: python -m steer_pipeline_tests.graph > "
        f"steer_pipeline_tests/graph.txt\n{change}"
    )


@pytest.mark.parametrize("key", KEYS, ids=name)
def test_every_asset_says_what_it_is_whose_and_where_it_runs(key):
    node, asset = GRAPH.get(key), definition(key)
    assert len(node.description or "") > 40
    assert node.owners == ["team:steering"]
    assert node.kinds
    assert node.code_version
    assert node.tags["steer/stage"] == node.group_name
    on_gpu = name(key) in ON_GPU
    assert node.tags["steer/device"] == ("gpu" if on_gpu else "cpu")
    assert asset.op.pool == (GPU_POOL if on_gpu else None)
    if on_gpu:
        tags = asset.op.tags
        assert {name: _parsed(tags[name]) for name in GPU_TAGS} == GPU_TAGS


@pytest.mark.parametrize("key", [k for k in KEYS if GRAPH.get(k).check_keys], ids=name)
def test_checks_of_partitioned_assets_are_partitioned_and_all_say_what_they_claim(key):
    for check in GRAPH.get(key).check_keys:
        spec = GRAPH.get_check_spec(check)
        assert spec.partitions_def == GRAPH.get(key).partitions_def
        assert len(spec.description or "") > 20


def test_the_architecture_s_gates_block():
    blocking = {
        f"{name(check.asset_key)}.{check.name}"
        for key in KEYS
        for check in GRAPH.get(key).check_keys
        if GRAPH.get_check_spec(check).blocking
    }
    assert {f"rewrite_pack.{gate}" for gate in GATES} <= blocking
    assert {one.partition(".")[0] for one in blocking} >= {
        "cc_news",
        "truncated_news",
        "contrast_set",
        "persona_vector",
        "dose_curve",
        "keep_set",
    }


def test_generation_runs_over_a_range_in_one_run_and_is_not_what_gates_judge():
    raw = GRAPH.get(dg.AssetKey("rewrite_raw"))
    assert raw.backfill_policy == dg.BackfillPolicy.single_run()
    assert not raw.check_keys


def test_promote_judges_and_releases_without_making_the_pack_again():
    nodes = {node.name for node in defs.resolve_job_def("promote").graph.nodes}
    assert nodes == {"rewrite_pack_gates", "rewrite_release"}


def test_releases_are_decisions_and_nothing_starts_by_itself_in_a_fresh_clone():
    assert GRAPH.get(dg.AssetKey("rewrite_release")).automation_condition is None
    assert all(schedule.default_status.name == "STOPPED" for schedule in defs.schedules)
    running = [sensor.name for sensor in defs.sensors if sensor.default_status.name == "RUNNING"]
    assert running == ["catalogue_watch", "failure_notes"]  # neither starts a run


def test_automation_makes_what_is_cheap_and_what_costs_the_accelerator_by_two_switches():
    sensors = {sensor.name: sensor for sensor in defs.sensors}
    cheap, costly = (
        {name(key) for key in sensors[each].asset_selection.resolve(GRAPH)} & {name(key) for key in KEYS}
        for each in ("automation", "automation_gpu")
    )
    assert costly == ON_GPU
    assert cheap == {name(key) for key in KEYS} - ON_GPU


def test_what_assets_are_made_of_beside_each_other_is_observed():
    assert {name(key) for key in ORIGINS} == {origin.name for origin in origins.ORIGINS}
    for key in ORIGINS:
        assert len(GRAPH.get(key).description or "") > 20
        assert GRAPH.get(key).child_keys, f"nothing is made of {name(key)}"


def test_runs_are_one_process_so_that_a_model_is_loaded_once():
    assert defs.executor is EXECUTOR
    assert EXECUTOR.name == "in_process"


def test_definitions_load_fast_and_without_the_heavy_libraries():
    code = f"""
import json, resource, sys
from steer_pipeline.definitions import defs
defs.get_repository_def()
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, [m for m in {HEAVY} if m in sys.modules]]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, loaded = json.loads(answer.stdout.splitlines()[-1])
    assert loaded == []
    assert seconds < 3.0, f"{seconds:.1f} s of processor time"
    assert "Warning" not in answer.stderr


def test_dagster_validates_the_code_location(tmp_path):
    command = [sys.executable, "-m", "dagster", "definitions", "validate"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "steer_pipeline" in answer.stdout + answer.stderr


def test_every_file_that_names_the_code_location_names_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    location = entry["python_module"]
    assert location["location_name"] == project["dagster"]["code_location_name"] == "steer_pipeline"
    assert project["dg"]["project"]["code_location_name"] == "steer_pipeline"
    modules = {
        location["module_name"],
        project["dagster"]["module_name"],
        project["dg"]["project"]["code_location_target_module"],
    }
    assert modules == {"steer_pipeline.definitions"}


def test_the_instance_keeps_its_state_in_one_ignored_folder():
    instance = (ROOT / "dagster.yaml").read_text()
    folders = re.findall(r"base_dir: (\S+)", instance)
    assert len(folders) == 3
    assert all(folder.startswith("assets_data/.dagster") for folder in folders)
    assert yaml.safe_load(instance)["concurrency"]["pools"] == {"default_limit": 1, "granularity": "op"}
    assert "assets_data/.dagster/" in (ROOT / ".gitignore").read_text().split()


def imports(path: Path, *, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_the_lab_never_imports_dagster_nor_what_is_built_on_it():
    above = re.compile(
        r"steer_pipeline\.(stages|io\.versioned|io\.parquet|io\.bundle|io\.catalogue|resources|automation|show|keys|observing)"
    )
    for path in sorted((PACKAGE / "lab").rglob("*.py")):
        assert "dagster" not in imports(path), path
        assert not above.search(path.read_text()), path


def test_modules_with_assets_do_not_postpone_annotations():
    for path in PACKAGE.rglob("*.py"):
        if "dagster" in imports(path):
            assert "from __future__ import annotations" not in path.read_text(), path


def test_only_one_module_reads_our_environment_variables():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert path.name == "environment.py" or not re.search(r"(environ|getenv)[^\n]*STEER_", text), path


def test_everything_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {
        re.match(r"[\w.-]+", entry)[0].lower().replace("_", "-") for group in groups for entry in group
    }
    own = set(sys.stdlib_module_names) | {"steer_pipeline"}
    for path in PACKAGE.rglob("*.py"):
        for module in imports(path) - own:
            distribution = OTHERWISE_NAMED.get(module, module).replace("_", "-")
            assert distribution in declared, f"{path}: {distribution} is not in pyproject.toml"


def test_constraints_pin_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {re.match(r"[\w.-]+", entry)[0].lower().replace("_", "-") for group in groups for entry in group}
    assert wanted <= pinned, sorted(wanted - pinned)
