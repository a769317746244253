"""What the benchmark of scoring compares is the same ranking, made in two ways."""

import pytest

from benchmarks import bench_attribution
from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec
from steer_pipeline.lab.attribution.scoring.methods import Scoring
from steer_pipeline.lab.attribution.scoring.quality import agreement
from steer_pipeline_tests.lab.finetune.rows import examples, spec_of
from steer_pipeline_tests.tiny import lora, tiny_model_dir


def test_the_loop_and_the_batched_way_rank_alike(tmp_path):
    base = tiny_model_dir(tmp_path)
    tuned = spec_of(base, adapter=str(lora(base, tmp_path / "adapter")))
    pool, queries = examples(base, n=7), examples(base, first=100, n=3)
    scoring = Scoring(
        tuned, spec_of(base), tmp_path, tuple(pool), tuple(queries), AttributionScoringSpec(batch_tokens=128)
    )
    one, other = bench_attribution.looped(scoring, scoring.pool), bench_attribution.native(scoring)
    assert agreement(one, other)["largest_difference"] == pytest.approx(0, abs=1e-5)
    assert agreement(one, other)["spearman"] == 1.0
