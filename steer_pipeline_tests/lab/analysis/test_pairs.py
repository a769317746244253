"""Claims about pairs: adapters are merged as PEFT merges them, block by block, in memory that does not grow."""

import gc
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from steer_pipeline.lab.analysis.architecture import LINEAR
from steer_pipeline.lab.analysis.pairs import Checkpoint, ModelPair, PairError, Side, weight_rows
from steer_pipeline_tests.lab.analysis.conftest import N_BLOCKS


def test_an_unmerged_adapter_is_the_merged_model(tiny, tmp_path):
    tiny.merged.save_pretrained(tmp_path / "merged")
    for pair in tiny.pair.blocks():
        theirs = tiny.merged.model.layers[pair.index].state_dict()
        saved = Checkpoint(Side(tmp_path / "merged")).block(pair.index)
        for name, tensor in pair.tuned.tensors.items():
            assert torch.allclose(tensor, theirs[name], atol=1e-5), name
            assert torch.allclose(tensor, saved.tensors[name], atol=1e-5), name
        assert not torch.allclose(pair.tuned.weight("q"), pair.base.weight("q"), atol=1e-3)


def test_two_adapters_add_up(qwen):
    once, twice = (Checkpoint(Side(qwen.folder, (qwen.adapter,) * n)).block(1).weight("o") for n in (1, 2))
    base = qwen.base_block(1).weight("o")
    assert torch.allclose(twice - base, 2 * (once - base), atol=1e-5)


def test_no_more_than_two_blocks_are_held_whatever_the_depth(qwen):
    seen = []
    for pair in qwen.pair.blocks(check=False):
        seen.append(weakref.ref(pair.base.weight("q")))
        gc.collect()
        alive = [ref for ref in seen[:-1] if ref() is not None]
        assert not alive, f"{len(alive)} earlier blocks are still there at block {pair.index}"
    assert len(seen) == N_BLOCKS


def test_shards_are_read_from_the_files_that_hold_them(qwen, tmp_path):
    qwen.module.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    block = Checkpoint(Side(tmp_path / "shards")).block(3)
    assert torch.equal(block.weight("down"), qwen.base_block(3).weight("down"))


def test_norms_and_cosine_of_the_weight_difference(qwen):
    pair = qwen.block(2)
    rows = {row["module"]: row for row in weight_rows(pair)}
    assert list(rows) == list(LINEAR)
    before, after = (block.weight("down").flatten() for block in (pair.base, pair.tuned))
    row = rows["down"]
    assert row["difference"] == pytest.approx(float((after - before).norm()), rel=1e-5)
    assert row["relative"] == pytest.approx(row["difference"] / float(before.norm()), rel=1e-5)
    assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(after, before, dim=0)), rel=1e-5)
    singular = torch.linalg.svdvals(pair.tuned.weight("down") - pair.base.weight("down")) ** 2
    assert row["rank"] == pytest.approx(float(singular.sum() ** 2 / (singular**2).sum()), rel=1e-3)
    assert 1 <= row["rank"] <= 3.001  # of a LoRA of rank 3


def test_models_of_other_shapes_are_no_pair(qwen, tmp_path):
    from transformers import AutoConfig

    other = shutil.copytree(qwen.folder, tmp_path / "other")
    config = AutoConfig.from_pretrained(other)
    config.intermediate_size = 128
    config.save_pretrained(other)
    with pytest.raises(PairError, match="intermediate_size is 96 and 128"):
        next(ModelPair(Side(qwen.folder), Side(other)).blocks())


def test_an_adapter_of_another_model_is_refused_by_block_and_module(qwen, tmp_path):
    adapter = shutil.copytree(qwen.adapter, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in tensors if "layers.1.mlp.down_proj.lora_A" in key)
    tensors[key] = tensors[key][:, :-1].contiguous()
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(PairError, match=r"mlp\.down_proj\.weight in block 1 does not fit"):
        Checkpoint(Side(qwen.folder, (adapter,))).block(1)


def test_a_model_without_safetensors_is_refused_with_the_cure(qwen, tmp_path):
    other = shutil.copytree(qwen.folder, tmp_path / "other")
    (other / "model.safetensors").unlink()
    with pytest.raises(PairError, match="save the model with save_pretrained"):
        Checkpoint(Side(other))
