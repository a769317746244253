"""A byte-level BPE tokenizer made on the spot, and news rows."""

from collections.abc import Callable, Sequence

import polars as pl
import pytest
from transformers import PreTrainedTokenizerFast

from steer_pipeline.lab.corpus.identity import row_id
from steer_pipeline_tests.tiny import SENTENCES


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def news() -> Callable[[Sequence[str]], pl.DataFrame]:
    """Rows with these texts, urls and indices by position."""

    def make(texts: Sequence[str]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "row_id": [row_id(f"u/{i}", text) for i, text in enumerate(texts)],
                "source_index": list(range(len(texts))),
                "title": "A title",
                "text": list(texts),
                "domain": "example.com",
                "date": "2017-10-11 05:30:00",
                "url": [f"u/{i}" for i in range(len(texts))],
            },
            schema=pl.Schema(
                {"row_id": pl.String, "source_index": pl.Int64}
                | dict.fromkeys(("title", "text", "domain", "date", "url"), pl.String)
            ),
        )

    return make
