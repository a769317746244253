"""One tiny model with an adapter, and rows that differ from each other, for all tests of scoring."""

import pytest

from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec, ReplaySpec
from steer_pipeline.lab.attribution.scoring.methods import Scoring
from steer_pipeline.lab.finetune.data import TextRow, encode_examples
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline_tests.lab.finetune.rows import spec_of
from steer_pipeline_tests.tiny import SENTENCES, lora, tiny_model_dir

REPLAY = ReplaySpec(rank=2, targets=("q_proj", "down_proj"), epochs=2, batch_rows=4, learning_rate=5e-3)
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def rows(base, name, n, step):
    texts = [
        TextRow(
            f"{name}{i}",
            " ".join(WORDS[(i * step + k) % len(WORDS)] for k in range(4 + i % 3)),
            WORDS[i * step % 40],
        )
        for i in range(n)
    ]
    return tuple(encode_examples(load_tokenizer(spec_of(base), base.parent), texts))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("scoring"))


@pytest.fixture(scope="session")
def tuned(base):
    """Spec of the base with a LoRA of rank 2 on q_proj and down_proj."""
    return spec_of(base, adapter=str(lora(base, base.parent / "adapter")))


@pytest.fixture(scope="session")
def pool(base):
    return rows(base, "row", 10, 3)


@pytest.fixture(scope="session")
def queries(base):
    return rows(base, "query", 3, 7)


@pytest.fixture(scope="session")
def scoring(base, tuned, pool, queries):
    """A function from methods by name to what `score` takes; other rows or settings by keyword."""

    def made(methods, **other):
        settings = {
            name: other.pop(name) for name in ("loss", "batch_tokens", "replay", "quality") if name in other
        }
        spec = AttributionScoringSpec(**({"batch_tokens": 96, "replay": REPLAY} | settings), methods=methods)
        given = {"tuned": tuned, "base": spec_of(base), "home": base.parent, "pool": pool, "queries": queries}
        return Scoring(**(given | other), settings=spec)

    return made
