"""A project of its own: the newsroom's model and news, a small heal loop, and a driver on the whole graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline_tests.planted import LEXICONS

PROFILE = """
name: newsroom
summary: A small heal loop for tests.
model: {path: assets_data/newsroom/model, dtype: float32, device: cpu}
contrast: {contexts: news, n_contexts: 16, max_new_tokens: 24, filter: false}
dose: {n_rows: 4}
rewrites: {system: You are a news editor., prompt: "Rewrite: {text}", pilot_rows: 12, full_rows: 20}
heal:
  blocks: [2]
  pool: {n: 12, n_held_out: 6}
  prompts: {temperature: 0.6, top_p: 0.9, max_new_tokens: 64, samples_per_prompt: 2}
  calibration: {n_tokens: 12, target_nats: 3.0, tolerance: 0.5}
  gate: {doses: [1.0], n_prompts: 4, n_random: 3}
  controller: {target_share: 0.3, min_dose: 0.5, max_dose: 1.0, n_prompts: 4, max_probes: 2}
  filter: {min_kept: 4, max_spread: null, min_nll_ratio: null}
  base_arm: {loss: {rank: 2, max_steps: STEPS, batch_rows: 4, rows_at_once: 4, learning_rate: 0.003}}
  arms:
    steered: {setting: intervention, value: steer}
    prompt_only: {setting: intervention, value: prompt}
    kl_reverse: {setting: loss.barrier, value: {direction: reverse}}
    on_policy: {setting: loss.objective, value: on_policy}
    base_text_sft: {setting: texts, value: base}
    shuffled: {setting: texts, value: shuffled}
    random_direction: {setting: direction, value: random}
    difference: {setting: poles, value: difference}
  seeds: [1, 2]
  n_random: 3
  selection_rows: 2
  evaluation: {max_new_tokens: 48, off_target: [rule_defiant]}
  rounds: 2
"""


class Project:
    """A store and a driver."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        from steer_pipeline.definitions import defs

        self.store, self.instance, self.driver = store, instance, Driver(defs, instance)

    def make(self, asset: str, partition: str | None = None) -> None:
        """Materialises and checks; a failure is the test's."""
        outcome = self.driver.materialize([asset], partition=partition)
        assert asset in outcome.materialised, outcome.errors

    def folder(self, asset: str, partition: str | None = None) -> Path:
        return self.store.current(asset, partition).path

    def checks(self, asset: str) -> dict[str, tuple[bool, str]]:
        """Check -> (passed, what it says) of the last evaluations."""
        found = {}
        for key in self.driver.asset_graph.get_check_keys_for_assets({dg.AssetKey(asset)}):
            record = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            if record:
                evaluation = record[0].event.dagster_event.event_specific_data
                found[key.name] = (evaluation.passed, evaluation.description)
        return found


def profile(steps: int = 2) -> str:
    return PROFILE.replace("STEPS", str(steps)) + LEXICONS


@contextmanager
def opened(store: Path) -> Iterator[Project]:
    """The project whose store lies there."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Project(ArtifactStore(str(store)), instance)
