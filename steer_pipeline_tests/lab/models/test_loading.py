"""Claims about loading: once, with all end tokens, and errors that say what to do."""

import json
import subprocess
import sys

import pytest
import torch

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loading import load_model, load_tokenizer
from steer_pipeline_tests.tiny import tiny_model_dir


def test_a_model_is_loaded_once_with_every_end_token(tmp_path):
    spec = ModelSpec(path=tiny_model_dir(tmp_path).name)
    model = load_model(spec, tmp_path)
    assert model is load_model(spec, tmp_path)
    assert (model.n_blocks, model.hidden_size, model.backend, model.device, model.dtype) == (
        4,
        64,
        "torch",
        "cpu",
        "float32",
    )
    assert model.eos_ids == {
        model.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "assets/no/such/model"}, "no such directory"),
        ({"path": "empty"}, "no config.json"),
        ({"adapter": "nowhere"}, "no adapter_config.json"),
        ({"device": "cuda"}, "model.device is cuda"),
    ],
)
def test_errors_name_the_cure(tmp_path, change, message):
    if torch.cuda.is_available() and "device" in change:
        change, message = {"device": "mps"}, "model.device is mps"
    (tmp_path / "empty").mkdir()
    spec = ModelSpec(**{"path": tiny_model_dir(tmp_path).name, **change})
    with pytest.raises(ModelLoadError, match=message):
        load_model(spec, tmp_path)


def test_compiled_decoding_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="model.compile is of the torch back end"):
        ModelSpec(path="model", backend="mlx", compile=True)


def test_an_unfinished_model_directory_is_refused(tmp_path):
    folder = tiny_model_dir(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_model(ModelSpec(path=folder.name), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard_of"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_model(ModelSpec(path=folder.name, dtype="float32"), tmp_path)


def test_tokenizers_load_without_torch(tmp_path):
    folder = tiny_model_dir(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from steer_pipeline.catalogue.specs import ModelSpec\n"
        "from steer_pipeline.lab.models.loading import load_tokenizer\n"
        "from steer_pipeline.lab.models.prompts import encode_prompt\n"
        f"t = load_tokenizer(ModelSpec(path={str(folder)!r}), Path('.'))\n"
        "assert encode_prompt(t, user='hello')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_without_a_tokenizer_is_named_when_it_is_loaded(tmp_path):
    folder = tiny_model_dir(tmp_path)
    for file in (*folder.glob("tokenizer*"), *folder.glob("special_tokens*"), *folder.glob("chat_template*")):
        file.unlink()
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    spec = ModelSpec(path=folder.name)
    for load in (load_tokenizer, load_model):
        with pytest.raises(ModelLoadError, match=r"tiny-qwen3: .*tokenizer.*save one beside the weights"):
            load(spec, tmp_path)


def test_a_tokenizer_that_makes_nothing_of_text_is_refused(tmp_path):
    folder = tiny_model_dir(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelLoadError, match="makes no tokens of 'A storm"):
        load_tokenizer(ModelSpec(path=folder.name), tmp_path)
