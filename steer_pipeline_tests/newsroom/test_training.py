"""The training job: a head start in copying, and a killed run that ends with the same weights."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file

from newsroom import voices
from newsroom.tokenizer import SPECIALS, VOCABULARY, train_tokenizer
from newsroom.training import (
    Planter,
    Recipe,
    collate,
    encode,
    initial_model,
    planted_directions,
    tasks,
    train,
)

TINY = Recipe(
    hidden=48, blocks=3, heads=3, feed_forward=64, copy_steps=4, steps=5, polish_steps=3, documents_per_step=8
)
SCRIPT = """
import dataclasses, sys
from pathlib import Path
from newsroom import training
recipe = training.Recipe(**eval(sys.argv[2]))
training.CHECKPOINT_EVERY = 3
for line in training.train(recipe, Path(sys.argv[1]), log_every=1):
    print(line["step"], flush=True)
"""


def test_the_tokenizer_is_reversible_deterministic_and_full():
    tokenizer = train_tokenizer(20, n_documents=600)
    text = "Ada Kaya paid $4.2 million (“too much”) on 3 May; naïve café 🌊.\nNext line."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(train_tokenizer(20)) == VOCABULARY
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2]
    assert tokenizer.get_vocab() == train_tokenizer(20, n_documents=600).get_vocab()


def test_the_initial_model_copies_before_it_is_trained():
    model = initial_model(Recipe(), 512, 2, 0)
    once = torch.randint(3, 512, (16, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(input_ids=torch.cat([once, once], 1)).logits[:, 24:-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), once[:, 1:].flatten())
    assert loss < 5.5 < torch.log(torch.tensor(512.0))  # chance is 6.2


def test_planted_directions_are_orthonormal_and_change_the_logits():
    directions = planted_directions(TINY)
    assert directions.shape == (len(voices.DIRECTIONS), 48)
    assert torch.allclose(directions @ directions.T, torch.eye(len(voices.DIRECTIONS)), atol=1e-5)
    model = initial_model(TINY, 300, 2, 0)
    planter = Planter(model, TINY, directions)
    planter.update_norm(4.0)
    ids = torch.randint(3, 300, (2, 9))
    plain = model(input_ids=ids).logits
    planter.plant(torch.nn.functional.one_hot(torch.tensor([0, 1]), len(voices.DIRECTIONS)).float())
    assert not torch.allclose(plain, model(input_ids=ids).logits, atol=1e-3)


def test_loss_falls_on_the_response_alone():
    tokenizer = train_tokenizer(20, n_documents=300)
    document = tasks.document(20, 0, task="dialogue")
    batch = collate([encode(document, tokenizer)], tokenizer.pad_token_id)
    supervised = batch.labels[batch.labels != -100].tolist()
    assert tokenizer.decode(supervised) == document.response + "<|im_end|>"


def _run(folder, recipe: Recipe) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(folder), repr(dataclasses.asdict(recipe))]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    list(train(TINY, tmp_path / "whole"))
    process = _run(tmp_path / "killed", TINY)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 7:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.1)
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "killed" / "model").exists()
    list(train(TINY, tmp_path / "killed"))
    whole, resumed = (load_file(tmp_path / f / "model" / "model.safetensors") for f in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
