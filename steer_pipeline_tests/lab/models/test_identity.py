"""Claims about identity: what the bytes are decides, all of them; asking again is cheap; both sides are named."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models import identity
from steer_pipeline.lab.models.identity import ModelIdentity, ModelLoadError, adapter_identity, model_identity
from steer_pipeline.lab.models.loading import load_model, load_tokenizer
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.vectors.vector import VectorError, require_same_model
from steer_pipeline_tests.lab.generation.reference import prompts
from steer_pipeline_tests.lab.personas.builders import vector
from steer_pipeline_tests.tiny import tiny_model_dir

MIDDLE = "model.layers.1.self_attn.q_proj.weight"


def of(folder):
    return model_identity(ModelSpec(path=str(folder)), folder.parent)


def negate_in_place(folder, name=MIDDLE):
    """The same tensors under the same header, but one of them turned; first and last bytes stay."""
    path = folder / "model.safetensors"
    before = path.read_bytes()
    weights = load_file(path)
    weights[name] = -weights[name]
    save_file(weights, path, {"format": "pt"})
    after = path.read_bytes()
    assert (len(after), after[:4096], after[-4096:]) == (len(before), before[:4096], before[-4096:])


@pytest.fixture
def pair(tmp_path):
    """Two model folders that differ in one middle tensor."""
    one = tiny_model_dir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(one, other)
    negate_in_place(other)
    return one, other


@pytest.fixture
def settled(monkeypatch):
    """Files of these tests are a moment old, and are remembered all the same."""
    monkeypatch.setattr(identity, "_SETTLED_NS", -(10**12))


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose bytes are read."""
    found = []
    digest = identity.hashlib.file_digest
    monkeypatch.setattr(
        identity.hashlib, "file_digest", lambda file, kind: found.append(file.name) or digest(file, kind)
    )
    return found


# --------------------------------------------------------------------- two models are never one


def test_one_turned_tensor_in_the_middle_is_another_model(pair):
    one, other = map(of, pair)
    assert one.base != other.base
    assert one.tokenizer == other.tokenizer
    assert one.differences(other) == f"weights differ: {one.base[:12]}… against {other.base[:12]}…"


def test_no_journal_row_of_one_is_taken_for_the_other(pair, tmp_path, caplog):
    journal, sampling = tmp_path / "journal.jsonl", SamplingSpec(temperature=0.0, max_new_tokens=6)
    states, said = [], []
    for folder in (*pair, pair[0]):
        model = load_model(ModelSpec(path=str(folder), device="cpu"), tmp_path)
        rows = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, 3))]
        made = generate(
            model, rows, [SteeringPlan("base")], sampling, journal=journal, progress=states.append
        )
        said.append({row.row_id: row.token_ids for row in made})
    assert [state.sequences_resumed for state in states] == [0, 0, 3]
    assert said[0] == said[2] != said[1]
    assert "3 rows of another model are left alone (weights differ: " in caplog.text


def test_no_vector_of_one_is_used_on_the_other(pair, tmp_path):
    one, other = (load_model(ModelSpec(path=str(folder), device="cpu"), tmp_path) for folder in pair)
    mine = vector(hidden=64, weights_sha=one.weights_sha, model=one.name)
    require_same_model(mine, one)
    with pytest.raises(
        VectorError, match=f"weights differ: {one.weights_sha[:12]}… against {other.weights_sha[:12]}…"
    ):
        require_same_model(mine, other)


def test_weights_replaced_under_a_running_process_are_loaded_anew(tmp_path):
    folder = tiny_model_dir(tmp_path)
    spec = ModelSpec(path=folder.name, device="cpu")
    before = load_model(spec, tmp_path)
    assert load_model(spec, tmp_path) is before
    negate_in_place(folder)
    after = load_model(spec, tmp_path)
    assert after.identity != before.identity
    own, theirs = (one.module.get_parameter(MIDDLE) for one in (before, after))
    assert own.equal(-theirs)


def test_files_that_change_while_they_are_loaded_are_refused(tmp_path, monkeypatch):
    from steer_pipeline.lab.models import loading

    folder, load = tiny_model_dir(tmp_path), loading._load_torch

    def slowly(*args):
        loaded = load(*args)
        negate_in_place(folder)
        return loaded

    monkeypatch.setattr(loading, "_load_torch", slowly)
    with pytest.raises(ModelLoadError, match="files changed while it was loaded"):
        load_model(ModelSpec(path=folder.name, device="cpu"), tmp_path)


# ------------------------------------------------------------------------- what belongs to it


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", "weights differ"),
        ("generation_config.json", "weights differ"),
        ("model.safetensors", "weights differ"),
        ("tokenizer.json", "tokenizer or chat template differ"),
        ("tokenizer_config.json", "tokenizer or chat template differ"),
        ("chat_template.jinja", "tokenizer or chat template differ"),
        ("special_tokens_map.json", "tokenizer or chat template differ"),
        ("additional_chat_templates/tools.jinja", "tokenizer or chat template differ"),
    ],
)
def test_every_file_that_loading_reads_counts(tmp_path, name, part):
    folder = tiny_model_dir(tmp_path)
    before = of(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert before.differences(of(folder)).startswith(part)
    assert ";" not in before.differences(of(folder))


@pytest.mark.parametrize("name", ["README.md", "training_args.bin", "optimizer.bin", "vocab.json"])
def test_what_loading_does_not_read_does_not_count(tmp_path, name):
    folder = tiny_model_dir(tmp_path)
    before = of(folder)
    (folder / name).write_text("{}")
    assert of(folder) == before


def test_a_slow_tokenizer_counts_where_there_is_no_fast_one(tmp_path):
    folder = tiny_model_dir(tmp_path)
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "spiece.model"):
        before = of(folder)
        (folder / name).write_text("{}")
        assert before.tokenizer != of(folder).tokenizer


def test_sharded_weights_count_shard_by_shard_and_only_when_all_are_there(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_model_dir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    before = of(folder)
    data = bytearray(shards[-1].read_bytes())
    data[len(data) // 2] ^= 1
    shards[-1].write_bytes(data)
    assert of(folder).base != before.base
    shards[0].unlink()
    assert of(folder) is None


def test_a_changed_chat_template_is_another_model_and_is_read_anew(tmp_path):
    folder = tiny_model_dir(tmp_path)
    spec = ModelSpec(path=folder.name, device="cpu")
    before = load_model(spec, tmp_path)
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("Be brief. " + text)
    assert load_tokenizer(spec, tmp_path).chat_template.startswith("Be brief. ")
    after = load_model(spec, tmp_path)
    assert after.tokenizer.chat_template.startswith("Be brief. ")
    assert (before.identity.base, before.identity.tokenizer != after.identity.tokenizer) == (
        after.identity.base,
        True,
    )


def test_adapters_count_in_their_order():
    first, second = ModelIdentity("b", "t", ("x", "y")), ModelIdentity("b", "t", ("y", "x"))
    assert first.differences(second) == "adapters differ: x + y against y + x"
    assert first.differences(first.on_base()) == "adapters differ: x + y against none"
    assert first.digest != second.digest
    assert ModelIdentity.parse(str(first)) == first
    with pytest.raises(ValueError, match="no model identity"):
        ModelIdentity.parse("9f86d081884c7d65")


# --------------------------------------------------------------------------- asking again is cheap


def test_a_second_process_reads_nothing_and_imports_no_torch(tmp_path, settled):
    folder = tiny_model_dir(tmp_path)
    first = of(folder)
    code = (
        "import sys; from pathlib import Path\n"
        "from steer_pipeline.catalogue.specs import ModelSpec\n"
        "from steer_pipeline.lab.models import identity\n"
        f"identity.cache_file = lambda: Path({str(identity.cache_file())!r})\n"
        "def read(*_): raise AssertionError('a file was read')\n"
        "identity.hashlib.file_digest = read\n"
        f"found = identity.model_identity(ModelSpec(path={str(folder)!r}), Path('.'))\n"
        f"assert str(found) == {str(first)!r}\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_touched_file_is_read_again_and_keeps_its_identity(tmp_path, settled, reads):
    folder = tiny_model_dir(tmp_path)
    before = of(folder)
    reads.clear()
    assert of(folder) == before
    assert reads == []
    os.utime(folder / "model.safetensors", (1, 1))
    assert of(folder) == before
    assert [os.path.basename(name) for name in reads] == ["model.safetensors"]


def test_a_file_put_in_anothers_place_with_its_size_and_time_is_seen(tmp_path, settled):
    folder = tiny_model_dir(tmp_path)
    weights, before = folder / "model.safetensors", of(folder)
    state = weights.stat()
    fresh = tmp_path / "fresh"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    fresh.write_bytes(data)
    os.utime(fresh, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(fresh, weights)
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert of(folder).base != before.base


def test_a_file_of_this_moment_is_not_remembered(tmp_path, reads):
    folder = tiny_model_dir(tmp_path)
    of(folder)
    reads.clear()
    of(folder)
    assert str(folder / "model.safetensors") in reads


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": 1}'])
def test_a_damaged_cache_is_ignored_and_written_anew(tmp_path, settled, reads, content):
    folder = tiny_model_dir(tmp_path)
    before = of(folder)
    entry = {str(folder / "model.safetensors"): "nonsense"}
    identity.cache_file().write_text(json.dumps(entry) if content == '{"x": 1}' else content)
    assert of(folder) == before
    reads.clear()
    assert of(folder) == before
    assert reads == []


def test_a_home_that_cannot_be_written_costs_time_and_nothing_else(tmp_path, settled, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(identity, "cache_file", lambda: tmp_path / "file" / "hashes.json")
    folder = tiny_model_dir(tmp_path)
    assert of(folder) == of(folder)


# ----------------------------------------------------------------------------------- hub snapshots


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The tiny model as the hub cache keeps it: blobs under their hashes, a snapshot of links."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repo = cache / "models--org--Tiny-4B"
    folder = repo / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    for path in sorted(tiny_model_dir(tmp_path).iterdir()):
        large = path.suffix == ".safetensors"
        name = identity.hashlib.sha256(path.read_bytes()).hexdigest() if large else f"{len(path.name):040x}"
        while (repo / "blobs" / name).exists():
            name = f"{int(name, 16) + 100:040x}"
        shutil.copy(path, repo / "blobs" / name)
        (folder / path.name).symlink_to(repo / "blobs" / name)
    return folder


def test_a_blob_s_name_counts_as_its_hash_until_the_blob_changes(tmp_path, snapshot, settled, reads):
    plain = of(tiny_model_dir(tmp_path))
    reads.clear()
    linked = model_identity(ModelSpec(path=str(snapshot)), tmp_path)
    assert linked == plain
    assert not any(name.endswith(".safetensors") for name in reads)
    assert any(name.endswith("config.json") for name in reads)  # its blob has git's hash
    with (snapshot / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert model_identity(ModelSpec(path=str(snapshot)), tmp_path).base != plain.base


def test_a_hub_id_is_known_from_the_cache_or_not_at_all(tmp_path, snapshot):
    assert model_identity(ModelSpec(path="org/absent"), tmp_path) is None
    by_id = model_identity(ModelSpec(path="org/Tiny-4B"), tmp_path)
    assert by_id == model_identity(ModelSpec(path=str(snapshot)), tmp_path)
    assert identity.name_of(ModelSpec(path=str(snapshot)), tmp_path) == "org/Tiny-4B"
    (snapshot / "model.safetensors").unlink()  # as after a download of the tokenizer alone
    assert model_identity(ModelSpec(path="org/Tiny-4B"), tmp_path) is None


def test_a_vector_that_names_the_hub_id_fits_the_local_snapshot(tmp_path, snapshot):
    model = load_model(ModelSpec(path=str(snapshot), device="cpu"), tmp_path)
    require_same_model(vector(hidden=64, weights_sha=None, model="org/Tiny-4B"), model)
    with pytest.raises(VectorError, match="on 'org/Other-4B'"):
        require_same_model(vector(hidden=64, weights_sha=None, model="org/Other-4B"), model)


def test_an_adapter_in_the_place_of_a_model_is_named(tmp_path):
    folder = tiny_model_dir(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"give its base as model\.path"):
        of(folder)


def test_an_adapter_without_weights_is_named(tmp_path):
    folder = tiny_model_dir(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"no adapter_model\.safetensors"):
        model_identity(ModelSpec(path=folder.name, adapter="adapter"), tmp_path)


def test_an_adapter_is_known_by_config_and_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    before = adapter_identity(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert adapter_identity(tmp_path) == before
    (tmp_path / "adapter_config.json").write_text("{} ")
    changed = adapter_identity(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"Weights")
    assert len({before, changed, adapter_identity(tmp_path)}) == 3
