"""GGUF files as models like any other: converted once to a plain directory in the user's cache.

In: a `.gguf` file, and perhaps a chat template beside it (`NAME.jinja`, or `chat_template.jinja`). Out: a directory as
`save_pretrained` writes it, dequantised, that `load_model` reads; it is there whole or not at all. The model's identity
is the hash of the file, so that a copy under another name is the same model.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steer_pipeline.lab.models.errors import ModelLoadError

_LARGE = (
    4 << 30
)  # bytes of a file from which on the directory holds bfloat16: fp32 would be up to eight times as large


def converted(path: Path, folder: Path, template: Path | None) -> Path:
    """The directory of a GGUF file's model; made if it is missing (seconds to minutes, 4 bytes a parameter).

    Args:
        folder: where it lies, or will lie.
        template: a chat template beside the file, where there is one.

    Raises:
        ModelLoadError: no GGUF file, an architecture or quantisation that transformers does not read, no tokenizer or
            end token in it.
    """
    return made_once(folder, lambda part: convert(path, part, template))


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a folder that `make` fills under another name first; whoever comes second takes the first one's."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=target.parent) as folder:
        part = Path(folder) / target.name
        part.mkdir()
        make(part)
        try:
            os.rename(part, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def convert(gguf: Path, folder: Path, template: Path | None = None) -> None:
    """Saves a GGUF file's model, dequantised, with its tokenizer and chat template.

    Raises:
        ModelLoadError: as `converted`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _require_readable(gguf)
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with _quiet(), _told(gguf):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if template is not None:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        dtype = torch.bfloat16 if gguf.stat().st_size > _LARGE else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype)
        # its weights are dequantised, and save_pretrained refuses as long as these say otherwise
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _require_readable(gguf: Path) -> None:
    """A whole GGUF file of an architecture that transformers reads, with the tokens that open and end its texts."""
    from gguf import GGUFReader
    from transformers import __version__
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        fields = GGUFReader(gguf).fields
        kind, wants_bos = (
            fields[key].contents() if key in fields else None
            for key in ("general.architecture", "tokenizer.ggml.add_bos_token")
        )
    except (ValueError, IndexError, OverflowError, KeyError) as error:
        raise ModelLoadError(
            f"model {gguf}: no whole GGUF file ({error}); download or copy it again"
        ) from error
    # transformers tests for the name of one inside of the other: qwen2moe and qwen2_moe, gpt-oss and gpt_oss
    plain = str(kind).replace("-", "").replace("_", "")
    known = sorted(GGUF_SUPPORTED_ARCHITECTURES)
    if plain not in {name.replace("-", "").replace("_", "") for name in known}:
        raise ModelLoadError(
            f"model {gguf}: GGUF of architecture {kind!r}, which transformers {__version__} does not read (it reads "
            f"{', '.join(known)}); give the model's own directory with config.json and safetensors"
        )
    if "tokenizer.ggml.eos_token_id" not in fields:
        raise ModelLoadError(
            f"model {gguf}: its tokenizer has no end token (tokenizer.ggml.eos_token_id); set it with "
            "gguf-new-metadata or give the model's own directory"
        )
    if wants_bos and "tokenizer.ggml.bos_token_id" not in fields:
        raise ModelLoadError(
            f"model {gguf}: its tokenizer wants a BOS token before each text (tokenizer.ggml.add_bos_token) and names "
            "none (tokenizer.ggml.bos_token_id); set it with gguf-new-metadata or give the model's own directory"
        )


@contextmanager
def _quiet() -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def _told(gguf: Path) -> Any:
    try:
        yield
    except ModelLoadError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        raise ModelLoadError(
            f"model {gguf}: transformers cannot read this GGUF file ({type(error).__name__}: {error}); give the "
            "model's own directory with config.json and safetensors, or another quantisation"
        ) from error
