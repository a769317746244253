"""Writes the labelled texts, or what a model thinks of their tokens.

python -m steer_pipeline_tests.labelled                        writes the texts from their seed
python -m steer_pipeline_tests.labelled --losses MODEL_FOLDER  measures them (SmolLM2: about 60,000 tokens)
"""

import sys
from pathlib import Path

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.heal.labelled import LOSSES, TEXTS, measure_losses, read_texts
from steer_pipeline_tests.labelled.making import labelled_texts

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--losses"]:
        from steer_pipeline.lab.models.loading import load_model

        model = load_model(ModelSpec(path=arguments[1], dtype="float32"), Path.cwd())
        measure_losses(read_texts(ROOT), model).write_parquet(ROOT / LOSSES, compression="zstd")
        return
    (ROOT / TEXTS).parent.mkdir(parents=True, exist_ok=True)
    frame = labelled_texts(ROOT)
    frame.write_ndjson(ROOT / TEXTS)
    print(frame.group_by("split", "label").len().sort("split", "label"))


if __name__ == "__main__":
    main(sys.argv[1:])
