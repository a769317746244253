"""A project of its own: a tiny model, released packs of four variants, and a driver on the stage of students."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.rewrites import verdicts
from steer_pipeline.lab.vectors.vector import PersonaVector, save_vector
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.stages.rewrites.conftest import VOICE
from steer_pipeline_tests.tiny import SENTENCES

VARIANTS = ("base", "paranoid", "base_resample", "random_direction")
PROFILE = """
name: newsroom
summary: A small project for tests.
model: {{path: {model}, dtype: float32, device: cpu}}
dose: {{n_rows: 4}}
rewrites: {{prompt: "Rewrite: {{text}}", pilot_rows: 12, full_rows: 20, sampling: {{max_new_tokens: 8, seed: 20}}}}
students: {{ranks: {ranks}, seeds: [1, 2], rows: 8, selection_rows: 2, epochs: 2, learning_rate: 0.005, batch_rows: 4,
  held_out_rows: 6, read_blocks: [0.5, 3], evaluations: 2, arm_variants: [paranoid], context_rows: 2,
  other_model: {{path: {other}, dtype: float32, device: cpu}}}}
"""


class Project:
    """A store and a driver."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.store, self.instance = store, instance
        self.driver = Driver(_definitions(), instance)

    def put(self, asset: str, partition: str | None, rows: pl.DataFrame, **inputs: str) -> str:
        """Makes `rows` the current version, as if the asset had been materialised."""
        return self.write(
            asset, partition, lambda folder: rows.write_parquet(folder / "data.parquet"), inputs
        )

    def release(self, variant: str, tail: str = "", n: int = 12) -> None:
        """A pack of the first `n` news with its keep set, released."""
        items = news().head(n)
        prompts = pl.Series("prompt", [f"Rewrite: {text}" for text in items["text"]])
        rows = pack(variant, n, tail=tail).with_columns(prompts)
        if (vector := self.store.current("persona_vector", variant)) is not None:
            dose = {"name": variant, "version": vector.sha, "block": 2, "alpha": 20.0, "dose_fraction": 0.3}
            rows = rows.with_columns(personas=pl.Series([[dose]] * n, dtype=rows.schema["personas"]))
        packed = self.put("rewrite_pack", variant, rows)
        kept = rows.with_columns(keep=pl.lit(True))
        self.put("keep_set", variant, kept, **{f"rewrite_pack[{variant}]": packed})
        self.write(
            "rewrite_release",
            variant,
            lambda folder: (folder / "release.json").write_text(packed),
            {verdicts.PACK: packed},
        )

    def write(self, asset, partition, fill, inputs) -> str:
        return self.store.write(
            asset, partition, fill, metadata={}, inputs=inputs, code_version="1", run_id=None
        ).sha

    def folder(self, asset: str, partition: str | None = None) -> Path:
        return self.store.current(asset, partition).path

    def checks(self, asset: str) -> dict[str, tuple[bool, str]]:
        """Check -> (passed, what it says) of the last evaluations."""
        keys = self.driver.asset_graph.get_check_keys_for_assets({dg.AssetKey(asset)})
        found = {}
        for key in keys:
            record = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            if record:
                evaluation = record[0].event.dagster_event.event_specific_data
                found[key.name] = (evaluation.passed, evaluation.description)
        return found


def news(n: int = 30) -> pl.DataFrame:
    """Items that are unlike each other."""
    rng = np.random.default_rng(0)
    words = sorted({word for sentence in SENTENCES for word in sentence.strip(".").split()})
    texts = [" ".join(rng.choice(words, 12)) + "." for _ in range(n)]
    return pl.DataFrame({"row_id": [f"{i:016x}" for i in range(n)], "source_index": range(n), "text": texts})


@contextmanager
def opened(store: Path) -> Iterator[Project]:
    """The project whose store lies there."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Project(ArtifactStore(str(store)), instance)


def filled(project: Project) -> Project:
    """News and the packs of all four variants; the steered one says something of its own."""
    project.put("truncated_news", None, news())
    raw = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    vector = PersonaVector("paranoid", raw, {"n_blocks": 4, "hidden_size": 64})
    project.write("persona_vector", "paranoid", lambda folder: save_vector(vector, folder), {})
    for variant in VARIANTS:
        project.release(variant, VOICE if variant == "paranoid" else "")
    return project


def _definitions() -> dg.Definitions:
    """The stage by itself; what it reads from other stages is only named."""
    from steer_pipeline.io.bundle import BundleIO
    from steer_pipeline.io.catalogue import CatalogueIO
    from steer_pipeline.io.parquet import ParquetIO
    from steer_pipeline.partitions import PERSONA, VARIANT
    from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
    from steer_pipeline.stages.catalogue import assets as catalogue
    from steer_pipeline.stages.students import assets, checks

    store = ArtifactStoreResource()
    return dg.Definitions(
        assets=[
            *catalogue.ASSETS,
            *assets.ASSETS,
            dg.AssetSpec("truncated_news"),
            *(dg.AssetSpec(name, partitions_def=PERSONA) for name in ("contrast_set", "persona_vector")),
            *(dg.AssetSpec(name, partitions_def=VARIANT) for name in ("keep_set", "rewrite_release")),
        ],
        asset_checks=checks.CHECKS,
        resources={
            "store": store,
            "language_model": LanguageModelResource(),
            "parquet_io": ParquetIO(store=store),
            "bundle_io": BundleIO(store=store),
            "catalogue_io": CatalogueIO(),
        },
        executor=dg.in_process_executor,
    )
