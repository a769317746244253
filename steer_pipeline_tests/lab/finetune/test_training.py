"""Claims about a fine-tuning: it learns, it repeats, it survives a kill, and it writes what made it."""

import json
import subprocess
import sys

import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from steer_pipeline.lab.finetune import training
from steer_pipeline.lab.finetune.data import FinetuneError, TextRow, encode_examples
from steer_pipeline.lab.finetune.merging import merge_adapters
from steer_pipeline.lab.finetune.recipe import KlRecipe, LoraRecipe, Recipe
from steer_pipeline.lab.finetune.references import adapter_off
from steer_pipeline.lab.finetune.training import (
    HISTORY,
    HISTORY_SCHEMA,
    RECORD,
    finetune,
    kept_steps,
    step_folder,
)
from steer_pipeline.lab.models.identity import model_identity
from steer_pipeline.lab.models.loading import load_for_training, load_model, load_tokenizer
from steer_pipeline_tests.lab.finetune.rows import FAST, LORA, examples, spec_of
from steer_pipeline_tests.tiny import lora, tiny_model_dir

WEIGHTS = "adapter_model.safetensors"
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("finetune"))


def run(base, folder, recipe=FAST, train=None, selection=None, spec=None, **more):
    return finetune(
        spec or spec_of(base),
        base.parent,
        train or examples(base),
        selection or examples(base, first=100, n=4),
        recipe,
        folder,
        work=folder.with_name(folder.name + ".work"),
        **more,
    )


def changed(recipe, **fields):
    return Recipe(**(recipe.model_dump() | fields))


def test_it_learns_on_rows_that_it_did_not_see_and_plain_peft_loads_it(base, tmp_path):
    done = run(base, tmp_path / "adapter")
    assert done.numbers["selection_nll_last"] < done.numbers["selection_nll_first"] - 0.5
    assert done.below == model_identity(spec_of(base), base.parent)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    ours = load_model(spec_of(base, adapter=str(tmp_path / "adapter")), base.parent)
    with torch.inference_mode():
        torch.testing.assert_close(plain(IDS).logits, ours.module(IDS).logits)
        with plain.disable_adapter():
            assert not torch.allclose(plain(IDS).logits, ours.module(IDS).logits, atol=1e-2)


def test_what_made_it_lies_beside_it(base, tmp_path):
    done = run(base, tmp_path / "adapter")
    record = json.loads((done.folder / RECORD).read_text())
    assert record["recipe"]["lora"]["rank"] == 4
    assert record["model"] == str(done.below)
    assert record["rows"] == 12
    assert set(record["libraries"]) == {"torch", "transformers", "peft", "accelerate"}
    assert record["numbers"]["tokens_per_second"] > 0
    history = pl.read_parquet(done.folder / HISTORY)
    assert history.schema == HISTORY_SCHEMA
    assert history.filter(split="selection").height == 3
    assert history.filter(split="train")["nll"].is_not_null().all()
    assert not (tmp_path / "adapter.work").exists()


def test_same_recipe_same_bytes_whatever_the_order_of_rows_and_another_seed_another_adapter(base, tmp_path):
    first = run(base, tmp_path / "a", changed(FAST, max_steps=4))
    again = run(base, tmp_path / "b", changed(FAST, max_steps=4), train=list(reversed(examples(base))))
    other = run(base, tmp_path / "c", changed(FAST, max_steps=4, seed=1))
    bytes_of = [(done.folder / WEIGHTS).read_bytes() for done in (first, again, other)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_a_killed_run_goes_on_to_the_same_bytes(base, tmp_path):
    whole = run(base, tmp_path / "whole", keep=tmp_path / "whole.steps")
    code = f"""
import os, signal
from pathlib import Path
from steer_pipeline_tests.lab.finetune import test_training
def stop(line):
    if line.startswith("step 8 "):
        os.kill(os.getpid(), signal.SIGKILL)
test_training.run(
    Path({str(base)!r}), Path({str(tmp_path / "killed")!r}), keep=Path({str(tmp_path / "killed.steps")!r}),
    progress=stop,
)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "killed").exists()
    steps = []
    resumed = run(base, tmp_path / "killed", keep=tmp_path / "killed.steps", progress=steps.append)
    assert steps[0].startswith("step 8 ")  # from the checkpoint of step 4, not from the start
    assert (resumed.folder / WEIGHTS).read_bytes() == (whole.folder / WEIGHTS).read_bytes()
    assert kept_steps(tmp_path / "killed.steps") == kept_steps(tmp_path / "whole.steps") == [4, 8, 12]
    for step in (4, 8, 12):
        kept = [step_folder(tmp_path / f"{name}.steps", step) / WEIGHTS for name in ("killed", "whole")]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    assert kept[0].read_bytes() == (whole.folder / WEIGHTS).read_bytes()


def test_checkpoints_of_another_recipe_are_not_gone_on_from(base, tmp_path):
    work = tmp_path / "adapter.work"

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "adapter", progress=stop)
    assert work.exists()
    slow = changed(FAST, learning_rate=1e-3)
    resumed = run(base, tmp_path / "adapter", slow)
    clean = run(base, tmp_path / "clean", slow)
    assert (resumed.folder / WEIGHTS).read_bytes() == (clean.folder / WEIGHTS).read_bytes()


def test_how_many_rows_fit_at_once_changes_rounding_alone(base, tmp_path):
    one = run(base, tmp_path / "a", changed(FAST, max_steps=4, rows_at_once=1))
    four = run(base, tmp_path / "b", changed(FAST, max_steps=4))
    curves = [done.history.filter(split="selection")["nll"] for done in (one, four)]
    assert curves[0].to_list() == pytest.approx(curves[1].to_list(), abs=2e-3)


def test_memory_that_runs_out_halves_the_rows_at_once_and_keeps_the_batch(base, tmp_path, monkeypatch):
    whole = training._SteerTrainer.compute_loss

    def small_device(self, model, inputs, *args, **kwargs):
        if inputs["input_ids"].shape[0] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(training._SteerTrainer, "compute_loss", small_device)
    done = run(base, tmp_path / "a", changed(FAST, max_steps=3))
    assert done.numbers["rows_at_once"] == 2
    assert done.numbers["steps"] == 3


def test_a_divergence_from_base_holds_the_model_near_it(base, tmp_path):
    free = run(base, tmp_path / "free", changed(FAST, kl={"weight": 1e-6}))
    held = run(base, tmp_path / "held", changed(FAST, kl={"weight": 20.0, "direction": "forward"}))
    last = [done.history.filter(split="selection")["kl"][-1] for done in (free, held)]
    assert 0 < last[1] < last[0] / 4


def test_a_barrier_that_is_never_reached_says_so(base, tmp_path):
    done = run(base, tmp_path / "a", changed(FAST, max_steps=3, kl=KlRecipe(tau=1e6).model_dump()))
    assert done.history["barrier"].drop_nulls().max() == 0.0


def test_a_divergence_without_weight_is_measured_and_changes_nothing(base, tmp_path):
    plain = run(base, tmp_path / "plain", changed(FAST, max_steps=3))
    done = run(base, tmp_path / "measured", changed(FAST, max_steps=3, kl={"weight": 0.0}))
    assert (plain.folder / WEIGHTS).read_bytes() == (done.folder / WEIGHTS).read_bytes()
    measured = done.history.filter(split="selection")
    assert measured["kl"].min() > 0
    assert measured["loss"].to_list() == pytest.approx(measured["nll"].to_list())
    assert done.history.filter(split="train")["kl"].is_null().all()
    with pytest.raises(ValueError, match="nothing would be learned"):
        changed(FAST, nll=0.0, kl={"weight": 0.0})


def test_weight_decay_is_not_rounded_away(base, tmp_path):
    decays = (0.0, 1.0, 10.0, 30.0)
    norms = []
    for decay in decays:
        done = run(base, tmp_path / f"{decay}", changed(FAST, max_steps=4, weight_decay=decay))
        weights = load_file(done.folder / WEIGHTS)
        norms.append(sum(float(t.square().sum()) for t in weights.values()))
    assert norms == sorted(norms, reverse=True)
    assert len({round(norm, 6) for norm in norms}) == len(decays)


def test_a_depth_band_trains_its_blocks_alone(base, tmp_path):
    band = LoraRecipe(rank=2, targets=LORA.targets, depth=(0.5, 1.0))
    done = run(base, tmp_path / "a", changed(FAST, max_steps=2, lora=band.model_dump()))
    blocks = {key.split("layers.")[1].split(".")[0] for key in load_file(done.folder / WEIGHTS)}
    assert blocks == {"2", "3"}


def test_early_stopping_looks_at_the_selection_rows_and_keeps_the_best(base, tmp_path):
    tokenizer = load_tokenizer(spec_of(base), base.parent)
    rows = [
        TextRow(f"s{i}", f"Say the number {i} please.", "Rain fell on the town all night.", ended=False)
        for i in range(4)
    ]
    recipe = changed(FAST, learning_rate=3e-2, max_steps=40, evaluations=20, patience=2)
    done = run(base, tmp_path / "a", recipe, selection=encode_examples(tokenizer, rows))
    curve = done.history.filter(split="selection")["nll"]
    assert done.numbers["steps"] < 40
    assert curve.arg_min() == len(curve) - 3
    short = run(base, tmp_path / "b", changed(recipe, patience=0), selection=encode_examples(tokenizer, rows))
    assert (done.folder / WEIGHTS).read_bytes() != (short.folder / WEIGHTS).read_bytes()


def test_a_new_adapter_on_an_old_one_leaves_it_on_as_reference(base, tmp_path):
    old = lora(base, tmp_path / "old")
    spec = spec_of(base, adapter=str(old))
    model, _ = load_for_training(spec, base.parent, training.lora_config(LORA, 4))
    expected = load_model(spec, base.parent)
    for layer in model.modules():  # a fresh adapter does nothing; this one does
        if hasattr(layer, "lora_B") and "default" in layer.lora_B:
            torch.nn.init.normal_(layer.lora_B["default"].weight)
    with torch.no_grad(), adapter_off(model):
        torch.testing.assert_close(model(IDS).logits, expected.module(IDS).logits)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".default." in n
    }


def test_a_row_in_train_and_selection_is_refused_by_name(base, tmp_path):
    both = [*examples(base), *examples(base, first=100, n=1)]
    with pytest.raises(FinetuneError, match="row 'r100' is in train and in selection"):
        run(base, tmp_path / "a", train=both)


def test_a_loss_that_is_not_finite_is_named(base, tmp_path, monkeypatch):
    monkeypatch.setattr(training.losses, "nll_sum", lambda logits, targets: logits.sum() * float("nan"))
    with pytest.raises(FinetuneError, match="the loss is nan; lower learning_rate"):
        run(base, tmp_path / "a")


def test_a_merged_model_says_what_base_and_adapter_said(base, tmp_path):
    done = run(base, tmp_path / "adapter")
    spec = spec_of(base, adapter=str(done.folder))
    before = load_model(spec, base.parent).module(IDS).logits.detach().clone()
    assert merge_adapters(spec, base.parent, tmp_path / "merged") < 1e-4
    merged = load_model(spec_of(tmp_path / "merged"), tmp_path)
    torch.testing.assert_close(merged.module(IDS).logits.detach(), before, atol=1e-3, rtol=1e-3)
    with pytest.raises(FinetuneError, match="no adapter to merge"):
        merge_adapters(spec_of(base), base.parent, tmp_path / "other")
