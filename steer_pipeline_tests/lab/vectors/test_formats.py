"""Files of other tools come in at the block they belong to, or are refused; ours go out as GGUF."""

import hashlib
import json

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader, GGUFWriter

from steer_pipeline.catalogue.loading import load_personas
from steer_pipeline.catalogue.specs import ImportedVector
from steer_pipeline.lab.vectors.formats import (
    FormatError,
    export_chatspace,
    export_easysteer,
    export_gguf,
    export_janus,
    export_persona_vectors,
    export_vector,
    import_chatspace,
    import_declared,
    import_easysteer,
    import_gguf,
    import_janus,
    import_persona_vectors,
    import_trait_file,
    import_vector,
    persona_yaml,
)
from steer_pipeline.lab.vectors.vector import VectorError, load_vector, require_same_model, save_vector
from steer_pipeline_tests.lab.personas.builders import model_like, vector

HERE = {"model": "Qwen/Qwen3-4B-Instruct-2507", "n_blocks": 36}


def direction(seed=0, hidden=16):
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(hidden).astype(np.float32))
    return values / values.norm()


def janus(folder, layer=-3, values=None, name="persona_paranoid_L-3", **fields):
    values = direction() if values is None else values
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"layer_idx": layer, "hidden_size": len(values), **fields}))
    torch.save(values, path.with_suffix(".pt"))
    return path


# ---------------------------------------------------------------------------------------- Janus


@pytest.mark.parametrize(
    ("made_with", "layer", "block", "flag"),
    [
        ("torch", -2, 34, None),
        ("torch", -3, 33, None),
        ("torch", -36, 0, None),
        ("torch", 20, 19, "Janus adds it at block 20"),
        ("mlx", -1, 35, None),
        ("mlx", -3, 35, "label -3 is unreliable"),
        ("mlx", 0, 0, None),
        ("mlx", 20, 20, None),
    ],
)
def test_a_janus_layer_means_the_block_where_its_direction_was_read(tmp_path, made_with, layer, block, flag):
    path = janus(tmp_path, layer, name="plain")
    imported = import_janus(path, "paranoid", made_with=made_with, **HERE)
    assert imported.present_blocks == (block,)
    np.testing.assert_allclose(imported.at(block), direction().numpy())
    flags = imported.metadata["flags"]
    assert flags == [] if flag is None else flag in flags[0]


def test_a_janus_vector_read_after_the_final_norm_is_refused_unless_its_block_is_declared(tmp_path):
    path = janus(tmp_path, -1, name="plain")
    with pytest.raises(FormatError, match="after the final norm"):
        import_janus(path, "paranoid", **HERE)
    declared = import_janus(path, "paranoid", block=35, **HERE)
    assert declared.present_blocks == (35,)
    assert "approximation" in declared.metadata["flags"][0]


@pytest.mark.parametrize(
    ("layer", "block", "told"),
    [
        (0, None, "embedding"),
        (36, None, "outside"),
        (-37, None, "outside"),
        (-3, 30, "remove the declared block"),
    ],
)
def test_a_janus_index_that_means_no_block_is_refused(tmp_path, layer, block, told):
    with pytest.raises(FormatError, match=told):
        import_janus(janus(tmp_path, layer), "paranoid", block=block, **HERE)


def test_a_janus_import_records_both_hashes_the_norm_and_what_the_name_says(tmp_path):
    path = janus(tmp_path, -2, values=2 * direction(), name="persona_paranoid_for_4B_L-3_v2")
    imported = import_janus(path, "paranoid", **HERE)
    source = imported.metadata["source"]
    for file in (path, path.with_suffix(".pt")):
        assert source["sha256"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source["original_norms"] == {"34": pytest.approx(2)}
    assert imported.metadata["flags"] == [
        "file name says L-3, layer_idx is -2",
        "norm 2 at block 34 where 1 is usual",
    ]


def test_a_bf16_janus_tensor_becomes_fp32(tmp_path):
    imported = import_janus(janus(tmp_path, values=direction().bfloat16()), "paranoid", **HERE)
    assert imported.raw.dtype == np.float32
    np.testing.assert_allclose(imported.at(33), direction().numpy(), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (torch.zeros(16), "block 33 is zero"),
        (torch.full((16,), torch.nan), "not finite"),
        (torch.ones(2, 8), r"shape \[2, 8\]"),
    ],
)
def test_a_broken_janus_tensor_is_refused(tmp_path, values, told):
    path = janus(tmp_path, values=values)
    path.write_text(json.dumps({"layer_idx": -3, "hidden_size": 16}))
    with pytest.raises(FormatError, match=told):
        import_janus(path, "paranoid", **HERE)


def test_a_janus_file_of_another_model_or_width_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"Qwen3-1\.7B"):
        import_janus(janus(tmp_path, model="Qwen/Qwen3-1.7B", gamma=1.0), "paranoid", **HERE)
    path = janus(tmp_path)
    path.write_text(json.dumps({"layer_idx": -3, "hidden_size": 99}))
    with pytest.raises(FormatError, match="a vector of 99 values"):
        import_janus(path, "paranoid", **HERE)


def test_a_tensor_file_with_code_in_it_is_not_unpickled(tmp_path):
    class Code:
        def __reduce__(self):
            return (eval, ("1 + 1",))

    path = janus(tmp_path)
    torch.save(Code(), path.with_suffix(".pt"))
    with pytest.raises(FormatError, match="not a file of plain tensors"):
        import_janus(path, "paranoid", **HERE)


def test_a_missing_janus_file_or_field_is_named(tmp_path):
    path = janus(tmp_path)
    path.write_text(json.dumps({"layer_idx": "-3", "hidden_size": 16}))
    with pytest.raises(FormatError, match="field layer_idx is '-3'"):
        import_janus(path, "paranoid", **HERE)
    path.write_text(json.dumps({"layer_idx": -3, "hidden_size": 16}))
    path.with_suffix(".pt").unlink()
    with pytest.raises(FormatError, match=r"L-3\.pt: no such file"):
        import_janus(path, "paranoid", **HERE)
    with pytest.raises(FormatError, match=r"none\.json: no such file"):
        import_janus(tmp_path / "none.json", "paranoid", **HERE)


@pytest.mark.parametrize(("made_for", "layer"), [("torch", -4), ("mlx", 2)])
def test_a_vector_exported_for_janus_comes_back_identical_at_its_block(tmp_path, made_for, layer):
    original = vector(n_blocks=6, blocks=(2,))
    assert export_janus(original, tmp_path / "v.json", made_for=made_for) == layer
    bare = torch.load(tmp_path / "v.pt", weights_only=True)
    assert bare.dtype == torch.float32
    assert bare.shape == (8,)
    back = import_janus(tmp_path / "v.json", "paranoid", model="tiny", n_blocks=6, made_with=made_for)
    assert back.present_blocks == (2,)
    np.testing.assert_array_equal(back.raw, original.raw)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.json", "v.pt"]


def test_no_janus_export_is_labelled_with_an_index_that_means_another_block(tmp_path):
    last = vector(n_blocks=6, blocks=(5,))
    with pytest.raises(VectorError, match="no index for the output of the last block"):
        export_janus(last, tmp_path / "v.json")
    assert export_janus(last, tmp_path / "v.json", made_for="mlx") == 5  # MLX takes any negative one for this
    with pytest.raises(VectorError, match="has 6 blocks and the format holds one"):
        export_janus(vector(n_blocks=6), tmp_path / "v.json")
    assert export_janus(vector(n_blocks=6), tmp_path / "v.json", block=1) == -5


# ---------------------------------------------------------------------------------------- persona_vectors


def test_persona_vectors_rows_are_embedding_blocks_and_a_normed_last_row(tmp_path):
    rows = torch.arange(1.0, 6.0)[:, None] * torch.ones(5, 8)
    torch.save(rows, tmp_path / "response_avg_diff.pt")
    imported = import_persona_vectors(tmp_path / "response_avg_diff.pt", "evil", model="m", n_blocks=4)
    assert imported.present_blocks == (0, 1, 2)
    assert [float(imported.at(block)[0]) for block in (0, 1, 2)] == [2, 3, 4]
    assert "after the final norm" in imported.metadata["flags"][0]
    with pytest.raises(VectorError, match="no direction at block 3"):
        imported.at(3)


def test_persona_vectors_of_another_depth_are_refused(tmp_path):
    torch.save(torch.ones(5, 8), tmp_path / "v.pt")
    with pytest.raises(FormatError, match="an embedding and 4 blocks; model m has 36 blocks"):
        import_persona_vectors(tmp_path / "v.pt", "evil", model="m", n_blocks=36)


def trait_file(folder, *, roles=False, **changes):
    pairs = [{"pos": f"Be bad, way {i}.", "neg": f"Be good, way {i}."} for i in range(5)]
    data = {
        "instruction": [{"pos": pair["pos"]} for pair in pairs] if roles else pairs,
        "questions": [f"What now, {i}?" for i in range(20)],
        "eval_prompt": "Rate {question} and {answer} from 0 to 100, or say REFUSAL.",
        **changes,
    }
    path = folder / "evil.json"
    path.write_text(json.dumps(data))
    return path


def test_a_trait_file_becomes_a_catalogue_entry_that_the_catalogue_loads(tmp_path):
    persona = import_trait_file(trait_file(tmp_path), opposite="helpful")
    assert persona.kind == "trait"
    assert persona.positive.instructions[0] == "You are an evil assistant. Be bad, way 0."
    assert persona.negative.instructions[4] == "You are a helpful assistant. Be good, way 4."
    assert (persona.positive.name, persona.negative.name) == ("evil", "helpful")
    assert len(persona.questions) == 20
    assert "{answer}" in persona.judge_rubric
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "evil.yaml").write_text(persona_yaml(persona))
    assert load_personas(tmp_path / "personas")["evil"] == persona
    assert "vector" not in yaml.safe_load(persona_yaml(persona))


def test_a_file_without_negative_instructions_is_a_role_against_the_plain_assistant(tmp_path):
    persona = import_trait_file(trait_file(tmp_path, roles=True), name="night_nurse")
    assert persona.kind == "role"
    assert persona.positive.instructions[0] == "Be bad, way 0."
    assert persona.negative.name == "assistant"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"instruction": []}, "instruction is missing or empty"),
        ({"instruction": [{"pos": "a", "neg": "b"}, {"pos": "c"}]}, r"instruction\[1\]: either all"),
        ({"instruction": [{"neg": "b"}]}, r"instruction\[0\]\.pos is missing"),
        ({"eval_prompt": "Rate it."}, "must contain"),
        ({"questions": "none"}, "questions"),
    ],
)
def test_a_broken_trait_file_is_refused_with_its_field(tmp_path, changes, told):
    with pytest.raises(FormatError, match=told):
        import_trait_file(trait_file(tmp_path, **changes))


# ---------------------------------------------------------------------------------------- chatspace


def chatspace(folder, values, layer=22, **fields):
    torch.save({"steering_vector": values}, folder / "steering_vector.pt")
    config = {"model_name": HERE["model"], "target_layer": layer, "init_scale": 0.0, **fields}
    (folder / "steering_config.json").write_text(json.dumps(config))
    return folder


def test_a_chatspace_vector_keeps_its_learned_length_at_its_target_layer(tmp_path):
    imported = import_chatspace(chatspace(tmp_path, 300 * direction()), "analytical", **HERE)
    assert imported.present_blocks == (22,)
    assert np.linalg.norm(imported.at(22)) == pytest.approx(300, rel=1e-5)
    assert imported.metadata["flags"] == []


def test_a_chatspace_vector_without_its_tensor_is_refused(tmp_path):
    chatspace(tmp_path, direction())
    (tmp_path / "steering_vector.pt").unlink()
    with pytest.raises(FormatError, match=r"steering_vector\.pt: no such file"):
        import_chatspace(tmp_path, "analytical", **HERE)


def test_a_chatspace_vector_as_long_as_its_initialisation_is_flagged(tmp_path):
    values = 0.01 * torch.randn(5120, generator=torch.Generator().manual_seed(0))
    imported = import_chatspace(chatspace(tmp_path, values, init_scale=0.01), "analytical", **HERE)
    assert "hardly trained" in imported.metadata["flags"][0]


def test_a_chatspace_vector_of_another_model_is_refused(tmp_path):
    folder = chatspace(tmp_path, direction(), model_name="Qwen/Qwen2.5-32B-Instruct")
    with pytest.raises(FormatError, match=r"Qwen2\.5-32B"):
        import_chatspace(folder, "analytical", **HERE)


def test_a_vector_exported_for_chatspace_comes_back_identical(tmp_path):
    original = vector(n_blocks=6, blocks=(2,))
    export_chatspace(original, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "steering_config.json").read_text())
    assert config == {"model_name": "tiny", "target_layer": 2, "init_scale": 0.0}
    stored = torch.load(tmp_path / "run" / "steering_vector.pt", weights_only=True)
    assert stored.keys() == {"steering_vector"}
    assert stored["steering_vector"].shape == (8,)
    back = import_chatspace(tmp_path / "run", "paranoid", model="tiny", n_blocks=6)
    assert back.present_blocks == (2,)
    np.testing.assert_array_equal(back.raw, original.raw)


def test_a_chatspace_export_needs_one_block_and_leaves_no_half_of_itself(tmp_path, monkeypatch):
    with pytest.raises(VectorError, match="has 6 blocks"):
        export_chatspace(vector(n_blocks=6), tmp_path / "run")
    export_chatspace(vector(n_blocks=6, seed=1), tmp_path / "run", block=3)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("steer_pipeline.lab.vectors.formats.chatspace.write_whole", full)
    with pytest.raises(OSError, match="No space"):
        export_chatspace(vector(n_blocks=6, seed=2), tmp_path / "run", block=3)
    with pytest.raises(FormatError, match=r"steering_config\.json: no such file"):
        import_chatspace(tmp_path / "run", "paranoid", model="tiny", n_blocks=6)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"n_blocks": 5}, True),
        ({"weights_sha": "w2"}, True),
        ({"hidden_size": 9}, False),
    ],
)
def test_a_vector_of_another_model_is_refused_unless_allowed_and_another_width_always(change, allowed):
    mine, other = vector(blocks=(2,)), model_like(**change)
    require_same_model(mine, model_like())
    with pytest.raises(VectorError, match="made on another model"):
        require_same_model(mine, other)
    if allowed:
        require_same_model(mine, other, allow_other_model=True)
    else:
        with pytest.raises(VectorError, match="hidden_size"):
            require_same_model(mine, other, allow_other_model=True)


def test_formats_of_block_outputs_take_no_vector_of_another_site(tmp_path):
    inner = vector(blocks=(2,), site="mlp")
    for export in (export_chatspace, export_janus, export_gguf):
        with pytest.raises(
            VectorError, match="collected at site 'mlp'; the format knows block outputs alone"
        ):
            export(inner, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- GGUF


def repeng_file(path, directions, architecture="controlvector"):
    """As repeng lays one out: model_hint, layer_count (number of directions), direction.<block> in fp32."""
    writer = GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "qwen3")
    writer.add_uint32(f"{architecture}.layer_count", len(directions))
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_like_repeng(path):
    """Fields and directions by the keys that repeng's own reader asks for."""
    reader = GGUFReader(path)

    def text(key):
        return bytes(reader.get_field(key).parts[-1]).decode()

    directions = {
        int(t.name.split(".")[1]): np.array(t.data) for t in reader.tensors if "direction." in t.name
    }
    return text("general.architecture"), text("controlvector.model_hint"), directions


def test_an_exported_vector_comes_back_unchanged_but_for_block_zero(tmp_path):
    original = vector(n_blocks=6)
    written = export_gguf(original, tmp_path / "v.gguf", model_hint="qwen3")
    assert written == [1, 2, 3, 4, 5]
    back = import_gguf(tmp_path / "v.gguf", "paranoid", model="tiny", n_blocks=6)
    assert back.present_blocks == (1, 2, 3, 4, 5)
    np.testing.assert_array_equal(back.raw, original.raw[1:])
    assert back.metadata["flags"] == []
    assert back.metadata["source"]["made_by"] == "steer_pipeline"
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]


def test_repeng_reads_our_export_and_we_read_what_repeng_writes(tmp_path):
    original = vector(n_blocks=4)
    export_gguf(original, tmp_path / "ours.gguf", model_hint="qwen3")
    architecture, hint, directions = read_like_repeng(tmp_path / "ours.gguf")
    assert (architecture, hint) == ("controlvector", "qwen3")
    repeng_file(tmp_path / "theirs.gguf", {f"direction.{k}": v for k, v in directions.items()})
    back = import_gguf(tmp_path / "theirs.gguf", "paranoid", model="tiny", n_blocks=4)
    np.testing.assert_array_equal(back.raw, original.raw[1:])
    assert "after the final norm" in back.metadata["flags"][0]
    assert back.metadata["source"]["model_hint"] == "qwen3"


def test_llama_cpp_labels_a_direction_one_higher_than_the_block_it_was_read_at(tmp_path):
    ones = np.ones(8, np.float32)
    path = repeng_file(tmp_path / "v.gguf", {"direction.1": ones, "direction.3": 3 * ones})
    imported = import_gguf(path, "paranoid", model="tiny", n_blocks=4, made_by="llama.cpp")
    assert imported.present_blocks == (0, 2)
    assert float(imported.at(2)[0]) == 3
    assert "one block before" in imported.metadata["flags"][0]


def test_block_zero_is_exported_only_when_asked_for(tmp_path):
    only_zero = vector(n_blocks=4, blocks=(0,))
    with pytest.raises(VectorError, match="only block 0"):
        export_gguf(only_zero, tmp_path / "v.gguf")
    assert export_gguf(only_zero, tmp_path / "v.gguf", blocks=[0]) == [0]
    with pytest.raises(VectorError, match="no direction at block 3"):
        export_gguf(only_zero, tmp_path / "v.gguf", blocks=[3])


@pytest.mark.parametrize(
    ("directions", "architecture", "told"),
    [
        ({"direction.1": np.ones(8, np.float32)}, "llama", "general.architecture is 'llama'"),
        ({}, "controlvector", "no direction"),
        ({"direction.9": np.ones(8, np.float32)}, "controlvector", "means block 9 of a model of 4"),
        ({"weird": np.ones(8, np.float32)}, "controlvector", "tensor 'weird'"),
        ({"direction.1": np.ones(8, np.float64)}, "controlvector", "F64"),
        (
            {"direction.1": np.ones(8, np.float32), "direction.2": np.ones(9, np.float32)},
            "controlvector",
            "different widths",
        ),
        ({"direction.1": np.zeros(8, np.float32)}, "controlvector", "block 1 is zero"),
    ],
)
def test_a_file_that_is_no_control_vector_is_refused(tmp_path, directions, architecture, told):
    path = repeng_file(tmp_path / "v.gguf", directions, architecture)
    with pytest.raises(FormatError, match=told):
        import_gguf(path, "paranoid", model="tiny", n_blocks=4)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "v.gguf").write_bytes(b"not a gguf file at all, but long enough to have a header")
    with pytest.raises(FormatError, match="not a GGUF file"):
        import_gguf(tmp_path / "v.gguf", "paranoid", model="tiny", n_blocks=4)


# ---------------------------------------------------------------------------------------- by catalogue


def test_every_format_is_imported_by_its_catalogue_entry_and_can_be_stored(tmp_path):
    janus(tmp_path, name="j")
    torch.save(torch.ones(37, 16), tmp_path / "p.pt")
    (tmp_path / "c").mkdir()
    chatspace(tmp_path / "c", direction())
    repeng_file(tmp_path / "g.gguf", {"direction.20": direction().numpy()})
    entries = {
        "janus": ("j.json", (33,)),
        "persona_vectors": ("p.pt", tuple(range(35))),
        "chatspace": ("c", (22,)),
        "gguf": ("g.gguf", (20,)),
    }
    for kind, (path, blocks) in entries.items():
        source = ImportedVector(format=kind, path=path)
        imported = import_declared(source, "paranoid", home=tmp_path, **HERE)
        save_vector(imported, tmp_path / "stored" / kind)
        stored = load_vector(tmp_path / "stored" / kind)
        assert stored.present_blocks == blocks
        assert stored.metadata["source"]["kind"] == kind
        assert stored.metadata["source"]["sha256"]


def test_a_block_is_declared_for_janus_files_only(tmp_path):
    repeng_file(tmp_path / "g.gguf", {"direction.20": direction().numpy()})
    with pytest.raises(FormatError, match=r"vector\.block"):
        import_declared(ImportedVector(format="gguf", path="g.gguf", block=3), "p", home=tmp_path, **HERE)


# ---------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "path", "blocks"),
    [
        ("janus", "v.json", (2,)),
        ("chatspace", "run", (2,)),
        ("gguf", "v.gguf", (2,)),
        ("repeng", "v.gguf", (0, 1, 2, 3, 4, 5)),
        ("easysteer", "v.gguf", (0, 1, 2, 3, 4, 5)),
        ("persona_vectors", "v.pt", (0, 1, 2, 3, 4)),
    ],
)
def test_what_is_exported_by_name_is_told_by_its_looks_and_comes_back(tmp_path, name, path, blocks):
    original = vector(n_blocks=6)
    export_vector(original, tmp_path / path, name, block=2 if blocks == (2,) else None, model_hint="qwen3")
    back = import_vector(tmp_path / path, "paranoid", model="tiny", n_blocks=6)
    assert back.present_blocks == blocks
    np.testing.assert_array_equal(back.raw, original.raw[list(blocks)])
    assert name != "easysteer" or back.metadata["flags"] == []


def test_a_persona_vectors_export_holds_every_block_one_row_later_and_no_zeros_in_between(tmp_path):
    original = vector(n_blocks=4)
    export_persona_vectors(original, tmp_path / "v.pt")
    rows = torch.load(tmp_path / "v.pt", weights_only=True)
    assert rows.shape == (5, 8)
    assert not rows[0].any()
    np.testing.assert_array_equal(rows[1:].numpy(), original.raw)
    with pytest.raises(VectorError, match="no direction at 2 of the blocks"):
        export_persona_vectors(vector(n_blocks=4, blocks=(1,)), tmp_path / "one.pt")


def test_easysteers_own_field_is_written_and_read_and_other_components_are_refused(tmp_path):
    export_easysteer(vector(n_blocks=4), tmp_path / "v.gguf", blocks=[1])
    reader = GGUFReader(tmp_path / "v.gguf")
    field = reader.get_field("controlvector.easysteer")
    assert json.loads(bytes(field.parts[field.data[0]])) == {
        "version": 1,
        "component": "hidden_states",
        "metadata": None,
    }
    writer = GGUFWriter(tmp_path / "heads.gguf", "controlvector")
    writer.add_string("controlvector.easysteer", json.dumps({"version": 1, "component": "attention_heads"}))
    writer.add_tensor("direction.1", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="attention_heads, not from block outputs"):
        import_vector(tmp_path / "heads.gguf", "p", model="tiny", n_blocks=4)


def test_a_bare_direction_of_easysteer_needs_its_block_declared(tmp_path):
    torch.save(direction(hidden=8), tmp_path / "v.pt")
    with pytest.raises(FormatError, match="declare its block"):
        import_easysteer(tmp_path / "v.pt", "p", model="tiny", n_blocks=4)
    assert import_easysteer(tmp_path / "v.pt", "p", model="tiny", n_blocks=4, block=3).present_blocks == (3,)


def test_what_looks_like_no_format_is_refused_with_those_that_there_are(tmp_path):
    (tmp_path / "v.npy").write_bytes(b"x")
    with pytest.raises(FormatError, match="persona_vectors: NAME.pt"):
        import_vector(tmp_path / "v.npy", "p", model="tiny", n_blocks=4)
    janus(tmp_path, name="j")
    with pytest.raises(FormatError, match="read by its JSON"):
        import_vector(tmp_path / "j.pt", "p", model="tiny", n_blocks=4)
    with pytest.raises(FormatError, match="'llama.cpp' is not written"):
        export_vector(vector(), tmp_path / "v.gguf", "llama.cpp")
